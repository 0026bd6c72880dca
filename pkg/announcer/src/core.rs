//! The announcer without its surroundings: from the time, the API's view, the links and what arrives on them to
//! messages and operations. A test runs many of these against each other in simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use svcnet_netlink::packet::Mac;

use crate::desired::{Desired, Links, NotAnnounced};
use crate::links::{Carrier, meant};
use crate::membership::{Membership, Timing};
use crate::message::{List, Message};
use crate::plan::{Claims, Operation};

/// Operations carried out at once; heartbeats and answers come in between.
const OPERATIONS_AT_ONCE: usize = 256;

/// An announcer's state.
#[derive(Debug)]
pub(crate) struct Core {
    membership: Membership,
    claims: Claims,
    desired: Desired,
    carriers: Vec<Carrier>,
    /// What the last election was held with.
    elected: (u64, u64),
    stale: bool,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) messages: Vec<(IpAddr, Message)>,
    pub(crate) operations: Vec<Operation>,
    /// Who announces what may have changed.
    pub(crate) changed: bool,
}

impl Core {
    pub(crate) fn new(me: &str, incarnation: u64, timing: Timing, probe: bool, now: Instant) -> Self {
        Self {
            membership: Membership::new(me, incarnation, timing, now),
            claims: Claims::new(probe),
            desired: Desired::default(),
            carriers: Vec::new(),
            elected: (0, 0),
            stale: true,
        }
    }

    pub(crate) fn set_desired(&mut self, desired: Desired, v6: bool) {
        let address = |list: &Vec<IpAddr>| list.iter().find(|a| a.is_ipv6() == v6).copied();
        let peers = desired.peers.iter();
        self.membership
            .set_peers(peers.map(|(name, list)| (name.clone(), address(list))).collect());
        self.desired = desired;
        self.stale = true;
    }

    /// The links that carry announcements now. When there were none, peers may have taken over unheard.
    pub(crate) fn set_carriers(&mut self, now: Instant, carriers: Vec<Carrier>) {
        if carriers == self.carriers {
            return;
        }
        if self.carriers.is_empty() {
            self.membership.settle(now);
        }
        self.membership.set_macs(carriers.iter().map(|c| c.mac).collect());
        self.carriers = carriers;
        self.claims.announce_again(now, |_| true);
        self.stale = true;
    }

    /// Takes no part before it has listened: heartbeats arrive from now on.
    pub(crate) fn listen(&mut self, now: Instant) {
        self.membership.settle(now);
    }

    /// Whether the node has this address, as far as the API knows.
    pub(crate) fn is_from(&self, node: &str, source: IpAddr) -> bool {
        self.desired
            .peers
            .get(node)
            .is_some_and(|addresses| addresses.contains(&source))
    }

    pub(crate) fn receive(&mut self, now: Instant, message: Message) -> bool {
        self.membership.receive(now, message)
    }

    /// A host says on a link that it has the address.
    pub(crate) fn claimed_by(&mut self, now: Instant, address: IpAddr, mac: Mac) {
        if self.claims.has(address) && self.carriers.iter().all(|c| c.mac != mac) {
            let node = self.membership.peer_with(mac);
            self.claims.contested(now, address, mac, node);
        }
    }

    /// Whether to answer for the address on the link.
    pub(crate) fn answers(&self, address: IpAddr, link: &str) -> bool {
        self.claims
            .links_of(address)
            .is_some_and(|links| links.take(link))
    }

    /// Sends a last beat: from now on peers wait as long as they can for this node to be back.
    pub(crate) fn last_beat(&mut self) {
        self.membership.beat_now();
    }

    /// When to call [`work`](Self::work) again, unless something happens before.
    pub(crate) fn deadline(&self) -> Instant {
        let membership = self.membership.deadline();
        self.claims
            .deadline()
            .map_or(membership, |claims| claims.min(membership))
    }

    /// What is to be done now.
    pub(crate) fn work(&mut self, now: Instant) -> Work {
        self.membership.tick(now);
        if std::mem::take(&mut self.stale) {
            self.membership.set_candidacies(self.candidacies());
            self.elected.0 = u64::MAX;
        }
        let changed = self.elected.0 != self.membership.changes();
        if changed {
            let wanted = self.wanted();
            self.claims.want(now, &wanted);
            self.elected.0 = self.membership.changes();
        }
        if self.elected.1 != self.membership.arrivals() {
            // The others had another owner while they did not hear this node.
            self.claims.announce_again(now, |_| true);
            self.elected.1 = self.membership.arrivals();
        }
        let operations = self.claims.operations(now, OPERATIONS_AT_ONCE);
        let visible = |o: &Operation| !matches!(o, Operation::Probe(..) | Operation::Announce(..));
        Work {
            messages: self.membership.messages(now),
            changed: changed || operations.iter().any(visible),
            operations,
        }
    }

    /// Every address, with the links that it is announced on or the reason why not.
    pub(crate) fn standings(&self) -> impl Iterator<Item = (IpAddr, Result<&Links, NotAnnounced>)> {
        self.desired.addresses.keys().map(|&a| (a, self.standing(a)))
    }

    pub(crate) fn desired(&self) -> &Desired {
        &self.desired
    }

    pub(crate) fn carriers(&self) -> &[Carrier] {
        &self.carriers
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The links that the address is announced on, or the reason why not.
    pub(crate) fn standing(&self, address: IpAddr) -> Result<&Links, NotAnnounced> {
        let links = self.candidacy(address)?;
        if self.claims.owns(address) {
            return Ok(links);
        }
        if self.membership.is_settling() {
            return Err(NotAnnounced::Settling);
        }
        match self.membership.owner(address) {
            Some(owner) if owner != self.membership.me() => Err(NotAnnounced::LostElection {
                owner: owner.to_string(),
            }),
            _ => self.claims.standing(address),
        }
    }

    /// The links that this node could announce the address on, were it alone.
    fn candidacy(&self, address: IpAddr) -> Result<&Links, NotAnnounced> {
        let known = self
            .desired
            .addresses
            .get(&address)
            .ok_or(NotAnnounced::NoService)?;
        let links = known.verdict.as_ref().map_err(Clone::clone)?;
        if meant(&self.carriers, links).next().is_none() {
            return Err(NotAnnounced::NoLink);
        }
        Ok(links)
    }

    fn candidacies(&self) -> List {
        let addresses = self.desired.addresses.keys().copied();
        let candidate: BTreeSet<IpAddr> = addresses.filter(|a| self.candidacy(*a).is_ok()).collect();
        List::new(candidate)
    }

    /// The addresses whose election this node has won.
    fn wanted(&self) -> BTreeMap<IpAddr, Links> {
        let won = |address: IpAddr| self.membership.owner(address) == Some(self.membership.me());
        let candidates = self.desired.addresses.keys().copied();
        candidates
            .filter_map(|a| Some((a, self.candidacy(a).ok()?)))
            .filter(|(address, _)| won(*address))
            .map(|(address, links)| (address, links.clone()))
            .collect()
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
