//! How a proxy is run: what flags say, and what the cluster's ConfigMap says instead of them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use svcnet_netlink::nft;

use crate::backend::Mode;
use crate::desired::Settings;
use crate::ipvs::{Timeouts, Tuning};
use crate::mode::Wish;
use crate::nftables::Nftables;
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;

/// How a proxy is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Networks of pods (`--cluster-cidr`): their addresses are kept on the way to services.
    pub cluster_cidrs: Vec<IpNet>,
    /// Networks of ClusterIPs (`--service-cluster-ip-range`).
    pub service_cidrs: Vec<IpNet>,
    /// Service addresses that this node answers itself, as the DNS role does: nothing is programmed for them.
    pub node_local: Vec<IpAddr>,
    /// The mode where the ConfigMap does not say one (`--proxy-mode`).
    pub mode: Mode,
    /// Whether ipvs mode keeps links from answering ARP for addresses of others (`--strict-arp`).
    pub strict_arp: bool,
    /// How long ipvs mode keeps idle connections (`ipvs.tcpTimeout` and its like in the ConfigMap).
    pub ipvs_timeouts: Timeouts,
    /// Where /healthz and /livez are answered (`--healthz-bind-address`).
    pub healthz: Option<SocketAddr>,
    /// How endpoints are chosen for Services that do not say it (`--scheduler`).
    pub scheduler: Scheduler,
    /// Networks that `externalIPs` may lie in (`--external-ip-range`); without any, none is served.
    pub external_ranges: Vec<IpNet>,
    /// Which addresses node ports answer on (`--nodeport-addresses`).
    pub node_ports: NodePortAddresses,
}

impl Config {
    /// What of it decides about frontends.
    pub fn settings(&self) -> Settings {
        Settings {
            service_cidrs: self.service_cidrs.clone(),
            node_local: self.node_local.clone(),
            scheduler: self.scheduler,
            external_ranges: self.external_ranges.clone(),
        }
    }

    /// Takes over what a wish says.
    pub(crate) fn follow(&mut self, wish: &Wish) {
        self.mode = wish.mode.unwrap_or(self.mode);
        self.scheduler = wish.scheduler.unwrap_or(self.scheduler);
        self.strict_arp = wish.strict_arp.unwrap_or(self.strict_arp);
        self.ipvs_timeouts = wish.timeouts.unwrap_or(self.ipvs_timeouts);
        if let Some(node_ports) = &wish.node_ports {
            self.node_ports = node_ports.clone();
        }
    }

    /// What ipvs mode sets of the kernel beside frontends.
    pub(crate) fn tuning(&self) -> Tuning {
        Tuning {
            strict_arp: self.strict_arp,
            timeouts: self.ipvs_timeouts,
        }
    }

    /// The tables of this network namespace, as this configuration has them.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn open_tables(&self) -> Result<Nftables, nft::Error> {
        let tables = Nftables::open(&self.cluster_cidrs, &self.service_cidrs)?;
        Ok(tables.with_node_ports_on(self.node_ports.clone()))
    }
}
