//! The server on sockets, in network namespaces of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod fixture;
mod forward;
mod serve;
mod upstream;
