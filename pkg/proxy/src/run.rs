//! The role: watches in, kernel out, on a thread of its own.
//!
//! The kernel is told on a blocking thread. While it commits, changes queue up and become one batch: churn is
//! coalesced by exactly the time that a commit takes, and a lone change waits for nothing.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use svcnet_netlink::nft;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::desired::Settings;
use crate::engine::{Engine, Update};
use crate::inspect::Facts;
use crate::nftables::Nftables;
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;

/// Changes that may wait for the kernel before the watches wait for us.
const QUEUE_LENGTH: usize = 4096;
/// Pause after a refusal by the kernel, doubled up to the second number.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often what former changes left is cleared away, while there is any.
const TIDY: Duration = Duration::from_secs(1);
/// A foreign change often is one of many (a firewall that reloads): look when it is quiet for so long.
const SETTLE: Duration = Duration::from_millis(50);

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

    /// The tables of this network namespace, as this configuration has them.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn open_tables(&self) -> Result<Nftables, nft::Error> {
        let tables = Nftables::open(&self.cluster_cidrs, &self.service_cidrs)?;
        Ok(tables.with_node_ports_on(self.node_ports.clone()))
    }
}

/// Why a proxy can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No access to nf_tables.
    #[error("{0}; svcnet proxy needs root and a kernel with nf_tables (CONFIG_NF_TABLES, CONFIG_NFT_NAT)")]
    Kernel(#[source] nft::Error),
    /// No thread for the kernel's side.
    #[error("start the proxy's thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread for the kernel's side is gone.
    #[error("the proxy's thread ended unexpectedly")]
    ThreadEnded,
}

/// The proxy of a node.
pub struct Proxy {
    engine: Engine,
    facts: Facts,
    services: mpsc::Receiver<Change<Service>>,
    slices: mpsc::Receiver<Change<EndpointSlice>>,
    node: mpsc::Receiver<Change<Node>>,
    route_loopback: bool,
    health: Component,
    shutdown: CancellationToken,
}

/// What the thread is told.
enum Work {
    Update(Update),
    Touched,
}

impl Proxy {
    /// Opens the way to the kernel and subscribes to Services, EndpointSlices and this node's Node. Changes nothing yet.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn new(config: Config, ctx: &Context) -> Result<Self, Error> {
        let backend = config.open_tables().map_err(Error::Kernel)?;
        let engine = Engine::new(&ctx.node_name, config.settings(), Box::new(backend)).awaiting_node();
        let route_loopback = config.node_ports.answers_on([127, 0, 0, 1].into());
        let facts = Facts {
            node: ctx.node_name.clone(),
            data_dir: ctx.data_dir.clone(),
            config,
            ..Facts::default()
        };
        let own_node = Scope {
            fields: Some(format!("metadata.name={}", ctx.node_name)),
            ..Scope::default()
        };
        Ok(Self {
            engine,
            facts,
            services: ctx.informers.subscribe(Scope::default()),
            slices: ctx.informers.subscribe(Scope::default()),
            node: ctx.informers.subscribe(own_node),
            route_loopback,
            health: ctx.health.component("proxy"),
            shutdown: ctx.shutdown.clone(),
        })
    }

    /// Works until shutdown, and then leaves the data plane as it is.
    ///
    /// # Errors
    /// When its thread can not be started or dies.
    pub async fn run(mut self) -> Result<(), Error> {
        if self.route_loopback {
            route_loopback();
        }
        let wake = self
            .engine
            .wake()
            .map(|fd| fd.try_clone_to_owned())
            .transpose()
            .map_err(Error::Thread)?;
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let (engine, facts, health) = (self.engine, self.facts, self.health);
        health.tell(&facts);
        let (ended, mut has_ended) = tokio::sync::oneshot::channel::<()>();
        let worker = Worker {
            facts,
            ..Worker::new(engine, health, RETRY.0).map_err(Error::Thread)?
        };
        spawn("proxy", move || {
            let _ended = ended;
            worker.work(receiver);
        })?;
        if let Some(wake) = wake {
            let sender = sender.clone().downgrade();
            spawn("proxy-watch", move || wake_on_foreign_changes(&wake, &sender))?;
        }
        loop {
            let work = tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                _ = &mut has_ended => return Err(Error::ThreadEnded),
                Some(change) = self.services.recv() => Work::Update(Update::Services(change)),
                Some(change) = self.slices.recv() => Work::Update(Update::Slices(change)),
                Some(change) = self.node.recv() => Work::Update(Update::Node(change)),
                else => return Ok(()),
            };
            if sender.send(work).await.is_err() {
                return Err(Error::ThreadEnded);
            }
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
        .map_err(Error::Thread)
}

/// Wakes the worker when somebody else may have changed our tables. The worker reads the socket; until it does, this
/// wakes it again.
fn wake_on_foreign_changes(wake: &OwnedFd, sender: &mpsc::WeakSender<Work>) {
    // The worker ends when the last sender is gone, so none is held while waiting.
    while sender.upgrade().is_some_and(|sender| !sender.is_closed()) {
        let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        // The timeout is for noticing that the worker is gone.
        if !matches!(poll(&mut fds, PollTimeout::from(500u16)), Ok(1..)) {
            continue;
        }
        std::thread::sleep(SETTLE);
        if let Some(sender) = sender.upgrade() {
            // A full queue will be read anyway.
            let _ = sender.try_send(Work::Touched);
        }
    }
}

/// The side of the kernel.
struct Worker {
    engine: Engine,
    facts: Facts,
    health: Component,
    retry: Duration,
    tidied: Instant,
    /// For waiting no longer than until it is time to tidy.
    clock: Runtime,
}

impl Worker {
    fn new(engine: Engine, health: Component, retry: Duration) -> std::io::Result<Self> {
        Ok(Self {
            engine,
            facts: Facts::default(),
            health,
            retry,
            tidied: Instant::now(),
            clock: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?,
        })
    }

    fn work(mut self, mut receiver: mpsc::Receiver<Work>) {
        while let Some(first) = self.next(&mut receiver) {
            let begin = Instant::now();
            self.take(first);
            while let Ok(more) = receiver.try_recv() {
                self.take(more);
            }
            while self.engine.is_pending() && !self.sync(begin) {
                // Refused: what comes meanwhile goes into the next try.
                std::thread::sleep(self.retry);
                self.retry = (self.retry * 2).min(RETRY.1);
                while let Ok(more) = receiver.try_recv() {
                    self.take(more);
                }
                if receiver.is_closed() && receiver.is_empty() {
                    return;
                }
            }
        }
    }

    /// Waits for the next thing to do, and tidies meanwhile.
    fn next(&mut self, receiver: &mut mpsc::Receiver<Work>) -> Option<Work> {
        while self.engine.is_untidy() {
            let left = TIDY.saturating_sub(self.tidied.elapsed());
            if !left.is_zero()
                && let Ok(work) = self
                    .clock
                    .block_on(async { timeout(left, receiver.recv()).await })
            {
                return work;
            }
            if !self.tidy() {
                // What is there is looked at now, not only with the next change.
                return Some(Work::Touched);
            }
        }
        receiver.blocking_recv()
    }

    /// Whether the kernel took it.
    fn tidy(&mut self) -> bool {
        self.tidied = Instant::now();
        match self.engine.tidy() {
            Ok(report) if report.operations > 0 => {
                tracing::debug!(plan.ops = report.operations, "left-overs cleared away");
                true
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "left-overs not cleared away, looking at what is there"
                );
                false
            }
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Update(update) => {
                metrics::counter!("svcnet_proxy_changes_total").increment(1);
                self.engine.apply_change(update);
            }
            Work::Touched => match self.engine.check() {
                Ok(true) => tracing::info!("somebody else changed our tables, verifying them"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "can not watch for foreign changes"
                    );
                }
            },
        }
    }

    fn tell(&mut self, now: Timestamp) {
        let (engine, facts) = (&self.engine, &mut self.facts);
        facts.mode = engine.mode().parse().unwrap_or_default();
        facts.services = engine.service_count();
        facts.frontends = engine.frontend_count();
        facts.last_sync = Some(now);
        self.health.tell(&*facts);
    }

    /// Whether the kernel took it.
    fn sync(&mut self, begin: Instant) -> bool {
        let sync_begin = Instant::now();
        match self.engine.sync() {
            Ok(report) => {
                self.retry = RETRY.0;
                self.health.ready();
                metrics::histogram!("sync_proxy_rules_duration_seconds").record(sync_begin.elapsed());
                let now = Timestamp::now();
                for trigger in self.engine.take_triggers() {
                    // Clocks of two machines: a moment that has not come yet is now.
                    let waited = now.duration_since(trigger).as_secs_f64().max(0.0);
                    metrics::histogram!("network_programming_duration_seconds").record(waited);
                }
                self.tell(now);
                metrics::gauge!("svcnet_proxy_services").set(gauge(self.engine.service_count()));
                metrics::gauge!("svcnet_proxy_frontends").set(gauge(self.engine.frontend_count()));
                if report.operations > 0 {
                    metrics::counter!("svcnet_proxy_operations_total").increment(report.operations as u64);
                    metrics::counter!("svcnet_proxy_stale_entries_cleared_total")
                        .increment(report.cleared as u64);
                    tracing::info!(
                        plan.ops = report.operations,
                        bytes = report.bytes,
                        cleared = report.cleared,
                        elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0,
                        "services programmed"
                    );
                }
                true
            }
            Err(error) => {
                metrics::counter!("svcnet_proxy_sync_failures_total").increment(1);
                self.health.not_ready(error.to_string());
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "services not programmed, trying again"
                );
                false
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float, and no cluster has 2^52 services"
)]
fn gauge(count: usize) -> f64 {
    count as f64
}

/// Node ports answer on 127.0.0.1, from where packets leave with another source only if the kernel lets loopback
/// addresses be routed. A rule of ours keeps others from loopback.
fn route_loopback() {
    if let Err(error) = svcnet_netlink::sysctl::set("net/ipv4/conf/all/route_localnet", "1") {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "node ports will not answer on 127.0.0.1"
        );
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
