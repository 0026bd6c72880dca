//! The CNI plugin as a runtime calls it: a process for each call, in a node of a lab.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod churn;
mod golden;
