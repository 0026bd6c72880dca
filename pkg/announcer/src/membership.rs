//! Who is alive, and who is a candidate for which address. A state machine without clock and sockets: it is told the
//! time and what arrives, and says what to send.
//!
//! Every announcer sends a heartbeat to every other one each interval; silence for the timeout is death. The nodes come
//! from the API, being alive does not: with the server away, failover works as ever.
//!
//! Each announcer decides by its own view which addresses it is a candidate for, and tells the others (a version in
//! each beat, the list itself only to who lacks it). So all elect among the same candidates even while their views of
//! the API differ, and an announcer whose view is stale never leaves an address without an owner.
//!
//! An announcer that stops says nothing but a last beat: its node goes on forwarding what clients send there, and when it
//! is back within the timeout, as after an upgrade, no address moves and no connection breaks.
//!
//! An announcer that starts, or whose links come back, first listens (it "settles"): until it has heard every peer, or
//! for two intervals; live peers answer its first beat at once. Otherwise it would claim everything for a moment. Peers
//! that had it for alive wait for it to end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svcnet_netlink::packet::Mac;

use crate::election::elect;
use crate::message::{Beat, Body, List, Message, Part, Phase};

/// Parts of a list sent to a peer at once; more follow with the next beat.
const PARTS_AT_ONCE: usize = 64;

/// Intervals that settling takes where not every peer is heard.
const SETTLING_INTERVALS: u32 = 2;
/// Intervals that peers wait for an announcer that settles: longer than it takes.
const GRACE_INTERVALS: u32 = 3;

/// The periods of the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// What an announcer knows of itself and the others.
#[derive(Debug)]
pub(crate) struct Membership {
    me: Box<str>,
    incarnation: u64,
    number: u64,
    timing: Timing,
    phase: Phase,
    settled_at: Instant,
    list: Arc<List>,
    macs: Vec<Mac>,
    peers: BTreeMap<Box<str>, Peer>,
    next_beat: Instant,
    urgent: bool,
    changes: u64,
    arrivals: u64,
}

/// Another announcer.
#[derive(Debug, Default)]
struct Peer {
    address: Option<IpAddr>,
    alive: bool,
    heard: Option<Heard>,
    /// It was active and settles again, without ever having been dead: it stays a candidate until then.
    grace: Option<Instant>,
    /// Its candidacies, once known; those of its former version while the new one is on its way.
    list: Option<Arc<List>>,
    incoming: Option<Incoming>,
}

/// Its last beat.
#[derive(Debug)]
struct Heard {
    at: Instant,
    incarnation: u64,
    number: u64,
    beat: Beat,
}

/// A list of which parts are missing.
#[derive(Debug)]
struct Incoming {
    version: u64,
    count: u16,
    parts: BTreeMap<u16, Vec<IpAddr>>,
}

impl Membership {
    /// Knows nobody yet, and settles.
    pub(crate) fn new(me: &str, incarnation: u64, timing: Timing, now: Instant) -> Self {
        Self {
            me: me.into(),
            incarnation,
            number: 0,
            timing,
            phase: Phase::Settling,
            settled_at: now + timing.interval * SETTLING_INTERVALS,
            list: Arc::new(List::new(Default::default())),
            macs: Vec::new(),
            peers: BTreeMap::new(),
            next_beat: now,
            urgent: false,
            changes: 0,
            arrivals: 0,
        }
    }

    /// Greater whenever elections may have another outcome.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Greater whenever a peer has come (back) to life.
    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Name of this node.
    pub(crate) fn me(&self) -> &str {
        &self.me
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.phase == Phase::Settling
    }

    /// How many peers there should be, and how many are alive.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.peers.len(), self.peers.values().filter(|p| p.alive).count())
    }

    /// The peers that are alive.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &str> {
        self.peers
            .iter()
            .filter(|(_, p)| p.alive)
            .map(|(name, _)| &**name)
    }

    /// The candidate that announces the address, if there is one.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&str> {
        let me = (self.phase == Phase::Active && self.list.contains(address)).then_some(&*self.me);
        let peers = self.peers.iter().filter(|(_, p)| p.is_candidate(address));
        elect(address, peers.map(|(name, _)| &**name).chain(me))
    }

    /// The live peer that has a link of this address.
    pub(crate) fn peer_with(&self, mac: Mac) -> Option<&str> {
        let has = |p: &Peer| p.alive && p.heard.as_ref().is_some_and(|h| h.beat.macs.contains(&mac));
        self.peers.iter().find(|(_, p)| has(p)).map(|(name, _)| &**name)
    }

    /// The nodes there are now, each with the address that beats go to. Who is not among them is not heard any more.
    pub(crate) fn set_peers(&mut self, nodes: BTreeMap<Box<str>, Option<IpAddr>>) {
        let mut before = std::mem::take(&mut self.peers);
        for (name, address) in nodes {
            let peer = before.remove(&name).unwrap_or_else(|| {
                self.urgent = true;
                Peer::default()
            });
            self.peers.insert(name, Peer { address, ..peer });
        }
        self.changes += u64::from(!before.is_empty());
    }

    /// The addresses that this node is a candidate for now.
    pub(crate) fn set_candidacies(&mut self, list: List) {
        if *self.list != list {
            self.list = Arc::new(list);
            self.resolve_lists();
            self.changed();
        }
    }

    /// The addresses of this node's links.
    pub(crate) fn set_macs(&mut self, macs: Vec<Mac>) {
        self.urgent |= self.macs != macs;
        self.macs = macs;
    }

    /// Listens anew before taking part: what was heard before may be outdated.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.phase = Phase::Settling;
        self.settled_at = now + self.timing.interval * SETTLING_INTERVALS;
        self.changed();
    }

    /// Sends a beat now rather than when it is due.
    pub(crate) fn beat_now(&mut self) {
        self.urgent = true;
    }

    /// Takes in a message. Says whether it was of use.
    pub(crate) fn receive(&mut self, now: Instant, message: Message) -> bool {
        let Some(peer) = self.peers.get_mut(&message.node) else {
            return false;
        };
        match message.body {
            Body::Part(part) => {
                if peer.take_part(part) {
                    self.changes += 1;
                }
            }
            Body::Beat(beat) => {
                let heard = Heard {
                    at: now,
                    incarnation: message.incarnation,
                    number: message.number,
                    beat,
                };
                if !peer.is_news(&heard) {
                    return false;
                }
                let (was_alive, was_phase) = (peer.alive, peer.phase());
                let restarted = peer
                    .heard
                    .as_ref()
                    .is_none_or(|h| h.incarnation != heard.incarnation);
                peer.grace = match heard.beat.phase {
                    Phase::Active => None,
                    Phase::Settling if was_alive && was_phase == Some(Phase::Active) => {
                        Some(now + self.timing.interval * GRACE_INTERVALS)
                    }
                    Phase::Settling => peer.grace,
                };
                peer.alive = true;
                peer.heard = Some(heard);
                self.changes += u64::from(!was_alive || peer.phase() != was_phase);
                self.arrivals += u64::from(!was_alive);
                // Whoever has just come waits to hear from us.
                self.urgent |= restarted || !was_alive;
                self.resolve_lists();
            }
        }
        self.end_settling(now);
        true
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: Instant) {
        for peer in self.peers.values_mut().filter(|p| p.alive) {
            if peer
                .heard
                .as_ref()
                .is_none_or(|h| h.at + self.timing.timeout <= now)
            {
                peer.alive = false;
                peer.grace = None;
                self.changes += 1;
            }
            if peer.grace.is_some_and(|until| until <= now) {
                peer.grace = None;
                self.changes += 1;
            }
        }
        self.end_settling(now);
    }

    /// When to call [`tick`](Self::tick) and [`messages`](Self::messages) again, unless something arrives before.
    pub(crate) fn deadline(&self) -> Instant {
        let deaths = self
            .peers
            .values()
            .filter(|p| p.alive)
            .filter_map(|p| Some(p.heard.as_ref()?.at + self.timing.timeout));
        let graces = self.peers.values().filter_map(|p| p.grace);
        let settled = (self.phase == Phase::Settling).then_some(self.settled_at);
        let earliest = deaths
            .chain(graces)
            .chain(settled)
            .fold(self.next_beat, Instant::min);
        if self.urgent {
            earliest.min(self.next_beat - self.timing.interval)
        } else {
            earliest
        }
    }

    /// The messages that are due.
    pub(crate) fn messages(&mut self, now: Instant) -> Vec<(IpAddr, Message)> {
        let due = now >= self.next_beat;
        if !due && !self.urgent {
            return Vec::new();
        }
        if due {
            // Not `now +`: beats keep their pace when one is late, unless many were.
            self.next_beat = (self.next_beat + self.timing.interval).max(now + self.timing.interval / 2);
        }
        self.urgent = false;
        self.number += 1;
        let parts = self.list.parts();
        let mut messages = Vec::new();
        for peer in self.peers.values() {
            let Some(address) = peer.address else { continue };
            let beat = Beat {
                phase: self.phase,
                list: self.list.version(),
                held: peer.list.as_ref().map_or(0, |l| l.version()),
                macs: self.macs.clone(),
            };
            messages.push((address, self.message(Body::Beat(beat))));
            // A large list waits for the beat: by then the peer may have come to the same one by itself.
            if peer.lacks(&self.list) && (due || parts.len() == 1) {
                // Which parts were lost is not known: start elsewhere each time.
                let from = usize::try_from(self.number).unwrap_or(0) * PARTS_AT_ONCE % parts.len();
                let some = parts
                    .iter()
                    .cycle()
                    .skip(from)
                    .take(PARTS_AT_ONCE.min(parts.len()));
                messages.extend(some.map(|p| (address, self.message(Body::Part(p.clone())))));
            }
        }
        messages
    }

    fn message(&self, body: Body) -> Message {
        Message {
            node: self.me.clone(),
            incarnation: self.incarnation,
            number: self.number,
            body,
        }
    }

    fn changed(&mut self) {
        self.changes += 1;
        self.urgent = true;
    }

    fn end_settling(&mut self, now: Instant) {
        let all_heard = || self.peers.values().all(|p| p.alive && p.is_listed());
        if self.phase == Phase::Settling && (now >= self.settled_at || all_heard()) {
            self.phase = Phase::Active;
            self.changed();
        }
    }

    /// Equal lists have equal versions: most peers are candidates for the same addresses as this node, or as another
    /// peer, and need not send them.
    fn resolve_lists(&mut self) {
        let wanted: Vec<(Box<str>, u64)> = self
            .peers
            .iter()
            .filter(|(_, p)| !p.is_listed())
            .filter_map(|(name, p)| Some((name.clone(), p.heard.as_ref()?.beat.list)))
            .collect();
        for (name, version) in wanted {
            let known =
                std::iter::once(&self.list).chain(self.peers.values().filter_map(|p| p.list.as_ref()));
            let found = known.into_iter().find(|l| l.version() == version).cloned();
            if let (Some(list), Some(peer)) = (found, self.peers.get_mut(&name)) {
                peer.list = Some(list);
                self.changes += 1;
            }
        }
    }
}

impl Peer {
    fn phase(&self) -> Option<Phase> {
        self.heard.as_ref().map(|h| h.beat.phase)
    }

    fn is_candidate(&self, address: IpAddr) -> bool {
        self.alive
            && (self.phase() == Some(Phase::Active) || self.grace.is_some())
            && self.list.as_ref().is_some_and(|l| l.contains(address))
    }

    /// Whether its current list is known.
    fn is_listed(&self) -> bool {
        let version = self.heard.as_ref().map(|h| h.beat.list);
        version.is_some() && self.list.as_ref().map(|l| l.version()) == version
    }

    /// Whether it is alive and has another list of ours, or none.
    fn lacks(&self, list: &List) -> bool {
        self.alive && self.heard.as_ref().is_some_and(|h| h.beat.held != list.version())
    }

    /// Datagrams overtake each other. A dead peer may come back with any numbers: its clock may have been set back.
    fn is_news(&self, new: &Heard) -> bool {
        let newer = |old: &Heard| (new.incarnation, new.number) > (old.incarnation, old.number);
        !self.alive || self.heard.as_ref().is_none_or(newer)
    }

    /// Says whether the list is complete by it.
    fn take_part(&mut self, part: Part) -> bool {
        let expected = self.heard.as_ref().map(|h| h.beat.list);
        if expected != Some(part.version) || self.is_listed() {
            return false;
        }
        let incoming = match &mut self.incoming {
            Some(incoming) if (incoming.version, incoming.count) == (part.version, part.count) => incoming,
            other => other.insert(Incoming {
                version: part.version,
                count: part.count,
                parts: BTreeMap::new(),
            }),
        };
        incoming.parts.insert(part.index, part.addresses);
        if incoming.parts.len() < usize::from(incoming.count) {
            return false;
        }
        let parts = self.incoming.take().map(|i| i.parts).unwrap_or_default();
        let list = List::new(parts.into_values().flatten().collect());
        let right = list.version() == part.version;
        if right {
            self.list = Some(Arc::new(list));
        }
        right
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
