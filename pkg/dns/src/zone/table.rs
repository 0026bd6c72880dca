//! An immutable table that shares what did not change with its predecessor.
//!
//! Keys are spread over a fixed number of shards, each a sorted array. A change copies the shards that it touches (at
//! 100,000 entries about 100 pointers each) and the array of shards; a reader needs no lock and no more memory than the
//! entries.

use std::sync::Arc;

const SHARDS: usize = 1024;

/// What a table holds: a value that carries its own key.
pub(crate) trait Entry {
    /// The key.
    fn key(&self) -> &[u8];
}

type Shard<V> = Arc<[Arc<V>]>;

/// The table.
#[derive(Debug)]
pub(crate) struct Table<V> {
    shards: Arc<[Shard<V>]>,
    length: usize,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
            length: self.length,
        }
    }
}

impl<V: Entry> Default for Table<V> {
    fn default() -> Self {
        let empty: Shard<V> = Arc::from(Vec::new());
        Self {
            shards: vec![empty; SHARDS].into(),
            length: 0,
        }
    }
}

/// One change: a new value, or none for the key.
#[derive(Debug, Clone)]
pub(crate) enum Change<V> {
    /// Add it, or put it in the place of the one with its key.
    Put(Arc<V>),
    /// There is none with this key.
    Remove(Box<[u8]>),
}

impl<V: Entry> Change<V> {
    fn key(&self) -> &[u8] {
        match self {
            Self::Put(value) => value.key(),
            Self::Remove(key) => key,
        }
    }
}

impl<V: Entry> Table<V> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The entry with this key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<V>> {
        let shard = &self.shards[shard_of(key)];
        let at = shard.binary_search_by(|entry| entry.key().cmp(key)).ok()?;
        shard.get(at)
    }

    /// All entries, in no order that means anything.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// The table after the changes, of which each key has at most one.
    pub(crate) fn with(&self, mut changes: Vec<Change<V>>) -> Self {
        if changes.is_empty() {
            return self.clone();
        }
        changes.sort_by_cached_key(|change| shard_of(change.key()));
        let mut shards = self.shards.to_vec();
        let mut length = self.length;
        for group in changes.chunk_by(|a, b| shard_of(a.key()) == shard_of(b.key())) {
            let number = group.first().map_or(0, |change| shard_of(change.key()));
            let mut entries = shards[number].to_vec();
            length -= entries.len();
            for change in group {
                let place = entries.binary_search_by(|entry| entry.key().cmp(change.key()));
                match (place, change) {
                    (Ok(at), Change::Put(value)) => entries[at] = value.clone(),
                    (Err(at), Change::Put(value)) => entries.insert(at, value.clone()),
                    (Ok(at), Change::Remove(_)) => drop(entries.remove(at)),
                    (Err(_), Change::Remove(_)) => {}
                }
            }
            length += entries.len();
            shards[number] = entries.into();
        }
        Self {
            shards: shards.into(),
            length,
        }
    }
}

/// FNV-1a, folded. An owner of many names can make one shard long, and pays for it himself: a lookup in it stays
/// logarithmic.
fn shard_of(key: &[u8]) -> usize {
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ((hash >> 32) ^ hash) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Pair(Vec<u8>, u32);

    impl Entry for Pair {
        fn key(&self) -> &[u8] {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(batches in prop::collection::vec(
            prop::collection::btree_map(prop::collection::vec(0_u8..4, 0..4), prop::option::of(any::<u32>()), 0..20), 0..10
        )) {
            let mut table = Table::<Pair>::default();
            let mut model = BTreeMap::new();
            for batch in batches {
                let before = table.clone();
                let model_before = model.clone();
                let mut changes = Vec::new();
                for (key, value) in batch {
                    changes.push(match value {
                        Some(value) => Change::Put(Arc::new(Pair(key.clone(), value))),
                        None => Change::Remove(key.clone().into()),
                    });
                    match value {
                        Some(value) => model.insert(key, value),
                        None => model.remove(&key),
                    };
                }
                table = table.with(changes);
                prop_assert_eq!(table.len(), model.len());
                for (table, model) in [(&table, &model), (&before, &model_before)] {
                    let held: BTreeMap<_, _> = table.iter().map(|p| (p.0.clone(), p.1)).collect();
                    prop_assert_eq!(&held, model);
                    for (key, value) in model {
                        prop_assert_eq!(table.get(key).map(|p| p.1), Some(*value));
                    }
                }
            }
        }
    }
}
