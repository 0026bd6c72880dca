//! What was acknowledged, and whether what an informer saw agrees with it.
//!
//! Each name has one writer, so its writes stand in one order. An informer that misses and doubles nothing walks along that
//! order: it may begin anywhere (a list shows where), and each event is the next step. Where an absence says no more than
//! that it is between two lives, all places that it may be at are kept until an event tells.

use std::collections::{BTreeMap, BTreeSet};

/// A write that happened: acknowledged, or found to be there after its acknowledgement was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A value, which no other write has, at a revision.
    Put {
        /// The value.
        value: u64,
        /// The revision that the server gave it.
        revision: u64,
    },
    /// A deletion.
    Delete,
}

/// All writes, by name.
pub type Acknowledged = BTreeMap<String, Vec<Op>>;

/// What an informer saw, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A list: its revision; value and revision of each object.
    List(u64, BTreeMap<String, (u64, u64)>),
    /// `ADDED`: name, value, revision.
    Added(String, u64, u64),
    /// `MODIFIED`.
    Modified(String, u64, u64),
    /// `DELETED`: name, revision of the deletion.
    Deleted(String, u64),
    /// `BOOKMARK`.
    Bookmark(u64),
}

/// Where an informer may be in the order of a name's writes: so many are behind it.
type Places = BTreeSet<usize>;

/// Says what does not agree; nothing when all is well.
pub fn disagreements(acknowledged: &Acknowledged, seen: &[Seen]) -> Vec<String> {
    let mut walk = Walk {
        acknowledged,
        places: BTreeMap::new(),
        revision: 0,
        wrong: Vec::new(),
    };
    for one in seen {
        walk.step(one);
    }
    for (name, ops) in acknowledged {
        let at = walk.places.get(name).cloned().unwrap_or_default();
        if !at.contains(&ops.len()) {
            let all = ops.len();
            walk.wrong.push(format!(
                "{name}: {all} writes were acknowledged, it ends after {at:?}"
            ));
        }
    }
    walk.wrong
}

struct Walk<'a> {
    acknowledged: &'a Acknowledged,
    places: BTreeMap<String, Places>,
    revision: u64,
    wrong: Vec<String>,
}

impl Walk<'_> {
    fn step(&mut self, seen: &Seen) {
        match seen {
            Seen::List(revision, objects) => self.list(*revision, objects),
            Seen::Added(name, value, revision) | Seen::Modified(name, value, revision) => {
                let adds = matches!(seen, Seen::Added(..));
                self.event(seen, name, *revision, |before, op| {
                    let told = Op::Put {
                        value: *value,
                        revision: *revision,
                    };
                    *op == told && adds == matches!(before, None | Some(Op::Delete))
                });
            }
            Seen::Deleted(name, revision) => {
                self.event(seen, name, *revision, |_, op| *op == Op::Delete);
            }
            Seen::Bookmark(revision) => self.reach(seen, *revision, false),
        }
    }

    fn reach(&mut self, seen: &Seen, revision: u64, new: bool) {
        if revision < self.revision || new && revision == self.revision {
            self.wrong
                .push(format!("{seen:?} comes after revision {}", self.revision));
        }
        self.revision = self.revision.max(revision);
    }

    fn list(&mut self, revision: u64, objects: &BTreeMap<String, (u64, u64)>) {
        if revision < self.revision {
            self.wrong.push(format!(
                "a list of {revision} comes after revision {}",
                self.revision
            ));
        }
        self.revision = revision;
        for name in objects
            .keys()
            .filter(|name| !self.acknowledged.contains_key(*name))
        {
            self.wrong
                .push(format!("{name} is in a list, and nobody wrote it"));
        }
        for (name, ops) in self.acknowledged {
            let before = self
                .places
                .get(name)
                .and_then(|at| at.first().copied())
                .unwrap_or(0);
            let behind = |op: &Op| matches!(op, Op::Put { revision: r, .. } if *r <= revision);
            let ahead = |op: &Op| matches!(op, Op::Put { revision: r, .. } if *r > revision);
            let fits = |at: &usize| {
                let last = at.checked_sub(1).map(|i| ops[i]);
                let shown = match (objects.get(name), last) {
                    (Some((value, revision)), Some(last)) => {
                        last == Op::Put {
                            value: *value,
                            revision: *revision,
                        }
                    }
                    (None, last) => matches!(last, None | Some(Op::Delete)),
                    (Some(_), None) => false,
                };
                shown && !ops[..*at].iter().any(ahead) && !ops[*at..].iter().any(behind)
            };
            let places: Places = (before..=ops.len()).filter(fits).collect();
            if places.is_empty() {
                let shown = objects.get(name);
                self.wrong.push(format!(
                    "{name}: a list of {revision} shows {shown:?}, after {before} of {ops:?}"
                ));
            }
            self.places.insert(name.clone(), places);
        }
    }

    fn event(&mut self, seen: &Seen, name: &str, revision: u64, is: impl Fn(Option<&Op>, &Op) -> bool) {
        self.reach(seen, revision, true);
        let Some(ops) = self.acknowledged.get(name) else {
            self.wrong.push(format!("{seen:?}: nobody wrote it"));
            return;
        };
        let places = self.places.entry(name.to_string()).or_default();
        let next = |at: &usize| {
            let before = at.checked_sub(1).and_then(|i| ops.get(i));
            ops.get(*at).is_some_and(|op| is(before, op)).then_some(at + 1)
        };
        let reached: Places = places.iter().filter_map(next).collect();
        if reached.is_empty() {
            self.wrong.push(format!(
                "{seen:?} is not the next of {name}, which is after {places:?} of {ops:?}"
            ));
            return;
        }
        *places = reached;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: u64, revision: u64) -> Op {
        Op::Put { value, revision }
    }

    fn list(revision: u64, objects: &[(&str, u64, u64)]) -> Seen {
        let objects = objects
            .iter()
            .map(|(name, value, at)| (name.to_string(), (*value, *at)));
        Seen::List(revision, objects.collect())
    }

    fn written() -> Acknowledged {
        let a = vec![put(1, 10), put(2, 12), Op::Delete, put(3, 16), Op::Delete];
        BTreeMap::from([("a".to_string(), a), ("b".to_string(), vec![put(4, 11)])])
    }

    fn all() -> Vec<Seen> {
        let a = || "a".to_string();
        vec![
            list(10, &[("a", 1, 10)]),
            Seen::Added("b".to_string(), 4, 11),
            Seen::Modified(a(), 2, 12),
            Seen::Deleted(a(), 13),
            Seen::Bookmark(15),
            Seen::Added(a(), 3, 16),
            Seen::Deleted(a(), 17),
        ]
    }

    #[test]
    fn an_informer_that_sees_all_agrees() {
        assert_eq!(disagreements(&written(), &all()), Vec::<String>::new());
        // Another list may pass over any part.
        let mut later = all();
        later.splice(2..5, [list(14, &[("b", 4, 11)])]);
        assert_eq!(disagreements(&written(), &later), Vec::<String>::new());
        assert_eq!(
            disagreements(&written(), &[list(20, &[("b", 4, 11)])]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_event_that_is_missed_or_doubled_or_moved_is_told() {
        for index in 1..all().len() {
            let mut missed = all();
            let bookmark = matches!(missed.remove(index), Seen::Bookmark(_));
            assert_eq!(
                disagreements(&written(), &missed).is_empty(),
                bookmark,
                "without {index}"
            );
            let mut doubled = all();
            doubled.insert(index, doubled[index].clone());
            assert_eq!(
                disagreements(&written(), &doubled).is_empty(),
                bookmark,
                "twice {index}"
            );
            let mut moved = all();
            moved.swap(index, index - 1);
            assert!(!disagreements(&written(), &moved).is_empty(), "{index} too early");
        }
    }

    #[test]
    fn a_list_that_goes_back_or_shows_what_is_past_is_told() {
        let back = [
            all(),
            vec![list(12, &[("a", 2, 12), ("b", 4, 11)]), list(20, &[("b", 4, 11)])],
        ]
        .concat();
        assert!(!disagreements(&written(), &back).is_empty());
        let stale = [list(20, &[("a", 3, 16), ("b", 4, 11)])];
        assert!(!disagreements(&written(), &stale).is_empty());
        let lost = [list(20, &[])];
        assert!(!disagreements(&written(), &lost).is_empty());
        let invented = [list(20, &[("b", 4, 11), ("c", 9, 19)])];
        assert!(!disagreements(&written(), &invented).is_empty());
    }
}
