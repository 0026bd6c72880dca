//! What a proxy does, whichever way it does it: frontends, and the endpoints behind each.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use svcnet_netlink::nft::Family;

use crate::scheduler::Scheduler;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number() == number)
    }

    /// Whether the kernel would go on sending to an endpoint that is gone, because nothing tells it: a UDP client knows
    /// of no connection, and an SCTP client begins anew from the same port. TCP clients notice and take another port.
    pub fn outlives_endpoints(self) -> bool {
        match self {
            Self::Tcp => false,
            Self::Udp | Self::Sctp => true,
        }
    }

    /// As Services and EndpointSlices spell it; nothing is TCP.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKey {
    /// A ClusterIP, LoadBalancer address or external address with a port.
    Address {
        /// The address.
        ip: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// A port of each address of this node.
    NodePort {
        /// Which addresses.
        family: Family,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
}

impl FrontendKey {
    /// Address family.
    pub fn family(self) -> Family {
        match self {
            Self::Address { ip, .. } => Family::of(ip),
            Self::NodePort { family, .. } => family,
        }
    }

    /// Protocol.
    pub fn protocol(self) -> Protocol {
        let (Self::Address { protocol, .. } | Self::NodePort { protocol, .. }) = self;
        protocol
    }

    /// Port.
    pub fn port(self) -> u16 {
        let (Self::Address { port, .. } | Self::NodePort { port, .. }) = self;
        port
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { ip, protocol, port } => write!(f, "{} {protocol}", SocketAddr::new(*ip, *port)),
            Self::NodePort {
                family,
                protocol,
                port,
            } => write!(f, "{family} node port {port} {protocol}"),
        }
    }
}

/// Where a connection can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address and port of the pod.
    pub at: SocketAddr,
    /// Whether it runs on this node.
    pub local: bool,
    /// Its share of new connections against the others'; 1 is usual.
    pub weight: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.at, if self.local { " (local)" } else { "" })?;
        if self.weight == 1 {
            return Ok(());
        }
        write!(f, " weight {}", self.weight)
    }
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes to one of these, which are at least one.
    Balance(Vec<Endpoint>),
    /// It is refused at once: there is no endpoint anywhere.
    NoEndpoints,
    /// It is dropped: the policy says local, and endpoints are only elsewhere. The sender's next try may find one.
    OnlyElsewhere,
}

impl Fate {
    /// The endpoints, if there are any.
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::Balance(endpoints) => endpoints,
            Self::NoEndpoints | Self::OnlyElsewhere => &[],
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balance(endpoints) => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    write!(f, "{}{endpoint}", if index == 0 { "to " } else { ", " })?;
                }
                Ok(())
            }
            Self::NoEndpoints => f.write_str("refused: no endpoints"),
            Self::OnlyElsewhere => f.write_str("dropped: endpoints only on other nodes"),
        }
    }
}

/// Whose source address is replaced by this node's, so that answers come back this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Everyone's but pods'; told by the destination, which lies in the service network.
    ByServiceNetwork,
    /// Everyone's but pods'.
    AllButPods,
    /// This node's own only: the address of others is kept, which is what policy `Local` promises.
    OwnOnly,
}

/// One frontend and all that decides about its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// Where clients connect to.
    pub key: FrontendKey,
    /// `namespace/service:port`, as comments show it.
    pub name: Arc<str>,
    /// What becomes of connections; with `outside`, of those from pods and from this node.
    pub fate: Fate,
    /// What becomes of connections from outside the cluster, where that differs.
    pub outside: Option<Fate>,
    /// How an endpoint is chosen.
    pub scheduler: Scheduler,
    /// How long a client stays with its endpoint, if it does.
    pub affinity_seconds: Option<u32>,
    /// Whose address is replaced.
    pub masquerade: Masquerade,
    /// Whether it is a ClusterIP: other ports of that address are refused.
    pub inside: bool,
    /// Networks that clients may come from, where that is restricted; none overlaps another.
    pub sources: Option<Box<[IpNet]>>,
    /// Endpoints that take no new connections and keep those that they have. Only where connections to others are
    /// cleared ([`Protocol::outlives_endpoints`]); else nothing depends on it.
    pub draining: Box<[Endpoint]>,
}

impl Frontend {
    /// All endpoints that connections may go to.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> + '_ {
        let outside = self.outside.as_ref().map_or(&[][..], Fate::endpoints);
        self.fate.endpoints().iter().chain(outside).copied()
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.key, self.name, self.fate)?;
        if let Some(outside) = &self.outside {
            write!(f, "; from outside {outside}")?;
        }
        if self.scheduler != Scheduler::Random {
            write!(f, "; chosen by {}", self.scheduler)?;
        }
        if let Some(seconds) = self.affinity_seconds {
            write!(f, "; clients stay for {seconds} s")?;
        }
        if let Some(sources) = &self.sources {
            write!(f, "; only from")?;
            sources.iter().try_for_each(|net| write!(f, " {net}"))?;
        }
        if !self.draining.is_empty() {
            write!(f, "; draining")?;
            self.draining.iter().try_for_each(|e| write!(f, " {}", e.at))?;
        }
        Ok(())
    }
}
