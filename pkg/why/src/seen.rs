//! What was seen on this node, as plain data: [`crate::look`] fills it, [`crate::confirm`] judges it.

use std::net::{IpAddr, SocketAddr};

use svcnet_netlink::neigh::Resolution;
use svcnet_proxy::Mode;

/// What was seen on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub node: String,
    /// Its agent.
    pub agent: AgentSeen,
    /// What its DNS server says; nothing when it was not asked.
    pub dns: Option<DnsSeen>,
    /// How the kernel holds the frontend; nothing when there is none, or it is another node's affair.
    pub frontend: Option<FrontendSeen>,
    /// The way to each endpoint, in their order.
    pub paths: Vec<PathSeen>,
    /// The address that this node sends from to the target, when it is the client.
    pub own_source: Option<IpAddr>,
    /// Connections that the client has now: its end, and the endpoint.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
    /// A connection that was tried.
    pub probe: Option<ProbeSeen>,
}

impl Seen {
    /// Nothing yet.
    pub fn on(node: impl Into<String>, agent: AgentSeen) -> Self {
        Self {
            node: node.into(),
            agent,
            dns: None,
            frontend: None,
            paths: Vec::new(),
            own_source: None,
            connections: Vec::new(),
            probe: None,
        }
    }
}

/// The agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSeen {
    /// It says nothing, and why.
    Silent(String),
    /// It runs these roles; with those that are not ready, and why.
    Runs {
        /// The roles.
        roles: Vec<String>,
        /// Those that are not ready.
        not_ready: Vec<(String, String)>,
    },
}

impl AgentSeen {
    /// Why it does not run, if it does not.
    pub fn silence(&self) -> Option<String> {
        match self {
            Self::Silent(why) => Some(why.clone()),
            Self::Runs { .. } => None,
        }
    }
}

/// What a DNS server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsSeen {
    /// These addresses, in order; none when there is no such name.
    Answered(Vec<IpAddr>),
    /// Nothing.
    Silent {
        /// Which server.
        server: IpAddr,
        /// Why.
        why: String,
    },
}

/// How the kernel holds a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontendSeen {
    /// As it should, and how where there is more to say.
    Held(Option<String>),
    /// What all frontends need is not there, or is not what it should be: this.
    Missing(String),
    /// Otherwise: what would mend it.
    Differs(Vec<String>),
    /// The proxy can not serve it in its mode, and why.
    Impossible(Mode, String),
    /// It could not be looked at.
    Unknown(String),
}

/// The way to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSeen {
    /// The link that svcnet leads there, where it is svcnet that does.
    pub wanted: Option<LinkWanted>,
    /// What the kernel does with a packet to it.
    pub way: WaySeen,
}

/// A link that is to lead somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkWanted {
    /// Its name.
    pub name: String,
    /// How it is; nothing when it is not there.
    pub link: Option<LinkSeen>,
}

/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSeen {
    /// Its name.
    pub name: String,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
}

/// What the kernel does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaySeen {
    /// It is for this node itself.
    Here,
    /// It goes on.
    Along(Box<Hop>),
    /// There is no route.
    NoRoute,
    /// It is refused by a route.
    Refused,
    /// It could not be found out.
    Unknown(String),
}

/// One hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// The link.
    pub link: LinkSeen,
    /// The address that this node sends from on this way.
    pub source: Option<IpAddr>,
    /// Who is asked for on the link: the gateway or the destination.
    pub next: IpAddr,
    /// What is known about that.
    pub resolution: Option<Resolution>,
    /// When the link is an overlay's, how it goes on below.
    pub tunnel: Option<Tunnel>,
}

/// Below an overlay's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Where the frames go, by the link's forwarding entry for the neighbour.
    pub destination: Option<IpAddr>,
    /// What becomes of a packet there.
    pub below: WaySeen,
}

/// A connection that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeSeen {
    /// It was made, from this address, and to that endpoint if conntrack tells.
    Connected {
        /// Microseconds that it took.
        took_us: u128,
        /// The endpoint.
        endpoint: Option<SocketAddr>,
    },
    /// It was not.
    Failed(String),
    /// It could not be tried from here, and why.
    Impossible(String),
}
