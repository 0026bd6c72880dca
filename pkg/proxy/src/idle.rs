//! What nobody uses any more and a packet on its way may still look for: it has been decided about such a packet by the
//! state of before, and what the decision leads to is looked up a moment later.

use std::collections::BTreeMap;

/// Things that nothing leads to any more, until no packet can be left that was led to them.
#[derive(Debug)]
pub(crate) struct Idle<K>(BTreeMap<K, Since>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// After the last [`Idle::tidy`].
    Freshly,
    /// Before it.
    Long,
}

impl<K> Default for Idle<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Idle<K> {
    /// From now on nobody uses it.
    pub(crate) fn put(&mut self, key: K) {
        self.0.insert(key, Since::Freshly);
    }

    /// It is used again: whether it was still there.
    pub(crate) fn take_back(&mut self, key: &K) -> bool {
        self.0.remove(key).is_some()
    }

    /// Whether it is there and not used.
    #[cfg(test)]
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    /// Whether everything that is there is used.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What nobody has used since the last call, in order: it is to go now.
    pub(crate) fn tidy(&mut self) -> Vec<K> {
        let (old, fresh): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(_, since)| *since == Since::Long);
        self.0 = fresh.into_keys().map(|key| (key, Since::Long)).collect();
        old.into_keys().collect()
    }
}

impl<K: Ord> FromIterator<K> for Idle<K> {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| (key, Since::Freshly)).collect())
    }
}
