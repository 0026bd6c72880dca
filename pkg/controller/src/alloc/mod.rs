//! ClusterIPs and node ports: who may have which, as part of writing a Service.
//!
//! The allocators proper ([`range`], [`addresses`], [`networks`], [`ports`]) are pure; [`fields`] and [`families`] turn a
//! Service into wishes; [`service`] makes a transaction of it that the API server runs with every write. What other
//! objects say about the ranges (ServiceCIDRs, IPAddresses, Nodes) is taken in by [`objects`].

mod addresses;
mod families;
mod fields;
mod networks;
mod objects;
mod ports;
mod range;
mod ranges;
mod service;
pub(crate) mod slots;

pub use addresses::AddressRangeError;
pub(crate) use objects::STILL_IN_USE;
pub use service::{RestoreWarning, Restored, ServiceAllocator};
