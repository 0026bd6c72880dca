//! ClusterIPs and node ports: who may have which, as part of writing a Service.
//!
//! The allocators proper ([`range`], [`addresses`], [`ports`]) are pure; [`fields`] and [`families`] turn a
//! Service into wishes; [`service`] makes a transaction of it that the API server runs with every write.

mod addresses;
mod families;
mod fields;
mod ports;
mod range;
mod ranges;
mod service;
pub(crate) mod slots;

pub use addresses::AddressRangeError;
pub use service::{RestoreWarning, Restored, ServiceAllocator};
