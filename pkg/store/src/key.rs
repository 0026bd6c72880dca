//! What an object is stored under.

use std::sync::Arc;

/// One set of objects of a kind, as an index into what the store was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collection(pub(crate) u16);

/// A collection that the store is opened with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectionSpec {
    /// Its name on disk, as in `endpointslices.discovery.k8s.io`. Holds no NUL.
    pub name: String,
    /// Kept in memory alone.
    pub volatile: bool,
    /// Encrypted on the disk, by a store that has keys.
    pub encrypted: bool,
}

/// The place of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its collection.
    pub collection: Collection,
    path: Arc<str>,
}

impl Key {
    /// The key of an object; the namespace is empty for kinds without. Neither part may hold a `/`, which names do not.
    pub fn new(collection: Collection, namespace: &str, name: &str) -> Self {
        Self {
            collection,
            path: format!("{namespace}/{name}").into(),
        }
    }

    /// `NAMESPACE/NAME`: objects are listed in the order of this.
    pub fn path(&self) -> &Arc<str> {
        &self.path
    }
}

/// The namespace and the name in a path.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or(("", path))
}

/// A text, if it can be the path of an object.
pub(crate) fn object_path(text: &str) -> Option<&str> {
    let (_, name) = text.split_once('/')?;
    (!name.is_empty() && !name.contains('/')).then_some(text)
}
