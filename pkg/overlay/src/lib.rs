//! The overlay: pods of different nodes reach each other by address.
//!
//! Every node has a VXLAN link that learns nothing: for each peer the link's forwarding database says which node
//! address an Ethernet address is behind, the neighbour table which Ethernet address the peer's VXLAN link has, and a
//! route sends the peer's pod network there. All three follow from the peer's Node object alone: the Ethernet address
//! is computed from the node's name, the VXLAN link's address is the first of the pod network.
//!
//! Where a peer's node is on the same link as this one, a route through the node itself does as well, and costs nothing
//! around each packet: [`Mode`] says which way is taken.
//!
//! What really passes to each peer is found out by probes ([`probe`]): a route says so where it is less than it should be.
//!
//! The overlay owns its VXLAN link with all addresses, neighbours and forwarding entries on it, the routes with
//! protocol 115, and the table `ip svcnet-overlay`. It neither makes nor changes the bridge of the pods.
//!
//! [`desired`] and [`plan`] are pure; [`observe`] reads the kernel and [`apply`] writes it.
//!
//! The service range is routed through the pods' bridge, with its address as source: so nodes without a default route
//! reach Services, and with a source that peers can answer without masquerading.

pub mod apply;
pub mod desired;
mod masquerade;
mod mode;
pub mod observe;
pub mod plan;
mod probe;
mod role;
mod status;
pub mod view;

pub use mode::{BadMode, Mode};
pub use role::{Error, Overlay};
pub use status::{Checksums, Facts as Told};

use std::time::Duration;

use svcnet_api::types::{CidrList, Vni};
use svcnet_api::wellknown::{BRIDGE_NAME, VXLAN_NAME};
use svcnet_netlink::ethtool::Ethtool;
use svcnet_netlink::underlay::Choice;
use svcnet_netlink::{Rtnl, nft};

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// The way to the peers.
    pub mode: Mode,
    /// The link towards them, and the address there.
    pub underlay: Choice,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// The VXLAN UDP port.
    pub port: u16,
    /// The addresses of all pods.
    pub cluster_cidr: CidrList,
    /// The addresses of all services.
    pub service_cidr: CidrList,
    /// The largest packet of a pod; otherwise what the interface carries less the encapsulation.
    pub mtu: Option<u32>,
    /// How often it is looked at what really passes to each peer.
    pub verify_every: Duration,
}

/// The usual [`Config::verify_every`]: 33 packets a second among 1,000 nodes.
pub const VERIFY_EVERY: Duration = Duration::from_secs(30);

/// The links that the overlay works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkNames {
    /// Its own VXLAN link.
    pub vxlan: &'static str,
    /// The bridge of the pods, which the CNI daemon makes.
    pub bridge: &'static str,
}

/// The names on every node.
pub const LINK_NAMES: LinkNames = LinkNames {
    vxlan: VXLAN_NAME,
    bridge: BRIDGE_NAME,
};

/// The kernel of one network namespace.
pub struct Kernel {
    /// Links, addresses, routes, neighbours.
    pub rt: Rtnl,
    /// nf_tables.
    pub nft: nft::Socket,
    /// What links compute.
    pub ethtool: Ethtool,
}

impl Kernel {
    /// That of the calling thread's namespace.
    ///
    /// # Errors
    /// When it gives no sockets.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            rt: Rtnl::open()?,
            nft: nft::Socket::open()?,
            ethtool: Ethtool::open().map_err(KernelError::Ethtool)?,
        })
    }
}

/// The kernel refused or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// In rtnetlink.
    #[error(transparent)]
    Rtnl(#[from] svcnet_netlink::rt::Error),
    /// In nf_tables.
    #[error("masquerading: {0}")]
    Nft(#[from] nft::Error),
    /// In what links compute.
    #[error("what the VXLAN link computes: {0}")]
    Ethtool(#[source] std::io::Error),
}
