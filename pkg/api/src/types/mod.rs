//! Values that cannot be wrong: each parses or does not exist.

mod cidr;
mod duration;
pub mod legacy;
mod link;
mod node_ips;
mod port;
mod quantity;

pub use cidr::{CidrList, PodCidr, ServiceCidr, nth_host};
pub use duration::{GoDuration, GoDurationError};
pub use link::{IfName, MacAddr, Vni};
pub use node_ips::NodeIps;
pub use port::{NodePort, NodePortRange};
pub use quantity::{QuantityError, canonical_quantity};

use std::fmt;

/// A value that does not parse, with what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {wanted}")]
pub struct ParseError {
    /// What was given.
    pub value: String,
    /// What would be right, as in `a port range like 30000-32767`.
    pub wanted: String,
}

impl ParseError {
    pub(crate) fn new(value: impl fmt::Display, wanted: impl Into<String>) -> Self {
        Self {
            value: value.to_string(),
            wanted: wanted.into(),
        }
    }
}
