//! The Container Network Interface: a runtime calls the plugin for each container, and the plugin asks the daemon in
//! the agent, which does the work.
//!
//! - [`protocol`]: what runtimes and plugins say to each other.
//! - [`ipam`]: which pod has which address, on disk.
//! - [`link`]: a pod's link in the kernel; [`bridge`]: what all of them hang on.
//! - [`CniDaemon`]: the role. It serialises calls for one container, and tells the API which address a pod has.
//! - [`plugin`]: the thin client that runtimes run; [`client`]: the same for programs.
//!
//! The daemon owns the bridge with its addresses, the pods' links, and the directory of leases.

pub mod bridge;
pub mod client;
mod conflist;
mod daemon;
pub mod guard;
pub mod ipam;
pub mod link;
pub mod plugin;
pub mod protocol;
mod registrar;

pub use daemon::{CniDaemon, Error};

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use svcnet_api::types::IfName;

/// What the operator decides.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The node's address towards its peers (`--node-ip`), for the largest packet.
    pub node_ip: Option<IpAddr>,
    /// The interface towards the peers (`--iface`), likewise.
    pub interface: Option<IfName>,
    /// The largest packet of a pod; otherwise what the interface towards the peers carries less the encapsulation.
    pub mtu: Option<u32>,
    /// The name servers of pods (`--cluster-dns`); without one, their `resolv.conf` is the runtime's affair.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster's names (`--cluster-domain`).
    pub cluster_domain: String,
    /// Where to put the network configuration for runtimes (`/etc/cni/net.d`), if anywhere.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where to put the plugin for runtimes (`/opt/cni/bin`), if anywhere.
    pub cni_bin_dir: Option<PathBuf>,
    /// What isolates pods before they start, if anything does.
    pub guard: Option<Arc<dyn guard::Guard>>,
}

/// The daemon's socket.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// The directory of the leases.
pub fn leases_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("cni")
}
