//! `svcnet pod`: a process as a pod.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use svcnet_api::names;
use svcnet_api::types::NodeIps;
use svcnet_api::wellknown::{DEFAULT_DATA_DIR, DEFAULT_KUBECONFIG, DEFAULT_RUN_DIR};
use svcnet_lab::pod::{self, ContainerPort, PodSpec, Responder, spec};
use svcnet_runtime::connect;
use svcnet_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a process as a pod, until it is deleted or this command is stopped
    Run(RunArgs),
    /// End a pod that `svcnet pod run` runs on this node, or clean up after one that was killed
    Rm(RmArgs),
    /// The built-in responder, in this network namespace
    #[command(hide = true)]
    Respond(RespondArgs),
}

/// Run a process as a pod: it gets a network namespace, an address from the CNI plugin, and a Pod object that is Ready
/// while the process listens on its ports. The process is started again when it ends, as a kubelet does it.
///
/// Without a command a built-in responder runs: HTTP / and /hostname answer the pod's name, /clientip the caller's
/// address and port; over plain TCP and UDP the words hostname and clientip do the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet pod run web1 --label app=nginx --container-port 80
  svcnet pod run dns1 --label app=dns --container-port 53/udp=dns --container-port 53=dns-tcp
  svcnet pod run web2 --label app=nginx --container-port 8080=http -- python3 -m http.server 8080")]
pub(crate) struct RunArgs {
    /// Name of the pod
    name: String,
    /// Program and arguments [default: the built-in responder]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Namespace of the Pod object
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// A label, KEY=VALUE; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = spec::parse_label)]
    label: Vec<(String, String)>,
    /// A port that the pod listens on: NUMBER[/udp][=NAME]; may be repeated
    #[arg(long, value_name = "PORT")]
    container_port: Vec<ContainerPort>,
    /// Name of its network namespace [default: pod-NAMESPACE-NAME]
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// The node that it runs on: this one [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The node's address, or one of each family with a comma between, for the Pod's status
    #[arg(long, value_name = "ADDRESS")]
    node_ip: Option<NodeIps>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Name of the pod
    name: String,
    /// Namespace of the Pod object
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Name of its network namespace [default: pod-NAMESPACE-NAME]
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, clap::Args)]
struct ApiArgs {
    /// Where the agent of this node has its sockets (--run-dir of the agent)
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Keep the Pod object at the API that this names
    /// [default: /etc/svcnet/kubeconfig.yaml, else that of this node's agent]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RespondArgs {
    /// The name to answer with
    #[arg(long)]
    name: String,
    /// A port to answer on: NUMBER[/udp]; may be repeated
    #[arg(long, value_name = "PORT")]
    container_port: Vec<ContainerPort>,
}

impl ApiArgs {
    fn kubeconfig(&self) -> PathBuf {
        let admin = Path::new(DEFAULT_KUBECONFIG);
        match &self.kubeconfig {
            Some(path) => path.clone(),
            None if admin.exists() => admin.to_path_buf(),
            None => Path::new(DEFAULT_DATA_DIR).join("agent/kubeconfig.yaml"),
        }
    }
}

fn netns_of(netns: Option<String>, namespace: &str, name: &str) -> String {
    netns.unwrap_or_else(|| format!("pod-{namespace}-{name}"))
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    // A supervisor sleeps nearly always: one thread is enough for it, and for what it starts.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        match command {
            Command::Run(args) => run_pod(args).await,
            Command::Rm(args) => {
                let netns = netns_of(args.netns, &args.namespace, &args.name);
                let client = connect::client(&args.api.kubeconfig()).await.ok();
                Ok(pod::remove(&args.name, &netns, &args.api.run_dir, client.as_ref()).await?)
            }
            Command::Respond(args) => {
                let responder = Responder {
                    name: args.name,
                    ports: args.container_port,
                };
                Ok(responder.run().await?)
            }
        }
    });
    runtime.shutdown_background();
    result
}

async fn run_pod(args: RunArgs) -> anyhow::Result<()> {
    telemetry::log_to_stderr("info", LogFormat::Text)?;
    let wrong = names::dns_subdomain(&args.name);
    anyhow::ensure!(
        wrong.is_empty(),
        "{:?} is not a name for a pod: {}",
        args.name,
        wrong.join("; ")
    );
    let host = nix::unistd::gethostname().unwrap_or_default();
    let pod = PodSpec {
        netns: netns_of(args.netns, &args.namespace, &args.name),
        name: args.name,
        namespace: args.namespace,
        labels: args.label.into_iter().collect(),
        ports: args.container_port,
        command: args.command,
        node: args
            .node_name
            .unwrap_or_else(|| host.to_string_lossy().to_lowercase()),
        host_ips: args.node_ip,
        run_dir: args.api.run_dir.clone(),
    };
    let client = connect::client(&args.api.kubeconfig()).await?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    Ok(pod::run(pod, client, shutdown).await?)
}

fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // Each further one is ignored: the pod is being taken away, and that must come to its end.
        loop {
            tokio::select! {
                _ = terminate.recv() => shutdown.cancel(),
                _ = interrupt.recv() => shutdown.cancel(),
                _ = hangup.recv() => {}
            }
        }
    });
    Ok(())
}
