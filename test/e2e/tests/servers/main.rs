//! Servers as processes on loopback ports, without nodes: killed under load, and several on one etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod compacted;
mod crash;
mod died;
#[path = "../../../../pkg/store/tests/etcd/mod.rs"]
mod etcd;
mod load;
mod process;
mod shared;
mod whole;
