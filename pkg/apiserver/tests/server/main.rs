//! The API server as clients see it: over sockets, with certificates, and with the real kubectl.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a test says what it expects"
)]

mod access;
mod certificates;
mod client;
mod collect;
mod encryption;
mod harness;
mod hooks;
mod kinds;
mod kubectl;
mod limits;
mod objects;
mod reviews;
mod tokens;
mod unauthorized;
mod watches;
