//! The controllers and the node role against the real API server, over loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod addresses;
mod endpoints;
mod harness;
mod life;
mod loadbalancer;
mod namespaces;
mod nodes;
