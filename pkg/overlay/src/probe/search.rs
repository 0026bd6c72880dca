//! The largest packet that passes, found by asking: pure, the clock and the packets are the caller's.

/// Sizes that are tried at once.
const AT_ONCE: u32 = 16;
/// A packet may be lost for other reasons than its size.
const TRIES: u32 = 2;

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What should pass does.
    Whole,
    /// No larger packet than this one passes.
    Limited(u32),
    /// Nothing is answered.
    Silent,
}

/// How it goes on after a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// With another round.
    Round(Search),
    /// It does not.
    Done(Outcome),
}

/// A search under way. A round is: send [`Search::sizes`], tell what was answered, wait, [`Search::end_round`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Search {
    whole: u32,
    floor: u32,
    round: Round,
    best: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Does what should pass?
    Whole { tries: u32 },
    /// Does the smallest pass that is of interest?
    Smallest { tries: u32 },
    /// The first passes, the second does not.
    Between { low: u32, high: u32 },
}

impl Search {
    /// For a packet of `whole` bytes; smaller ones than `floor` are of no interest.
    pub(crate) fn new(whole: u32, floor: u32) -> Self {
        Self {
            whole,
            floor: floor.min(whole),
            round: Round::Whole { tries: 1 },
            best: None,
        }
    }

    /// What to send in this round, in bytes.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        match self.round {
            Round::Whole { .. } => vec![self.whole],
            Round::Smallest { .. } => vec![self.floor],
            Round::Between { low, high } => rungs(low, high).flat_map(|size| [size, size]).collect(),
        }
    }

    /// A packet of this size was answered.
    pub(crate) fn passed(&mut self, size: u32) {
        self.best = self.best.max(Some(size));
    }

    /// Whether nothing more is to be heard in this round.
    pub(crate) fn is_settled(&self) -> bool {
        match self.round {
            Round::Whole { .. } | Round::Smallest { .. } => self.best.is_some(),
            Round::Between { .. } => false,
        }
    }

    /// All answers of this round that will come have come.
    pub(crate) fn end_round(mut self) -> Step {
        let best = self.best.take();
        self.round = match (self.round, best) {
            (Round::Whole { .. }, Some(_)) => return Step::Done(Outcome::Whole),
            (Round::Whole { tries }, None) if tries < TRIES => Round::Whole { tries: tries + 1 },
            (Round::Whole { .. }, None) => Round::Smallest { tries: 1 },
            (Round::Smallest { .. }, Some(_)) => Round::Between {
                low: self.floor,
                high: self.whole,
            },
            (Round::Smallest { tries }, None) if tries < TRIES => Round::Smallest { tries: tries + 1 },
            (Round::Smallest { .. }, None) => return Step::Done(Outcome::Silent),
            (Round::Between { low, high }, best) => {
                let passes = best.unwrap_or(low).max(low);
                let high = rungs(low, high).find(|size| *size > passes).unwrap_or(high);
                Round::Between { low: passes, high }
            }
        };
        match self.round {
            Round::Between { low, high } if high <= low + 1 => Step::Done(Outcome::Limited(low)),
            _ => Step::Round(self),
        }
    }
}

/// Sizes strictly between two, evenly spread, ascending.
fn rungs(low: u32, high: u32) -> impl Iterator<Item = u32> {
    let gap = high.saturating_sub(low);
    let count = gap.saturating_sub(1).min(AT_ONCE);
    (1..=count).map(move |n| low + n * gap / (count + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path that carries so much; `loses` says which packets get lost all the same, by their number.
    fn search(whole: u32, carries: u32, loses: impl Fn(usize) -> bool) -> (Outcome, usize) {
        let (mut search, mut sent) = (Search::new(whole, 576), 0);
        loop {
            for size in search.sizes() {
                sent += 1;
                if size <= carries && !loses(sent) {
                    search.passed(size);
                }
            }
            match search.end_round() {
                Step::Done(outcome) => return (outcome, sent),
                Step::Round(next) => search = next,
            }
        }
    }

    #[test]
    fn a_path_that_carries_all_costs_one_packet() {
        assert_eq!(search(1500, 1500, |_| false), (Outcome::Whole, 1));
        assert_eq!(search(1500, 9000, |sent| sent == 1), (Outcome::Whole, 2));
        assert_eq!(search(1500, 0, |_| false), (Outcome::Silent, 4));
    }

    proptest! {
        #[test]
        fn a_smaller_path_is_found_to_the_byte(whole in 600..9100u32, less in 1..8000u32) {
            let carries = whole.saturating_sub(less).max(576);
            prop_assume!(carries < whole);
            let (outcome, sent) = search(whole, carries, |_| false);
            prop_assert_eq!(outcome, Outcome::Limited(carries));
            prop_assert!(sent < 150, "{} packets", sent);
        }

        #[test]
        fn what_gets_lost_makes_it_smaller_never_larger(carries in 576..1499u32, odd in 3..9usize) {
            match search(1500, carries, |sent| sent % odd == 0).0 {
                Outcome::Limited(found) => prop_assert!(found <= carries),
                other => prop_assert_eq!(other, Outcome::Silent),
            }
        }
    }
}
