//! The kernel's networking over netlink, and nothing but: links, addresses, routes, neighbours, namespaces.
//! No host program is ever run.
//!
//! Calls are synchronous: a request to rtnetlink is answered within microseconds, on the same thread that asks. Async
//! code may call them where it stands.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; each use states why it is sound"
)]

pub mod addr;
pub mod conntrack;
pub mod ethtool;
mod exchange;
pub mod follow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod genl;
pub mod ipvs;
pub mod link;
pub mod listeners;
pub mod local;
pub mod memory;
pub mod monitor;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod qdisc;
pub mod route;
pub mod rt;
pub mod signal;
pub mod sysctl;
pub mod sysctls;
pub mod udp;
pub mod underlay;

pub use rt::Rtnl;
