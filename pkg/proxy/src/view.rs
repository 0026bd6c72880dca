//! What the cluster says that concerns a proxy, held small: no API object stays in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_api::wellknown::{
    ANNOTATION_SCHEDULER, ANNOTATION_WEIGHTS, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, LABEL_ZONE,
};
use svcnet_runtime::Change;

use crate::model::Protocol;
use crate::scheduler::Scheduler;
use crate::weights::Weights;

/// `namespace/name`
pub type Name = Arc<str>;

/// How long ClientIP affinity lasts where the Service does not say (`DefaultClientIPServiceAffinitySeconds`).
const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;

/// Label of the slices of headless Services (`v1.IsHeadlessService`).
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// `loadBalancerSourceRanges` in former times (`v1.AnnotationLoadBalancerSourceRangesKey`).
const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where there is but one.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// The port on each node, if it has one.
    pub node_port: Option<u16>,
}

/// What a proxy needs of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its addresses inside the cluster.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses that others route to a node.
    pub external_ips: Box<[IpAddr]>,
    /// LoadBalancer addresses that nodes answer for.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// How endpoints are chosen, if the Service says it.
    pub scheduler: Option<Scheduler>,
    /// Which endpoints take how many connections, if the Service says it.
    pub weights: Option<Box<Weights>>,
    /// `sessionAffinity: ClientIP` with its time.
    pub affinity_seconds: Option<u32>,
    /// `healthCheckNodePort`, where load balancers ask for endpoints of this node.
    pub health_port: Option<u16>,
    /// `loadBalancerSourceRanges`, if there are any.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// What makes no sense in it and is left aside, in words.
    pub complaints: Box<[Box<str>]>,
}

/// Why nothing is programmed for a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// `clusterIP: None`: DNS answers with the pods themselves.
    Headless,
    /// `type: ExternalName`: DNS answers with a name.
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
    /// It has no address yet.
    NoClusterIp,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Headless => "it is headless, DNS answers with the pods themselves",
            Self::ExternalName => "it is an ExternalName, DNS answers with the name",
            Self::OtherProxy => {
                "its label service.kubernetes.io/service-proxy-name gives it to another proxy"
            }
            Self::NoClusterIp => "it has no cluster IP yet",
        })
    }
}

impl Service {
    /// The compact form of a Service.
    ///
    /// # Errors
    /// The reason why a proxy has nothing to do with it.
    pub fn new(service: &core::Service) -> Result<Self, Skipped> {
        let labels = service.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(LABEL_SERVICE_PROXY_NAME)) {
            return Err(Skipped::OtherProxy);
        }
        let spec = service.spec.as_ref().ok_or(Skipped::NoClusterIp)?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(Skipped::ExternalName);
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return Err(Skipped::Headless);
        }
        let mut cluster_ips = addresses(spec.cluster_ips.as_deref().unwrap_or_default());
        if cluster_ips.is_empty() {
            cluster_ips = spec.cluster_ip.iter().filter_map(|ip| ip.parse().ok()).collect();
        }
        if cluster_ips.is_empty() {
            return Err(Skipped::NoClusterIp);
        }
        let ports = spec.ports.iter().flatten().filter_map(service_port).collect();
        let mut complaints = Vec::new();
        Ok(Self {
            cluster_ips,
            external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer_ips: load_balancer_ips(service),
            ports,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            scheduler: annotation(service, ANNOTATION_SCHEDULER, str::parse, &mut complaints),
            weights: annotation(service, ANNOTATION_WEIGHTS, Weights::parse, &mut complaints).map(Box::new),
            affinity_seconds: affinity_seconds(spec),
            health_port: health_port(spec),
            source_ranges: source_ranges(service, &mut complaints),
            complaints: complaints.into(),
        })
    }
}

/// What the annotation says. With one that makes no sense the Service is as those that have none.
fn annotation<T, E: std::fmt::Display>(
    service: &core::Service,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    complaints: &mut Vec<Box<str>>,
) -> Option<T> {
    let text = service.metadata.annotations.as_ref()?.get(name)?;
    match parse(text.trim()) {
        Ok(value) => Some(value),
        Err(error) => {
            complaints.push(format!("annotation {name}: {error}").into());
            None
        }
    }
}

fn affinity_seconds(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS_DEFAULT))
}

/// Only a LoadBalancer with policy `Local` has one.
fn health_port(spec: &core::ServiceSpec) -> Option<u16> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec
        .health_check_node_port
        .and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port != 0 && local && spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Of the field, or else of the annotation that it had before. What does not parse allows nobody.
fn source_ranges(service: &core::Service, complaints: &mut Vec<Box<str>>) -> Option<Box<[IpNet]>> {
    let field = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_source_ranges.as_ref());
    let annotation = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ANNOTATION_SOURCE_RANGES));
    let texts: Vec<&str> = match (field, annotation) {
        (Some(field), _) if !field.is_empty() => field.iter().map(String::as_str).collect(),
        (_, Some(annotation)) if !annotation.trim().is_empty() => annotation.split(',').collect(),
        _ => return None,
    };
    let network = |text: &&str| match text.trim().parse() {
        Ok(network) => Some(network),
        Err(_) => {
            complaints.push(format!("source range {text:?} is no network as in 192.0.2.0/24").into());
            None
        }
    };
    Some(texts.iter().filter_map(network).collect())
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port
            .node_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0),
    })
}

fn load_balancer_ips(service: &core::Service) -> Box<[IpAddr]> {
    let is_load_balancer = service
        .spec
        .as_ref()
        .is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .filter(|_| is_load_balancer);
    status
        .into_iter()
        .flat_map(|status| status.ingress.iter().flatten())
        // `ipMode: Proxy` says that a balancer outside terminates connections: not ours to short-cut.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

fn addresses(texts: &[String]) -> Box<[IpAddr]> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it is going away but still answers (KEP-1669).
    pub serving_terminating: bool,
    /// Whom it is for, by node.
    pub for_nodes: NodeHint,
    /// The zones that it is for; none where there is no hint.
    pub for_zones: Box<[Name]>,
    /// The zone that it is in.
    pub zone: Option<Name>,
    /// The node that it is on.
    pub node: Option<Name>,
    /// The pod that it is.
    pub pod: Option<Box<str>>,
}

/// What `hints.forNodes` of an endpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeHint {
    /// Nothing.
    None,
    /// This node is among them.
    Here,
    /// Others.
    Elsewhere,
}

/// What a proxy needs to know of the node that it is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<Box<str>>,
    /// Its main addresses, one or two (`InternalIP`).
    pub addresses: Box<[IpAddr]>,
}

impl NodeFacts {
    /// Those of a Node object.
    pub fn new(node: &core::Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let internal = addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP");
        Self {
            zone: labels
                .and_then(|labels| labels.get(LABEL_ZONE))
                .map(|zone| zone.as_str().into()),
            addresses: internal
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        }
    }
}

/// What a proxy needs of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to.
    pub service: Name,
    /// Name, protocol and number of each port.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// Its endpoints; those that can not be used are left out.
    pub endpoints: Box<[SliceEndpoint]>,
}

impl Slice {
    /// The compact form of a slice; nothing for those of no Service or a headless one, and those of names instead of addresses.
    pub fn new(slice: &discovery::EndpointSlice, node_name: &str, names: &mut Names) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels
            .get(LABEL_SERVICE_NAME)
            .filter(|_| !labels.contains_key(LABEL_HEADLESS))?;
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        if slice.address_type == "FQDN" {
            return None;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            Some((
                port.name.as_deref().unwrap_or_default().into(),
                Protocol::parse(port.protocol.as_deref())?,
                number,
            ))
        });
        let endpoints = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|e| slice_endpoint(e, node_name, names));
        Some(Self {
            service: format!("{namespace}/{service}").into(),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        })
    }
}

fn slice_endpoint(
    endpoint: &discovery::Endpoint,
    node_name: &str,
    names: &mut Names,
) -> Option<SliceEndpoint> {
    // All addresses of an endpoint are the same pod; the first is the one to use.
    let ip = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    // Unknown means ready (the API says so), and serving is what ready would be if it were not terminating.
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let serving_terminating = serving && terminating;
    if !ready && !serving_terminating {
        return None;
    }
    let hints = endpoint.hints.as_ref();
    let nodes = hints
        .and_then(|hints| hints.for_nodes.as_deref())
        .unwrap_or_default();
    let zones = hints
        .and_then(|hints| hints.for_zones.as_deref())
        .unwrap_or_default();
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    Some(SliceEndpoint {
        ip,
        local: endpoint.node_name.as_deref() == Some(node_name),
        ready,
        serving_terminating,
        for_nodes: match nodes {
            [] => NodeHint::None,
            nodes if nodes.iter().any(|node| node.name == node_name) => NodeHint::Here,
            _ => NodeHint::Elsewhere,
        },
        for_zones: zones.iter().map(|zone| names.shared(&zone.name)).collect(),
        zone: endpoint.zone.as_deref().map(|zone| names.shared(zone)),
        node: endpoint.node_name.as_deref().map(|node| names.shared(node)),
        pod: target.and_then(|target| target.name.as_deref()).map(Into::into),
    })
}

/// One copy of each name that many endpoints have.
#[derive(Debug, Default)]
pub struct Names(HashSet<Name>);

impl Names {
    fn shared(&mut self, name: &str) -> Name {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Name = name.into();
        self.0.insert(name.clone());
        name
    }
}

/// Services and slices as last heard of.
#[derive(Debug, Default)]
pub struct View {
    node_name: Box<str>,
    services: HashMap<Name, Service>,
    /// By Service and then by name, so that the first of two that say different things is the same everywhere.
    slices: HashMap<Name, BTreeMap<Name, Slice>>,
    slice_owner: HashMap<Name, Name>,
    names: Names,
    node: NodeFacts,
    services_listed: bool,
    slices_listed: bool,
    node_awaited: bool,
}

impl View {
    /// Nothing heard yet.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            ..Self::default()
        }
    }

    /// Whether the lists of Services and of slices have both arrived: before that, what is missing may just be late.
    pub fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed && !self.node_awaited
    }

    /// From now on it is not complete before the Node has been heard of too.
    pub fn await_node(&mut self) {
        self.node_awaited = true;
    }

    /// What is known of this node.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// The Service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Takes in a change of Services, and adds those that it concerns to `dirty`.
    pub fn change_services(&mut self, change: Change<core::Service>, dirty: &mut BTreeSet<Name>) {
        match change {
            Change::Apply(service) => self.put_service(&service, dirty),
            Change::Delete(service) => self.remove_service(&name_of(&service.metadata), dirty),
            Change::Reset(services) => {
                let there: HashSet<Name> = services.iter().map(|s| name_of(&s.metadata)).collect();
                let gone: Vec<Name> = self
                    .services
                    .keys()
                    .filter(|n| !there.contains(*n))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| self.remove_service(name, dirty));
                services
                    .iter()
                    .for_each(|service| self.put_service(service, dirty));
                self.services_listed = true;
            }
        }
    }

    /// Takes in a change of this node's Node, and adds the Services that it concerns to `dirty`.
    pub fn change_node(&mut self, change: Change<core::Node>, dirty: &mut BTreeSet<Name>) {
        let is_ours = |node: &&Arc<core::Node>| node.metadata.name.as_deref() == Some(&*self.node_name);
        let node = match &change {
            Change::Apply(node) => Some(node).filter(is_ours),
            Change::Reset(nodes) => nodes.iter().find(is_ours),
            // A node that is taken out of the cluster keeps what it had to its end.
            Change::Delete(_) => None,
        };
        self.node_awaited &= !matches!(change, Change::Reset(_));
        let Some(facts) = node
            .map(|node| NodeFacts::new(node))
            .filter(|facts| *facts != self.node)
        else {
            return;
        };
        if facts.zone != self.node.zone {
            let hinted = |slice: &Slice| slice.endpoints.iter().any(|e| !e.for_zones.is_empty());
            let concerned = self
                .slices
                .iter()
                .filter(|(_, slices)| slices.values().any(hinted));
            dirty.extend(concerned.map(|(service, _)| service.clone()));
        }
        if facts.addresses != self.node.addresses {
            let concerned = self
                .services
                .iter()
                .filter(|(_, service)| service.source_ranges.is_some());
            dirty.extend(concerned.map(|(name, _)| name.clone()));
        }
        self.node = facts;
    }

    /// Takes in a change of slices, and adds the Services that it concerns to `dirty`.
    pub fn change_slices(&mut self, change: Change<discovery::EndpointSlice>, dirty: &mut BTreeSet<Name>) {
        match change {
            Change::Apply(slice) => self.put_slice(&slice, dirty),
            Change::Delete(slice) => self.remove_slice(&name_of(&slice.metadata), dirty),
            Change::Reset(slices) => {
                let there: HashSet<Name> = slices.iter().map(|s| name_of(&s.metadata)).collect();
                let gone: Vec<Name> = self
                    .slice_owner
                    .keys()
                    .filter(|n| !there.contains(*n))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| self.remove_slice(name, dirty));
                slices.iter().for_each(|slice| self.put_slice(slice, dirty));
                self.slices_listed = true;
            }
        }
    }

    fn put_service(&mut self, service: &core::Service, dirty: &mut BTreeSet<Name>) {
        let name = name_of(&service.metadata);
        match Service::new(service) {
            Ok(service) => {
                if self.services.get(&name) != Some(&service) {
                    dirty.insert(name.clone());
                    self.services.insert(name, service);
                }
            }
            Err(reason) => {
                tracing::trace!(object.name = %name, ?reason, "service is not ours");
                self.remove_service(&name, dirty);
            }
        }
    }

    fn remove_service(&mut self, name: &Name, dirty: &mut BTreeSet<Name>) {
        if self.services.remove(name).is_some() {
            dirty.insert(name.clone());
        }
    }

    fn put_slice(&mut self, slice: &discovery::EndpointSlice, dirty: &mut BTreeSet<Name>) {
        let name = name_of(&slice.metadata);
        let Some(mut slice) = Slice::new(slice, &self.node_name, &mut self.names) else {
            self.remove_slice(&name, dirty);
            return;
        };
        if self
            .slice_owner
            .get(&name)
            .is_some_and(|owner| *owner != slice.service)
        {
            self.remove_slice(&name, dirty);
        }
        // One copy of the Service's name serves all.
        if let Some((service, _)) = self.services.get_key_value(&slice.service) {
            slice.service = service.clone();
        }
        let slices = self.slices.entry(slice.service.clone()).or_default();
        if slices.get(&name) != Some(&slice) {
            dirty.insert(slice.service.clone());
            self.slice_owner.insert(name.clone(), slice.service.clone());
            slices.insert(name, slice);
        }
    }

    fn remove_slice(&mut self, name: &Name, dirty: &mut BTreeSet<Name>) {
        let Some(service) = self.slice_owner.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        dirty.insert(service);
    }
}

fn name_of(metadata: &ObjectMeta) -> Name {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()).into()
}
