//! Memory that a process took for a while goes back to the kernel when the while is over.
//!
//! A start, a list of everything, ten thousand objects that come in: each leaves free memory behind that the C library keeps.
//! So a process is looked at now and then, and when it has grown and grows no more, what is free of it is given back.

use std::time::Duration;

use svcnet_netlink::memory;
use tokio_util::sync::CancellationToken;

/// How often a process is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// What it must have grown by to be worth it: this, or a quarter.
const GROWTH_KIB: u64 = 16 << 10;

/// Gives back what is free until shutdown.
pub async fn give_back(shutdown: CancellationToken) {
    let mut growth = Growth::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if !memory::held_kib().is_some_and(|held| growth.is_over(held)) {
            continue;
        }
        let given = tokio::task::spawn_blocking(|| {
            memory::give_back();
            memory::let_go_of_text();
        });
        if given.await.is_ok() {
            growth.settle(memory::held_kib());
        }
    }
}

/// How much is held, as one look after the other saw it. In KiB.
#[derive(Debug, Default)]
struct Growth {
    /// After what was free had been given back; nothing before the first time.
    settled: Option<u64>,
    /// At the last look.
    last: Option<u64>,
}

impl Growth {
    /// Whether it has grown since it settled, and does not any more.
    fn is_over(&mut self, held: u64) -> bool {
        let rests = self
            .last
            .replace(held)
            .is_some_and(|last| held <= last + last / 50);
        self.settled = self.settled.map(|settled| settled.min(held));
        rests
            && self
                .settled
                .is_none_or(|settled| held > settled + GROWTH_KIB.max(settled / 4))
    }

    fn settle(&mut self, held: Option<u64>) {
        self.settled = held;
        self.last = held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_over_when_it_rests() {
        let mut growth = Growth::default();
        let over = [1000, 5000, 9000, 9050].map(|held| growth.is_over(held));
        assert_eq!(over, [false, false, false, true]);
        growth.settle(Some(4000));
        assert!(!growth.is_over(4000), "once");
        assert!(!growth.is_over(4100), "little more is no growth");
    }

    #[test]
    fn growth_is_waited_out_and_counts_from_what_was_least() {
        let mut growth = Growth::default();
        growth.settle(Some(100_000));
        let over = [110_000, 120_000, 120_000].map(|held| growth.is_over(held));
        assert_eq!(over, [false; 3], "not a quarter");
        let over = [180_000, 250_000, 251_000].map(|held| growth.is_over(held));
        assert_eq!(over, [false, false, true]);
        growth.settle(Some(240_000));
        assert!(!growth.is_over(240_000), "it is all used");
        let over = [50_000, 70_000, 70_000].map(|held| growth.is_over(held));
        assert_eq!(over, [false, false, true], "since it shrank");
    }
}
