//! Values that carry their own revision.

use bytes::Bytes;

/// A value with a hole in it, in which the store writes the revision that it gives to the change. So the stored bytes
/// are the very ones that readers get, without being parsed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Template {
    /// The bytes before and after the revision (in decimal).
    pub fn new(before: Vec<u8>, after: Vec<u8>) -> Self {
        Self { before, after }
    }

    /// How long the value will be, about.
    pub(crate) fn len(&self) -> usize {
        self.before.len() + self.after.len() + 20
    }

    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        (&self.before, &self.after)
    }

    pub(crate) fn fill(self, revision: u64) -> Bytes {
        let digits = revision.to_string();
        let mut whole = Vec::with_capacity(self.before.len() + digits.len() + self.after.len());
        whole.extend_from_slice(&self.before);
        whole.extend_from_slice(digits.as_bytes());
        whole.extend_from_slice(&self.after);
        Bytes::from(whole)
    }
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object has this value from now on.
    Put(Template),
    /// The object is gone; watchers are shown this as its last state. It is the stored object, with the hole for the revision
    /// of the deletion: etcd shows them what was stored.
    Delete(Template),
}
