//! Frontends and endpoints by Service, as a user looks at them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use svcnet_api::types::legacy;
use svcnet_netlink::nft::Family;

use super::Connections;
use crate::model::{Fate, Frontend, FrontendKey};
use crate::scheduler::Scheduler;
use crate::view::Service;

/// One port of a Service, in one address family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceShown {
    /// `namespace/service`, with `:port` where ports have names.
    pub name: String,
    /// How an endpoint is chosen.
    pub scheduler: Scheduler,
    /// How long a client stays with its endpoint, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// Where clients connect to.
    pub frontends: Vec<FrontendShown>,
    /// Where connections can go to, by the names of the pods.
    pub endpoints: Vec<EndpointShown>,
}

/// A place that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendShown {
    /// As `10.96.0.1:443/tcp`, or `*:30080/tcp` for a port of each address of the node.
    pub address: String,
    /// Which of the Service's addresses it is.
    pub kind: Kind,
    /// What becomes of connections.
    pub traffic: Traffic,
    /// What becomes of those from outside the cluster, where that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Traffic>,
    /// Networks that clients may come from, where that is restricted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<IpNet>>,
    /// Whether the kernel holds it as it should; nothing where that was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_kernel: Option<bool>,
}

/// Which of a Service's addresses a frontend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub enum Kind {
    /// Its address inside the cluster.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A port of each node.
    NodePort,
    /// An address that nodes answer for.
    LoadBalancer,
    /// An address that others route to a node.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "cluster IP",
            Self::NodePort => "node port",
            Self::LoadBalancer => "load balancer",
            Self::ExternalIp => "external IP",
        })
    }
}

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub enum Traffic {
    /// They go to any endpoint.
    Balanced,
    /// They go to endpoints of this node.
    LocalOnly,
    /// They are refused: there is no endpoint.
    Refused,
    /// They are dropped: endpoints are on other nodes only, and the policy is Local.
    Dropped,
}

impl Traffic {
    fn of(fate: &Fate, all: usize) -> Self {
        match fate {
            Fate::Balance(endpoints) if endpoints.len() < all => Self::LocalOnly,
            Fate::Balance(_) => Self::Balanced,
            Fate::NoEndpoints => Self::Refused,
            Fate::OnlyElsewhere => Self::Dropped,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balanced => "to any endpoint",
            Self::LocalOnly => "to endpoints here only",
            Self::Refused => "refused: no endpoints",
            Self::Dropped => "dropped: endpoints on other nodes only",
        })
    }
}

/// A place that connections can go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointShown {
    /// Address and port.
    pub at: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Its share of new connections against the others'.
    pub weight: u16,
    /// The pod that it is, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Live connections over this node to it; nothing where they can not be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<usize>,
}

/// All of it, out of frontends in the order of their names. `holds` says whether the kernel holds a frontend, where
/// that is known.
pub fn show(
    frontends: &[Frontend],
    services: &[Arc<core::Service>],
    slices: &[Arc<EndpointSlice>],
    connections: Option<&Connections>,
    holds: impl Fn(FrontendKey) -> Option<bool>,
) -> Vec<ServiceShown> {
    let kinds = Kinds::of(services);
    let targets = targets(slices);
    let mut ports: BTreeMap<(&str, Family), Vec<&Frontend>> = BTreeMap::new();
    for frontend in frontends {
        let port = ports.entry((&frontend.name, frontend.key.family()));
        port.or_default().push(frontend);
    }
    let shown = ports.into_iter().filter_map(|((name, _), frontends)| {
        let first = frontends.first()?;
        let mut endpoints: BTreeMap<SocketAddr, EndpointShown> = BTreeMap::new();
        for frontend in &frontends {
            for endpoint in frontend.endpoints() {
                let (pod, node) = targets.get(&endpoint.at.ip()).cloned().unwrap_or_default();
                let shown = endpoints.entry(endpoint.at).or_insert(EndpointShown {
                    at: endpoint.at,
                    local: endpoint.local,
                    weight: endpoint.weight,
                    pod,
                    node,
                    connections: connections.map(|_| 0),
                });
                shown.weight = shown.weight.max(endpoint.weight);
            }
            if let Some(counted) = connections {
                for shown in endpoints.values_mut() {
                    shown.connections = shown
                        .connections
                        .map(|count| count + counted.to(frontend.key, shown.at));
                }
            }
        }
        let mut endpoints: Vec<EndpointShown> = endpoints.into_values().collect();
        endpoints.sort_by(|a, b| (&a.pod, a.at).cmp(&(&b.pod, b.at)));
        let all = endpoints.len();
        let frontend_shown = |frontend: &&Frontend| FrontendShown {
            address: address(frontend.key),
            kind: kinds.kind(frontend),
            traffic: Traffic::of(&frontend.fate, all),
            outside: frontend.outside.as_ref().map(|fate| Traffic::of(fate, all)),
            sources: frontend.sources.as_ref().map(|nets| nets.to_vec()),
            in_kernel: holds(frontend.key),
        };
        Some(ServiceShown {
            name: name.to_string(),
            scheduler: first.scheduler,
            affinity_seconds: first.affinity_seconds,
            frontends: frontends.iter().map(frontend_shown).collect(),
            endpoints,
        })
    });
    shown.collect()
}

/// A frontend's place, short.
fn address(key: FrontendKey) -> String {
    match key {
        FrontendKey::Address { ip, protocol, port } => format!("{}/{protocol}", SocketAddr::new(ip, port)),
        FrontendKey::NodePort { protocol, port, .. } => format!("*:{port}/{protocol}"),
    }
}

/// Which addresses are what.
struct Kinds {
    load_balancers: Vec<IpAddr>,
}

impl Kinds {
    fn of(services: &[Arc<core::Service>]) -> Self {
        let known = services.iter().filter_map(|service| Service::new(service).ok());
        Self {
            load_balancers: known.flat_map(|service| service.load_balancer_ips).collect(),
        }
    }

    fn kind(&self, frontend: &Frontend) -> Kind {
        match frontend.key {
            FrontendKey::NodePort { .. } => Kind::NodePort,
            FrontendKey::Address { .. } if frontend.inside => Kind::ClusterIp,
            FrontendKey::Address { ip, .. } if self.load_balancers.contains(&ip) => Kind::LoadBalancer,
            FrontendKey::Address { .. } => Kind::ExternalIp,
        }
    }
}

/// The pod and the node behind each endpoint's address.
fn targets(slices: &[Arc<EndpointSlice>]) -> HashMap<IpAddr, (Option<String>, Option<String>)> {
    let mut targets = HashMap::new();
    for endpoint in slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()) {
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name.clone());
        for ip in endpoint.addresses.iter().filter_map(|text| legacy::address(text)) {
            targets.insert(ip, (pod.clone(), endpoint.node_name.clone()));
        }
    }
    targets
}

impl fmt::Display for ServiceShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.scheduler != Scheduler::Random {
            write!(f, "   chosen by {}", self.scheduler)?;
        }
        if let Some(seconds) = self.affinity_seconds {
            write!(f, "   clients stay for {seconds} s")?;
        }
        writeln!(f)?;
        let width = self.width();
        for frontend in &self.frontends {
            let mut line = format!("  {:width$}   {:13}", frontend.address, frontend.kind.to_string());
            // What is usual goes without saying.
            if frontend.traffic != Traffic::Balanced {
                line += &format!("   {}", frontend.traffic);
            }
            if let Some(outside) = frontend.outside {
                line += &format!("   from outside {outside}");
            }
            if let Some(sources) = &frontend.sources {
                let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
                line += &format!("   only from {}", sources.join(", "));
            }
            if frontend.in_kernel == Some(false) {
                line += "   NOT AS IT SHOULD BE IN THE KERNEL";
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        let places: Vec<String> = self.endpoints.iter().map(EndpointShown::place).collect();
        let place_width = places.iter().map(String::len).max().unwrap_or_default();
        for (endpoint, place) in self.endpoints.iter().zip(&places) {
            endpoint.write(f, width, &format!("{place:place_width$}"))?;
        }
        Ok(())
    }
}

impl ServiceShown {
    fn width(&self) -> usize {
        let frontends = self.frontends.iter().map(|frontend| frontend.address.len());
        let endpoints = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.at.to_string().len() + 3);
        frontends.chain(endpoints).max().unwrap_or_default()
    }
}

impl EndpointShown {
    fn place(&self) -> String {
        let here = if self.local { " (here)" } else { "" };
        match (&self.pod, &self.node) {
            (Some(pod), Some(node)) => format!("{pod} on {node}{here}"),
            (Some(pod), None) => pod.clone(),
            (None, Some(node)) => format!("on {node}{here}"),
            (None, None) => "no pod".to_string(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, width: usize, place: &str) -> fmt::Result {
        write!(f, "  -> {:w$}   {place}", self.at.to_string(), w = width - 3)?;
        if self.weight != 1 {
            write!(f, "   weight {}", self.weight)?;
        }
        match self.connections {
            Some(1) => writeln!(f, "   1 connection"),
            Some(count) => writeln!(f, "   {count} connections"),
            None => writeln!(f),
        }
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
