//! The role: watches in, kernel out, on a thread of its own.
//!
//! The kernel is told on a blocking thread. While it commits, changes queue up and become one batch: churn is
//! coalesced by exactly the time that a commit takes, and a lone change waits for nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admission::Admission;
use crate::backend::Mode;
use crate::config::Config;
use crate::engine::{Engine, Update};
use crate::health::{self, Board, Checks};
use crate::inspect::Facts;
use crate::mode::{Choice, Condition, Modes, Notice, Openers, Source, Teller, Wish};
use crate::sysctls::Sysctls;

/// Changes that may wait for the kernel before the watches wait for us.
const QUEUE_LENGTH: usize = 4096;
/// Pause after a refusal by the kernel, doubled up to the second number.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often what former changes left is cleared away, while there is any.
const TIDY: Duration = Duration::from_secs(1);
/// A foreign change often is one of many (a firewall that reloads): look when it is quiet for so long.
const SETTLE: Duration = Duration::from_millis(50);

/// Where node ports answer only if the kernel routes loopback addresses.
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Events that may wait to be written.
const NOTICES_MAX: usize = 64;
/// How long is waited for what the ConfigMap says, before anything is done. Not at all where it is known from before.
const FIRST_WISH: Duration = Duration::from_secs(2);

/// Why a proxy can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host can not have any mode.
    #[error("no proxy mode is possible: {0}")]
    NoMode(String),
    /// No thread for the kernel's side.
    #[error("start the proxy's thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread for the kernel's side is gone.
    #[error("the proxy's thread ended unexpectedly")]
    ThreadEnded,
}

/// The proxy of a node.
pub struct Proxy {
    config: Config,
    ctx: Context,
    services: mpsc::Receiver<Change<Service>>,
    slices: mpsc::Receiver<Change<EndpointSlice>>,
    node: mpsc::Receiver<Change<Node>>,
    health: Component,
    admission: Option<Arc<dyn Admission>>,
}

/// What the thread is told.
enum Work {
    Update(Update),
    Wish(Wish),
    Touched,
}

impl Proxy {
    /// Subscribes to Services, EndpointSlices and this Node. Changes nothing yet.
    pub fn new(config: Config, ctx: &Context) -> Self {
        let this_node = Scope {
            fields: Some(format!("metadata.name={}", ctx.node_name)),
            ..Scope::default()
        };
        Self {
            services: ctx.informers.subscribe(Scope::default()),
            slices: ctx.informers.subscribe(Scope::default()),
            node: ctx.informers.subscribe(this_node),
            health: ctx.health.component("proxy"),
            config,
            ctx: ctx.clone(),
            admission: None,
        }
    }

    /// The same, with somebody who says which client may reach which endpoint: relays ask him, where the kernel can not tell.
    #[must_use]
    pub fn with_admission(self, admission: Arc<dyn Admission>) -> Self {
        Self {
            admission: Some(admission),
            ..self
        }
    }

    /// Works until shutdown, and then leaves the data plane as it is.
    ///
    /// # Errors
    /// When no mode is possible, or its thread can not be started or dies.
    pub async fn run(mut self) -> Result<(), Error> {
        // What runs beside the loop ends with it.
        let mut beside = JoinSet::new();
        let (notices, to_tell) = mpsc::channel(NOTICES_MAX);
        let (client, data_dir) = (self.ctx.client.clone(), &self.ctx.data_dir);
        let (source, mut wishes) = Source::new(client.clone(), data_dir, notices.clone());
        beside.spawn(source.follow());
        // Not long: without a server, flags decide.
        _ = timeout(FIRST_WISH, wishes.wait_for(Option::is_some)).await;
        let wish = wishes.borrow_and_update().clone().unwrap_or_default();
        let (choice, chosen) = watch::channel(None);
        let (there, is_there) = watch::channel(None);
        let teller = Teller {
            client,
            node: self.ctx.node_name.clone(),
            choice: chosen,
            there: is_there,
            notices: to_tell,
        };
        beside.spawn(teller.run());
        let board = Board::default();
        let (checks, to_check) = watch::channel(Checks::default());
        beside.spawn(health::keep(to_check, board.clone()));
        if let Some(at) = self.config.healthz {
            beside.spawn(health::serve_proxy(at, board.clone()));
        }
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let out = Out {
            health: self.health.clone(),
            board: board.clone(),
            checks,
            choice,
            notices,
        };
        let mut has_ended = self.start(wish, &sender, receiver, out)?;
        loop {
            let work = tokio::select! {
                () = self.ctx.shutdown.cancelled() => return Ok(()),
                _ = &mut has_ended => return Err(Error::ThreadEnded),
                Some(change) = self.services.recv() => {
                    changes_come("service", &change);
                    Work::Update(Update::Services(change))
                }
                Some(change) = self.slices.recv() => {
                    changes_come("endpoint", &change);
                    Work::Update(Update::Slices(change))
                }
                Some(change) = self.node.recv() => {
                    hear_node(&change, &board, &there);
                    Work::Update(Update::Node(change))
                }
                Ok(()) = wishes.changed() => {
                    Work::Wish(wishes.borrow_and_update().clone().unwrap_or_default())
                }
                else => return Ok(()),
            };
            board.queued(Timestamp::now());
            if sender.send(work).await.is_err() {
                return Err(Error::ThreadEnded);
            }
        }
    }

    /// Starts the thread that tells the kernel. What is returned is done when it ends.
    fn start(
        &self,
        wish: Wish,
        sender: &mpsc::Sender<Work>,
        receiver: mpsc::Receiver<Work>,
        out: Out,
    ) -> Result<oneshot::Receiver<()>, Error> {
        let openers = Openers {
            cluster_cidrs: self.config.cluster_cidrs.clone(),
            service_cidrs: self.config.service_cidrs.clone(),
            sysctls: Sysctls::new(&self.ctx.run_dir),
            on_loopback: wish
                .node_ports
                .as_ref()
                .unwrap_or(&self.config.node_ports)
                .answers_on(LOCALHOST),
            strict_arp: wish.strict_arp.unwrap_or(self.config.strict_arp),
            timeouts: wish.timeouts.unwrap_or(self.config.ipvs_timeouts),
            relays: None,
            admission: self.admission.clone(),
        };
        let flags = Wish {
            mode: Some(self.config.mode),
            scheduler: Some(self.config.scheduler),
            node_ports: Some(self.config.node_ports.clone()),
            strict_arp: Some(self.config.strict_arp),
            timeouts: Some(self.config.ipvs_timeouts),
            iptables: false,
        };
        let mut facts = Facts {
            node: self.ctx.node_name.clone(),
            data_dir: self.ctx.data_dir.clone(),
            config: self.config.clone(),
            ..Facts::default()
        };
        facts.config.follow(&wish.or(&flags));
        let config = &facts.config;
        let (modes, backend) = Modes::start(openers, config.mode).map_err(Error::NoMode)?;
        let mut engine = Engine::new(&self.ctx.node_name, config.settings(), backend).awaiting_node();
        engine.set_node_ports(config.node_ports.clone());
        let (ended, has_ended) = oneshot::channel::<()>();
        let mut worker = Worker::new(engine, out, RETRY.0).map_err(Error::Thread)?;
        worker.facts = facts;
        worker.switching = Some(Switching {
            modes,
            flags,
            sender: sender.downgrade(),
            watcher: None,
        });
        worker.tell_choice(None);
        worker.watch()?;
        spawn("proxy", move || {
            let _ended = ended;
            worker.work(receiver);
        })?;
        Ok(has_ended)
    }
}

/// Counts changes as kube-proxy does: those that have come, and those that wait to be in force.
fn changes_come<K>(of: &'static str, change: &Change<K>) {
    let count = match change {
        Change::Reset(all) => all.len(),
        Change::Apply(_) | Change::Delete(_) => 1,
    };
    metrics::counter!(format!("kubeproxy_sync_proxy_rules_{of}_changes_total")).increment(count as u64);
    metrics::gauge!(format!("kubeproxy_sync_proxy_rules_{of}_changes_pending")).increment(gauge(count));
    metrics::gauge!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")
        .set(seconds(Timestamp::now()));
}

/// What the Node says of its future, and of our condition.
fn hear_node(change: &Change<Node>, board: &Board, there: &watch::Sender<Option<Option<Condition>>>) {
    let node = match change {
        Change::Reset(all) => all.first(),
        Change::Apply(node) => Some(node),
        Change::Delete(_) => None,
    };
    if let Some(node) = node {
        board.hear_node(node);
    }
    there.send_replace(node.map(|node| Condition::of(node)));
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
fn wake_on_foreign_changes(wake: &OwnedFd, sender: &mpsc::WeakSender<Work>, needed: &Weak<()>) {
    // The worker ends when the last sender is gone, so none is held while waiting.
    while needed.strong_count() > 0 && sender.upgrade().is_some_and(|sender| !sender.is_closed()) {
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

/// What is told about the work.
struct Out {
    health: Component,
    board: Board,
    checks: watch::Sender<Checks>,
    choice: watch::Sender<Option<Choice>>,
    notices: mpsc::Sender<Notice>,
}

/// For going over to another mode.
struct Switching {
    modes: Modes,
    /// What the flags say.
    flags: Wish,
    sender: mpsc::WeakSender<Work>,
    /// While it is there, a thread watches for foreign changes.
    watcher: Option<Arc<()>>,
}

/// The side of the kernel.
struct Worker {
    engine: Engine,
    facts: Facts,
    out: Out,
    switching: Option<Switching>,
    retry: Duration,
    tidied: Instant,
    /// For waiting no longer than until it is time to tidy.
    clock: Runtime,
}

impl Worker {
    fn new(engine: Engine, out: Out, retry: Duration) -> std::io::Result<Self> {
        Ok(Self {
            engine,
            facts: Facts::default(),
            out,
            switching: None,
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
            self.settle();
        }
    }

    /// Nothing that has come waits any more.
    fn settle(&self) {
        if self.engine.is_complete() && !self.engine.is_pending() {
            self.out.board.updated(Timestamp::now());
            for of in ["service", "endpoint"] {
                metrics::gauge!(format!("kubeproxy_sync_proxy_rules_{of}_changes_pending")).set(0.0);
            }
        }
    }

    /// Waits for the next thing to do, and tidies meanwhile.
    fn next(&mut self, receiver: &mut mpsc::Receiver<Work>) -> Option<Work> {
        while self.engine.is_untidy() || self.is_leaving() {
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

    /// Whether connections of a former mode go on.
    fn is_leaving(&self) -> bool {
        self.switching
            .as_ref()
            .is_some_and(|switching| switching.modes.is_leaving())
    }

    /// Whether the kernel took it.
    fn tidy(&mut self) -> bool {
        self.tidied = Instant::now();
        if let Some(switching) = self
            .switching
            .as_mut()
            .filter(|switching| switching.modes.is_leaving())
        {
            switching.modes.leave(&self.engine);
        }
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
            Work::Wish(wish) => self.switch(wish),
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

    /// Follows what is asked for now.
    fn switch(&mut self, wish: Wish) {
        let Some(switching) = &mut self.switching else {
            return;
        };
        let config = &mut self.facts.config;
        config.follow(&wish.or(&switching.flags));
        switching
            .modes
            .node_ports_on_loopback(config.node_ports.answers_on(LOCALHOST));
        let (strict_arp, timeouts) = (config.strict_arp, config.ipvs_timeouts);
        self.engine.set_scheduler(config.scheduler);
        self.engine.set_node_ports(config.node_ports.clone());
        let former = switching.modes.choice().used;
        switching.modes.tune(strict_arp, timeouts, &mut self.engine);
        let switched = switching.modes.switch(config.mode, &mut self.engine);
        if switched {
            if self.engine.is_complete() {
                switching.modes.clear(&self.engine);
            }
            if let Err(error) = self.watch() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "can not watch for foreign changes"
                );
            }
        }
        self.tell_choice(Some(former));
        // Whoever looks from beside looks at what this mode has.
        if switched && self.engine.is_complete() {
            self.tell();
        }
    }

    /// Tells the cluster which mode there is, where that is news.
    fn tell_choice(&self, former: Option<Mode>) {
        let Some(switching) = &self.switching else { return };
        let choice = switching.modes.choice().clone();
        let former = former.filter(|former| *former != choice.used);
        let fell_back = choice.asked != choice.used;
        let known = self.out.choice.send_replace(Some(choice.clone()));
        if known.as_ref() != Some(&choice) && (former.is_some() || fell_back) {
            // Full: whoever looks at events has enough to read.
            _ = self.out.notices.try_send(Notice::Mode { former, choice });
        }
    }

    /// Has a thread watch for foreign changes of what the backend made, and the one for the former backend end.
    fn watch(&mut self) -> Result<(), Error> {
        let Some(switching) = &mut self.switching else {
            return Ok(());
        };
        switching.watcher = None;
        let Some(wake) = self.engine.wake() else {
            return Ok(());
        };
        let wake = wake.try_clone_to_owned().map_err(Error::Thread)?;
        let needed = Arc::new(());
        let (sender, watched) = (switching.sender.clone(), Arc::downgrade(&needed));
        switching.watcher = Some(needed);
        spawn("proxy-watch", move || {
            wake_on_foreign_changes(&wake, &sender, &watched)
        })
    }

    /// Tells what is in force now.
    fn tell(&mut self) {
        let now = Timestamp::now();
        self.out.health.ready();
        self.facts.mode = self.engine.mode().parse().unwrap_or_default();
        self.facts.services = self.engine.service_count();
        self.facts.frontends = self.engine.frontend_count();
        self.facts.last_sync = Some(now);
        self.out.health.tell(&self.facts);
        if let Some(checks) = self.engine.take_checks() {
            self.out.checks.send_replace(checks);
        }
        metrics::gauge!("kubeproxy_sync_proxy_rules_last_timestamp_seconds").set(seconds(now));
        // Shown with a count of 0 too, as kube-proxy does.
        let programming = metrics::histogram!("kubeproxy_network_programming_duration_seconds");
        for trigger in self.engine.take_triggers() {
            // Clocks of two machines: a moment that has not come yet is now.
            programming.record(now.duration_since(trigger).as_secs_f64().max(0.0));
        }
        let lack = self.engine.lack();
        for (policy, count) in [("internal", lack.internal), ("external", lack.external)] {
            let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
            metrics::gauge!(name, "traffic_policy" => policy).set(gauge(count));
        }
        metrics::gauge!("svcnet_proxy_services").set(gauge(self.engine.service_count()));
        metrics::gauge!("svcnet_proxy_frontends").set(gauge(self.engine.frontend_count()));
    }

    /// Whether the kernel took it.
    fn sync(&mut self, begin: Instant) -> bool {
        let sync_begin = Instant::now();
        match self.engine.sync() {
            Ok(report) => {
                self.retry = RETRY.0;
                metrics::histogram!("kubeproxy_sync_proxy_rules_duration_seconds")
                    .record(sync_begin.elapsed());
                self.tell();
                if let Some(switching) = &mut self.switching {
                    switching.modes.clear(&self.engine);
                }
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
                self.out.health.not_ready(error.to_string());
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

#[expect(clippy::cast_precision_loss, reason = "milliseconds fit for 285,000 years")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
