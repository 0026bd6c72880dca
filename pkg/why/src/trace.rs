//! The way that a connection should take, from what the API says. Pure: no kernel, no clock.

mod endpoints;
mod policy;
mod target;

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Pod};
use svcnet_proxy::{Frontend, Masquerade, Protocol};

use crate::ask::{SourceAsk, TargetAsk};
use crate::cluster::{self, Cluster};
use crate::explain::{Endpoint, Step, What};
use crate::names;
use crate::reason::NotReached;

/// The namespace of names without one.
const NAMESPACE_DEFAULT: &str = "default";

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A pod.
    Pod {
        /// `namespace/name`
        key: String,
        /// Its addresses; at least one.
        addresses: Vec<IpAddr>,
        /// Its node.
        node: String,
    },
    /// A node itself.
    Node {
        /// Its name.
        name: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Somebody else.
    Outside {
        /// The address, if it is known.
        address: Option<IpAddr>,
    },
}

impl Origin {
    /// The node that its packets begin on, or pass first.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { node, .. } | Self::Node { name: node, .. } => Some(node),
            Self::Outside { .. } => None,
        }
    }

    /// Its address of a family, where it has one that is known.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        match self {
            Self::Pod { addresses, .. } | Self::Node { addresses, .. } => {
                addresses.iter().find(of_family).copied()
            }
            Self::Outside { address } => address.as_ref().filter(of_family).copied(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Pod { key, addresses, node } => {
                let address = addresses.first().map(|ip| format!(" ({ip})")).unwrap_or_default();
                format!("the pod {key}{address} on {node}")
            }
            Self::Node { name, .. } => format!("the node {name}"),
            Self::Outside { address: Some(ip) } => format!("{ip}, outside the cluster"),
            Self::Outside { address: None } => "outside the cluster".to_string(),
        }
    }
}

/// What the DNS server should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsExpected {
    /// The whole name.
    pub name: String,
    /// The addresses, of both families, in order.
    pub addresses: Vec<IpAddr>,
}

/// Whose address an endpoint sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenAs {
    /// The client's own.
    Itself,
    /// One of the node that translates, so that answers come back through it.
    Node,
}

/// The way of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The node that decides where it goes; nothing when it is not known which does.
    pub node: Option<String>,
    /// Whether it comes to that node from another host.
    pub arrives: bool,
    /// What it is translated by; nothing when it goes straight to a pod.
    pub frontend: Option<Frontend>,
    /// Where the client connects to.
    pub to: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// Where it can end up; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints whose nodes are held for dead, or that a policy keeps from being reached, with the reason.
    pub dead: Vec<(Endpoint, NotReached)>,
}

impl Way {
    /// Whose address the endpoint sees.
    pub fn seen_as(&self, origin: &Origin, endpoint: &Endpoint, of_pods: impl Fn(IpAddr) -> bool) -> SeenAs {
        let source = origin.address(self.to.is_ipv6());
        // The overlay replaces the addresses of pods on their way out of the pods' network.
        let leaves = !of_pods(endpoint.at.ip());
        if matches!(origin, Origin::Pod { .. }) && source.is_some_and(&of_pods) && leaves {
            return SeenAs::Node;
        }
        let Some(frontend) = &self.frontend else {
            return SeenAs::Itself;
        };
        let itself = source == Some(endpoint.at.ip());
        match origin {
            Origin::Pod { .. } if itself => SeenAs::Node,
            Origin::Pod { .. } if !self.arrives && source.is_some_and(of_pods) => SeenAs::Itself,
            Origin::Node { .. } if !self.arrives => SeenAs::Node,
            _ if frontend.masquerade == Masquerade::OwnOnly => SeenAs::Itself,
            _ => SeenAs::Node,
        }
    }
}

/// How it ends, as far as the API says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nowhere.
    Stop(NotReached),
    /// At something that is none of the cluster's.
    Leads(String),
    /// On this way.
    Way(Box<Way>),
}

/// The way that a connection should take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Who connects, for people.
    pub from: String,
    /// To what, as it was asked.
    pub to: String,
    /// Who connects; nothing when there is nobody of that name.
    pub origin: Option<Origin>,
    /// Step by step.
    pub steps: Vec<Step>,
    /// What DNS should say of the name that was asked.
    pub dns: Option<DnsExpected>,
    /// How it ends.
    pub end: End,
}

/// The way from the source to the target.
pub fn trace(cluster: &Cluster, source: &SourceAsk, target: &TargetAsk) -> Trace {
    let mut tracer = Tracer {
        cluster,
        steps: Vec::new(),
        dns: None,
    };
    let mut trace = Trace {
        from: source.to_string(),
        to: target.to_string(),
        origin: None,
        steps: Vec::new(),
        dns: None,
        end: End::Leads(String::new()),
    };
    trace.end = match tracer.origin(source) {
        Err(reason) => {
            tracer.steps.push(Step::no(What::Source, &reason));
            End::Stop(reason)
        }
        Ok(origin) => {
            trace.from = origin.text();
            let end = tracer.target(&origin, target);
            trace.origin = Some(origin);
            end.unwrap_or_else(|(what, reason)| {
                tracer.steps.push(Step::no(what, &reason));
                End::Stop(reason)
            })
        }
    };
    trace.steps = tracer.steps;
    trace.dns = tracer.dns;
    trace
}

/// The step that it ended at, and why.
type Stopped = (What, NotReached);

struct Tracer<'a> {
    cluster: &'a Cluster,
    steps: Vec<Step>,
    dns: Option<DnsExpected>,
}

impl Tracer<'_> {
    fn ok(&mut self, what: What, text: impl Into<String>) {
        self.steps.push(Step::ok(what, text));
    }

    fn origin(&self, ask: &SourceAsk) -> Result<Origin, NotReached> {
        let cluster = self.cluster;
        let node = |node: &Node| Origin::Node {
            name: cluster::name(&node.metadata).to_string(),
            addresses: cluster::node_addresses(node).collect(),
        };
        match ask {
            SourceAsk::Outside => Ok(Origin::Outside { address: None }),
            SourceAsk::Address(address) => {
                if let Some(pod) = cluster.pod_at(*address) {
                    return pod_origin(pod);
                }
                if let Some(found) = cluster.node_at(*address) {
                    return Ok(node(found));
                }
                if cluster.is_of_pods(*address) || cluster.is_of_services(*address) {
                    return Err(NotReached::UnknownAddress {
                        address: *address,
                        of_services: cluster.is_of_services(*address),
                        of_pods: cluster.is_of_pods(*address),
                    });
                }
                Ok(Origin::Outside {
                    address: Some(*address),
                })
            }
            SourceAsk::Named { namespace, name } => {
                let of_namespace = namespace.as_deref().unwrap_or(NAMESPACE_DEFAULT);
                if let Some(pod) = cluster.pod(of_namespace, name) {
                    return pod_origin(pod);
                }
                match cluster.node(name).filter(|_| namespace.is_none()) {
                    Some(found) => Ok(node(found)),
                    None => Err(NotReached::UnknownSource {
                        name: ask.to_string(),
                        near: names::sources_like(cluster, of_namespace, name),
                    }),
                }
            }
        }
    }

    /// The namespace that names without one are looked for in: the source's.
    fn namespace_of(origin: &Origin) -> &str {
        match origin {
            Origin::Pod { key, .. } => key.split('/').next().unwrap_or(NAMESPACE_DEFAULT),
            _ => NAMESPACE_DEFAULT,
        }
    }
}

fn pod_origin(pod: &Pod) -> Result<Origin, NotReached> {
    let key = cluster::key(&pod.metadata);
    let addresses: Vec<IpAddr> = cluster::pod_addresses(pod).collect();
    match cluster::pod_node(pod) {
        Some(node) if cluster::on_host_network(pod) => Ok(Origin::Node {
            name: node.to_string(),
            addresses,
        }),
        Some(node) if !addresses.is_empty() => Ok(Origin::Pod {
            key,
            addresses,
            node: node.to_string(),
        }),
        _ => Err(NotReached::SourceWithoutAddress { pod: key }),
    }
}
