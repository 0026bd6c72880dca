//! Every rule of Services from every vantage: a pod on the endpoint's node, a pod elsewhere, the endpoint itself, a node
//! with and one without an endpoint, a node through its loopback, and a host outside; over both families. Each row of a
//! table says who answers and whose address the pod saw.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster_ip;
mod endpoints;
mod load_balancer;
mod node_port;
mod probe;
mod protocols;
mod sctp;
mod stage;
mod table;
mod topology;
