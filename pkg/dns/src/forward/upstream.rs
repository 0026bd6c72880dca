//! One upstream: whether it works.
//!
//! Two failures in a row take it out; from then on it is probed twice a second, and comes back with the first answer.
//! An upstream that sends its questions to us (a node's resolver that was pointed at the cluster's) is recognised by a
//! probe with a name made up for it, which comes in at our own door. Such a one is left out until it no longer does that.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::name::Name;

/// Failures in a row that take an upstream out.
const FAILS_MAX: u32 = 2;
/// Below this name, which does not exist, are the names of loop probes.
const LOOP_PROBE: &[u8] = b"\x11svcnet-loop-probe\x00";

/// Whether an upstream is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It works.
    Yes,
    /// It does not, but nothing works, and it is this question's turn to try whether that is still so.
    Trial,
    /// It does not work.
    Down,
    /// It asks us.
    Loops,
}

/// An upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    fails: AtomicU32,
    looping: AtomicBool,
    trying: AtomicBool,
    /// What its loop probes are named.
    nonce: [u8; 16],
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let random: [u8; 16] = rand::random();
        Self {
            address,
            fails: AtomicU32::new(0),
            looping: AtomicBool::new(false),
            trying: AtomicBool::new(false),
            nonce: random.map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]),
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        self.fails.load(Ordering::Relaxed) >= FAILS_MAX
    }

    pub(crate) fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// Whether to ask it; `desperate`: none is up.
    pub(crate) fn is_usable(&self, desperate: bool) -> Use {
        if self.is_looping() {
            Use::Loops
        } else if !self.is_down() {
            Use::Yes
        } else if desperate && !self.trying.swap(true, Ordering::Relaxed) {
            Use::Trial
        } else {
            Use::Down
        }
    }

    /// The trial is over.
    pub(crate) fn end_trial(&self) {
        self.trying.store(false, Ordering::Relaxed);
    }

    /// It answered. Whether that is news.
    pub(crate) fn succeeded(&self) -> bool {
        self.fails.swap(0, Ordering::Relaxed) >= FAILS_MAX
    }

    /// It did not answer. Whether that took it out.
    pub(crate) fn failed(&self) -> bool {
        // Saturates far above the limit: a counter that wraps would revive it.
        let before = self.fails.load(Ordering::Relaxed);
        self.fails.store(before.saturating_add(1), Ordering::Relaxed);
        before + 1 == FAILS_MAX
    }

    /// Its probe came in at our own door. Whether that is news.
    pub(crate) fn found_looping(&self) -> bool {
        !self.looping.swap(true, Ordering::Relaxed)
    }

    /// Supposes that it no longer loops; if it does, the probe says so again. What it was before.
    pub(crate) fn forget_loop(&self) -> bool {
        self.looping.swap(false, Ordering::Relaxed)
    }

    /// The name that its loop probes ask for.
    pub(crate) fn probe_name(&self) -> Name {
        Name::from_lower_wire([&[16], &self.nonce[..], LOOP_PROBE].concat())
    }

    /// Whether a question is a loop probe of this upstream.
    pub(crate) fn is_probe(&self, name: &[u8]) -> bool {
        name.strip_suffix(LOOP_PROBE)
            .is_some_and(|label| label.get(1..) == Some(&self.nonce))
    }
}

/// Whether a question is a loop probe of anybody.
pub(crate) fn is_loop_probe(name: &[u8]) -> bool {
    name.ends_with(LOOP_PROBE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_take_it_out_and_one_answer_brings_it_back() {
        let upstream = Upstream::new("192.0.2.1:53".parse().unwrap());
        assert!(!upstream.failed());
        assert_eq!(upstream.is_usable(false), Use::Yes);
        assert!(upstream.failed());
        assert!(!upstream.failed(), "said once");
        assert_eq!(upstream.is_usable(false), Use::Down);
        assert_eq!(upstream.is_usable(true), Use::Trial);
        assert_eq!(upstream.is_usable(true), Use::Down, "one try at a time");
        upstream.end_trial();
        assert!(upstream.succeeded());
        assert!(!upstream.succeeded());
        assert_eq!(upstream.is_usable(false), Use::Yes);
    }

    #[test]
    fn probes_are_told_apart() {
        let (a, b) = ("192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap());
        let (a, b) = (Upstream::new(a), Upstream::new(b));
        let name = a.probe_name();
        assert!(is_loop_probe(name.wire()) && a.is_probe(name.wire()) && !b.is_probe(name.wire()));
        assert!(a.found_looping() && !a.found_looping());
        assert_eq!(a.is_usable(true), Use::Loops);
        assert!(a.forget_loop());
    }
}
