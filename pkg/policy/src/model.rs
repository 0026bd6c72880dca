//! NetworkPolicies as they are judged: parsed once from the API's objects, so that nothing behind this looks at text.

use std::fmt;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use svcnet_api::selector::{LabelSelector, SelectorError};
use svcnet_api::types::legacy;

/// Namespace and name of an object; ordered by namespace, so that a namespace is a range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// Of this namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Seen from the pods that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To them.
    Ingress,
    /// From them.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The protocols that policies know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]

pub enum Protocol {
    /// TCP.
    TCP,
    /// UDP.
    UDP,
    /// SCTP.
    SCTP,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TCP, Self::UDP, Self::SCTP];

    /// `IPPROTO_…`
    pub fn number(self) -> u8 {
        match self {
            Self::TCP => 6,
            Self::UDP => 17,
            Self::SCTP => 132,
        }
    }

    /// The one of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number() == number)
    }

    /// The one that the API spells so; TCP where it says nothing.
    pub fn from_api(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::TCP),
            Some("UDP") => Some(Self::UDP),
            Some("SCTP") => Some(Self::SCTP),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TCP => "tcp",
            Self::UDP => "udp",
            Self::SCTP => "sctp",
        })
    }
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which pods of its namespace it isolates.
    pub selects: LabelSelector,
    /// Who may connect to them; nothing is said where there is none.
    pub ingress: Option<Vec<Rule>>,
    /// Whom they may connect to; nothing is said where there is none.
    pub egress: Option<Vec<Rule>>,
}

/// What is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// To or from whom; anybody where there is none.
    pub peers: Option<Vec<Peer>>,
    /// At which ports; any, of any protocol, where there is none.
    pub ports: Option<Vec<Port>>,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods(PodSelector),
    /// Addresses, of whomever.
    Block(Block),
}

/// Pods by label, of namespaces by label or name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodSelector {
    /// Of these namespaces.
    pub namespaces: Namespaces,
    /// Those with these labels.
    pub pods: LabelSelector,
}

/// Namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Namespaces {
    /// This one: the policy's own.
    Own(String),
    /// All with these labels.
    Labelled(LabelSelector),
}

/// A network with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The network.
    pub net: IpNet,
    /// What of it is left out.
    pub except: Vec<IpNet>,
}

/// Ports of a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// Which of its ports.
    pub at: PortMatch,
}

/// Which ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// All.
    Any,
    /// From the first to the last.
    Range(u16, u16),
    /// The one that the pod which is connected to names so.
    Named(String),
}

/// Why a policy, or a part of one, can not be judged. The API refuses such; another server's might not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A label selector.
    #[error("{0}")]
    Selector(#[from] SelectorError),
    /// A network.
    #[error("{0:?} is not a network, as in 10.0.0.0/8")]
    Network(String),
    /// A protocol.
    #[error("{0:?} is not a protocol: TCP, UDP or SCTP")]
    Protocol(String),
    /// A port.
    #[error("{0} is not a port: 1 to 65535")]
    Port(i32),
}

impl Policy {
    /// Its rules of a direction, if it isolates in it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Parses an object. A rule that makes no sense allows nothing: isolation goes before reach.
    ///
    /// # Errors
    /// When it can not be told which pods are meant; then there is nothing to isolate.
    pub fn parse(namespace: &str, object: &NetworkPolicy) -> Result<(Self, Vec<ParseError>), ParseError> {
        let mut problems = Vec::new();
        let Some(spec) = &object.spec else {
            // As the API fills it in: all pods, nothing allowed in.
            let policy = Self {
                selects: LabelSelector::everything(),
                ingress: Some(Vec::new()),
                egress: None,
            };
            return Ok((policy, problems));
        };
        let selects = spec.pod_selector.as_ref().map(LabelSelector::try_from);
        let selects = selects.transpose()?.unwrap_or_default();
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let isolates = |type_: &str, by_default: bool| {
            if types.is_empty() {
                by_default
            } else {
                types.iter().any(|t| t == type_)
            }
        };
        let mut keep = |rule: Result<Rule, ParseError>| rule.map_err(|error| problems.push(error)).ok();
        let ingress = isolates("Ingress", true).then(|| {
            let rules = spec.ingress.iter().flatten();
            let parsed =
                rules.map(|rule| Rule::parse(namespace, rule.from.as_deref(), rule.ports.as_deref()));
            parsed.filter_map(&mut keep).collect()
        });
        let egress = isolates("Egress", has_egress).then(|| {
            let rules = spec.egress.iter().flatten();
            let parsed = rules.map(|rule| Rule::parse(namespace, rule.to.as_deref(), rule.ports.as_deref()));
            parsed.filter_map(&mut keep).collect()
        });
        let policy = Self {
            selects,
            ingress,
            egress,
        };
        Ok((policy, problems))
    }
}

impl Rule {
    fn parse(
        namespace: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> Result<Self, ParseError> {
        let peers = peers.filter(|list| !list.is_empty());
        let ports = ports.filter(|list| !list.is_empty());
        let peers = peers.map(|list| list.iter().map(|peer| Peer::parse(namespace, peer)).collect());
        let ports = ports.map(|list| list.iter().map(Port::parse).collect());
        Ok(Self {
            peers: peers.transpose()?,
            ports: ports.transpose()?,
        })
    }
}

impl Peer {
    fn parse(namespace: &str, peer: &NetworkPolicyPeer) -> Result<Self, ParseError> {
        if let Some(block) = &peer.ip_block {
            let net = |text: &String| {
                let net = legacy::network(text).map(|net| net.trunc());
                net.ok_or_else(|| ParseError::Network(text.clone()))
            };
            let except = block.except.iter().flatten().map(net).collect::<Result<_, _>>()?;
            return Ok(Self::Block(Block {
                net: net(&block.cidr)?,
                except,
            }));
        }
        let pods = peer.pod_selector.as_ref().map(LabelSelector::try_from);
        let namespaces = peer.namespace_selector.as_ref().map(LabelSelector::try_from);
        Ok(Self::Pods(PodSelector {
            namespaces: namespaces
                .transpose()?
                .map_or_else(|| Namespaces::Own(namespace.to_string()), Namespaces::Labelled),
            pods: pods.transpose()?.unwrap_or_default(),
        }))
    }
}

impl Port {
    fn parse(port: &NetworkPolicyPort) -> Result<Self, ParseError> {
        let protocol = Protocol::from_api(port.protocol.as_deref());
        let protocol =
            protocol.ok_or_else(|| ParseError::Protocol(port.protocol.clone().unwrap_or_default()))?;
        let number = |number: i32| u16::try_from(number).map_err(|_| ParseError::Port(number));
        let at = match &port.port {
            None => PortMatch::Any,
            Some(IntOrString::String(name)) => PortMatch::Named(name.clone()),
            Some(IntOrString::Int(first)) => {
                PortMatch::Range(number(*first)?, number(port.end_port.unwrap_or(*first))?)
            }
        };
        Ok(Self { protocol, at })
    }
}

impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pods.is_everything() {
            f.write_str("all pods")?;
        } else {
            write!(f, "pods {}", self.pods)?;
        }
        match &self.namespaces {
            Namespaces::Own(name) => write!(f, " in {name}"),
            Namespaces::Labelled(labels) if labels.is_everything() => f.write_str(" in any namespace"),
            Namespaces::Labelled(labels) => write!(f, " in namespaces {labels}"),
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        for (index, except) in self.except.iter().enumerate() {
            let word = if index == 0 { " except " } else { ", " };
            write!(f, "{word}{except}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            PortMatch::Any => write!(f, "{}", self.protocol),
            PortMatch::Range(first, last) if first == last => write!(f, "{} {first}", self.protocol),
            PortMatch::Range(first, last) => write!(f, "{} {first}-{last}", self.protocol),
            PortMatch::Named(name) => write!(f, "{} {name}", self.protocol),
        }
    }
}
