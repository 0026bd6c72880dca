//! From frontends to what sockets should do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::door::{Door, From};
use crate::model::{Endpoint, Fate, Frontend, FrontendKey, Protocol};
use crate::scheduler::Scheduler;

/// How connections are relayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Where those from pods and from this node go.
    pub(crate) inside: Box<[Endpoint]>,
    /// Where others go, if that differs.
    pub(crate) outside: Option<Box<[Endpoint]>>,
    /// Which keep their clients and get no new ones.
    pub(crate) draining: Box<[SocketAddr]>,
    pub(crate) scheduler: Scheduler,
    pub(crate) affinity: Option<Duration>,
}

impl Rules {
    /// Whether clients may be there.
    pub(crate) fn has(&self, at: SocketAddr) -> bool {
        let outside = self.outside.iter().flatten();
        self.inside
            .iter()
            .chain(outside)
            .any(|endpoint| endpoint.at == at)
    }
}

/// What becomes of a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A socket takes connections.
    Relay {
        /// Who is let in.
        door: Door,
        /// Where to.
        rules: Arc<Rules>,
    },
    /// No socket is there: the kernel refuses connections.
    Nobody,
    /// It can not be served in this mode.
    Impossible(&'static str),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay { door, rules } => {
                let (inside, outside) = (rules.inside.len(), rules.outside.as_ref());
                write!(f, "{door}, to {inside} endpoints")?;
                outside.map_or(Ok(()), |outside| write!(f, ", from outside to {}", outside.len()))
            }
            Self::Nobody => f.write_str("refused"),
            Self::Impossible(why) => f.write_str(why),
        }
    }
}

/// All frontends, and the addresses that they need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) wanted: BTreeMap<FrontendKey, Wanted>,
    /// How many frontends are at each address.
    pub(crate) addresses: BTreeMap<IpAddr, usize>,
}

impl Desired {
    /// Has node ports answer on these addresses, if not on all. Whether that is news to any.
    pub(crate) fn listen_at(&mut self, at: Option<&[IpAddr]>) -> bool {
        let mut changed = false;
        for (key, wanted) in &mut self.wanted {
            if let (FrontendKey::NodePort { .. }, Wanted::Relay { door, .. }) = (key, wanted)
                && door.at.as_deref() != at
            {
                door.at = at.map(Into::into);
                changed = true;
            }
        }
        changed
    }

    /// Puts a frontend in, or takes it away.
    pub(crate) fn set(&mut self, key: FrontendKey, wanted: Option<Wanted>) {
        let is = wanted.is_some();
        let was = match wanted {
            Some(wanted) => self.wanted.insert(key, wanted).is_some(),
            None => self.wanted.remove(&key).is_some(),
        };
        let FrontendKey::Address { ip, .. } = key else {
            return;
        };
        match (was, is) {
            (false, true) => *self.addresses.entry(ip).or_default() += 1,
            (true, false) => {
                let left = self.addresses.get(&ip).map_or(0, |count| count - 1);
                if left == 0 {
                    self.addresses.remove(&ip);
                } else {
                    self.addresses.insert(ip, left);
                }
            }
            _ => {}
        }
    }
}

/// The addresses of a node that lie in these networks, out of all that its links have; in order.
pub(crate) fn listen_at(networks: &[IpNet], own: impl IntoIterator<Item = IpAddr>) -> Box<[IpAddr]> {
    let answers = |ip: &IpAddr| networks.iter().any(|net| net.contains(ip)) && !is_link_local(*ip);
    let found: BTreeSet<IpAddr> = own.into_iter().filter(answers).collect();
    found.into_iter().collect()
}

/// Whether it is an address that takes a link to be one.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// What becomes of a frontend on a node with these pod networks, whose node ports answer on these addresses, if not on all.
pub(crate) fn wanted(frontend: &Frontend, pods: &[IpNet], node_ports: Option<&[IpAddr]>) -> Wanted {
    if frontend.key.protocol() == Protocol::Sctp {
        return Wanted::Impossible("userspace mode relays TCP and UDP, not SCTP");
    }
    let mut from = From::Everybody;
    let inside = match &frontend.fate {
        Fate::NoEndpoints => return Wanted::Nobody,
        Fate::OnlyElsewhere => {
            from = From::Nobody;
            Box::default()
        }
        Fate::Balance(endpoints) => endpoints.as_slice().into(),
    };
    let outside = match &frontend.outside {
        None => None,
        Some(Fate::Balance(endpoints)) => Some(endpoints.as_slice().into()),
        // Others than pods and the node are dropped, whatever the reason: a socket that is there can not refuse.
        Some(Fate::OnlyElsewhere | Fate::NoEndpoints) => {
            // Unless they are dropped all the same.
            if from == From::Everybody {
                from = From::Inside(pods.into());
            }
            None
        }
    };
    let at = match frontend.key {
        FrontendKey::Address { .. } => None,
        FrontendKey::NodePort { .. } => node_ports.map(Into::into),
    };
    Wanted::Relay {
        door: Door {
            sources: frontend.sources.clone(),
            from,
            at,
        },
        rules: Arc::new(Rules {
            inside,
            outside,
            draining: frontend.draining.iter().map(|endpoint| endpoint.at).collect(),
            scheduler: frontend.scheduler,
            affinity: frontend.affinity_seconds.map(|s| Duration::from_secs(s.into())),
        }),
    }
}
