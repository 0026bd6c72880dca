//! The object model: what a kind is, how its objects are checked, selected and printed, and the types that the rest
//! of svcnet shares. No I/O, no clock.

pub mod admission;
pub mod columns;
pub mod error;
pub mod field;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kind;
mod kinds;
pub mod meta;
mod metadata;
pub mod metallb;
pub mod names;
pub mod registry;
mod rules;
pub mod schema;
pub mod selector;
pub mod types;
pub mod wellknown;

pub use admission::{Admission, Claims, Operation, Request, Reservation};
pub use error::{ApiError, Reason};
pub use field::{FieldError, FieldPath};
pub use kind::Kind;
