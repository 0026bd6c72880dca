//! Who calls, and what they may do.
//!
//! `rules` judges requests, `review` answers `can-i` with the same functions. A node's rights depend on the object
//! (`may_object`), so they are judged again where the stored one is at hand. A node must not name Secrets in pods that
//! it makes: it may read those that its pods name.

mod authenticate;
mod identity;
mod related;
mod review;
mod revoked;
mod rules;
mod tokens;

pub(crate) use authenticate::{Caller, authenticate};
pub(crate) use identity::{Role, User, from_certificate};
pub(crate) use related::needs_secret;
pub(crate) use review::{Review, reviews, reviews_of};
pub(crate) use rules::{Attributes, may, may_object, may_root};
pub(crate) use tokens::{COLLECTION as TOKEN_COLLECTION, NewToken, Tokens};
