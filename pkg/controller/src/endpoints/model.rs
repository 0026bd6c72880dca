//! Services, Pods, Endpoints and EndpointSlices, cut down to what decides who serves whom.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use svcnet_api::types::legacy;
use svcnet_api::wellknown::LABEL_ZONE;

pub(super) const MANAGER_SELECTED: &str = "endpointslice-controller.k8s.io";
pub(super) const MANAGER_MIRRORED: &str = "endpointslicemirroring-controller.k8s.io";
pub(super) const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
pub(super) const LABEL_SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Label of Endpoints that were made from a selector (KEP-4974).
pub(super) const LABEL_ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(super) const ENDPOINTS_MANAGER: &str = "endpoint-controller";
pub(super) const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
pub(super) const ANNOTATION_OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
pub(super) const ANNOTATION_LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub(super) type Labels = BTreeMap<String, String>;

/// `addressType` of the slices that are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a Service sends its traffic to on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TargetPort {
    Number(i32),
    /// A port that each pod names for itself.
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
    pub(super) target: TargetPort,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    pub(super) created: Option<Timestamp>,
    /// Empty where there is none. ExternalName Services have none, whatever they say.
    pub(super) selector: Labels,
    pub(super) external: bool,
    pub(super) headless: bool,
    pub(super) publish_not_ready: bool,
    pub(super) distribution: Distribution,
    pub(super) families: Vec<Family>,
    pub(super) ports: Vec<ServicePort>,
}

/// `trafficDistribution`: which clients endpoints are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distribution {
    /// All alike; also where the Service asks for what is not known here.
    Even,
    /// Those of the same zone: `PreferSameZone`, formerly `PreferClose`.
    SameZone,
    /// Those of the same node, and of the same zone where no endpoint is on it.
    SameNode,
}

impl Distribution {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("PreferClose" | "PreferSameZone") => Self::SameZone,
            Some("PreferSameNode") => Self::SameNode,
            _ => Self::Even,
        }
    }

    /// The hints of an endpoint. One that is not ready gets none: whoever reads them asks ready ones alone.
    pub(super) fn hints(self, ready: bool, node: Option<&str>, zone: Option<&str>) -> Hints {
        let named = |wanted: bool, name: Option<&str>| {
            let name = name.filter(|_| ready && wanted);
            name.map(ToString::to_string).into_iter().collect()
        };
        Hints {
            zones: named(self != Self::Even, zone),
            nodes: named(self == Self::SameNode, node),
        }
    }
}

/// Whom an endpoint is for; for everybody where both are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hints {
    pub(super) zones: Vec<String>,
    pub(super) nodes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodPort {
    name: String,
    protocol: String,
    number: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ready: bool,
    /// Since when it is ready or not.
    pub(super) ready_since: Option<Timestamp>,
    pub(super) terminating: bool,
    /// It ran to its end: it will never serve again.
    pub(super) finished: bool,
    pub(super) hostname: Option<String>,
    pub(super) subdomain: Option<String>,
    pub(super) ports: Vec<PodPort>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) number: i32,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
}

/// The object behind an address: nearly always a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Target {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    /// Absent in mirrored slices, as is `terminating`.
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
    pub(super) hostname: Option<String>,
    pub(super) node: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) hints: Hints,
    pub(super) target: Option<Target>,
}

/// What makes two endpoints the same one in different states.
pub(super) type EndpointId = (IpAddr, Option<Target>, Option<String>);

impl Endpoint {
    pub(super) fn id(&self) -> EndpointId {
        (self.address, self.target.clone(), self.hostname.clone())
    }
}

/// The object that a slice was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// All of a slice but its name and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) family: Family,
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) labels: Labels,
    /// Without the trigger time, which by itself is no reason to write.
    pub(super) annotations: Labels,
    pub(super) owner: Option<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    pub(super) hostname: Option<String>,
    pub(super) node: Option<String>,
    pub(super) target: Option<Target>,
}

/// Addresses that all serve all of the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subset {
    pub(super) ready: Vec<Address>,
    pub(super) not_ready: Vec<Address>,
    pub(super) ports: Vec<Port>,
}

/// All of an Endpoints object but its name and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoints {
    pub(super) subsets: Vec<Subset>,
    pub(super) labels: Labels,
    /// Without the trigger time.
    pub(super) annotations: Labels,
}

impl Service {
    pub(super) fn from_object(object: &core::Service) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let external = spec.type_.as_deref() == Some("ExternalName");
        let families = spec.ip_families.iter().flatten();
        let mut families: Vec<Family> = families
            .map(|family| if family == "IPv6" { Family::V6 } else { Family::V4 })
            .collect();
        if families.is_empty() {
            let address = spec.cluster_ip.as_deref().and_then(legacy::address);
            families.push(address.map_or(Family::V4, Family::of));
        }
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
            selector: if external {
                Labels::new()
            } else {
                spec.selector.unwrap_or_default()
            },
            external,
            headless: spec.cluster_ip.as_deref() == Some("None"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            distribution: Distribution::parse(spec.traffic_distribution.as_deref()),
            families,
            ports: spec
                .ports
                .iter()
                .flatten()
                .map(ServicePort::from_object)
                .collect(),
        }
    }

    pub(super) fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty()
            && self
                .selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl ServicePort {
    fn from_object(port: &core::ServicePort) -> Self {
        let target = match &port.target_port {
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
            Some(IntOrString::Int(number)) if *number != 0 => TargetPort::Number(*number),
            _ => TargetPort::Number(port.port),
        };
        Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(tcp),
            app_protocol: port.app_protocol.clone(),
            target,
        }
    }

    /// The port that a pod serves this one on, or nothing where it does not have a port of that name.
    pub(super) fn on(&self, pod: &Pod) -> Option<Port> {
        let number = match &self.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => {
                pod.ports
                    .iter()
                    .find(|port| port.name == *name && port.protocol == self.protocol)?
                    .number
            }
        };
        Some(Port {
            name: self.name.clone(),
            number,
            protocol: self.protocol.clone(),
            app_protocol: self.app_protocol.clone(),
        })
    }
}

impl Pod {
    pub(super) fn from_object(object: &core::Pod) -> Self {
        let meta = &object.metadata;
        let status = object.status.clone().unwrap_or_default();
        let spec = object.spec.as_ref();
        let ready = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut addresses: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let containers = spec.into_iter().flat_map(|spec| {
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers.iter().chain(sidecars)
        });
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()),
            addresses,
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map(|time| time.0),
            terminating: meta.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            hostname: spec.and_then(|spec| spec.hostname.clone()),
            subdomain: spec.and_then(|spec| spec.subdomain.clone()),
            ports: containers
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(PodPort::from_object)
                .collect(),
        }
    }

    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }

    pub(super) fn target(&self) -> Target {
        Target {
            kind: "Pod".to_string(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }

    /// The pod's own name in the Service's domain, where the Service governs it.
    pub(super) fn hostname_in(&self, service: &Service) -> Option<String> {
        let governed = self.subdomain.as_deref() == Some(service.name.as_str());
        self.hostname
            .clone()
            .filter(|hostname| governed && !hostname.is_empty())
    }
}

impl PodPort {
    fn from_object(port: &core::ContainerPort) -> Option<Self> {
        // Only named ports are ever looked up.
        Some(Self {
            name: port.name.clone().filter(|name| !name.is_empty())?,
            protocol: port.protocol.clone().unwrap_or_else(tcp),
            number: port.container_port,
        })
    }
}

/// The zone that a node says it is in.
pub(super) fn zone(node: &core::Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(LABEL_ZONE).cloned()
}

/// The protocol of a port that names none.
pub(super) fn tcp() -> String {
    "TCP".to_string()
}
