//! The roles of an agent: their flags, their configurations, and each alone as a command.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use ipnet::IpNet;
use svcnet_announcer::{Announcer, LinkPattern};
use svcnet_api::types::{NodeIps, Vni};
use svcnet_api::wellknown::VXLAN_VNI;
use svcnet_cni::CniDaemon;
use svcnet_cni::isolation::{Isolation, Subject};
use svcnet_cni::protocol::PodRef;
use svcnet_dns::Dns;
use svcnet_netlink::nft::Family;
use svcnet_node::{Machine, NodeRole};
use svcnet_overlay::Overlay;
use svcnet_policy::PolicyRole;
use svcnet_policy::gate::Gate;
use svcnet_policy::judge::{Judge, Judged};
use svcnet_policy::model::ObjectKey;
use svcnet_proxy::{Admission, Admitted, Mode, NodePortAddresses, Protocol, Proxy, Scheduler, Sysctls};
use svcnet_runtime::Context;
use tokio::sync::watch;

use super::beside::Instead;
use super::flags::{Cluster, ClusterFlags, KubeconfigFlags, NodeFlags, OpsFlags, ProcessFlags};
use super::inspect::Look;
pub(crate) use super::network::{Network, NetworkFlags};
use crate::process::{self, Logging, Process};
use crate::settings::{Given, Problems};

const PROXY_OPS_PORT: u16 = 10249;
const DNS_OPS_PORT: u16 = 9153;
const ANNOUNCER_OPS_PORT: u16 = 7472;
const OVERLAY_OPS_PORT: u16 = 10251;
const DNS_PORT: u16 = 53;

/// Where container runtimes look for the CNI plugin.
#[derive(Debug, Clone, Args)]
pub(crate) struct Runtimes {
    /// Put the network configuration for container runtimes here (/etc/cni/net.d is usual)
    #[arg(long, value_name = "DIR", help_heading = "Pod network")]
    cni_conf_dir: Option<PathBuf>,
    /// Put the CNI plugin for container runtimes here (/opt/cni/bin is usual)
    #[arg(long, value_name = "DIR", help_heading = "Pod network")]
    cni_bin_dir: Option<PathBuf>,
    /// The container runtime's socket, asked for the labels of pods that the API does not know
    /// [default: containerd's or CRI-O's usual one, if it is there]
    #[arg(long, value_name = "PATH", help_heading = "Pod network")]
    cri_socket: Option<PathBuf>,
}

/// Flags of the DNS server.
#[derive(Debug, Args)]
pub(crate) struct DnsFlags {
    /// Servers for all other names, with commas between; ADDRESS or ADDRESS:PORT
    /// [default: those in /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESSES", help_heading = "DNS")]
    upstream_dns: Option<String>,
}

impl DnsFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Option<Vec<SocketAddr>> {
        let text = self.upstream_dns.as_deref()?;
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let servers = parts.filter_map(|part| {
            problems.parse_with("upstream-dns", part, |part| {
                let bare = part
                    .parse::<IpAddr>()
                    .map(|address| SocketAddr::new(address, DNS_PORT));
                bare.or_else(|_| part.parse())
                    .map_err(|_| format!("{part:?} is not an ADDRESS or ADDRESS:PORT, as in 9.9.9.9"))
            })
        });
        Some(servers.collect())
    }
}

/// Flags of the announcer.
#[derive(Debug, Args)]
pub(crate) struct AnnouncerFlags {
    /// Announce LoadBalancer addresses on these links only, with commas between; eth* is every link whose name begins so
    /// [default: all that can carry announcements]
    #[arg(
        long,
        value_name = "LINKS",
        help_heading = "Announcer",
        default_value = "",
        hide_default_value = true
    )]
    announce_on: String,
    /// Announce Services of this loadBalancerClass instead of those with none
    #[arg(long, value_name = "CLASS", help_heading = "Announcer")]
    load_balancer_class: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Announcing {
    links: Vec<LinkPattern>,
    class: Option<String>,
}

impl AnnouncerFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Announcing {
        Announcing {
            links: problems.parse_list("announce-on", &self.announce_on),
            class: self.load_balancer_class.clone(),
        }
    }
}

/// Flags of the proxy.
#[derive(Debug, Args)]
pub(crate) struct ProxyFlags {
    /// How Services are implemented: nftables, ipvs or userspace. Where the kernel has no ipvs it is nftables, where it has
    /// neither it is userspace. The ConfigMap kube-proxy in kube-system goes before this flag
    #[arg(long, value_name = "MODE", help_heading = "Proxy", default_value_t = Mode::default().to_string())]
    proxy_mode: String,
    /// In ipvs mode, keep links from answering ARP for addresses of others, from when the mode begins (true or false)
    #[arg(long, value_name = "BOOL", help_heading = "Proxy", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", hide_default_value = true)]
    strict_arp: String,
    /// Answer /healthz and /livez of the proxy here, for load balancers; empty for nowhere
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        help_heading = "Proxy",
        default_value = "0.0.0.0:10256"
    )]
    healthz_bind_address: String,
    /// How endpoints are chosen for Services without the annotation svcnet.io/scheduler: random, rr, wrr, lc, wlc, dh, sh,
    /// sed, nq, lblc, lblcr or mh; a mode that lacks one takes its nearest and says so
    #[arg(
        long,
        alias = "ipvs-scheduler",
        value_name = "NAME",
        help_heading = "Proxy",
        default_value = "random"
    )]
    scheduler: String,
    /// Addresses of the node that node ports answer on, with commas between: networks, primary, localhost or all
    #[arg(long, value_name = "ADDRESSES", help_heading = "Proxy", default_value = "all")]
    nodeport_addresses: String,
    /// Networks that externalIPs of Services may lie in, with commas between [default: none is accepted]
    #[arg(
        long,
        value_name = "CIDRS",
        help_heading = "Proxy",
        default_value = "",
        hide_default_value = true
    )]
    external_ip_range: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Proxying {
    mode: Mode,
    strict_arp: bool,
    healthz: Option<SocketAddr>,
    scheduler: Scheduler,
    node_ports: NodePortAddresses,
    external_ranges: Vec<IpNet>,
}

impl ProxyFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Proxying {
        let node_ports = problems.parse("nodeport-addresses", &self.nodeport_addresses);
        let ranges = self.external_ip_range.split(',').map(str::trim);
        let ranges = ranges.filter(|range| !range.is_empty()).filter_map(|range| {
            problems.parse_with("external-ip-range", range, |range| {
                let network = range.parse::<IpNet>();
                network.map_err(|_| format!("{range:?} is not a network, as in 203.0.113.0/24"))
            })
        });
        let external_ranges = ranges.collect();
        let healthz = Some(&self.healthz_bind_address).filter(|text| !text.trim().is_empty());
        Proxying {
            mode: problems.parse("proxy-mode", &self.proxy_mode).unwrap_or_default(),
            strict_arp: problems.parse("strict-arp", &self.strict_arp).unwrap_or_default(),
            healthz: healthz.and_then(|text| {
                problems.parse_with("healthz-bind-address", text, |text| {
                    text.parse()
                        .map_err(|_| format!("{text:?} is not ADDRESS:PORT, as in 0.0.0.0:10256"))
                })
            }),
            scheduler: problems.parse("scheduler", &self.scheduler).unwrap_or_default(),
            node_ports: node_ports.unwrap_or_default(),
            external_ranges,
        }
    }
}

/// Starts the overlay.
pub(crate) fn start_overlay(
    process: &mut Process,
    ctx: &Context,
    cluster: &Cluster,
    network: &Network,
) -> anyhow::Result<()> {
    let config = svcnet_overlay::Config {
        mode: network.mode,
        underlay: network.underlay.clone(),
        vni: network.vni.unwrap_or(Vni::new(VXLAN_VNI)?),
        port: network.port,
        cluster_cidr: cluster.cluster_cidr.clone(),
        service_cidr: cluster.service_cidr.clone(),
        mtu: network.mtu,
        verify_every: svcnet_overlay::VERIFY_EVERY,
    };
    process.spawn("overlay", Overlay::new(config, ctx)?.run());
    Ok(())
}

/// Starts the CNI daemon.
pub(crate) fn start_cni(
    process: &mut Process,
    ctx: &Context,
    cluster: &Cluster,
    network: &Network,
    runtimes: &Runtimes,
    gate: Option<Gate>,
) -> anyhow::Result<()> {
    let isolation = gate.map(|gate| -> Arc<dyn Isolation> { Arc::new(PolicyGate(gate)) });
    let config = svcnet_cni::Config {
        underlay: network.underlay.clone(),
        direct: !network.mode.encapsulates(),
        mtu: network.mtu,
        cluster_dns: cluster.dns.clone(),
        cluster_domain: cluster.domain.clone(),
        cni_conf_dir: runtimes.cni_conf_dir.clone(),
        cni_bin_dir: runtimes.cni_bin_dir.clone(),
        cri_socket: runtimes.cri_socket.clone(),
        isolation,
    };
    process.spawn("cni", CniDaemon::new(config, ctx)?.run());
    Ok(())
}

/// Starts the enforcement of NetworkPolicies, for the families that pods have. What starts pods announces them at the
/// gate, relays ask the judge. `relays` says whether all pods' addresses are svcnet's to give.
pub(crate) fn start_policy(
    process: &mut Process,
    ctx: &Context,
    cluster: &Cluster,
    relays: bool,
) -> anyhow::Result<(Gate, Judge)> {
    let networks = cluster.cluster_cidr.iter();
    let config = svcnet_policy::Config {
        families: networks.map(|net| Family::of(net.addr())).collect(),
        relays,
    };
    let role = PolicyRole::new(&config, ctx)?;
    let ends = (role.gate(), role.judge());
    process.spawn("policy", role.run());
    Ok(ends)
}

/// Relayed connections, judged by NetworkPolicies.
#[derive(Debug)]
struct PolicyAdmission(Judge);

impl Admission for PolicyAdmission {
    fn admits(&self, client: IpAddr, endpoint: SocketAddr, protocol: Protocol) -> Admitted {
        let protocol = match protocol {
            Protocol::Tcp => svcnet_policy::model::Protocol::TCP,
            Protocol::Udp => svcnet_policy::model::Protocol::UDP,
            Protocol::Sctp => svcnet_policy::model::Protocol::SCTP,
        };
        match self.0.judge(client, endpoint, protocol) {
            Judged::Denied => Admitted::No,
            Judged::Allowed { from } => Admitted::Yes { from },
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }
}

/// Containers that the CNI daemon attaches, announced where they are isolated.
#[derive(Debug)]
struct PolicyGate(Gate);

impl Isolation for PolicyGate {
    fn knows(&self, pod: &PodRef) -> bool {
        let uid = pod.uid.as_ref();
        uid.is_some_and(|uid| self.0.knows(&object_key(pod), uid))
    }

    fn enforce(&self, subject: Subject<'_>) -> Result<(), String> {
        self.0
            .attach(attachment(subject))
            .map_err(|refused| refused.to_string())
    }

    fn release(&self, subject: Subject<'_>) {
        self.0.detach(&subject.link());
    }

    fn restore(&self, all: &[Subject<'_>]) {
        self.0.restore(all.iter().copied().map(attachment).collect());
    }
}

fn object_key(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(pod.namespace.clone(), pod.name.clone())
}

fn attachment(subject: Subject<'_>) -> svcnet_policy::gate::Attachment {
    svcnet_policy::gate::Attachment {
        link: subject.link(),
        mac: subject.mac,
        addresses: subject.addresses.to_vec(),
        pod: subject.pod.map(|pod| svcnet_policy::gate::PodId {
            key: object_key(pod),
            uid: pod.uid.clone(),
            late: subject.late,
        }),
    }
}

/// Starts the keeping of the Node object and its Lease.
pub(crate) fn start_node(
    process: &mut Process,
    ctx: &Context,
    node_ips: NodeIps,
    network: &Network,
) -> anyhow::Result<()> {
    let found = Some(&network.underlay).filter(|choice| choice.address.is_none());
    let config = svcnet_node::Config {
        node_ips: node_ips.iter().collect(),
        follow: found.cloned(),
        machine: Machine::this(),
    };
    process.spawn("node", NodeRole::new(config, ctx)?.run());
    Ok(())
}

/// Starts the proxy; it leaves the addresses of `node_local` to this node itself. An announcer beside it is to be the only
/// one that answers for an address, which takes strict ARP.
pub(crate) fn start_proxy(
    process: &mut Process,
    ctx: &Context,
    cluster: &Cluster,
    proxying: &Proxying,
    node_local: &[IpAddr],
    announcer: bool,
    judge: Option<Judge>,
) {
    let mut config = proxy_config(cluster, proxying, node_local);
    config.strict_arp |= announcer;
    let mut proxy = Proxy::new(config, ctx);
    if let Some(judge) = judge {
        proxy = proxy.with_admission(Arc::new(PolicyAdmission(judge)));
    }
    process.spawn("proxy", proxy.run());
}

/// How these flags run the proxy.
pub(crate) fn proxy_config(
    cluster: &Cluster,
    proxying: &Proxying,
    node_local: &[IpAddr],
) -> svcnet_proxy::Config {
    svcnet_proxy::Config {
        cluster_cidrs: cluster.cluster_cidr.iter().collect(),
        service_cidrs: cluster.service_cidr.iter().collect(),
        node_local: node_local.to_vec(),
        mode: proxying.mode,
        strict_arp: proxying.strict_arp,
        ipvs_timeouts: svcnet_proxy::ipvs::Timeouts::default(),
        healthz: proxying.healthz,
        scheduler: proxying.scheduler,
        external_ranges: proxying.external_ranges.clone(),
        node_ports: proxying.node_ports.clone(),
    }
}

/// Starts the DNS server.
pub(crate) fn start_dns(
    process: &mut Process,
    ctx: &Context,
    cluster: &Cluster,
    upstreams: Option<Vec<SocketAddr>>,
) -> anyhow::Result<()> {
    let config = svcnet_dns::Config {
        cluster_domain: cluster.domain.parse()?,
        addresses: cluster.dns.clone(),
        upstreams,
        ..svcnet_dns::Config::default()
    };
    process.spawn("dns", Dns::new(config, ctx)?.run());
    Ok(())
}

/// Starts the announcer.
pub(crate) fn start_announcer(
    process: &mut Process,
    ctx: &Context,
    announcing: &Announcing,
    node_ips: Option<NodeIps>,
) -> anyhow::Result<()> {
    let config = svcnet_announcer::Config {
        node_ips: node_ips.into_iter().flat_map(NodeIps::iter).collect(),
        interfaces: announcing.links.clone(),
        load_balancer_class: announcing.class.clone(),
        ..svcnet_announcer::Config::default()
    };
    process.spawn("announcer", Announcer::new(config, ctx)?.run());
    Ok(())
}

/// What every role alone has.
#[derive(Debug, Args)]
struct Alone {
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    ops: OpsFlags,
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    api: KubeconfigFlags,
}

impl Alone {
    fn start(
        &self,
        ops_port: u16,
        mut problems: Problems<'_>,
        role: impl FnOnce(&mut Process, &Context) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let logging: Logging = self.process.logging(&mut problems);
        let ops = self.ops.address(ops_port, &mut problems);
        let name = self.node.name(&mut problems);
        let places = self.process.places();
        let kubeconfig = self.api.path(&places);
        problems.check()?;
        process::run(&logging, async |process| {
            process.serve_ops(ops).await?;
            let ctx = process.context(&kubeconfig, &name, &places).await?;
            role(process, &ctx)?;
            ctx.informers.start();
            Ok(())
        })
    }
}

/// The overlay alone: pods of different nodes reach each other, over VXLAN or directly.
///
/// For each node that the API knows, a route, a neighbour and a forwarding entry lead to its pods; nothing is learnt from
/// traffic. With --overlay direct, or auto where the node is on the same link, a route through the node itself does.
/// It owns the link svcnet.1 with all that is on it, its routes, and the nftables table ip svcnet-overlay, and
/// repairs them when somebody else changes them.
#[derive(Debug, Args)]
pub(crate) struct OverlayArgs {
    #[command(flatten)]
    alone: Alone,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    network: NetworkFlags,
}

pub(crate) fn overlay(args: &OverlayArgs, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let cluster = args.cluster.parse(&mut problems);
    let ips = args.alone.node.ips(&mut problems);
    let network = args.network.parse(ips, &mut problems);
    args.alone
        .start(OVERLAY_OPS_PORT, problems, |process, ctx| match &cluster {
            Some(cluster) => start_overlay(process, ctx, cluster, &network),
            None => Ok(()),
        })
}

/// The DNS server alone: names of Services and pods, the rest from upstream.
///
/// It answers at the cluster's DNS address on this node (which it puts on the link lo), so that no packet of a pod's
/// question needs to be translated. /metrics and /readyz are at 127.0.0.1:9153.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    #[command(flatten)]
    alone: Alone,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    dns: DnsFlags,
}

pub(crate) fn dns(args: &DnsArgs, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let cluster = args.cluster.parse(&mut problems);
    let upstreams = args.dns.parse(&mut problems);
    args.alone
        .start(DNS_OPS_PORT, problems, |process, ctx| match &cluster {
            Some(cluster) => start_dns(process, ctx, cluster, upstreams),
            None => Ok(()),
        })
}

/// The announcer alone: answers ARP and NDP for LoadBalancer addresses.
///
/// Exactly one node answers for each address that an IPAddressPool gave and an L2Advertisement covers. Nodes hear each
/// other's heartbeats (UDP 7946); when one falls silent, another takes over within a second and says so to the network.
#[derive(Debug, Args)]
pub(crate) struct AnnouncerArgs {
    #[command(flatten)]
    alone: Alone,
    #[command(flatten)]
    announcer: AnnouncerFlags,
}

pub(crate) fn announcer(args: &AnnouncerArgs, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let announcing = args.announcer.parse(&mut problems);
    let ips = args.alone.node.ips(&mut problems);
    args.alone.start(ANNOUNCER_OPS_PORT, problems, |process, ctx| {
        start_announcer(process, ctx, &announcing, ips)
    })
}

/// The proxy alone: what kube-proxy does.
///
/// ClusterIPs, node ports, LoadBalancer and external addresses are translated in the kernel; a change of a Service is a
/// few map elements, whatever the number of Services. `nft list ruleset` shows all of it, in the tables ip svcnet and
/// ip6 svcnet. Other modes: ipvs, and userspace for a kernel with neither. The ConfigMap kube-proxy in kube-system is
/// followed: editing its mode switches, without an interruption.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = false,
    subcommand_value_name = "LOOK",
    subcommand_help_heading = "Looks"
)]
pub(crate) struct ProxyArgs {
    #[command(subcommand)]
    look: Option<Look>,
    #[command(flatten)]
    alone: Alone,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    proxy: ProxyFlags,
    /// Remove from this host what the proxy made in any mode, and nothing else, and end (true or false)
    #[arg(long, value_name = "BOOL", help_heading = "Proxy", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", hide_default_value = true)]
    cleanup: String,
}

pub(crate) fn proxy(args: &ProxyArgs, given: &Given) -> anyhow::Result<ExitCode> {
    let mut problems = Problems::new(given);
    if problems.parse::<bool>("cleanup", &args.cleanup) == Some(true) {
        problems.check()?;
        return clean_up_proxy(args).map(|()| ExitCode::SUCCESS);
    }
    if let Some(look) = &args.look {
        let instead = Instead {
            node_name: args.alone.node.name(&mut problems),
            cluster: &args.cluster,
            proxying: Some(args.proxy.parse(&mut problems)),
            data_dir: args.alone.process.places().data_dir,
            given,
        };
        return look.run(problems, &instead);
    }
    let cluster = args.cluster.parse(&mut problems);
    let proxying = args.proxy.parse(&mut problems);
    args.alone.start(PROXY_OPS_PORT, problems, |process, ctx| {
        if let Some(cluster) = &cluster {
            start_proxy(process, ctx, cluster, &proxying, &[], false, None);
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn clean_up_proxy(args: &ProxyArgs) -> anyhow::Result<()> {
    let sysctls = Sysctls::new(&args.alone.process.places().run_dir);
    let cleared = svcnet_proxy::cleanup(&sysctls).map_err(|why| anyhow::anyhow!("clean up: {why}"))?;
    for mode in &cleared {
        println!("removed what {mode} mode had made");
    }
    if cleared.is_empty() {
        println!("nothing of the proxy is left on this host");
    }
    Ok(())
}
