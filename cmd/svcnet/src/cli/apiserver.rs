//! `svcnet apiserver`: the API server alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use svcnet_api::types::{NodeIps, NodePortRange, nth_host};
use svcnet_api::wellknown::{API_PORT, DEFAULT_KUBECONFIG, DEFAULT_NODE_PORT_RANGE, OWN_LINKS};
use svcnet_apiserver::{ApiServer, AuditConfig, CERTIFICATES_LAST, Config, Limits};
use svcnet_controller::alloc::ServiceAllocator;
use svcnet_netlink::follow::Follow;
use svcnet_netlink::underlay::Choice;

use super::datastore::{Datastore, DatastoreFlags};
use super::flags::{Cluster, ClusterFlags, NodeFlags, ProcessFlags};
use super::span;
use crate::process::{self, Process};
use crate::settings::{Given, Problems};

/// Shorter ones would be renewed all the time; longer ones outlive the authority.
const CERTIFICATES_LAST_MIN: Duration = Duration::from_secs(10);
const CERTIFICATES_LAST_MAX: Duration = Duration::from_secs(87_600 * 60 * 60);

/// Flags of the API server.
#[derive(Debug, clap::Args)]
pub(crate) struct ApiFlags {
    /// Serve the API on this port
    #[arg(long, value_name = "PORT", help_heading = "API", default_value_t = API_PORT.to_string())]
    secure_port: String,
    /// Serve the API on these addresses, with commas between
    #[arg(
        long,
        value_name = "ADDRESSES",
        help_heading = "API",
        default_value = "0.0.0.0"
    )]
    bind_address: String,
    /// Further names and addresses that clients use for this server, with commas between
    #[arg(
        long,
        value_name = "NAMES",
        help_heading = "API",
        default_value = "",
        hide_default_value = true
    )]
    tls_san: String,
    /// Write the administrator's kubeconfig here
    #[arg(long, value_name = "FILE", help_heading = "API", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig_out: PathBuf,
    /// Ports of NodePort Services
    #[arg(long, value_name = "RANGE", help_heading = "Cluster", default_value = DEFAULT_NODE_PORT_RANGE)]
    service_node_port_range: String,
    #[command(flatten)]
    guard: GuardFlags,
    #[command(flatten)]
    datastore: DatastoreFlags,
}

/// Flags of what is written down, and of what clients may take.
#[derive(Debug, clap::Args)]
struct GuardFlags {
    /// Write what is changed and what is refused to this file, one JSON line each [default: nowhere]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    audit_log_path: Option<PathBuf>,
    /// Begin another audit log when this one has so many megabytes
    #[arg(
        long,
        value_name = "MEGABYTES",
        help_heading = "Security",
        default_value = "100"
    )]
    audit_log_maxsize: String,
    /// Keep so many former audit logs: FILE.1 is the youngest
    #[arg(long, value_name = "COUNT", help_heading = "Security", default_value = "5")]
    audit_log_maxbackup: String,
    /// Requests that one client may have under way, watches apart
    #[arg(long, value_name = "COUNT", help_heading = "Security", default_value = "400")]
    max_requests_inflight: String,
    /// Watches that one client may have
    #[arg(long, value_name = "COUNT", help_heading = "Security", default_value = "4000")]
    max_watches: String,
    /// How long a request may take, watches apart; clients may ask for less
    #[arg(long, value_name = "TIME", help_heading = "Security", default_value = "1m")]
    request_timeout: String,
    /// How long certificates last; they are renewed while in use, when a third of it is left
    #[arg(long, value_name = "TIME", help_heading = "Security", default_value = "8760h")]
    cluster_signing_duration: String,
}

/// The same, in their types.
#[derive(Debug, Clone)]
struct Guard {
    audit: Option<AuditConfig>,
    limits: Limits,
    certificates_last: Duration,
}

impl GuardFlags {
    fn parse(&self, problems: &mut Problems<'_>) -> Guard {
        let positive = |text: &str| match text.parse::<usize>() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err("must be a whole number above 0".to_string()),
        };
        let limits = Limits::default();
        let megabytes = problems.parse_with("audit-log-maxsize", &self.audit_log_maxsize, positive);
        let backups_max = problems.parse("audit-log-maxbackup", &self.audit_log_maxbackup);
        let requests = problems.parse_with("max-requests-inflight", &self.max_requests_inflight, positive);
        let watches = problems.parse_with("max-watches", &self.max_watches, positive);
        let request_max =
            problems.parse_with(
                "request-timeout",
                &self.request_timeout,
                |text| match span::parse(text)? {
                    Duration::ZERO => Err("must be longer than 0".to_string()),
                    time => Ok(time),
                },
            );
        let last = problems.parse_with(
            "cluster-signing-duration",
            &self.cluster_signing_duration,
            |text| {
                let last = span::parse(text)?;
                if last < CERTIFICATES_LAST_MIN || last > CERTIFICATES_LAST_MAX {
                    return Err("must be from 10s to 87600h".to_string());
                }
                Ok(last)
            },
        );
        Guard {
            audit: self.audit_log_path.as_ref().map(|path| AuditConfig {
                path: path.clone(),
                bytes_max: megabytes.unwrap_or_default() as u64 * 1_000_000,
                backups_max: backups_max.unwrap_or_default(),
            }),
            limits: Limits {
                requests_max: requests.unwrap_or(limits.requests_max),
                watches_max: watches.unwrap_or(limits.watches_max),
                request_max: request_max.unwrap_or(limits.request_max),
                ..limits
            },
            certificates_last: last.unwrap_or(CERTIFICATES_LAST),
        }
    }
}

/// What the API server is told.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    port: u16,
    addresses: Vec<IpAddr>,
    sans: Vec<String>,
    kubeconfig: PathBuf,
    node_ports: Option<NodePortRange>,
    guard: Guard,
    datastore: Datastore,
}

impl ApiFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Api {
        let addresses = problems.parse_list("bind-address", &self.bind_address);
        let sans = self
            .tls_san
            .split(',')
            .map(str::trim)
            .filter(|san| !san.is_empty());
        Api {
            port: problems
                .parse("secure-port", &self.secure_port)
                .unwrap_or(API_PORT),
            addresses: if addresses.is_empty() {
                vec![Ipv4Addr::UNSPECIFIED.into()]
            } else {
                addresses
            },
            sans: sans.map(str::to_string).collect(),
            kubeconfig: self.kubeconfig_out.clone(),
            node_ports: problems.parse("service-node-port-range", &self.service_node_port_range),
            guard: self.guard.parse(problems),
            datastore: self.datastore.parse(problems),
        }
    }
}

/// The API server alone: stores objects, and serves them over HTTPS as Kubernetes does
///
/// It writes the administrator's kubeconfig, the token that agents join with (DATA-DIR/token), and kubeconfigs for
/// controllers and an agent on this host. /healthz, /readyz and /metrics are served on the API's own port.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    api: ApiFlags,
    #[command(flatten)]
    cluster: ClusterFlags,
}

/// Everything that the API server needs, of whichever command.
pub(crate) struct Wanted<'a> {
    pub(crate) api: &'a Api,
    pub(crate) cluster: &'a Cluster,
    pub(crate) node_name: &'a str,
    pub(crate) node_ip: IpAddr,
    pub(crate) data_dir: PathBuf,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let logging = args.process.logging(&mut problems);
    let name = args.node.name(&mut problems);
    let api = args.api.parse(&mut problems);
    let cluster = args.cluster.parse(&mut problems);
    let given_ips = args.node.ips(&mut problems);
    let ips = args
        .node
        .ips_or_found(given_ips, &Choice::default(), &mut problems);
    problems.check()?;
    let (Some(cluster), Some(node_ip)) = (cluster, ips.map(NodeIps::primary)) else {
        return Ok(());
    };
    let data_dir = args.process.places().data_dir;
    process::run(&logging, async |process| {
        let wanted = Wanted {
            api: &api,
            cluster: &cluster,
            node_name: &name,
            node_ip,
            data_dir,
        };
        let (server, _) = start(process, wanted).await?;
        let (kubeconfig, url) = (server.admin_kubeconfig().display().to_string(), api.url(node_ip));
        let found = given_ips.is_none().then(Choice::default);
        serve(process, server, found)?;
        println!("The API is served at {url}. Try:\n  KUBECONFIG={kubeconfig} kubectl get svc");
        Ok(())
    })
}

impl Api {
    /// Where agents reach the server.
    pub(crate) fn url(&self, node_ip: IpAddr) -> String {
        format!("https://{}", SocketAddr::new(node_ip, self.port))
    }
}

/// Opens the store and the ports: what is taken is told here.
pub(crate) async fn start(
    process: &Process,
    wanted: Wanted<'_>,
) -> anyhow::Result<(ApiServer, ServiceAllocator)> {
    let Wanted {
        api,
        cluster,
        node_name,
        node_ip,
        data_dir,
    } = wanted;
    // The two Services that every cluster has must get their addresses whatever else is in the store.
    let first = cluster.service_cidr.iter().filter_map(|net| nth_host(net, 1));
    let reserved: Vec<IpAddr> = first.chain(cluster.dns.iter().copied()).collect();
    let range = match api.node_ports {
        Some(range) => range,
        None => DEFAULT_NODE_PORT_RANGE.parse()?,
    };
    let allocator = ServiceAllocator::new(&cluster.service_cidr, range, &reserved)?;
    let config = Config {
        listen: api
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, api.port))
            .collect(),
        listen_plain: None,
        advertise_address: node_ip,
        data_dir,
        datastore: api.datastore.etcd.clone(),
        token: api.datastore.token.clone(),
        admin_kubeconfig: api.kubeconfig.clone(),
        node_name: node_name.to_string(),
        service_cidrs: cluster.service_cidr.iter().collect(),
        cluster_cidr: cluster.cluster_cidr.to_string(),
        cluster_dns: cluster.dns.clone(),
        cluster_domain: cluster.domain.clone(),
        tls_sans: api.sans.clone(),
        admissions: vec![Arc::new(allocator.clone())],
        limits: api.guard.limits,
        audit: api.guard.audit.clone(),
        certificates_last: api.guard.certificates_last,
        metrics: Some(Arc::new(process.render_metrics())),
    };
    Ok((ApiServer::start(config).await?, allocator))
}

/// Answers from now on, and says where it is reached as its host's address changes, if it was found by that choice.
pub(crate) fn serve(process: &mut Process, server: ApiServer, found: Option<Choice>) -> anyhow::Result<()> {
    let shutdown = process.shutdown.clone();
    if let Some(choice) = found {
        let mut follow = Follow::new(choice, &OWN_LINKS)?;
        let (advertiser, shutdown) = (server.advertiser(), shutdown.clone());
        process.spawn("address", async move {
            while let Some(address) = shutdown.run_until_cancelled(follow.next()).await {
                advertiser.set(address);
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }
    process.spawn("apiserver", server.run(shutdown));
    Ok(())
}
