//! Flags that several commands share, as text, and the domain types that they become.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use svcnet_api::names;
use svcnet_api::types::{CidrList, NodeIps, nth_host};
use svcnet_api::wellknown::{
    DEFAULT_CLUSTER_CIDR, DEFAULT_CLUSTER_DOMAIN, DEFAULT_DATA_DIR, DEFAULT_RUN_DIR, DEFAULT_SERVICE_CIDR,
    OWN_LINKS,
};
use svcnet_netlink::Rtnl;
use svcnet_netlink::underlay::{self, Choice};
use svcnet_runtime::join::ClusterFacts;
use svcnet_runtime::telemetry::LogFormat;

use crate::process::Logging;
use crate::settings::{Given, Problems};

/// Which address of the Services' is that of the cluster's DNS, by custom.
const DNS_HOST: u32 = 10;

/// Flags of every long-running command.
#[derive(Debug, Args)]
pub(crate) struct ProcessFlags {
    /// Read settings from this YAML file; a missing file is an error only when it is named
    #[arg(long, value_name = "FILE", help_heading = "Process", default_value = crate::settings::DEFAULT_FILE)]
    config: PathBuf,
    /// State that survives a restart
    #[arg(long, value_name = "DIR", help_heading = "Process", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Sockets, and what need not survive a restart
    #[arg(long, value_name = "DIR", help_heading = "Process", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// How much to log: error, warn, info, debug, trace, or for one part, as in svcnet_proxy=debug
    #[arg(long, value_name = "LEVEL", help_heading = "Process", default_value = "info")]
    log_level: String,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT", help_heading = "Process", default_value = "text")]
    log_format: String,
}

/// Where a process keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
}

impl ProcessFlags {
    pub(crate) fn places(&self) -> Places {
        Places {
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
        }
    }

    pub(crate) fn logging(&self, problems: &mut Problems<'_>) -> Logging {
        let format = problems.parse_with("log-format", &self.log_format, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("{other:?} is not a log format (text or json)")),
        });
        let level = &self.log_level;
        let is_level = ["error", "warn", "info", "debug", "trace", "off"].contains(&level.as_str());
        if !is_level && !level.contains('=') {
            problems.add(
                "log-level",
                format_args!("{level:?} is not a level (error, warn, info, debug, trace, or CRATE=LEVEL)"),
            );
        }
        Logging {
            level: level.clone(),
            format: format.unwrap_or_default(),
        }
    }
}

/// Which node this is.
#[derive(Debug, Args)]
pub(crate) struct NodeName {
    /// This node's name [default: the host's name]
    #[arg(long, value_name = "NAME", help_heading = "Node")]
    node_name: Option<String>,
}

impl NodeName {
    pub(crate) fn name(&self, problems: &mut Problems<'_>) -> String {
        let host = || {
            let name = nix::unistd::gethostname().unwrap_or_default();
            name.to_string_lossy().to_lowercase()
        };
        let name = self.node_name.clone().unwrap_or_else(host);
        for why in names::dns_subdomain(&name) {
            problems.add(
                "node-name",
                format_args!("{name:?} is not a name for a node: {why}"),
            );
        }
        name
    }
}

/// Flags of what runs on a node.
#[derive(Debug, Args)]
pub(crate) struct NodeFlags {
    #[command(flatten)]
    node_name: NodeName,
    /// This node's address towards the other nodes, or one of each family with a comma between for dual stack
    /// [default: that of the link with the default route]
    #[arg(long, value_name = "ADDRESS", help_heading = "Node")]
    node_ip: Option<String>,
}

impl NodeFlags {
    pub(crate) fn name(&self, problems: &mut Problems<'_>) -> String {
        self.node_name.name(problems)
    }

    /// As given, if they were.
    pub(crate) fn ips(&self, problems: &mut Problems<'_>) -> Option<NodeIps> {
        problems.parse("node-ip", self.node_ip.as_deref()?)
    }

    /// As given, or as found out on the link that is meant.
    pub(crate) fn ips_or_found(
        &self,
        given: Option<NodeIps>,
        choice: &Choice,
        problems: &mut Problems<'_>,
    ) -> Option<NodeIps> {
        if self.node_ip.is_some() {
            return given;
        }
        let found = Rtnl::open()
            .and_then(|mut rtnl| underlay::find(&mut rtnl, choice, &OWN_LINKS))
            .map_err(|error| error.to_string())
            .and_then(|found| found.map_err(|none| none.to_string()));
        match found {
            Ok(underlay) => Some(underlay.address.into()),
            Err(why) => {
                let flag = match choice {
                    Choice { reach: Some(_), .. } => "iface-can-reach",
                    Choice { pattern: Some(_), .. } => "iface-regex",
                    Choice { interfaces, .. } if !interfaces.is_empty() => "iface",
                    _ => "node-ip",
                };
                problems.add(
                    flag,
                    format_args!("this node's address can not be found out: {why}"),
                );
                None
            }
        }
    }
}

/// Which API an agent's role follows.
#[derive(Debug, Args)]
pub(crate) struct KubeconfigFlags {
    /// Follow the API that this kubeconfig names (https or plain http)
    /// [default: DATA-DIR/agent/kubeconfig.yaml, which a server or a join has written]
    #[arg(long, value_name = "FILE", help_heading = "API")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl KubeconfigFlags {
    pub(crate) fn path(&self, places: &Places) -> PathBuf {
        self.kubeconfig
            .clone()
            .unwrap_or_else(|| places.data_dir.join("agent/kubeconfig.yaml"))
    }
}

/// Where a process tells its health.
#[derive(Debug, Args)]
pub(crate) struct OpsFlags {
    /// Answer /healthz, /readyz and /metrics here [default: 127.0.0.1 and a port: agent, proxy 10249; dns 9153;
    /// announcer 7472; overlay 10251; controller 10257]
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Process")]
    metrics_bind_address: Option<String>,
}

impl OpsFlags {
    pub(crate) fn address(&self, port: u16, problems: &mut Problems<'_>) -> SocketAddr {
        let default = SocketAddr::from(([127, 0, 0, 1], port));
        let Some(text) = &self.metrics_bind_address else {
            return default;
        };
        let read = |text: &str| {
            text.parse()
                .map_err(|_| format!("{text:?} is not ADDRESS:PORT, as in {default}"))
        };
        problems
            .parse_with("metrics-bind-address", text, read)
            .unwrap_or(default)
    }
}

/// What is the same on all nodes of a cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterFlags {
    /// Addresses of the cluster's pods, a /24 of it for each node; two for dual stack, with a comma between
    #[arg(long, value_name = "CIDR", help_heading = "Cluster", default_value = DEFAULT_CLUSTER_CIDR)]
    cluster_cidr: String,
    /// Addresses of Services (ClusterIPs); two for dual stack
    #[arg(long, value_name = "CIDR", help_heading = "Cluster", default_value = DEFAULT_SERVICE_CIDR)]
    service_cluster_ip_range: String,
    /// Address of the cluster's DNS, or one for each family
    /// [default: the tenth address of Services, as in 10.96.0.10]
    #[arg(long, value_name = "ADDRESS", help_heading = "Cluster")]
    cluster_dns: Option<String>,
    /// Domain of the cluster's names
    #[arg(long, value_name = "DOMAIN", help_heading = "Cluster", default_value = DEFAULT_CLUSTER_DOMAIN)]
    cluster_domain: String,
}

/// What is the same on all nodes of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) cluster_cidr: CidrList,
    pub(crate) service_cidr: CidrList,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) domain: String,
}

impl ClusterFlags {
    /// The domain as it was given.
    pub(crate) fn domain(&self) -> &str {
        &self.cluster_domain
    }

    /// In domain types; none when something is wrong with it.
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Option<Cluster> {
        let pods = problems.parse::<CidrList>("cluster-cidr", &self.cluster_cidr);
        let services = problems.parse::<CidrList>("service-cluster-ip-range", &self.service_cluster_ip_range);
        let dns = self.cluster_dns.as_deref();
        let dns = dns.map(|dns| problems.parse_list::<IpAddr>("cluster-dns", dns));
        let domain = self.cluster_domain.trim_end_matches('.').to_lowercase();
        for why in names::dns_subdomain(&domain) {
            problems.add("cluster-domain", format_args!("{domain:?}: {why}"));
        }
        let (cluster_cidr, service_cidr) = (pods?, services?);
        if let Some((a, b)) = service_cidr.overlap(&cluster_cidr) {
            let other = problems.name("cluster-cidr");
            problems.add(
                "service-cluster-ip-range",
                format_args!("{a} and {b} of {other} overlap: an address can not be a Service's and a pod's"),
            );
        }
        let dns = dns.unwrap_or_else(|| {
            service_cidr
                .iter()
                .filter_map(|net| nth_host(net, DNS_HOST))
                .collect()
        });
        for address in dns.iter().filter(|address| !service_cidr.contains(**address)) {
            let range = problems.name("service-cluster-ip-range");
            problems.add(
                "cluster-dns",
                format_args!("{address} is not one of {service_cidr}, the addresses of Services ({range})"),
            );
        }
        Some(Cluster {
            cluster_cidr,
            service_cidr,
            dns,
            domain,
        })
    }

    /// What a server said when this node joined stands for what was not given here.
    pub(crate) fn or_facts(&mut self, given: &Given, facts: &ClusterFacts) {
        if !given.has("cluster-dns") {
            self.cluster_dns = Some(facts.cluster_dns.clone());
        }
        let take = |flag: &str, own: &mut String, said: &String| {
            if !given.has(flag) {
                own.clone_from(said);
            }
        };
        take("cluster-cidr", &mut self.cluster_cidr, &facts.cluster_cidr);
        take(
            "service-cluster-ip-range",
            &mut self.service_cluster_ip_range,
            &facts.service_cidr,
        );
        take("cluster-domain", &mut self.cluster_domain, &facts.cluster_domain);
    }
}
