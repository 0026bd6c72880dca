//! What makes a cluster out of objects: addresses and ports for Services, endpoints from Pods, a network for each
//! node, node life, LoadBalancer addresses, and the end of namespaces.
//!
//! [`alloc`] runs inside the API server, as part of writing a Service. Everything else is an ordinary client of the
//! API: [`Controllers`].

mod addresses;
pub mod alloc;
mod config;
mod controllers;
mod endpoints;
mod engine;
mod leader;
mod life;
mod loadbalancer;
mod namespaces;
mod nodes;
mod queue;
mod recorder;
mod view;

pub use config::Config;
pub use controllers::{Controllers, Error};
pub use leader::{LEASE, Timing, lead};
pub use nodes::NetworkTooSmall;
