//! From the addresses that this node should announce to what goes out on its links, and when.
//!
//! An address is first probed: whoever has it answers, and it is not claimed while somebody does. Then it is announced
//! at once and a few times more, as hosts miss some. While it is owned, other hosts' claims are noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use svcnet_api::types::MacAddr;
use svcnet_netlink::packet::Mac;

use crate::desired::{Links, NotAnnounced};

/// Questions before an address is claimed, and how long each waits. RFC 5227 takes seconds, for hosts that nobody is
/// waiting for; on a local network an answer takes less than a millisecond.
const PROBES: u8 = 2;
const PROBE_WAIT: Duration = Duration::from_millis(40);
/// Announcements after a claim: at once, then every 1.1 s for 5 s, as MetalLB makes them.
const ANNOUNCEMENTS: u8 = 5;
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_millis(1100);
/// How soon to ask again for an address that a node of the cluster still answers for: it is about to stop.
const RETRY_NODE: Duration = Duration::from_millis(100);
/// The same for any other host.
const RETRY_STRANGER: Duration = Duration::from_secs(3);
/// A node that answers for longer than this does so for another reason than a handover.
const HANDOVER_MAX: Duration = Duration::from_secs(3);
/// How long a node may go on claiming an address that it has just lost to this one.
const GRACE: Duration = Duration::from_millis(300);
/// Least time between two defences against a stranger (RFC 5227, section 2.4 (c)).
const DEFENCE_INTERVAL: Duration = Duration::from_secs(10);

/// Something to do on the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Ask whether anybody has the address.
    Probe(IpAddr, Links),
    /// Answer for the address from now on.
    Claim(IpAddr, Links),
    /// Tell everybody that this node has the address.
    Announce(IpAddr, Links),
    /// Answer for the address no more.
    Release(IpAddr),
    /// Report that another host answers for the address.
    Report(IpAddr, Contest),
}

/// Another host claims an address of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contest {
    pub(crate) mac: Mac,
    /// Its node, if it is one.
    pub(crate) node: Option<String>,
    /// Whether this node announces the address all the same.
    pub(crate) defended: bool,
}

/// The addresses that this node announces or is about to.
#[derive(Debug)]
pub(crate) struct Claims {
    probe: bool,
    claims: BTreeMap<IpAddr, Claim>,
    /// When something is due, by time.
    due: BTreeSet<(Instant, IpAddr)>,
    /// What must not wait.
    urgent: Vec<Operation>,
}

#[derive(Debug)]
struct Claim {
    links: Links,
    stage: Stage,
    /// The entry in `Claims::due`.
    due: Option<Instant>,
    reported: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    Probing { left: u8, blocked: Option<Blocked> },
    Blocked(Blocked),
    Owned { left: u8 },
}

#[derive(Debug, Clone)]
struct Blocked {
    since: Instant,
    mac: Mac,
    node: Option<String>,
}

impl Claims {
    pub(crate) fn new(probe: bool) -> Self {
        Self {
            probe,
            claims: BTreeMap::new(),
            due: BTreeSet::new(),
            urgent: Vec::new(),
        }
    }

    /// The addresses that this node should announce now, and where.
    pub(crate) fn want(&mut self, now: Instant, wanted: &BTreeMap<IpAddr, Links>) {
        let unwanted: Vec<IpAddr> = self
            .claims
            .keys()
            .filter(|a| !wanted.contains_key(a))
            .copied()
            .collect();
        for address in unwanted {
            self.release(address);
        }
        for (&address, links) in wanted {
            match self.claims.get(&address) {
                Some(claim) if claim.links == *links => {}
                known => {
                    // Other links: they have to be asked too.
                    if known.is_some() {
                        self.release(address);
                    }
                    self.start(now, address, links.clone());
                }
            }
        }
    }

    /// Whether this node announces the address or is about to.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.claims.contains_key(&address)
    }

    /// Whether this node answers for the address.
    pub(crate) fn owns(&self, address: IpAddr) -> bool {
        self.links_of(address).is_some()
    }

    /// The links that this node answers for the address on.
    pub(crate) fn links_of(&self, address: IpAddr) -> Option<&Links> {
        self.claims
            .get(&address)
            .filter(|c| matches!(c.stage, Stage::Owned { .. }))
            .map(|c| &c.links)
    }

    /// Why a wanted address is not announced (yet).
    pub(crate) fn standing(&self, address: IpAddr) -> Result<&Links, NotAnnounced> {
        let claim = self.claims.get(&address).ok_or(NotAnnounced::Probing)?;
        match &claim.stage {
            Stage::Owned { .. } => Ok(&claim.links),
            Stage::Probing { blocked: None, .. } => Err(NotAnnounced::Probing),
            Stage::Blocked(b) | Stage::Probing { blocked: Some(b), .. } => Err(NotAnnounced::AddressInUse {
                mac: b.mac,
                node: b.node.clone(),
            }),
        }
    }

    /// Another host says that it has the address. `node` is its name if it is a live node of the cluster.
    pub(crate) fn contested(&mut self, now: Instant, address: IpAddr, mac: Mac, node: Option<&str>) {
        let Some(claim) = self.claims.get_mut(&address) else {
            return;
        };
        let node = node.map(str::to_string);
        let next = match &mut claim.stage {
            Stage::Probing { blocked, .. } => {
                let since = blocked.as_ref().map_or(now, |b| b.since);
                let retry = if node.is_some() {
                    RETRY_NODE
                } else {
                    RETRY_STRANGER
                };
                let telling = node.is_none() || now >= since + HANDOVER_MAX;
                if telling && claim.reported.is_none() {
                    claim.reported = Some(now);
                    let contest = Contest {
                        mac,
                        node: node.clone(),
                        defended: false,
                    };
                    self.urgent.push(Operation::Report(address, contest));
                }
                claim.stage = Stage::Blocked(Blocked { since, mac, node });
                now + retry
            }
            Stage::Blocked(_) => return,
            // It has just lost the address, or has won it for a moment: when it is quiet, caches must learn again.
            Stage::Owned { left } if node.is_some() => {
                *left = ANNOUNCEMENTS;
                now + GRACE
            }
            Stage::Owned { left } => {
                if claim.reported.is_some_and(|at| now < at + DEFENCE_INTERVAL) {
                    return;
                }
                claim.reported = Some(now);
                *left = (*left).max(1);
                let contest = Contest {
                    mac,
                    node,
                    defended: true,
                };
                self.urgent.push(Operation::Report(address, contest));
                now
            }
        };
        self.schedule(address, Some(next));
    }

    /// Announces what is owned anew: the caches of others may have changed.
    pub(crate) fn announce_again(&mut self, now: Instant, wanted: impl Fn(IpAddr) -> bool) {
        let owned: Vec<IpAddr> = self
            .claims
            .iter_mut()
            .filter(|(address, _)| wanted(**address))
            .filter_map(|(address, claim)| match &mut claim.stage {
                Stage::Owned { left } => {
                    *left = ANNOUNCEMENTS;
                    Some(*address)
                }
                _ => None,
            })
            .collect();
        for address in owned {
            self.schedule(address, Some(now));
        }
    }

    /// When the next operation is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is due, at most about `limit` operations: the rest is due at the next call.
    pub(crate) fn operations(&mut self, now: Instant, limit: usize) -> Vec<Operation> {
        let mut operations = std::mem::take(&mut self.urgent);
        while operations.len() < limit {
            match self.due.first() {
                Some(&(at, address)) if at <= now => self.step(now, address, &mut operations),
                _ => break,
            }
        }
        operations
    }

    fn step(&mut self, now: Instant, address: IpAddr, operations: &mut Vec<Operation>) {
        let Some(claim) = self.claims.get_mut(&address) else {
            self.schedule(address, None);
            return;
        };
        let links = claim.links.clone();
        let next = match &mut claim.stage {
            Stage::Blocked(blocked) => {
                let blocked = Some(blocked.clone());
                claim.stage = Stage::Probing {
                    left: PROBES,
                    blocked,
                };
                Some(now)
            }
            Stage::Probing { left: 0, .. } => {
                claim.stage = Stage::Owned { left: ANNOUNCEMENTS };
                claim.reported = None;
                operations.push(Operation::Claim(address, links));
                Some(now)
            }
            Stage::Probing { left, .. } => {
                *left -= 1;
                operations.push(Operation::Probe(address, links));
                Some(now + PROBE_WAIT)
            }
            Stage::Owned { left } => {
                *left = left.saturating_sub(1);
                let more = *left > 0;
                operations.push(Operation::Announce(address, links));
                more.then(|| now + ANNOUNCEMENT_INTERVAL)
            }
        };
        self.schedule(address, next);
    }

    fn start(&mut self, now: Instant, address: IpAddr, links: Links) {
        let left = if self.probe { PROBES } else { 0 };
        let claim = Claim {
            links,
            stage: Stage::Probing { left, blocked: None },
            due: None,
            reported: None,
        };
        self.claims.insert(address, claim);
        self.schedule(address, Some(now));
    }

    fn release(&mut self, address: IpAddr) {
        self.schedule(address, None);
        if let Some(claim) = self.claims.remove(&address)
            && matches!(claim.stage, Stage::Owned { .. })
        {
            self.urgent.push(Operation::Release(address));
        }
    }

    fn schedule(&mut self, address: IpAddr, at: Option<Instant>) {
        match self.claims.get_mut(&address) {
            Some(claim) => {
                if let Some(before) = claim.due.take() {
                    self.due.remove(&(before, address));
                }
                claim.due = at;
                self.due.extend(at.map(|at| (at, address)));
            }
            None => self.due.retain(|(_, a)| *a != address),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(address, links) => write!(f, "probe {address} on {links}"),
            Self::Claim(address, links) => write!(f, "claim {address} on {links}"),
            Self::Announce(address, links) => write!(f, "announce {address} on {links}"),
            Self::Release(address) => write!(f, "release {address}"),
            Self::Report(address, contest) => write!(f, "report {address} {contest}"),
        }
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "answered by node {node} ({})", MacAddr::new(self.mac))?,
            None => write!(f, "answered by {}", MacAddr::new(self.mac))?,
        }
        f.write_str(if self.defended {
            ", defended"
        } else {
            ", not claimed"
        })
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all links"),
            Self::Named(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
