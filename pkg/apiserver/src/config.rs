//! What the API server is told at its start. Plain data; the command line fills it in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use svcnet_api::Admission;

/// Prints the process's metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Everything that an API server needs to know.
#[derive(Clone)]
pub struct Config {
    /// Addresses to serve HTTPS on. Port 0 takes any free port (tests).
    pub listen: Vec<SocketAddr>,
    /// A loopback address to serve plain HTTP on, where every caller is the administrator. For tests alone.
    pub listen_plain: Option<SocketAddr>,
    /// The address that others reach this server at: the endpoint of the Service `kubernetes`.
    pub advertise_address: IpAddr,
    /// State that survives a restart (`--data-dir`): `store/`, `pki/`, `token`, `controller/`, `agent/`.
    pub data_dir: PathBuf,
    /// Where the administrator's kubeconfig is written (`--kubeconfig-out`).
    pub admin_kubeconfig: PathBuf,
    /// This host's node name: goes into the serving certificate and names the local agent.
    pub node_name: String,
    /// Service ranges, one for each address family; the Service `kubernetes` has the first address of the first.
    pub service_cidrs: Vec<IpNet>,
    /// `--cluster-cidr` as given; only handed on to nodes that join.
    pub cluster_cidr: String,
    /// Addresses of the Service `kube-dns`.
    pub cluster_dns: Vec<IpAddr>,
    /// `--cluster-domain`.
    pub cluster_domain: String,
    /// More names and addresses for the serving certificate (`--tls-san`).
    pub tls_sans: Vec<String>,
    /// Hooks on writes, in this order.
    pub admissions: Vec<Arc<dyn Admission>>,
    /// What `/metrics` answers.
    pub metrics: Option<RenderMetrics>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("advertise_address", &self.advertise_address)
            .field("data_dir", &self.data_dir)
            .field("node_name", &self.node_name)
            .field("service_cidrs", &self.service_cidrs)
            .finish_non_exhaustive()
    }
}
