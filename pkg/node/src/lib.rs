//! This machine as a Node of the cluster: registered, kept right, and known to live by its Lease.
//!
//! The role registers the Node with its addresses and repairs what differs ([`desired`], [`plan`], [`apply`]), tells which
//! ports are taken on it ([`ports`]), and
//! renews the Lease that tells the controllers that the node lives ([`heartbeat`]). It is not started where something
//! else registers the node, such as the kubelet of an existing cluster.

mod apply;
mod desired;
mod heartbeat;
mod plan;
mod ports;
mod role;

pub use desired::Machine;
pub use role::{Config, Error, NodeRole};
