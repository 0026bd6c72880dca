//! What the store holds in memory, and reads from it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::history::{Compacted, Event, History};
use crate::key::{Collection, Key};

/// An object as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The revision of its last change.
    pub revision: u64,
    /// Its bytes, which hold that revision too.
    pub value: Bytes,
}

/// Which objects of a collection to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// Those of this namespace.
    pub namespace: Option<String>,
    /// Those after this path.
    pub after: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// Objects as they were, all of them, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// Path and object, in the order of paths.
    pub entries: Vec<(Arc<str>, Entry)>,
    /// How many more there were behind the limit of the range.
    pub remaining: usize,
}

/// Why a list cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// At a revision that is forgotten.
    #[error(transparent)]
    Compacted(Compacted),
    /// At a revision that has not been.
    #[error("Too large resource version: {asked}, current: {current}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// The present one.
        current: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) entries: BTreeMap<Arc<str>, Entry>,
    pub(crate) history: History,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: u64,
    pub(crate) tables: Vec<Table>,
}

impl State {
    pub(crate) fn table(&self, collection: Collection) -> &Table {
        &self.tables[usize::from(collection.0)]
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entry(key.collection, key.path())
    }

    pub(crate) fn entry(&self, collection: Collection, path: &str) -> Option<&Entry> {
        self.table(collection).entries.get(path)
    }

    pub(crate) fn apply(&mut self, collection: Collection, event: Event) {
        self.revision = event.revision;
        let table = &mut self.tables[usize::from(collection.0)];
        if event.deleted {
            table.entries.remove(&event.path);
        } else {
            let entry = Entry {
                revision: event.revision,
                value: event.value.clone(),
            };
            table.entries.insert(event.path.clone(), entry);
        }
        table.history.push(Arc::new(event));
    }

    pub(crate) fn list(
        &self,
        collection: Collection,
        range: &Range,
        at: Option<u64>,
    ) -> Result<Snapshot, ListError> {
        let current = self.revision;
        let table = self.table(collection);
        let (start, end) = bounds(range);
        let limit = range.limit.unwrap_or(usize::MAX);
        let here = table.entries.range::<str, _>((bound(&start), bound(&end)));
        let Some(at) = at.filter(|at| *at != current) else {
            return Ok(snapshot(current, here, limit));
        };
        if at > current {
            return Err(ListError::Future { asked: at, current });
        }
        let changed = table.history.after(at).map_err(ListError::Compacted)?;
        let mut then: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        let mut known = false;
        for event in changed.rev() {
            if !known {
                then = here.clone().map(owned).collect();
                known = true;
            }
            match &event.previous {
                Some(entry) => then.insert(event.path.clone(), entry.clone()),
                None => then.remove(&event.path),
            };
        }
        if known {
            return Ok(snapshot(
                at,
                then.range::<str, _>((bound(&start), bound(&end))),
                limit,
            ));
        }
        Ok(snapshot(at, here, limit))
    }
}

fn snapshot<'a>(
    revision: u64,
    mut all: impl Iterator<Item = (&'a Arc<str>, &'a Entry)>,
    limit: usize,
) -> Snapshot {
    Snapshot {
        revision,
        entries: all.by_ref().take(limit).map(owned).collect(),
        remaining: all.count(),
    }
}

fn owned((path, entry): (&Arc<str>, &Entry)) -> (Arc<str>, Entry) {
    (path.clone(), entry.clone())
}

fn bound(bound: &Bound<String>) -> Bound<&str> {
    match bound {
        Bound::Included(s) => Bound::Included(s),
        Bound::Excluded(s) => Bound::Excluded(s),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Where the range begins and ends. `0` is the character after `/`. A range that would end before it begins (a token
/// of another namespace) is empty, since `BTreeMap` panics on those.
fn bounds(range: &Range) -> (Bound<String>, Bound<String>) {
    let namespace = range.namespace.as_ref();
    let first = namespace.map_or(Bound::Unbounded, |ns| Bound::Included(format!("{ns}/")));
    let end = namespace.map_or(Bound::Unbounded, |ns| Bound::Excluded(format!("{ns}0")));
    let start = match (&first, &range.after) {
        (Bound::Included(first), Some(after)) if after < first => Bound::Included(first.clone()),
        (_, Some(after)) => Bound::Excluded(after.clone()),
        (_, None) => first,
    };
    if let (Bound::Excluded(s) | Bound::Included(s), Bound::Excluded(e)) = (&start, &end)
        && s >= e
    {
        return (Bound::Included(e.clone()), Bound::Excluded(e.clone()));
    }
    (start, end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLLECTION: Collection = Collection(0);

    fn empty() -> State {
        let table = Table {
            entries: BTreeMap::new(),
            history: History::new(0),
        };
        State {
            revision: 0,
            tables: vec![table],
        }
    }

    fn change(state: &mut State, path: &str, deleted: bool) {
        let previous = state.table(COLLECTION).entries.get(path).cloned();
        if deleted && previous.is_none() {
            return;
        }
        let revision = state.revision + 1;
        let value = Bytes::from(revision.to_string());
        let event = Event {
            revision,
            path: path.into(),
            value,
            deleted,
            previous,
        };
        state.apply(COLLECTION, event);
    }

    proptest! {
        /// A list at any former revision is what a list was at that time.
        #[test]
        fn lists_go_back_in_time(changes in prop::collection::vec((0..3u8, 0..4u8, any::<bool>()), 1..60)) {
            let mut state = empty();
            let mut was = Vec::new();
            for (ns, name, deleted) in changes {
                change(&mut state, &format!("n{ns}/{name}"), deleted);
                was.push(state.list(COLLECTION, &Range::default(), None).unwrap());
            }
            for snapshot in was {
                let again = state.list(COLLECTION, &Range::default(), Some(snapshot.revision)).unwrap();
                prop_assert_eq!(again, snapshot);
            }
        }

        /// Pages put together are the whole.
        #[test]
        fn pages_make_the_whole(names in prop::collection::btree_set((0..3u8, 0..9u8), 0..20), limit in 1..5usize) {
            let mut state = empty();
            for (ns, name) in &names {
                change(&mut state, &format!("n{ns}/{name}"), false);
            }
            for namespace in [None, Some("n1".to_string()), Some("n".to_string())] {
                let all = Range { namespace, ..Range::default() };
                let whole = state.list(COLLECTION, &all, None).unwrap().entries;
                let mut pages = Vec::new();
                let mut after = None;
                loop {
                    let range = Range { after: after.clone(), limit: Some(limit), ..all.clone() };
                    let page = state.list(COLLECTION, &range, None).unwrap();
                    let Some((last, _)) = page.entries.last() else { break };
                    after = Some(last.to_string());
                    pages.extend(page.entries);
                    prop_assert_eq!(pages.len() + page.remaining, whole.len());
                }
                prop_assert_eq!(pages, whole);
            }
        }
    }

    #[test]
    fn a_namespace_is_not_its_prefix_and_foreign_tokens_do_no_harm() {
        let mut state = empty();
        for path in ["a/x", "a-b/x", "ab/x", "/x"] {
            change(&mut state, path, false);
        }
        let list = |namespace: &str, after: Option<&str>| {
            let range = Range {
                namespace: Some(namespace.to_string()),
                after: after.map(str::to_string),
                limit: None,
            };
            let entries = state.list(COLLECTION, &range, None).unwrap().entries;
            entries.iter().map(|(p, _)| p.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(list("a", None), ["a/x"]);
        assert_eq!(list("", None), ["/x"]);
        assert_eq!(list("a", Some("zzz/x")), [] as [&str; 0]);
        assert_eq!(list("ab", Some("a/x")), ["ab/x"]);
    }
}
