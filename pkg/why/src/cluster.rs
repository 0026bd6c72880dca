//! What the API says, and how proxies are run: all that the desired way of a connection follows from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_api::wellknown::{DEFAULT_CLUSTER_DOMAIN, LABEL_SERVICE_NAME};
use svcnet_proxy::inspect::OnNode;

/// Grace beyond the time that a Lease says: clocks of two machines differ.
const LEASE_GRACE_SECONDS: i64 = 10;
/// How long a Lease lasts that does not say it.
const LEASE_SECONDS: i32 = 40;

/// What the API says, and how a node's proxy is run.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// All Services.
    pub services: Vec<Arc<Service>>,
    /// All EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// All pods.
    pub pods: Vec<Pod>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All namespaces, for their labels.
    pub namespaces: Vec<Namespace>,
    /// All NetworkPolicies.
    pub policies: Vec<NetworkPolicy>,
    /// The nodes' Leases.
    pub leases: Vec<Lease>,
    /// Which node answers for the addresses of a LoadBalancer Service, as announcers last told: by
    /// `namespace/service`.
    pub announcers: BTreeMap<String, String>,
    /// How a proxy is run; the same on all nodes but for what is a node's own.
    pub proxy: svcnet_proxy::Config,
    /// The domain of the cluster's names.
    pub domain: String,
    /// The time of all this.
    pub now: Timestamp,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            slices: Vec::new(),
            pods: Vec::new(),
            nodes: Vec::new(),
            namespaces: Vec::new(),
            policies: Vec::new(),
            leases: Vec::new(),
            announcers: BTreeMap::new(),
            proxy: svcnet_proxy::Config::default(),
            domain: DEFAULT_CLUSTER_DOMAIN.to_string(),
            now: Timestamp::UNIX_EPOCH,
        }
    }
}

/// `namespace/name` of an object.
pub(crate) fn key(metadata: &ObjectMeta) -> String {
    format!("{}/{}", namespace(metadata), name(metadata))
}

/// An object's name.
pub(crate) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// An object's namespace.
pub(crate) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

fn is(metadata: &ObjectMeta, of_namespace: &str, called: &str) -> bool {
    name(metadata) == called && namespace(metadata) == of_namespace
}

impl Cluster {
    /// The proxy of that node; of one that is in no place, for nobody's.
    pub fn proxy_on<'a>(&'a self, node: Option<&'a str>) -> OnNode<'a> {
        let name = node.unwrap_or_default();
        OnNode {
            name,
            config: &self.proxy,
            node: self.node(name),
        }
    }

    /// The Service of that name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        let mut services = self.services.iter().map(AsRef::as_ref);
        services.find(|service: &&Service| is(&service.metadata, namespace, name))
    }

    /// The slices of a Service.
    pub(crate) fn slices_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a EndpointSlice> {
        let (of_namespace, called) = (namespace(&service.metadata), name(&service.metadata));
        let slices = self.slices.iter().map(AsRef::as_ref);
        slices.filter(move |slice: &&EndpointSlice| {
            let labels = slice.metadata.labels.as_ref();
            let of = labels.and_then(|labels| labels.get(LABEL_SERVICE_NAME));
            namespace(&slice.metadata) == of_namespace && of.is_some_and(|of| of == called)
        })
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| is(&pod.metadata, namespace, name))
    }

    /// The pod with that address. One on the node's own network has the node's, which is not its alone.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods
            .iter()
            .filter(|pod| !on_host_network(pod) && !is_finished(pod))
            .find(|pod| pod_addresses(pod).any(|ip| ip == address))
    }

    /// The node of that name.
    pub fn node(&self, called: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| name(&node.metadata) == called)
    }

    /// The node with that address.
    pub fn node_at(&self, address: IpAddr) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node_addresses(node).any(|ip| ip == address))
    }

    /// Whether the address is one that pods get.
    pub fn is_of_pods(&self, address: IpAddr) -> bool {
        contains(&self.proxy.cluster_cidrs, address)
    }

    /// Whether the address is one that Services get.
    pub fn is_of_services(&self, address: IpAddr) -> bool {
        contains(&self.proxy.service_cidrs, address)
    }

    /// Why a node is held for dead, if it is.
    pub fn node_down(&self, called: &str) -> Option<String> {
        let Some(node) = self.node(called) else {
            return Some("there is no such Node".to_string());
        };
        let status = node.status.as_ref();
        let conditions = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        if let Some(ready) = ready.filter(|ready| ready.status != "True") {
            let why = ready.message.as_deref().filter(|text| !text.is_empty());
            let why = why.or(ready.reason.as_deref()).unwrap_or("it says nothing");
            return Some(format!("its condition Ready is {}: {why}", ready.status));
        }
        self.lease_stale(called)
    }

    fn lease_stale(&self, called: &str) -> Option<String> {
        let lease = self.leases.iter().find(|lease| name(&lease.metadata) == called)?;
        let spec = lease.spec.as_ref()?;
        let renewed = spec.renew_time.as_ref()?.0;
        let age = self.now.duration_since(renewed).as_secs();
        let lasts = i64::from(spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS));
        (age > lasts + LEASE_GRACE_SECONDS)
            .then(|| format!("its agent renewed its Lease {age} s ago, and it lasts {lasts} s"))
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// A pod's addresses.
pub(crate) fn pod_addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let status = pod.status.as_ref();
    let all = status
        .and_then(|status| status.pod_ips.as_deref())
        .unwrap_or_default();
    let first = status.and_then(|status| status.pod_ip.as_deref()).into_iter();
    let rest = all.iter().map(|ip| ip.ip.as_str());
    let mut seen: Vec<IpAddr> = Vec::new();
    for ip in first.chain(rest).filter_map(|text| text.parse().ok()) {
        if !seen.contains(&ip) {
            seen.push(ip);
        }
    }
    seen.into_iter()
}

/// The node that a pod is on.
pub(crate) fn pod_node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether a pod has the node's addresses.
pub(crate) fn on_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.host_network == Some(true))
}

/// Whether a pod has done its work: its address is not its own any more.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// A node's addresses, that towards the other nodes first.
pub(crate) fn node_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let status = node.status.as_ref();
    let all = status
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let of = |kind: &'static str| all.iter().filter(move |address| address.type_ == kind);
    of("InternalIP")
        .chain(of("ExternalIP"))
        .filter_map(|address| address.address.parse().ok())
}

/// Why a pod is not ready, if it is not.
pub(crate) fn pod_trouble(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_string());
    }
    let Some(status) = pod.status.as_ref() else {
        return Some("nothing is known of it yet".to_string());
    };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    if is_finished(pod) {
        return Some(format!("its phase is {phase}"));
    }
    if pod_addresses(pod).next().is_none() {
        return Some(match pod_node(pod) {
            Some(node) => format!("it has no address yet on {node}"),
            None => "no node runs it yet".to_string(),
        });
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => {
            let why = condition.message.as_deref().filter(|text| !text.is_empty());
            Some(
                why.or(condition.reason.as_deref())
                    .unwrap_or("its condition Ready is False")
                    .to_string(),
            )
        }
        None => Some("it does not say whether it is ready".to_string()),
    }
}
