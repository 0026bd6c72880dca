//! Which nodes live: a node lives while its Lease moves.
//!
//! Only our own clock counts, from the moment that we saw a Lease move: clocks of nodes are wrong, and watches are
//! late. The clock stands still while this process does (it was stopped, or starved), so that a pause here is not
//! taken for the death of everyone else.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How long a node lives without a move of its Lease, where the Lease does not say.
const LEASE_DURATION: Duration = Duration::from_secs(6);
/// How long after we first heard of a node its first Lease may take: Leases are in memory only, and after a restart of
/// the server every agent has to find it again.
const FIRST_LEASE_WITHIN: Duration = Duration::from_secs(20);
/// A pause between two ticks that is not the fault of the nodes.
const PAUSE_MIN: Duration = Duration::from_secs(2);

/// Whether a node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Alive,
    /// Its Lease has stood still too long.
    LeaseExpired,
    /// It never had one.
    NeverRenewed,
    /// Too early to say.
    Undecided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) time: Option<Timestamp>,
    pub(crate) duration: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    nodes: HashMap<String, Record>,
    last_tick: Option<Instant>,
}

#[derive(Debug)]
struct Record {
    since: Instant,
    lease: Option<Lease>,
}

#[derive(Debug)]
struct Lease {
    renewal: Renewal,
    seen: Instant,
    /// Whether it was seen to move, rather than just found.
    moved: bool,
}

impl Judge {
    pub(super) fn node_seen(&mut self, node: &str, now: Instant) {
        self.nodes.entry(node.to_string()).or_insert(Record {
            since: now,
            lease: None,
        });
    }

    pub(super) fn node_gone(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// `fresh` says that the Lease has just been written, rather than found in a list.
    pub(super) fn lease_seen(&mut self, node: &str, renewal: Renewal, fresh: bool, now: Instant) {
        let record = self.nodes.entry(node.to_string()).or_insert(Record {
            since: now,
            lease: None,
        });
        match &mut record.lease {
            Some(lease) if lease.renewal.time == renewal.time => lease.renewal = renewal,
            before => {
                let moved = before.is_some() || fresh;
                *before = Some(Lease {
                    renewal,
                    seen: now,
                    moved,
                });
            }
        }
    }

    /// The Lease as it was last seen.
    pub(super) fn renewal(&self, node: &str) -> Option<Renewal> {
        Some(self.nodes.get(node)?.lease.as_ref()?.renewal)
    }

    /// `suspected` says that the node is held for dead: only a Lease that moves is proof of life then.
    pub(super) fn verdict(&self, node: &str, suspected: bool, now: Instant) -> Verdict {
        let Some(record) = self.nodes.get(node) else {
            return Verdict::Undecided;
        };
        let Some(lease) = &record.lease else {
            let waited = now.saturating_duration_since(record.since);
            return if waited > FIRST_LEASE_WITHIN {
                Verdict::NeverRenewed
            } else {
                Verdict::Undecided
            };
        };
        let limit = lease.renewal.duration.unwrap_or(LEASE_DURATION);
        if now.saturating_duration_since(lease.seen) > limit {
            Verdict::LeaseExpired
        } else if suspected && !lease.moved {
            Verdict::Undecided
        } else {
            Verdict::Alive
        }
    }

    /// Time has passed. After a pause of this process, all clocks are set on by it.
    pub(super) fn tick(&mut self, now: Instant, period: Duration) {
        let passed = self
            .last_tick
            .replace(now)
            .map(|last| now.saturating_duration_since(last));
        let Some(pause) = passed.filter(|passed| *passed > period + PAUSE_MIN) else {
            return;
        };
        for record in self.nodes.values_mut() {
            record.since += pause;
            if let Some(lease) = &mut record.lease {
                lease.seen += pause;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn renewal(second: i64) -> Renewal {
        Renewal {
            time: Some(Timestamp::from_second(second).unwrap()),
            duration: Some(6 * SECOND),
        }
    }

    #[test]
    fn a_lease_that_stands_still_is_a_dead_node() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.node_seen("n1", start);
        assert_eq!(judge.verdict("n1", false, start), Verdict::Undecided);
        judge.lease_seen("n1", renewal(1), false, start + SECOND);
        judge.lease_seen("n1", renewal(3), false, start + 3 * SECOND);
        judge.lease_seen("n1", renewal(3), false, start + 8 * SECOND);
        assert_eq!(judge.verdict("n1", false, start + 9 * SECOND), Verdict::Alive);
        assert_eq!(
            judge.verdict("n1", false, start + 10 * SECOND),
            Verdict::LeaseExpired
        );
        judge.lease_seen("n1", renewal(11), false, start + 11 * SECOND);
        assert_eq!(judge.verdict("n1", true, start + 11 * SECOND), Verdict::Alive);
        judge.node_gone("n1");
        assert_eq!(judge.verdict("n1", true, start + 60 * SECOND), Verdict::Undecided);
    }

    #[test]
    fn a_lease_that_was_found_is_no_proof_of_life_for_a_suspect() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.lease_seen("n1", renewal(1), false, start);
        judge.node_seen("n1", start);
        assert_eq!(judge.verdict("n1", true, start), Verdict::Undecided);
        assert_eq!(judge.verdict("n1", false, start), Verdict::Alive);
        judge.lease_seen("n1", renewal(2), false, start + SECOND);
        assert_eq!(judge.verdict("n1", true, start + SECOND), Verdict::Alive);
    }

    #[test]
    fn the_first_lease_may_take_a_while() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.node_seen("n1", start);
        assert_eq!(
            judge.verdict("n1", false, start + 20 * SECOND),
            Verdict::Undecided
        );
        assert_eq!(
            judge.verdict("n1", false, start + 21 * SECOND),
            Verdict::NeverRenewed
        );
    }

    #[test]
    fn a_pause_of_ours_is_not_held_against_the_nodes() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.lease_seen("n1", renewal(1), false, start);
        judge.tick(start, SECOND);
        judge.tick(start + SECOND, SECOND);
        let late = start + 100 * SECOND;
        judge.tick(late, SECOND);
        assert_eq!(judge.verdict("n1", false, late), Verdict::Alive);
        assert_eq!(
            judge.verdict("n1", false, late + 6 * SECOND),
            Verdict::LeaseExpired
        );
    }
}
