//! Which objects a client asks for: by label (`app=nginx,tier in (a,b)`) and by field (`metadata.name=x`).

mod field;
mod label;
mod parse;

pub use field::{FieldSelector, FieldSelectorError, field_value};
pub use label::{LabelSelector, Operator, Requirement, SelectorError};
