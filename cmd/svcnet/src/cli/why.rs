//! `svcnet why`: why a packet arrives, or why not.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use svcnet_runtime::connect;
use svcnet_why::look;
use svcnet_why::{SourceAsk, TargetAsk};

use super::beside::{self, Instead, LookFlags, Output, PATIENCE};
use super::flags::{ClusterFlags, NodeName};
use crate::settings::{Given, Problems};

/// Why SOURCE reaches NAME:PORT, or the exact reason why not
///
/// Each step is told: the name, the frontend, the policy, the endpoints, the route, the address that the pod sees; first
/// as the API says it should be, then as the kernel of this node holds it. Run it on the node of the source: what only
/// another node's kernel knows is marked `--`. Ends with status 1 when the connection does not arrive.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet why visitor web:80                the pod visitor to the Service web, both in the namespace default
  svcnet why shop/till web.shop:http       by DNS name, and by the name of the port
  svcnet why n2 10.96.0.10:53/udp          the node n2 to an address
  svcnet why outside n1:30080              somebody outside to a node port
  svcnet why visitor web:80 --probe        and try a connection, from the pod's own network namespace")]
pub(crate) struct Args {
    /// Who connects: a pod (NAME or NAMESPACE/NAME), a node, an address, or `outside`
    #[arg(value_name = "SOURCE")]
    source: String,
    /// To what: a Service, DNS name, node, pod or address, with a port by number or name; /udp or /sctp behind it
    #[arg(value_name = "NAME:PORT")]
    target: String,
    /// Try a TCP connection as well, from the source if it is on this node
    #[arg(long)]
    probe: bool,
    /// How to print it
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    look: LookFlags,
    #[command(flatten)]
    node: NodeName,
    #[command(flatten)]
    cluster: ClusterFlags,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<ExitCode> {
    let mut problems = Problems::new(given);
    let address = args.look.address(&mut problems);
    let source = problems.parse_argument::<SourceAsk>("SOURCE", &args.source);
    let target = problems.parse_argument::<TargetAsk>("NAME:PORT", &args.target);
    let instead = Instead {
        node_name: args.node.name(&mut problems),
        cluster: &args.cluster,
        proxying: None,
        data_dir: beside::data_dir(),
        given,
    };
    problems.check()?;
    let (address, source, target) = (
        address.context("no address")?,
        source.context("no source")?,
        target.context("no target")?,
    );
    let beside = beside::beside(address, &instead)?;
    let kubeconfig = args.look.kubeconfig(&beside.here.data_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let cluster = runtime.block_on(async {
        let client = connect::client(&kubeconfig).await?;
        let settings = look::Settings {
            proxy: beside.proxy,
            domain: beside.domain,
        };
        tokio::time::timeout(PATIENCE, look::cluster(&client, settings))
            .await
            .context("the API does not answer")?
            .with_context(|| format!("ask the API that {} names", kubeconfig.display()))
    })?;
    let explanation = look::explain(&cluster, Some(&beside.here), &source, &target, args.probe);
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => write!(out, "{explanation}")?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&explanation)?)?,
    }
    Ok(if explanation.outcome.is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
