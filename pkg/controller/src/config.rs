//! What the controllers are told.

use svcnet_api::types::CidrList;

/// Settings of the controllers.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--cluster-cidr`: the nodes' pod networks come from it, a /24 (IPv4) and a /64 (IPv6) each.
    pub cluster_cidr: CidrList,
}
