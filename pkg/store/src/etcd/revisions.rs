//! Revisions as clients see them. They are etcd's, and ahead of them by what restoring has made them (`restore`): an etcd that is
//! new counts from one again, and a client would take such a number for one that it has seen.

use super::channel::{CallError, Channel};
use super::codec::Codec;
use super::values;
use super::wire::ResponseHeader;

/// The name by which it is kept beside the objects, as a decimal number. Where it is not, it is nothing.
pub(super) const AHEAD: &str = "revisions-ahead";

/// How far the revisions of a store are ahead of those of its etcd. It does not change while servers run on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Revisions {
    ahead: u64,
}

impl Revisions {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let ahead = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some(Self { ahead })
    }

    /// Those that an etcd holds.
    pub(super) async fn of(channel: &Channel, codec: &Codec) -> Result<Self, CallError> {
        let answer = values::look(channel, codec, AHEAD).await?;
        let Some(kv) = answer.kvs.first() else {
            return Ok(Self::default());
        };
        let name = || String::from_utf8_lossy(&kv.key).into_owned();
        Self::parse(&kv.value).ok_or_else(|| CallError::Broken(format!("{} there is no number", name())))
    }

    /// Such that what etcd writes from `now` on, a revision of its own, is behind `first` at least, and does not go back.
    pub(super) fn reach(self, first: u64, now: u64) -> Self {
        Self {
            ahead: self.ahead.max(first.saturating_sub(now)),
        }
    }

    pub(super) fn stored(self) -> String {
        self.ahead.to_string()
    }

    /// What clients see of a revision of etcd's.
    pub(crate) fn seen(self, revision: i64) -> u64 {
        u64::try_from(revision).unwrap_or_default() + self.ahead
    }

    /// The revision of a header; 0 without one.
    pub(crate) fn of_header(self, header: Option<ResponseHeader>) -> u64 {
        header.map_or(0, |h| self.seen(h.revision))
    }

    /// What etcd has for a revision that clients see.
    pub(crate) fn etcds(self, seen: u64) -> i64 {
        i64::try_from(seen.saturating_sub(self.ahead)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_as_far_ahead_as_restoring_needs() {
        let none = Revisions::default();
        assert_eq!((none.seen(7), none.etcds(7)), (7, 7));
        let moved = none.reach(1000, 10);
        assert_eq!((moved.seen(11), moved.etcds(1001)), (1001, 11));
        // A snapshot of this store goes to a third one; an older one to this, which does not go back for it.
        assert_eq!(moved.reach(500, 12), moved);
        assert_eq!(moved.reach(5000, 12).seen(13), 5001);
        assert_eq!(Revisions::parse(moved.stored().as_bytes()), Some(moved));
        assert_eq!(Revisions::parse(b"x"), None);
    }
}
