//! Container runtimes as users have them, on a node of a lab: containerd through its CRI and with `ctr`, podman, and chains
//! with the reference plugins. `test/runtimes/run` installs what they take and runs them; nothing else does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod chains;
mod containerd;
mod cri;
mod ctr;
mod image;
mod podman;
mod site;
