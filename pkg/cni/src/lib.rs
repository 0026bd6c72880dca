//! The Container Network Interface: a runtime calls the plugin for each container, and the plugin asks the daemon in
//! the agent, which does the work.
//!
//! - [`protocol`]: what runtimes and plugins say to each other.
//! - [`ipam`]: which pod has which address, on disk.
//! - [`link`]: a pod's link in the kernel; [`bridge`]: what all of them hang on.
//! - [`hostport`]: ports of the host that lead to pods; [`bandwidth`]: how fast a pod may be.
//! - [`isolation`]: where whoever enforces policies is asked before a pod starts.
//! - [`CniDaemon`]: the role. It serialises calls for one container, and tells the API which address a pod has.
//! - [`cri`]: what the container runtime knows of a pod.
//! - [`plugin`]: the thin client that runtimes run; [`client`]: the same for programs.
//!
//! The daemon owns the bridge with its addresses, the pods' links, the tables `svcnet-hostport`, and the directory of leases.

pub mod bandwidth;
pub mod bridge;
pub mod client;
pub mod conflist;
pub mod cri;
mod daemon;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod hostport;
pub mod ipam;
pub mod isolation;
pub mod link;
mod loopback;
pub mod plugin;
pub mod protocol;
mod registrar;

pub use daemon::{CniDaemon, Error};

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use svcnet_netlink::underlay::Choice;

/// What the operator decides.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The link towards the peers, for the largest packet.
    pub underlay: Choice,
    /// Nothing is encapsulated between the nodes: pods' packets need leave no room for it.
    pub direct: bool,
    /// The largest packet of a pod; otherwise what the link towards the peers carries less the encapsulation.
    pub mtu: Option<u32>,
    /// The name servers of pods (`--cluster-dns`); without one, their `resolv.conf` is the runtime's affair.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster's names (`--cluster-domain`).
    pub cluster_domain: String,
    /// Where to put the network configuration for runtimes (`/etc/cni/net.d`), if anywhere.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where to put the plugin for runtimes (`/opt/cni/bin`), if anywhere.
    pub cni_bin_dir: Option<PathBuf>,
    /// The container runtime's socket (`--cri-socket`), for labels of pods that the API does not know.
    pub cri_socket: Option<PathBuf>,
    /// Whoever isolates pods as policies want it, if anybody.
    pub isolation: Option<Arc<dyn isolation::Isolation>>,
}

/// The daemon's socket.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// The directory of the leases.
pub fn leases_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("cni")
}
