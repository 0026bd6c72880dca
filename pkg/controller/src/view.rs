//! What controllers keep of the objects that they watch: compact entries by key, the newest state of each.
//!
//! An entry may become known twice, from the answer to our own write and from the watch, in either order; the
//! resource version says which is newer. And an answer may be late: the watch may have told by then that the object is
//! gone, and what is gone must not come back.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_string(),
            name: name.to_string(),
        }
    }

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Which object, and which state of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) uid: String,
    pub(crate) revision: String,
}

impl Version {
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            revision: meta.resource_version.clone().unwrap_or_default(),
        }
    }

    /// Whether `other` is an earlier state of the same object. Revisions that are no numbers are all taken as new.
    fn is_after(&self, other: &Self) -> bool {
        match (self.revision.parse::<u64>(), other.revision.parse::<u64>()) {
            (Ok(mine), Ok(others)) => self.uid == other.uid && mine > others,
            _ => false,
        }
    }
}

/// Deleted objects that late answers may still speak of.
const GONE_MAX: usize = 256;

/// Entries by key, each with its version.
pub(crate) struct View<K, V> {
    entries: HashMap<K, (Version, V)>,
    listed: bool,
    /// Uids of the objects deleted last, the oldest first.
    gone: VecDeque<String>,
}

impl<K, V> Default for View<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            listed: false,
            gone: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> View<K, V> {
    /// Whether there has been a whole list yet.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, entry)| entry)
    }

    pub(crate) fn version(&self, key: &K) -> Option<&Version> {
        self.entries.get(key).map(|(version, _)| version)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, entry))| (key, entry))
    }

    /// Takes in a state, unless a newer one is known. The entry before it, where the state was taken in.
    pub(crate) fn apply(&mut self, key: K, version: Version, entry: V) -> Result<Option<V>, Stale> {
        let overtaken = self
            .entries
            .get(&key)
            .is_some_and(|(known, _)| known.is_after(&version));
        if overtaken || self.gone.contains(&version.uid) {
            return Err(Stale);
        }
        Ok(self
            .entries
            .insert(key, (version, entry))
            .map(|(_, before)| before))
    }

    /// The object is gone, unless another one of the same name is known already.
    pub(crate) fn delete(&mut self, key: &K, version: &Version) -> Option<V> {
        // An object without a uid is none that a server has made.
        if !version.uid.is_empty() {
            self.gone.push_back(version.uid.clone());
        }
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
        let (known, _) = self.entries.get(key)?;
        // Whatever its revision: an object that is gone has no later state.
        if known.uid != version.uid {
            return None;
        }
        self.entries.remove(key).map(|(_, entry)| entry)
    }

    /// The object is there, but is none that matters here.
    pub(crate) fn forget(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(_, entry)| entry)
    }

    /// All entries are known: those that `keep` does not name are taken out and given back.
    pub(crate) fn retain(&mut self, keep: &std::collections::HashSet<K>) -> Vec<(K, V)> {
        self.listed = true;
        let gone: Vec<K> = self
            .entries
            .keys()
            .filter(|key| !keep.contains(*key))
            .cloned()
            .collect();
        gone.into_iter()
            .filter_map(|key| Some((key.clone(), self.entries.remove(&key)?.1)))
            .collect()
    }
}

/// A newer state is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale;

#[cfg(test)]
mod tests {
    use super::*;

    fn version(uid: &str, revision: u64) -> Version {
        Version {
            uid: uid.to_string(),
            revision: revision.to_string(),
        }
    }

    #[test]
    fn the_newest_state_stays() {
        let mut view: View<&str, u32> = View::default();
        assert_eq!(view.apply("a", version("u", 9), 9), Ok(None));
        assert_eq!(view.apply("a", version("u", 8), 8), Err(Stale));
        assert_eq!(
            view.apply("a", version("u2", 7), 7),
            Ok(Some(9)),
            "another object of the same name"
        );
        assert_eq!(view.delete(&"a", &version("u", 20)), None);
        assert_eq!(view.delete(&"a", &version("u2", 21)), Some(7));
    }

    #[test]
    fn late_answers_do_not_bring_back_what_is_gone() {
        let mut view: View<&str, u32> = View::default();
        view.apply("a", version("u", 1), 1).unwrap();
        assert_eq!(view.delete(&"a", &version("u", 3)), Some(1));
        assert_eq!(view.apply("a", version("u", 2), 2), Err(Stale));
        assert_eq!(view.apply("a", version("v", 4), 4), Ok(None));
    }

    #[test]
    fn a_list_says_what_is_gone() {
        let mut view: View<&str, u32> = View::default();
        view.apply("a", version("u", 1), 1).unwrap();
        view.apply("b", version("v", 2), 2).unwrap();
        assert!(!view.is_listed());
        assert_eq!(view.retain(&["b"].into()), [("a", 1)]);
        assert!(view.is_listed() && view.get(&"b").is_some());
    }
}
