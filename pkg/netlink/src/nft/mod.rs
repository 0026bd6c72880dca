//! nf_tables over raw netlink, without the `nft` program and without its library.
//!
//! Numbers and layouts are those of `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h` (Linux 5.10 and
//! later; tried on 6.1 and 6.18), what `nft` adds for its own use those of libnftnl 1.2 and nft 1.0.6. Everything is
//! written so that `nft list ruleset` and `nft -j list ruleset` print it in full.
//!
//! - [`Table`], [`Chain`], [`Set`], [`Rule`] and [`Expr`] are values; `rule.rs` spells matches and statements as
//!   methods of [`Rule`].
//! - [`Batch`] is a transaction; [`Socket::commit`] carries it out, all or nothing.
//! - [`Socket::tables`] and its like read back; [`Watch`] tells who else changes tables.
//! - [`Socket::listing`] reads a table in full, for people and programs that have no `nft`.
//! - [`Ruleset`] with [`Socket::ensure`] is the short way for a table that is declared and never changes.
//!
//! Four surprises of the kernel and of `nft` that shape callers:
//! - Replacing the value of a map's element takes a delete and an add in one batch.
//! - Adding a jump or goto to a verdict map makes the kernel walk *every* verdict map of the table: keep them tiny.
//! - `nft` 1.0.6 aborts, for every table of the host, on a concatenation that holds the result of a map lookup
//!   (`netlink_parse_concat_expr`), and so on a `dynset` that stores one.
//! - A dump of a hash set that is still growing (in the second after a large batch) can miss elements.

pub(crate) mod attr;
pub(crate) mod batch;
mod concat;
mod dump;
mod expr;
mod field;
mod listing;
mod object;
mod pods;
mod rule;
mod ruleset;
mod segments;
mod socket;
mod userdata;
mod watch;

#[cfg(any(test, fuzzing))]
pub(crate) use listing::read_any;

pub use batch::{Batch, Data, Element};
pub use concat::{Concat, Fields};
pub use dump::{ObservedChain, ObservedElement, ObservedRule, ObservedTable};
pub use expr::{
    CT_STATE_NEW, CT_STATE_NONE, CT_STATUS_DNAT, CmpOp, CtKey, DynsetOp, Expr, FibOf, Header, MetaKey,
    NAT_FULLY_RANDOM, Numgen, RTN_LOCAL, Reg, Reject,
};
pub use field::{ChosenBy, Field};
pub use listing::Listing;
pub use object::{
    Base, Chain, ChainKind, DataType, Family, Hook, MapOf, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_RAW,
    PRIORITY_SRCNAT, Rule, Set, Table, Verdict,
};
pub use pods::EtherType;
pub use ruleset::Ruleset;
pub use socket::{Error, Socket};
pub use userdata::TypeOf;
pub use watch::{Event, Watch};

/// What of a comment the kernel and `nft` keep: the first 127 bytes.
pub fn comment_kept(comment: &str) -> &str {
    userdata::shortened(comment)
}
