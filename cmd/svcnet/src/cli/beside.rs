//! What commands that look at this host share: the agent that runs here, the API that it follows, and what stands in for
//! either when it is away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use svcnet_api::wellknown::{DEFAULT_DATA_DIR, DEFAULT_KUBECONFIG};
use svcnet_netlink::Rtnl;
use svcnet_runtime::{Scope, connect, last_known, ops};
use svcnet_why::look::{self, Here};

use super::flags::{Cluster, ClusterFlags};
use super::role::{Proxying, proxy_config};
use crate::membership;
use crate::settings::{Given, Problems};

/// An API that does not answer within this time is away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How what was found is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where to look.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LookFlags {
    /// Ask this process of this host about itself
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    metrics_bind_address: String,
    /// Ask the API that this names [default: /etc/svcnet/kubeconfig.yaml, else that of this node's agent]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

impl LookFlags {
    pub(crate) fn address(&self, problems: &mut Problems<'_>) -> Option<SocketAddr> {
        problems.parse("metrics-bind-address", &self.metrics_bind_address)
    }

    /// The kubeconfig to use.
    pub(crate) fn kubeconfig(&self, data_dir: &Path) -> PathBuf {
        if let Some(given) = &self.kubeconfig {
            return given.clone();
        }
        let admin = Path::new(DEFAULT_KUBECONFIG);
        if admin.exists() {
            admin.to_path_buf()
        } else {
            data_dir.join("agent/kubeconfig.yaml")
        }
    }
}

/// What is asked for, and whom.
#[derive(Debug, Clone)]
pub(crate) struct Beside {
    /// This node.
    pub(crate) here: Here,
    /// How its proxy is run.
    pub(crate) proxy: svcnet_proxy::Config,
    /// The domain of the cluster's names.
    pub(crate) domain: String,
}

/// What stands in for what an agent would tell.
pub(crate) struct Instead<'a> {
    pub(crate) node_name: String,
    pub(crate) cluster: &'a ClusterFlags,
    /// What `svcnet proxy` says beside it; nothing for the defaults.
    pub(crate) proxying: Option<Proxying>,
    pub(crate) data_dir: PathBuf,
    pub(crate) given: &'a Given,
}

/// Asks the agent of this host, or goes by the flags when there is none; that is said.
pub(crate) fn beside(address: SocketAddr, instead: &Instead<'_>) -> anyhow::Result<Beside> {
    let why = match ops::status(address) {
        Ok(status) => {
            let domain = look::domain(&status);
            if let Some((here, facts)) = Here::of_agent(status) {
                return Ok(Beside {
                    here,
                    proxy: facts.config,
                    domain: domain.unwrap_or_else(|| instead.cluster.domain().to_string()),
                });
            }
            format!("what runs at {address} has no proxy")
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            format!("nobody listens at {address}")
        }
        Err(error) => format!("no answer at {address}: {error}"),
    };
    eprintln!("svcnet: {why}; going by the flags and their defaults");
    let mut flags = instead.cluster.clone();
    if let Some(facts) = membership::joined(&instead.data_dir) {
        flags.or_facts(instead.given, &facts);
    }
    let mut problems = Problems::new(instead.given);
    let cluster = flags.parse(&mut problems);
    problems.check()?;
    let cluster = cluster.context("the flags of the cluster can not be read")?;
    let proxy = instead_of_told(&cluster, instead.proxying.as_ref());
    Ok(Beside {
        here: Here {
            node: instead.node_name.clone(),
            agent: Err(why),
            mode: proxy.mode,
            dns: Vec::new(),
            data_dir: instead.data_dir.clone(),
        },
        proxy,
        domain: cluster.domain,
    })
}

/// How an agent would run its proxy by these flags: an address of the cluster's DNS that this host has is answered by
/// the host itself.
fn instead_of_told(cluster: &Cluster, proxying: Option<&Proxying>) -> svcnet_proxy::Config {
    let own: Vec<IpAddr> = Rtnl::open()
        .and_then(|mut rtnl| rtnl.addresses(None))
        .map(|all| all.into_iter().map(|address| address.net.addr()).collect())
        .unwrap_or_default();
    let dns = cluster.dns.iter().copied();
    let own_dns: Vec<IpAddr> = dns.filter(|ip| own.contains(ip)).collect();
    match proxying {
        Some(proxying) => proxy_config(cluster, proxying, &own_dns),
        None => svcnet_proxy::Config {
            cluster_cidrs: cluster.cluster_cidr.iter().collect(),
            service_cidrs: cluster.service_cidr.iter().collect(),
            node_local: own_dns,
            ..svcnet_proxy::Config::default()
        },
    }
}

/// The usual directory, for commands without the flag.
pub(crate) fn data_dir() -> PathBuf {
    PathBuf::from(DEFAULT_DATA_DIR)
}

/// What a proxy works from.
pub(crate) struct Objects {
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
    /// This node's.
    pub(crate) node: Option<Node>,
}

/// From the API; when it is away, from what the agent of this host last knew, and that is said.
pub(crate) fn objects(kubeconfig: &Path, here: &Here) -> anyhow::Result<Objects> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let error = match runtime.block_on(listed(kubeconfig, &here.node)) {
        Ok(objects) => return Ok(objects),
        Err(error) => error,
    };
    let dir = here.data_dir.join("cache");
    let services = last_known::<Service>(&dir, &Scope::default()).ok().flatten();
    let slices = last_known::<EndpointSlice>(&dir, &Scope::default())
        .ok()
        .flatten();
    let own = Scope {
        fields: Some(format!("metadata.name={}", here.node)),
        ..Scope::default()
    };
    let node = last_known::<Node>(&dir, &own).ok().flatten();
    let (Some(services), Some(slices)) = (services, slices) else {
        return Err(error);
    };
    eprintln!(
        "svcnet: {error:#}; going by what the agent last knew ({})",
        dir.display()
    );
    Ok(Objects {
        services: services.into_iter().map(Arc::new).collect(),
        slices: slices.into_iter().map(Arc::new).collect(),
        node: node.and_then(|nodes| nodes.into_iter().next()),
    })
}

async fn listed(kubeconfig: &Path, node: &str) -> anyhow::Result<Objects> {
    let client = connect::client(kubeconfig).await?;
    let all = ListParams::default();
    let (services, slices, nodes) = (
        Api::<Service>::all(client.clone()),
        Api::<EndpointSlice>::all(client.clone()),
        Api::<Node>::all(client),
    );
    let lists = async { tokio::try_join!(services.list(&all), slices.list(&all), nodes.get_opt(node)) };
    let (services, slices, node) = tokio::time::timeout(PATIENCE, lists)
        .await
        .context("the API does not answer")?
        .with_context(|| format!("ask the API that {} names", kubeconfig.display()))?;
    Ok(Objects {
        services: services.items.into_iter().map(Arc::new).collect(),
        slices: slices.items.into_iter().map(Arc::new).collect(),
        node,
    })
}
