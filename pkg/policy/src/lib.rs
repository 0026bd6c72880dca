//! NetworkPolicy (networking.k8s.io/v1) in nf_tables, and pods that are who they say.
//!
//! - [`model`] and [`view`]: policies, and what is known of the cluster; [`verdict`]: what the policies say about a
//!   connection, in the API's own words.
//! - [`desired`]: what the kernel should hold, [`engine`]: the same kept up to date, [`plan`]: the difference,
//!   [`apply`]: its carrying out. [`layout`] says what the table looks like.
//! - [`pins`]: frames of pods that claim to be somebody else are dropped.
//! - [`judge`]: the same asked by relays, whose packets do not show the kernel whom they are for.
//! - [`gate`]: a pod starts isolated: what starts pods waits there until the kernel knows.
//!
//! The role owns the tables `ip svcnet-policy`, `ip6 svcnet-policy` and `bridge svcnet-policy`.

pub mod apply;
pub mod audit;
pub mod desired;
pub mod engine;
pub mod gate;
pub mod judge;
mod known;
pub mod layout;
pub mod model;
pub mod pins;
pub mod plan;
mod pods;
pub mod ranges;
mod role;
mod tables;
pub mod verdict;
pub mod view;

pub use known::Known;
pub use role::{Error, PolicyRole};

use svcnet_netlink::nft::Family;

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address families that pods have.
    pub families: Vec<Family>,
    /// Whether pods' addresses are given out by svcnet on all nodes: then one of each node's is left for its relays, and pods let
    /// in what comes from there.
    pub relays: bool,
}
