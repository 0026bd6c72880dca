//! The kernel's side of a proxy in each of its modes, seen from beside: what differs from what there should be.

use std::fmt;
use std::net::IpAddr;

use super::OnNode;
use crate::backend::{Backend, Error, Mode};
use crate::ipvs::{self, Ipvs};
use crate::model::{Frontend, FrontendKey};
use crate::nftables::{self, Nftables};
use crate::userspace::look;
use crate::view::NodeFacts;

/// What the proxy of a node has in this network namespace.
pub struct Kernel(Seen);

enum Seen {
    Nftables(Box<Nftables>),
    Ipvs(Box<Ipvs>),
    Userspace {
        pods: Vec<ipnet::IpNet>,
        node_ports: Option<Vec<ipnet::IpNet>>,
    },
}

impl Kernel {
    /// As the proxy of that node has it in that mode.
    ///
    /// # Errors
    /// When the kernel lacks what the mode needs, or permission is lacking.
    pub fn open(on: OnNode<'_>, mode: Mode) -> Result<Self, Error> {
        let facts = on.node.map(NodeFacts::new);
        let addresses: &[IpAddr] = facts.as_ref().map_or(&[], |facts| &facts.addresses);
        let config = on.config;
        let seen = match mode {
            Mode::Nftables => {
                let mut tables = config.open_tables()?;
                tables.node_addresses(addresses);
                Seen::Nftables(Box::new(tables))
            }
            Mode::Ipvs => {
                let mut ipvs = Ipvs::beside(&ipvs::Config {
                    pod_networks: config.cluster_cidrs.clone(),
                    service_networks: config.service_cidrs.clone(),
                    tuning: config.tuning(),
                    sysctls: None,
                })?;
                ipvs.node_ports_on(&config.node_ports, addresses);
                Seen::Ipvs(Box::new(ipvs))
            }
            Mode::Userspace => Seen::Userspace {
                pods: config.cluster_cidrs.clone(),
                node_ports: config.node_ports.networks(addresses),
            },
        };
        Ok(Self(seen))
    }

    /// What the kernel would have to be told for it to hold these frontends and nothing else.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn diff(&mut self, frontends: impl IntoIterator<Item = Frontend>) -> Result<Difference, Error> {
        Ok(match &mut self.0 {
            Seen::Nftables(tables) => Difference::Nftables(Box::new(tables.diff(frontends)?)),
            Seen::Ipvs(ipvs) => Difference::Ipvs(Box::new(ipvs.diff(frontends)?)),
            Seen::Userspace { pods, node_ports } => {
                let seen = look::see()?;
                Difference::Userspace(look::diff(frontends, &seen, pods, node_ports.as_deref()))
            }
        })
    }
}

/// What differs. It prints itself as the operations that would mend it.
pub enum Difference {
    /// Of tables.
    Nftables(Box<nftables::Plan>),
    /// Of IPVS, its link and its tables.
    Ipvs(Box<ipvs::Difference>),
    /// Of sockets.
    Userspace(look::Difference),
}

impl Difference {
    /// How many operations there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Nftables(plan) => plan.len(),
            Self::Ipvs(difference) => difference.plan().len(),
            Self::Userspace(difference) => difference.operations.len(),
        }
    }

    /// Whether all is as it should be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the frontend is not as it should be, with what all need.
    pub fn concerns(&self, key: FrontendKey) -> bool {
        match self {
            Self::Nftables(plan) => plan.concerns(key),
            Self::Ipvs(difference) => difference.concerns(key),
            Self::Userspace(difference) => !difference.of(key).is_empty(),
        }
    }

    /// What all frontends of the family need, and is not there.
    pub fn missing(&self, key: FrontendKey) -> Option<String> {
        match self {
            Self::Nftables(plan) if plan.rebuild.contains(&key.family()) => {
                Some("the nftables tables of svcnet".into())
            }
            Self::Ipvs(difference) => difference.missing(key.family()),
            Self::Nftables(_) | Self::Userspace(_) => None,
        }
    }

    /// What there is to do for a frontend.
    pub fn of(&self, key: FrontendKey) -> Vec<String> {
        match self {
            Self::Nftables(plan) => {
                let (plan, key) = (plan.to_string(), key.to_string());
                let lines = plan.lines().filter(|line| line.contains(&key));
                lines.map(str::to_string).collect()
            }
            Self::Ipvs(difference) => difference.of(key),
            Self::Userspace(difference) => difference.of(key),
        }
    }

    /// What the kernel holds of a frontend, where there is more to say than that it does.
    pub fn held(&self, key: FrontendKey) -> Option<String> {
        match self {
            Self::Nftables(_) => None,
            Self::Ipvs(difference) => difference.held(key),
            Self::Userspace(_) => {
                Some("a socket listens there, and its process alone knows where it sends".into())
            }
        }
    }

    /// What this mode can not do at all, and why.
    pub fn impossible(&self) -> &[(FrontendKey, &'static str)] {
        match self {
            Self::Nftables(_) | Self::Ipvs(_) => &[],
            Self::Userspace(difference) => &difference.impossible,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables(plan) => plan.fmt(f),
            Self::Ipvs(difference) => difference.plan().fmt(f),
            Self::Userspace(difference) => {
                let mut operations = difference.operations.iter();
                operations.try_for_each(|operation| writeln!(f, "{operation}"))
            }
        }
    }
}
