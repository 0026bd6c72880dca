//! Where a write may be changed, refused or made to take something (an address, a port) before it is stored.
//!
//! The API server calls every [`Admission`] between defaulting and validation. What an admission takes it holds in a
//! [`Reservation`]: committed once the store has acknowledged the write, given back when it is dropped.

use serde_json::Value;

use crate::error::ApiError;
use crate::kind::Kind;

/// What the writer wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object, also through a patch or the status subresource.
    Update,
    /// An object that goes (called when it really goes, after finalizers).
    Delete,
}

/// A write on its way to the store.
#[derive(Debug)]
pub struct Request<'a> {
    /// What is being done.
    pub operation: Operation,
    /// To what kind.
    pub kind: &'static Kind,
    /// Namespace; empty for kinds without.
    pub namespace: &'a str,
    /// Name of the object (already generated where `generateName` was given).
    pub name: &'a str,
    /// The stored object, on update and delete.
    pub old: Option<&'a Value>,
    /// Whether the result will be thrown away.
    pub dry_run: bool,
}

/// What a write has taken, until it is known whether the write stands.
///
/// Dropping it without [`commit`](Reservation::commit) gives everything back, and keeps what the old object held.
pub trait Reservation: Send {
    /// The write is stored: keep what was taken, and free what the old object held and the new one does not.
    fn commit(self: Box<Self>);

    /// What several servers must not give out twice: written down in the datastore that they share, together with the object.
    fn claims(&self) -> Claims {
        Claims::default()
    }
}

/// What a write takes and frees, by names that are the same on every server, as in `port-30080`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// What the new object holds and the old one did not.
    pub taken: Vec<String>,
    /// What the old object held and the new one does not.
    pub freed: Vec<String>,
}

/// A hook on writes. Must not block: it runs on the write path.
pub trait Admission: Send + Sync {
    /// Looks at, and may change, the object on its way in (`new` is `None` on delete).
    ///
    /// # Errors
    /// Whatever the client is to be told; nothing is stored then.
    fn admit(
        &self,
        request: &Request<'_>,
        new: Option<&mut Value>,
    ) -> Result<Option<Box<dyn Reservation>>, ApiError>;

    /// Takes in what an object found in the store at start holds. Called once for each, before anything is served.
    fn restore(&self, kind: &'static Kind, object: &Value);

    /// The [`Claims`] of an object that is stored.
    fn claims(&self, _kind: &'static Kind, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Takes in that something is taken or free, as the datastore has it that several servers share.
    fn observe(&self, _claim: &str, _taken: bool) {}
}
