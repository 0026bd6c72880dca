//! A set of numbers below a fixed size, made to find a free one fast and to stay small.
//!
//! Up to [`DENSE_MAX`] numbers it is a bitmap (a /12 of service addresses: 128 KiB), searched 64 numbers at a time.
//! Beyond that (IPv6) only the taken numbers are kept: such a range never fills up, so probing finds a gap at once.

use std::collections::HashSet;
use std::ops::Range;

/// Largest size that is kept as a bitmap.
const DENSE_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slots {
    size: u64,
    taken: u64,
    set: Set,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Set {
    Dense(Vec<u64>),
    Sparse(HashSet<u64>),
}

impl Slots {
    pub(crate) fn new(size: u64) -> Self {
        let words = usize::try_from(size.div_ceil(64)).unwrap_or(usize::MAX);
        let set = if size <= DENSE_MAX {
            Set::Dense(vec![0; words])
        } else {
            Set::Sparse(HashSet::new())
        };
        Self { size, taken: 0, set }
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        match &self.set {
            Set::Dense(words) => words
                .get(word_of(number))
                .is_some_and(|word| word & bit_of(number) != 0),
            Set::Sparse(taken) => taken.contains(&number),
        }
    }

    /// Whether it was free until now.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        if number >= self.size || self.contains(number) {
            return false;
        }
        match &mut self.set {
            Set::Dense(words) => {
                if let Some(word) = words.get_mut(word_of(number)) {
                    *word |= bit_of(number);
                }
            }
            Set::Sparse(taken) => _ = taken.insert(number),
        }
        self.taken += 1;
        true
    }

    /// Whether it was taken until now.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        if !self.contains(number) {
            return false;
        }
        match &mut self.set {
            Set::Dense(words) => {
                if let Some(word) = words.get_mut(word_of(number)) {
                    *word &= !bit_of(number);
                }
            }
            Set::Sparse(taken) => _ = taken.remove(&number),
        }
        self.taken -= 1;
        true
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The first free number of the band from `start` on, going round at its end.
    pub(crate) fn free_from(&self, band: &Range<u64>, start: u64) -> Option<u64> {
        self.free_within(start..band.end)
            .or_else(|| self.free_within(band.start..start.min(band.end)))
    }

    fn free_within(&self, mut band: Range<u64>) -> Option<u64> {
        let words = match &self.set {
            Set::Sparse(taken) => return band.find(|number| !taken.contains(number)),
            Set::Dense(words) => words,
        };
        while band.start < band.end {
            let below = bit_of(band.start) - 1;
            let word = words.get(word_of(band.start)).copied().unwrap_or(u64::MAX) | below;
            if word != u64::MAX {
                let found = band.start / 64 * 64 + u64::from(word.trailing_ones());
                return (found < band.end).then_some(found);
            }
            band.start = (band.start / 64 + 1) * 64;
        }
        None
    }
}

fn word_of(number: u64) -> usize {
    usize::try_from(number / 64).unwrap_or(usize::MAX)
}

fn bit_of(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_band_has_no_free_number() {
        let mut slots = Slots::new(130);
        for number in 0..130 {
            assert_eq!(slots.free_from(&(0..130), number), Some(number));
            assert!(slots.insert(number) && !slots.insert(number));
        }
        assert_eq!(slots.free_from(&(0..130), 7), None);
        assert!(slots.remove(5) && !slots.remove(5));
        assert_eq!(slots.free_from(&(0..130), 7), Some(5));
        assert_eq!(slots.free_from(&(6..130), 7), None);
        assert!(!slots.insert(130));
    }

    proptest! {
        #[test]
        fn both_forms_find_the_same(
            taken in proptest::collection::hash_set(0u64..300, 0..300),
            start in 0u64..300, from in 0u64..300, length in 0u64..300,
        ) {
            let band = from..(from + length).min(300);
            let mut dense = Slots::new(300);
            let mut sparse = Slots { size: 300, taken: 0, set: Set::Sparse(HashSet::new()) };
            for number in &taken {
                dense.insert(*number);
                sparse.insert(*number);
            }
            let start = start.clamp(band.start, band.end);
            let naive = (start..band.end).chain(band.start..start).find(|n| !taken.contains(n));
            prop_assert_eq!(dense.free_from(&band, start), naive);
            prop_assert_eq!(sparse.free_from(&band, start), naive);
            prop_assert_eq!(dense.taken(), taken.len() as u64);
        }
    }
}
