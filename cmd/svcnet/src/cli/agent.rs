//! `svcnet agent`: all roles of a node in one process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use svcnet_api::types::NodeIps;
use svcnet_runtime::join::{ClusterFacts, JoinToken};
use svcnet_runtime::{Context, renew};

use super::flags::{Cluster, ClusterFlags, KubeconfigFlags, NodeFlags, OpsFlags, ProcessFlags};
use super::role::{
    self, AnnouncerFlags, Announcing, DnsFlags, Network, NetworkFlags, ProxyFlags, Proxying, Runtimes,
};
use crate::membership::{self, Membership};
use crate::process::{self, Process};
use crate::settings::{ConfigError, Given, Problems};

pub(crate) const OPS_PORT: u16 = 10249;
/// The roles that `--disable` knows.
const ROLES: [&str; 6] = ["overlay", "policy", "cni", "proxy", "dns", "announcer"];

/// Flags of an agent, whether alone or beside a server.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentFlags {
    /// Leave these roles out, with commas between: overlay, policy, cni, proxy, dns, announcer
    #[arg(
        long,
        value_name = "ROLES",
        help_heading = "Node",
        default_value = "",
        hide_default_value = true
    )]
    disable: String,
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    proxy: ProxyFlags,
    #[command(flatten)]
    dns: DnsFlags,
    #[command(flatten)]
    announcer: AnnouncerFlags,
    #[command(flatten)]
    runtimes: Runtimes,
}

/// What an agent is told.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    disabled: Vec<String>,
    pub(crate) network: Network,
    proxying: Proxying,
    upstreams: Option<Vec<SocketAddr>>,
    announcing: Announcing,
    runtimes: Runtimes,
}

impl AgentFlags {
    /// `given` is what `--node-ip` says.
    pub(crate) fn parse(&self, given: Option<NodeIps>, problems: &mut Problems<'_>) -> Agent {
        let mut disabled: Vec<String> = problems.parse_list("disable", &self.disable);
        disabled.retain(|role| {
            let known = ROLES.contains(&role.as_str());
            if !known {
                problems.add(
                    "disable",
                    format_args!("{role:?} is not a role of an agent ({})", ROLES.join(", ")),
                );
            }
            known
        });
        Agent {
            disabled,
            network: self.network.parse(given, problems),
            proxying: self.proxy.parse(problems),
            upstreams: self.dns.parse(problems),
            announcing: self.announcer.parse(problems),
            runtimes: self.runtimes.clone(),
        }
    }
}

impl Agent {
    fn runs(&self, role: &str) -> bool {
        !self.disabled.iter().any(|disabled| disabled == role)
    }
}

/// Everything that a node needs, in one process: overlay, NetworkPolicy, CNI daemon, proxy, DNS, announcer
///
/// It joins a svcnet server with a token (which holds the hash of the server's CA: nothing is sent to any other
/// server), or follows any Kubernetes API with a kubeconfig, in place of kube-proxy, flannel, CoreDNS and MetalLB. What
/// it last knew is kept on disk: it starts and works with the server away, and what it programmed stays when it stops.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet agent --server https://10.0.0.1:6443 --token K10…::…      the token is in DATA-DIR/token on the server
  svcnet agent                                                     later starts need neither
  svcnet agent --kubeconfig /etc/kubernetes/kubelet.conf --disable overlay,cni,dns    in place of kube-proxy")]
pub(crate) struct Args {
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    ops: OpsFlags,
    #[command(flatten)]
    node: NodeFlags,
    /// Join this server, as in https://10.0.0.1:6443; where several share a datastore, name them with commas between, and
    /// another is used when one is away
    #[arg(long, value_name = "URLS", help_heading = "API")]
    server: Option<String>,
    /// The token to join with: what is in DATA-DIR/token on the server
    #[arg(long, value_name = "TOKEN", help_heading = "API", hide_env_values = true)]
    token: Option<String>,
    /// The file that holds the token
    #[arg(long, value_name = "FILE", help_heading = "API")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    api: KubeconfigFlags,
    /// Keep this node's Node object and its Lease: true or false
    /// [default: true, but false with --kubeconfig: there a kubelet does it]
    #[arg(long, value_name = "BOOL", help_heading = "API", num_args = 0..=1, default_missing_value = "true")]
    register_node: Option<String>,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    agent: AgentFlags,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let logging = args.process.logging(&mut problems);
    let ops = args.ops.address(OPS_PORT, &mut problems);
    let name = args.node.name(&mut problems);
    let given_ips = args.node.ips(&mut problems);
    let agent = args.agent.parse(given_ips, &mut problems);
    let ips = args
        .node
        .ips_or_found(given_ips, &agent.network.underlay, &mut problems);
    let register = args
        .register_node
        .as_deref()
        .and_then(|text| problems.parse("register-node", text));
    let token = args.token(&mut problems);
    // For what is wrong with it: what the server says takes the place of defaults later.
    args.cluster.parse(&mut problems);
    let places = args.process.places();
    if args.server.is_none() && !args.api.path(&places).exists() {
        problems.add(
            "server",
            format_args!(
                "an agent needs --server and --token to join (the server shows both when it starts), or --kubeconfig; \
                 {} is not there",
                args.api.path(&places).display()
            ),
        );
    }
    problems.check()?;
    let membership = Membership {
        kubeconfig: args.api.path(&places),
        facts: membership::facts_path(&places.data_dir),
        server: args.server.clone().filter(|_| args.api.kubeconfig.is_none()),
        token,
        node: name.clone(),
    };
    let own = args.api.kubeconfig.is_none();
    let register = register.unwrap_or(args.api.kubeconfig.is_none());
    let (cluster, given) = (&args.cluster, given.clone());
    process::run(&logging, async |process| {
        process.serve_ops(ops).await?;
        let facts = membership::establish(&membership).await?;
        let cluster = with_facts(cluster, &given, facts.as_ref())?;
        let ctx = process.context(&membership.kubeconfig, &name, &places).await?;
        // A kubeconfig that was given is renewed by whoever wrote it.
        if facts.is_some() && own {
            let kubeconfig = membership.kubeconfig.clone();
            let renewing = renew::keep(ctx.client.clone(), kubeconfig, name.clone(), ctx.shutdown.clone());
            process.spawn("certificate", renewing);
        }
        start(process, &ctx, &agent, &cluster, ips, register)?;
        ctx.informers.start();
        Ok(())
    })
}

impl Args {
    fn token(&self, problems: &mut Problems<'_>) -> Option<JoinToken> {
        let text = match (&self.token, &self.token_file) {
            (Some(text), _) => return problems.parse_with("token", text, parse_token),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    problems.add("token-file", format_args!("{}: {error}", path.display()));
                    return None;
                }
            },
            (None, None) => {
                let joined = self.api.path(&self.process.places()).exists();
                if self.server.is_some() && !joined {
                    problems.add(
                        "token",
                        "joining needs the token in DATA-DIR/token of the server (or --token-file)",
                    );
                }
                return None;
            }
        };
        problems.parse_with("token-file", &text, parse_token)
    }
}

/// A secret is not repeated in an error.
fn parse_token(text: &str) -> Result<JoinToken, String> {
    text.parse()
        .map_err(|error: svcnet_runtime::join::TokenError| error.to_string())
}

/// What the cluster says of itself stands for what was not given here.
fn with_facts(flags: &ClusterFlags, given: &Given, facts: Option<&ClusterFacts>) -> anyhow::Result<Cluster> {
    let mut flags = flags.clone();
    if let Some(facts) = facts {
        flags.or_facts(given, facts);
    }
    let mut problems = Problems::new(given);
    let cluster = flags.parse(&mut problems);
    problems.check()?;
    cluster.ok_or_else(|| ConfigError(Vec::new()).into())
}

/// Starts the roles of a node.
pub(crate) fn start(
    process: &mut Process,
    ctx: &Context,
    agent: &Agent,
    cluster: &Cluster,
    node_ips: Option<NodeIps>,
    register: bool,
) -> anyhow::Result<()> {
    if register {
        let ips = node_ips.context("a node that is to be registered needs an address (--node-ip)")?;
        role::start_node(process, ctx, ips, &agent.network)?;
    }
    if agent.runs("overlay") {
        role::start_overlay(process, ctx, cluster, &agent.network)?;
    }
    let (gate, judge) = if agent.runs("policy") {
        // Who else gives addresses to pods may give the relays' away.
        let relays = agent.runs("cni") && agent.runs("overlay");
        let (gate, judge) = role::start_policy(process, ctx, cluster, relays)?;
        (Some(gate), Some(judge))
    } else {
        (None, None)
    };
    if agent.runs("cni") {
        role::start_cni(process, ctx, cluster, &agent.network, &agent.runtimes, gate)?;
    }
    // What the node's own DNS server answers needs no translation, and must get none.
    let own: &[IpAddr] = if agent.runs("dns") { &cluster.dns } else { &[] };
    if agent.runs("proxy") {
        let announcer = agent.runs("announcer");
        role::start_proxy(process, ctx, cluster, &agent.proxying, own, announcer, judge);
    }
    if agent.runs("dns") {
        role::start_dns(process, ctx, cluster, agent.upstreams.clone())?;
    }
    if agent.runs("announcer") {
        // An address that was found may become another: then the Node says it.
        let given = node_ips.filter(|_| !register || agent.network.underlay.address.is_some());
        role::start_announcer(process, ctx, &agent.announcing, given)?;
    }
    Ok(())
}
