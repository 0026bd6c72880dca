//! What the API server is told at its start. Plain data; the command line fills it in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use svcnet_api::Admission;
use svcnet_store::EtcdConfig;

use crate::audit::AuditConfig;
use crate::limits::Limits;

/// Prints the process's metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// How long certificates last, if nothing else is said (the real `--cluster-signing-duration`).
pub const CERTIFICATES_LAST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Everything that an API server needs to know.
#[derive(Clone)]
pub struct Config {
    /// Addresses to serve HTTPS on. Port 0 takes any free port (tests).
    pub listen: Vec<SocketAddr>,
    /// A loopback address to serve plain HTTP on, where every caller is the administrator. For tests alone.
    pub listen_plain: Option<SocketAddr>,
    /// The address that others reach this server at: the endpoint of the Service `kubernetes`. It may become another one
    /// later ([`crate::Advertiser`]).
    pub advertise_address: IpAddr,
    /// State that survives a restart (`--data-dir`): `store/` (without a datastore), `pki/`, `token`, `controller/`, `agent/`.
    pub data_dir: PathBuf,
    /// An etcd that this server shares with others, in place of a store of its own in `data_dir`.
    pub datastore: Option<EtcdConfig>,
    /// The token that the cluster's servers share, or its secret; what is in `data_dir` or made, without (`--token`).
    pub token: Option<String>,
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
    /// Bounds for what clients may ask of the server at a time.
    pub limits: Limits,
    /// Where what was changed and refused is written down; nowhere without.
    pub audit: Option<AuditConfig>,
    /// How long certificates last that the server makes (`--cluster-signing-duration`). They are renewed, while in use, when
    /// a third of that is left. The authority itself lasts for twenty years.
    pub certificates_last: Duration,
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
