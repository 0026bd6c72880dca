//! `svcnet server`: API server, controllers and an agent in one process.

use std::path::Path;

use svcnet_api::types::NodeIps;
use svcnet_netlink::underlay::Choice;
use svcnet_runtime::Health;

use super::agent::{self, Agent, AgentFlags};
use super::apiserver::{self, Api, ApiFlags, Wanted};
use super::controller;
use super::flags::{Cluster, ClusterFlags, NodeFlags, OpsFlags, Places, ProcessFlags};
use crate::process::{self, Process};
use crate::settings::{Given, Problems};

/// The API server and the controllers, with an agent on the same host
///
/// One command makes a cluster of one node; others join it with `svcnet agent`. It writes the administrator's kubeconfig
/// to /etc/svcnet/kubeconfig.yaml (mode 0600) and the token that agents join with to DATA-DIR/token. The API is on port
/// 6443 with its /healthz, /readyz and /metrics; those of the controllers and the agent are at 127.0.0.1:10249.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet server
  svcnet server --service-cluster-ip-range 10.43.0.0/16 --cluster-dns 10.43.0.10
  svcnet server --cluster-cidr 10.244.0.0/16,fd00:244::/56 \\
    --service-cluster-ip-range 10.96.0.0/12,fd00:96::/112       dual stack")]
pub(crate) struct Args {
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    ops: OpsFlags,
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    api: ApiFlags,
    #[command(flatten)]
    cluster: ClusterFlags,
    /// Run no agent here: this host is no node of the cluster (true or false)
    #[arg(long, value_name = "BOOL", help_heading = "Node", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", hide_default_value = true)]
    disable_agent: String,
    #[command(flatten)]
    agent: AgentFlags,
}

/// What the command line and its kin asked for.
struct Settings {
    places: Places,
    name: String,
    ips: NodeIps,
    /// Where the address was found, if it was not given.
    found: Option<Choice>,
    api: Api,
    cluster: Cluster,
    agent: Option<Agent>,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let logging = args.process.logging(&mut problems);
    let ops = args.ops.address(agent::OPS_PORT, &mut problems);
    let name = args.node.name(&mut problems);
    let api = args.api.parse(&mut problems);
    let cluster = args.cluster.parse(&mut problems);
    let disabled = problems.parse::<bool>("disable-agent", &args.disable_agent);
    let given_ips = args.node.ips(&mut problems);
    let agent = args.agent.parse(given_ips, &mut problems);
    let ips = args
        .node
        .ips_or_found(given_ips, &agent.network.underlay, &mut problems);
    problems.check()?;
    let found = given_ips.is_none().then(|| agent.network.underlay.clone());
    let (Some(cluster), Some(ips)) = (cluster, ips) else {
        return Ok(());
    };
    let settings = Settings {
        places: args.process.places(),
        name,
        ips,
        found,
        api,
        cluster,
        agent: (disabled != Some(true)).then_some(agent),
    };
    process::run(&logging, async |process| {
        process.serve_ops(ops).await?;
        start(process, settings).await
    })
}

async fn start(process: &mut Process, settings: Settings) -> anyhow::Result<()> {
    let Settings {
        places,
        name,
        ips,
        found,
        api,
        cluster,
        agent,
    } = settings;
    let wanted = Wanted {
        api: &api,
        cluster: &cluster,
        node_name: &name,
        node_ip: ips.primary(),
        data_dir: places.data_dir.clone(),
    };
    let (server, allocator) = apiserver::start(process, wanted).await?;
    let controller_config = server.controller_kubeconfig().to_path_buf();
    let agent_config = server.agent_kubeconfig().to_path_buf();
    let admin_config = server.admin_kubeconfig().to_path_buf();
    apiserver::serve(process, server, found)?;
    // Each with the rights of its own; and the controllers need no memory of objects that the server beside them has.
    let ctx = process
        .context_without_journal(&controller_config, &name, &places)
        .await?;
    controller::start(process, &ctx, Some(&cluster), Some(allocator))?;
    ctx.informers.start();
    if let Some(agent) = &agent {
        let ctx = process.context(&agent_config, &name, &places).await?;
        agent::start(process, &ctx, agent, &cluster, Some(ips), true)?;
        ctx.informers.start();
    }
    let (health, url, places) = (process.health.clone(), api.url(ips.primary()), places.clone());
    tokio::spawn(async move {
        until_ready(&health).await;
        greet(&url, &admin_config, &places);
    });
    Ok(())
}

async fn until_ready(health: &Health) {
    while !health.report().0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// How to go on from here.
fn greet(url: &str, kubeconfig: &Path, places: &Places) {
    let token = std::fs::read_to_string(places.data_dir.join("token")).unwrap_or_default();
    println!(
        "The cluster is ready, and its API is served at {url}. Try:
  export KUBECONFIG={kubeconfig}
  kubectl get nodes,svc -o wide
To join another node, run there:
  svcnet agent --server {url} --token {token}",
        kubeconfig = kubeconfig.display(),
        token = token.trim()
    );
}
