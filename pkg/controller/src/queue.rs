//! Keys that wait to be looked at: each at most once, none while it is being worked on, failed ones again after a
//! growing delay.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Delay after the first failure; it doubles with each one that follows.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest delay after failures.
const RETRY_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Queue<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    /// Taken and not yet [`done`](Self::done); true when it was added again meanwhile.
    active: HashMap<K, bool>,
    later: BTreeSet<(Instant, K)>,
    failures: HashMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            active: HashMap::new(),
            later: BTreeSet::new(),
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Ord + Hash> Queue<K> {
    pub(crate) fn add(&mut self, key: K) {
        if let Some(again) = self.active.get_mut(&key) {
            *again = true;
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// The next key to work on. It is not given out again before it is [`done`](Self::done).
    pub(crate) fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((due, _)) = self.later.first()
            && *due <= now
            && let Some((_, key)) = self.later.pop_first()
        {
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.active.insert(key.clone(), false);
        Some(key)
    }

    /// The work on a key has ended, well or not.
    pub(crate) fn done(&mut self, key: K, failed: bool, now: Instant) {
        let again = self.active.remove(&key).unwrap_or_default();
        // What came in while it failed may be just what it lacked: that is tried at once, and the delayed try stays.
        if again {
            self.add(key.clone());
        }
        if failed {
            let failures = self.failures.entry(key.clone()).or_default();
            let delay = (RETRY_FIRST * 2u32.saturating_pow(*failures)).min(RETRY_MAX);
            *failures = (*failures + 1).min(16);
            self.later.insert((now + delay, key));
        } else {
            self.failures.remove(&key);
        }
    }

    /// When the next failed key is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(due, _)| *due)
    }

    /// Keys that wait, not counting failed ones.
    pub(crate) fn depth(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_worked_on_once_at_a_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!((queue.take(now), queue.take(now)), (Some("a"), None));
        queue.add("a");
        assert_eq!((queue.take(now), queue.depth()), (None, 0));
        queue.done("a", false, now);
        assert_eq!((queue.take(now), queue.take(now)), (Some("a"), None));
        queue.done("a", false, now);
        assert_eq!((queue.take(now), queue.next_due()), (None, None));
    }

    #[test]
    fn failed_keys_come_back_later_and_later() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        let mut now = start;
        let mut delays = Vec::new();
        for _ in 0..12 {
            assert_eq!(queue.take(now), Some("a"));
            queue.done("a", true, now);
            let due = queue.next_due().unwrap();
            assert_eq!(queue.take(due - Duration::from_millis(1)), None);
            delays.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(delays[..3], [50, 100, 200]);
        assert_eq!(delays[11], 10_000);
        queue.take(now);
        queue.done("a", false, now);
        queue.add("a");
        queue.take(now);
        queue.done("a", true, now);
        assert_eq!(queue.next_due(), Some(now + RETRY_FIRST));
    }
}
