//! What the controllers are told.

use svcnet_api::types::CidrList;

use crate::alloc::ServiceAllocator;

/// Settings of the controllers.
#[derive(Clone)]
pub struct Config {
    /// `--cluster-cidr`: the nodes' pod networks come from it, a /24 (IPv4) and a /64 (IPv6) each.
    pub cluster_cidr: CidrList,
    /// The allocator of the API server in this process, if there is one: what it found wrong in the store is told at the
    /// Services.
    pub allocator: Option<ServiceAllocator>,
}
