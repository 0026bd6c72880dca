//! What every long-running command is: a runtime, logs, metrics, signals, a listener for health, and roles.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use svcnet_runtime::ops::OpsServer;
use svcnet_runtime::telemetry::{self, LogFormat};
use svcnet_runtime::{Context, Health, Informers, connect, memory};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::flags::Places;

/// Threads that the work of all roles shares. Agents sleep most of the time: more threads are more memory.
const WORKERS: usize = 2;
/// What roles may take to stop; what they program stays in any case.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How a process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logging {
    /// A `tracing` directive.
    pub(crate) level: String,
    /// How lines look.
    pub(crate) format: LogFormat,
}

/// A long-running command.
pub(crate) struct Process {
    pub(crate) health: Health,
    pub(crate) shutdown: CancellationToken,
    metrics: PrometheusHandle,
    roles: JoinSet<(&'static str, anyhow::Result<()>)>,
}

/// Runs a long-running command to its end: until a signal, or until a role fails.
pub(crate) fn run(
    logging: &Logging,
    body: impl AsyncFnOnce(&mut Process) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    telemetry::log_to_stderr(&logging.level, logging.format)?;
    let metrics = telemetry::record_metrics()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        let mut process = Process {
            health: Health::default(),
            shutdown: CancellationToken::new(),
            metrics,
            roles: JoinSet::new(),
        };
        stop_on_signals(process.shutdown.clone())?;
        let shutdown = process.shutdown.clone();
        tokio::spawn(memory::give_back(shutdown.clone()));
        // A process whose roles are not there yet is not ready.
        let start = process.health.component("start");
        let started = tokio::select! {
            started = body(&mut process) => started.inspect(|()| start.ready()),
            // A signal while it waits for a server, for one.
            () = shutdown.cancelled() => Ok(()),
        };
        let ended = match started {
            Ok(()) => process.until_stopped().await,
            Err(error) => Err(error),
        };
        shutdown.cancel();
        process.stop_roles().await;
        ended
    });
    // Threads that read from the kernel may be blocked: they end with the process.
    runtime.shutdown_background();
    result
}

fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    // Listened to and not acted on: a terminal that closes does not end a node's network.
    let mut hangup = signal(SignalKind::hangup()).context("listen to SIGHUP")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {}
            }
        }
        tracing::info!("stopping; what was programmed stays");
        shutdown.cancel();
        // Asked twice: at once.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

impl Process {
    /// Renders the metrics of the process.
    pub(crate) fn render_metrics(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let metrics = self.metrics.clone();
        move || {
            metrics.run_upkeep();
            metrics.render()
        }
    }

    /// Opens the listener for health and metrics. Busy ports are told before any role starts.
    pub(crate) async fn serve_ops(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let server = OpsServer::bind(address).await?;
        let (health, metrics, shutdown) = (self.health.clone(), self.metrics.clone(), self.shutdown.clone());
        tokio::spawn(server.run(health, metrics, shutdown));
        Ok(())
    }

    /// What roles run on, against the API that a kubeconfig names; what was last known is kept on disk.
    pub(crate) async fn context(
        &self,
        kubeconfig: &Path,
        node: &str,
        places: &Places,
    ) -> anyhow::Result<Context> {
        let journal = places.data_dir.join("cache");
        self.context_with(kubeconfig, node, places, Some(journal)).await
    }

    /// The same, with nothing kept.
    pub(crate) async fn context_without_journal(
        &self,
        kubeconfig: &Path,
        node: &str,
        places: &Places,
    ) -> anyhow::Result<Context> {
        self.context_with(kubeconfig, node, places, None).await
    }

    async fn context_with(
        &self,
        kubeconfig: &Path,
        node: &str,
        places: &Places,
        journal: Option<PathBuf>,
    ) -> anyhow::Result<Context> {
        let client = connect::client(kubeconfig).await?;
        if let Some(dir) = &journal {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(Context {
            node_name: node.to_string(),
            informers: Informers::new(client.clone(), journal, self.shutdown.clone()),
            client,
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
            data_dir: places.data_dir.clone(),
            run_dir: places.run_dir.clone(),
        })
    }

    /// Starts a role.
    pub(crate) fn spawn<E>(
        &mut self,
        name: &'static str,
        role: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<anyhow::Error>,
    {
        self.roles
            .spawn(async move { (name, role.await.map_err(Into::into)) });
    }

    /// Until shutdown, or until a role ends that should not have.
    async fn until_stopped(&mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            Some(ended) = self.roles.join_next() => ended,
        };
        if self.shutdown.is_cancelled() {
            return Ok(());
        }
        match ended {
            Ok((name, Err(error))) => Err(error.context(format!("the role {name} failed"))),
            Ok((name, Ok(()))) => Err(anyhow!("the role {name} ended, although nobody stopped it")),
            Err(error) => Err(anyhow!(error).context("a role broke")),
        }
    }

    async fn stop_roles(&mut self) {
        let all = async {
            while let Some(ended) = self.roles.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((role, Err(error))) => tracing::warn!(role, "stopped with an error: {error:#}"),
                    Err(error) => tracing::warn!(%error, "a role broke while stopping"),
                }
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            tracing::warn!("a role did not stop in time");
        }
    }
}
