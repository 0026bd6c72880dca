//! NetworkPolicies with real packets: a truth table of pods against the words of the API, connections that stand, pods
//! that claim to be others, and what people are told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod follow;
mod probe;
mod relayed;
mod spoof;
mod told;
mod truth;
