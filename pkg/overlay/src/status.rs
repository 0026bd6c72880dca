//! What the overlay tells of itself at `/status`, for `svcnet status`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What the overlay tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The way to the peers, as the operator wants it: `vxlan`, `direct` or `auto`.
    pub mode: String,
    /// The link towards them.
    pub link: String,
    /// This node's address there.
    pub address: Option<IpAddr>,
    /// The largest packet of that link.
    pub mtu: u32,
    /// How many peers are reached by encapsulation.
    pub encapsulated: usize,
    /// How many as they are.
    pub direct: usize,
    /// Peers to which less passes than the links say, with the largest packet between the nodes.
    pub limited: BTreeMap<String, u32>,
    /// Peers that are not reached, or not with all their pods, and why.
    pub unreachable: BTreeMap<String, String>,
    /// Whether checksums may be left to the VXLAN link.
    pub checksums: Checksums,
}

/// Whether what the VXLAN link is left to compute arrives right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Checksums {
    /// No peer has answered so far that packets can be sent to over VXLAN.
    #[default]
    Untested,
    /// It arrives right.
    Right,
    /// It arrives wrong: checksums are computed before.
    Corrupted,
    /// They were computed before already when the overlay came: by the operator's choice, or for what an earlier run has found.
    Off,
}
