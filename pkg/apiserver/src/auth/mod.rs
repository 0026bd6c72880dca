//! Who calls, and what they may do.

mod identity;
mod rules;

pub(crate) use identity::{User, from_certificate};
pub(crate) use rules::{Attributes, may, may_object, may_root};
