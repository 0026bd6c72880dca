//! Giving out numbers of a range: a lower band for who asks by name, an upper band for who does not care (KEP-3070,
//! KEP-3668), each number to one owner.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::slots::Slots;

/// Why a number was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    OutOfRange,
    Taken,
    Full,
}

/// Numbers `first..end`; what is asked for without a wish comes from `split..end` while there is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NumberRange {
    band_static: Range<u64>,
    band_dynamic: Range<u64>,
    slots: Slots,
    /// Never given to who does not ask for it by name.
    reserved: BTreeSet<u64>,
    /// Numbers that the store gives to more than one owner, with the surplus: freed when the last one lets go.
    doubled: HashMap<u64, u32>,
}

impl NumberRange {
    pub(super) fn new(numbers: Range<u64>, split: u64, reserved: impl IntoIterator<Item = u64>) -> Self {
        let split = split.clamp(numbers.start, numbers.end);
        Self {
            slots: Slots::new(numbers.end),
            band_static: numbers.start..split,
            band_dynamic: split..numbers.end,
            reserved: reserved.into_iter().collect(),
            doubled: HashMap::new(),
        }
    }

    /// From now on these are given to nobody who does not ask for them by name.
    pub(super) fn reserve(&mut self, reserved: BTreeSet<u64>) {
        self.reserved = reserved;
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        (self.band_static.start..self.band_dynamic.end).contains(&number)
    }

    pub(super) fn take(&mut self, number: u64) -> Result<(), Refusal> {
        if !self.contains(number) {
            return Err(Refusal::OutOfRange);
        }
        if self.slots.insert(number) {
            Ok(())
        } else {
            Err(Refusal::Taken)
        }
    }

    /// Any number; `random` says where in the band the search begins.
    pub(super) fn take_any(&mut self, random: u64) -> Result<u64, Refusal> {
        let found = self
            .search(&self.band_dynamic, random)
            .or_else(|| self.search(&self.band_static, 0))
            .ok_or(Refusal::Full)?;
        self.slots.insert(found);
        Ok(found)
    }

    fn search(&self, band: &Range<u64>, random: u64) -> Option<u64> {
        let length = band.end - band.start;
        if length == 0 {
            return None;
        }
        let mut start = band.start + random % length;
        // Each round either finds a number or steps over one that is reserved.
        for _ in 0..=self.reserved.len() {
            let found = self.slots.free_from(band, start)?;
            if !self.reserved.contains(&found) {
                return Some(found);
            }
            start = if found + 1 < band.end {
                found + 1
            } else {
                band.start
            };
        }
        None
    }

    /// Takes what the store says is taken. Whether it was free until now.
    pub(super) fn restore(&mut self, number: u64) -> bool {
        let free = self.slots.insert(number);
        if !free {
            *self.doubled.entry(number).or_default() += 1;
        }
        free
    }

    pub(super) fn release(&mut self, number: u64) {
        match self.doubled.get_mut(&number) {
            Some(surplus) if *surplus > 1 => *surplus -= 1,
            Some(_) => _ = self.doubled.remove(&number),
            None => _ = self.slots.remove(number),
        }
    }

    /// Takes in what is so elsewhere, said once or several times.
    pub(super) fn observe(&mut self, number: u64, taken: bool) {
        if taken {
            self.slots.insert(number);
        } else {
            self.doubled.remove(&number);
            self.slots.remove(number);
        }
    }

    pub(super) fn taken(&self) -> u64 {
        self.slots.taken()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lower_band_is_used_once_the_upper_is_full() {
        let mut range = NumberRange::new(10..20, 15, [16]);
        let given: Vec<u64> = (0..9).map(|_| range.take_any(3).unwrap()).collect();
        assert_eq!(given, [18, 19, 15, 17, 10, 11, 12, 13, 14]);
        assert_eq!(range.take_any(0), Err(Refusal::Full));
        assert_eq!(range.take(16), Ok(()));
        assert_eq!(range.take(16), Err(Refusal::Taken));
        assert_eq!(range.take(20), Err(Refusal::OutOfRange));
        assert_eq!(range.take(9), Err(Refusal::OutOfRange));
    }

    #[test]
    fn a_number_held_twice_is_free_when_both_let_go() {
        let mut range = NumberRange::new(0..4, 0, []);
        assert!(range.restore(1) && !range.restore(1));
        range.release(1);
        assert_eq!(range.take(1), Err(Refusal::Taken));
        range.release(1);
        assert_eq!(range.take(1), Ok(()));
    }

    proptest! {
        #[test]
        fn a_number_is_never_given_twice(steps in proptest::collection::vec((any::<bool>(), any::<u64>()), 0..200)) {
            let mut range = NumberRange::new(1..40, 9, [20]);
            let mut held: Vec<u64> = Vec::new();
            for (give, random) in steps {
                if give {
                    match range.take_any(random) {
                        Ok(number) => {
                            prop_assert!(!held.contains(&number) && (1..40).contains(&number) && number != 20);
                            held.push(number);
                        }
                        Err(refusal) => {
                            prop_assert_eq!(refusal, Refusal::Full);
                            prop_assert_eq!(held.len(), 38);
                        }
                    }
                } else if !held.is_empty() {
                    range.release(held.swap_remove(usize::try_from(random % held.len() as u64).unwrap()));
                }
                prop_assert_eq!(range.taken(), held.len() as u64);
            }
        }
    }
}
