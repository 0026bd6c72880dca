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
mod graceful;
mod harness;
mod hooks;
mod kinds;
mod kubectl;
mod kubectl_apply;
mod limits;
mod managed;
mod objects;
mod reviews;
mod tokens;
mod unauthorized;
mod uploads;
mod validation;
mod watches;
