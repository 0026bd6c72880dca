//! The overlay: pods of different nodes reach each other by address.
//!
//! Every node has a VXLAN link that learns nothing: for each peer the link's forwarding database says which node
//! address an Ethernet address is behind, the neighbour table which Ethernet address the peer's VXLAN link has, and a
//! route sends the peer's pod network there. All three follow from the peer's Node object alone: the Ethernet address
//! is computed from the node's name, the VXLAN link's address is the first of the pod network.
//!
//! The overlay owns its VXLAN link with all addresses, neighbours and forwarding entries on it, the routes with
//! protocol 115, and the table `ip svcnet-overlay`. It neither makes nor changes the bridge of the pods.
//!
//! [`desired`] and [`plan`] are pure; [`observe`] reads the kernel and [`apply`] writes it.

pub mod apply;
pub mod desired;
mod masquerade;
pub mod observe;
pub mod plan;
mod role;
pub mod view;

pub use role::{Error, Overlay};

use std::net::IpAddr;

use svcnet_api::types::{CidrList, IfName, Vni};
use svcnet_api::wellknown::{BRIDGE_NAME, VXLAN_NAME};
use svcnet_netlink::{Rtnl, nft};

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's address towards its peers (`--node-ip`); otherwise one of the interface.
    pub node_ip: Option<IpAddr>,
    /// The interface towards the peers (`--iface`); otherwise that of the default route.
    pub interface: Option<IfName>,
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
}

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
}
