//! What upstreams said, for as long as it holds, and not more of it than fits.
//!
//! Spread over shards with a lock each. A shard that is full gives up what came first, unless it was asked for since then
//! (second chance): a scan of random names does not push out the names that are in use.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::stored::Stored;
use crate::wire::Query;

/// Entries in all, as in CoreDNS.
pub(crate) const ENTRIES_MAX: usize = 9984;
/// Longest positive answer, in seconds.
const POSITIVE_MAX: u32 = 3600;
/// Longest negative answer, in seconds.
const NEGATIVE_MAX: u32 = 1800;
/// A negative answer that does not say how long it holds.
const NEGATIVE_UNSAID: u32 = 5;
/// Failures: long enough to spare a broken upstream, short enough that nobody waits for the repair.
const FAILURE: u32 = 5;
/// Longer answers are not kept: it bounds the memory.
const BYTES_MAX: usize = 4096;

const SHARDS: usize = 16;

/// What was asked: name, type, class, and the two flags that change the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ask(Box<[u8]>);

impl Ask {
    pub(crate) fn new(query: &Query<'_>) -> Self {
        Self::about(query.name(), query.record_type.0, query.class, flags(query))
    }

    /// The same question about another name.
    pub(crate) fn for_target(query: &Query<'_>, name: &[u8]) -> Self {
        Self::about(name, query.record_type.0, query.class, flags(query))
    }

    pub(crate) fn about(name: &[u8], record_type: u16, class: u16, flags: u8) -> Self {
        let mut key = Vec::with_capacity(name.len() + 5);
        key.extend_from_slice(name);
        key.extend_from_slice(&record_type.to_be_bytes());
        key.extend_from_slice(&class.to_be_bytes());
        key.push(flags);
        Self(key.into())
    }

    /// The question section that asks this.
    pub(crate) fn question(&self) -> &[u8] {
        &self.0[..self.0.len() - 1]
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.0.last().is_some_and(|flags| flags & DNSSEC_OK != 0)
    }

    pub(crate) fn checking_disabled(&self) -> bool {
        self.0.last().is_some_and(|flags| flags & CHECKING_DISABLED != 0)
    }
}

const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

fn flags(query: &Query<'_>) -> u8 {
    let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
    (u8::from(dnssec_ok) * DNSSEC_OK) | (u8::from(query.checking_disabled()) * CHECKING_DISABLED)
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Ask, Entry>,
    /// Every key of `entries` once, the oldest first.
    order: VecDeque<Ask>,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    until: Instant,
    used: bool,
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// What was said, if it still holds.
    pub(crate) fn get(&self, ask: &Ask, now: Instant) -> Option<Arc<Stored>> {
        let mut shard = self.shard(ask).lock().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.entries.get_mut(ask).filter(|entry| entry.until > now)?;
        entry.used = true;
        Some(entry.stored.clone())
    }

    /// Keeps an answer for as long as it says that it holds.
    pub(crate) fn put(&self, ask: Ask, stored: Arc<Stored>, now: Instant) {
        let seconds = lifetime(&stored);
        if seconds == 0 || stored.len() > BYTES_MAX {
            return;
        }
        let entry = Entry {
            stored,
            until: now + Duration::from_secs(seconds.into()),
            used: false,
        };
        let mut shard = self.shard(&ask).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.entries.insert(ask.clone(), entry).is_none() {
            shard.order.push_back(ask);
            shard.shrink(ENTRIES_MAX / SHARDS, now);
        }
    }

    /// How many answers are kept, those that no longer hold included.
    pub(crate) fn len(&self) -> usize {
        let length =
            |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).entries.len();
        self.shards.iter().map(length).sum()
    }

    fn shard(&self, ask: &Ask) -> &Mutex<Shard> {
        let sum = ask.0.iter().fold(0_usize, |sum, &byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        &self.shards[sum % SHARDS]
    }
}

impl Shard {
    fn shrink(&mut self, most: usize, now: Instant) {
        while self.entries.len() > most {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            match self.entries.get_mut(&oldest) {
                Some(entry) if entry.used && entry.until > now => {
                    entry.used = false;
                    self.order.push_back(oldest);
                }
                _ => drop(self.entries.remove(&oldest)),
            }
        }
    }
}

/// How long an answer holds, in seconds; 0: it must not be kept.
fn lifetime(stored: &Stored) -> u32 {
    let facts = stored.facts();
    match (facts.rcode, facts.answer_ttl) {
        _ if facts.truncated => 0,
        (0, Some(ttl)) => ttl.min(POSITIVE_MAX),
        // An alias whose end does not exist: both must still hold.
        (3, Some(ttl)) => ttl
            .min(facts.negative_ttl.unwrap_or(NEGATIVE_UNSAID))
            .min(NEGATIVE_MAX),
        (0 | 3, None) => facts.negative_ttl.unwrap_or(NEGATIVE_UNSAID).min(NEGATIVE_MAX),
        (2, _) => FAILURE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with one A record, or with none and a SOA, or with nothing.
    fn answer(rcode: u8, ttl: Option<u32>, minimum: Option<u32>) -> Arc<Stored> {
        let mut bytes = vec![
            0,
            1,
            0x81,
            0x80 | rcode,
            0,
            1,
            0,
            ttl.is_some().into(),
            0,
            minimum.is_some().into(),
            0,
            0,
        ];
        bytes.extend_from_slice(b"\x01a\x00\x00\x01\x00\x01");
        if let Some(ttl) = ttl {
            bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
        }
        if let Some(minimum) = minimum {
            bytes.extend_from_slice(&[0xc0, 12, 0, 6, 0, 1, 0, 1, 0, 0, 0, 22, 0, 0]);
            bytes.extend_from_slice(&[0; 16]);
            bytes.extend_from_slice(&minimum.to_be_bytes());
        }
        Arc::new(Stored::new(bytes, Instant::now()).unwrap())
    }

    #[test]
    fn lifetimes_are_bounded() {
        assert_eq!(lifetime(&answer(0, Some(60), None)), 60);
        assert_eq!(lifetime(&answer(0, Some(86_400), None)), 3600);
        assert_eq!(lifetime(&answer(0, Some(0), None)), 0);
        assert_eq!(lifetime(&answer(0, Some(u32::MAX), None)), 0);
        assert_eq!(lifetime(&answer(3, None, Some(7200))), 1800);
        assert_eq!(lifetime(&answer(0, None, Some(90))), 90);
        assert_eq!(lifetime(&answer(3, None, None)), 5);
        assert_eq!(lifetime(&answer(2, None, None)), 5);
        assert_eq!(lifetime(&answer(5, None, None)), 0);
    }

    #[test]
    fn it_never_holds_more_than_it_may_and_keeps_what_is_in_use() {
        let cache = Cache::new();
        let now = Instant::now();
        let used = Ask::about(b"\x04used\x00", 1, 1, 0);
        cache.put(used.clone(), answer(0, Some(60), None), now);
        for number in 0..3 * ENTRIES_MAX as u32 {
            assert!(cache.get(&used, now).is_some());
            let name = [&[4], &number.to_be_bytes()[..], &[0]].concat();
            cache.put(Ask::about(&name, 1, 1, 0), answer(0, Some(60), None), now);
        }
        assert!(cache.len() <= ENTRIES_MAX);
        assert!(
            cache.get(&used, now + Duration::from_secs(60)).is_none(),
            "it no longer holds"
        );
    }
}
