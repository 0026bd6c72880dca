//! The role: watches and pods in, kernel out, on a thread of its own, since a commit of thousands of policies takes its
//! time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Serialize;
use svcnet_api::types::PodCidr;
use svcnet_netlink::nft::{self, Family, Socket};
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::gate::{Call, Gate, Refused};
use crate::judge::Judge;
use crate::model::{ObjectKey, Policy};
use crate::pods::Pods;
use crate::tables::Tables;
use crate::view::PodFacts;
use crate::{Config, engine::Engine, pins::Pins};

/// How often it is looked whether somebody else changed our tables.
const LOOK: Duration = Duration::from_secs(1);
/// How long a pod may wait for its labels and for the kernel. kubelet tries again.
const ATTACH_WAIT_MAX: Duration = Duration::from_secs(10);
/// Changes that are taken together at most, so that no commit waits for ever.
const TOGETHER_MAX: usize = 4096;

/// Why the role can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no socket.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// No thread.
    #[error("start the policy thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread is gone.
    #[error("the policy thread ended unexpectedly")]
    ThreadEnded,
}

/// What the role watches.
struct Feeds {
    namespaces: mpsc::Receiver<Change<Namespace>>,
    pods: mpsc::Receiver<Change<Pod>>,
    policies: mpsc::Receiver<Change<NetworkPolicy>>,
    /// Where relays of other nodes are let in.
    nodes: Option<mpsc::Receiver<Change<Node>>>,
    calls: mpsc::UnboundedReceiver<Call>,
}

/// NetworkPolicy on one node.
pub struct PolicyRole {
    feeds: Feeds,
    gate: Gate,
    judge: Judge,
    state: State,
    shutdown: CancellationToken,
}

impl PolicyRole {
    /// Subscribes to namespaces, pods and policies, and to nodes where relays are let in.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn new(config: &Config, ctx: &Context) -> Result<Self, Error> {
        let informers = &ctx.informers;
        let namespaces = informers.subscribe(Scope::default());
        let pods = informers.subscribe(Scope::default());
        let policies = informers.subscribe(Scope::default());
        let mut role = Self::fed(config, ctx, namespaces, pods, policies)?;
        if config.relays {
            role.feeds.nodes = Some(informers.subscribe(Scope::default()));
            role.state.listed.nodes = false;
        }
        Ok(role)
    }

    /// The same with objects from elsewhere, and without nodes.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn fed(
        config: &Config,
        ctx: &Context,
        namespaces: mpsc::Receiver<Change<Namespace>>,
        pods: mpsc::Receiver<Change<Pod>>,
        policies: mpsc::Receiver<Change<NetworkPolicy>>,
    ) -> Result<Self, Error> {
        let engine = Engine::new(&config.families);
        let (gate, calls) = Gate::new(engine.shared());
        let judge = Judge::new(engine.shared());
        Ok(Self {
            feeds: Feeds {
                namespaces,
                pods,
                policies,
                nodes: None,
                calls,
            },
            gate,
            judge: judge.clone(),
            state: State {
                node: ctx.node_name.clone(),
                socket: Socket::open()?,
                component: ctx.health.component("policy"),
                engine,
                judge,
                tables: Tables::new(&config.families),
                pods: Pods::default(),
                pins: Pins::default(),
                listed: Listed {
                    nodes: true,
                    ..Listed::default()
                },
                restored: false,
                pins_changed: false,
                unpinned: false,
                waiting: Vec::new(),
                backoff: Backoff::default(),
                retry: None,
            },
            shutdown: ctx.shutdown.clone(),
        })
    }

    /// Where pods are announced before they start.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Where is asked what policies say of a connection that the kernel can not judge.
    pub fn judge(&self) -> Judge {
        self.judge.clone()
    }

    /// Works until shutdown, and leaves the tables as they are then.
    ///
    /// # Errors
    /// When its thread can not be started, or dies.
    pub async fn run(self) -> Result<(), Error> {
        let (ended, has_ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.map_err(Error::Thread)?;
        let Self {
            feeds,
            gate,
            judge: _,
            state,
            shutdown,
        } = self;
        // Once all others are gone nobody calls any more.
        drop(gate);
        let work = move || {
            runtime.block_on(state.work(feeds, shutdown));
            _ = ended.send(());
        };
        std::thread::Builder::new()
            .name("policy".into())
            .spawn(work)
            .map_err(Error::Thread)?;
        has_ended.await.map_err(|_| Error::ThreadEnded)
    }
}

/// Of which kinds everything has been told.
#[derive(Debug, Clone, Copy, Default)]
struct Listed {
    namespaces: bool,
    pods: bool,
    policies: bool,
    /// So where nobody is asked about them.
    nodes: bool,
}

impl Listed {
    fn all(self) -> bool {
        self.namespaces && self.pods && self.policies && self.nodes
    }
}

/// A pod that is to start.
struct Waiting {
    link: String,
    until: Instant,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// What the role tells at `/status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    policies: usize,
    isolated: usize,
    families: Vec<String>,
}

struct State {
    node: String,
    socket: Socket,
    component: Component,
    engine: Engine,
    judge: Judge,
    tables: Tables,
    pods: Pods,
    pins: Pins,
    listed: Listed,
    /// Whether all attachments are known: until then what is pinned stays so.
    restored: bool,
    pins_changed: bool,
    /// Whether it was said that nothing can be pinned.
    unpinned: bool,
    waiting: Vec<Waiting>,
    backoff: Backoff,
    /// When to try again.
    retry: Option<Instant>,
}

impl State {
    async fn work(mut self, mut feeds: Feeds, shutdown: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut calls_end = false;
        loop {
            let soonest = self.waiting.iter().map(|w| w.until).chain(self.retry).min();
            let alarm = soonest.unwrap_or_else(|| Instant::now() + LOOK);
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(change) = feeds.namespaces.recv() => self.take_namespaces(change),
                Some(change) = feeds.pods.recv() => self.take_pods(change),
                Some(change) = feeds.policies.recv() => self.take_policies(change),
                Some(change) = receive(&mut feeds.nodes) => self.take_nodes(change),
                call = feeds.calls.recv(), if !calls_end => match call {
                    Some(call) => self.take_call(call),
                    None => calls_end = true,
                },
                _ = look.tick() => self.look(),
                () = sleep_until(alarm), if soonest.is_some() => {}
                else => return,
            }
            for _ in 0..TOGETHER_MAX {
                if let Ok(change) = feeds.pods.try_recv() {
                    self.take_pods(change);
                } else if let Ok(change) = feeds.policies.try_recv() {
                    self.take_policies(change);
                } else if let Ok(change) = feeds.namespaces.try_recv() {
                    self.take_namespaces(change);
                } else if let Ok(call) = feeds.calls.try_recv() {
                    self.take_call(call);
                } else {
                    break;
                }
            }
            self.sync();
        }
    }

    fn take_namespaces(&mut self, change: Change<Namespace>) {
        let labels = |object: &Namespace| object.metadata.labels.clone().unwrap_or_default();
        let name = |object: &Namespace| object.metadata.name.clone().unwrap_or_default();
        match change {
            Change::Reset(all) => {
                self.listed.namespaces = true;
                let there: BTreeSet<String> = all.iter().map(|object| name(object)).collect();
                let known: Vec<String> = self.engine.view().namespaces.keys().cloned().collect();
                for gone in known.iter().filter(|name| !there.contains(*name)) {
                    self.engine.set_namespace(gone, None);
                }
                all.iter()
                    .for_each(|object| self.engine.set_namespace(&name(object), Some(labels(object))));
            }
            Change::Apply(object) => self.engine.set_namespace(&name(&object), Some(labels(&object))),
            Change::Delete(object) => self.engine.set_namespace(&name(&object), None),
        }
    }

    fn take_pods(&mut self, change: Change<Pod>) {
        match change {
            Change::Reset(all) => {
                self.listed.pods = true;
                let there: BTreeSet<ObjectKey> = all.iter().map(|pod| key(&pod.metadata)).collect();
                for gone in self
                    .pods
                    .told()
                    .filter(|key| !there.contains(key))
                    .collect::<Vec<_>>()
                {
                    self.pods.tell(&mut self.engine, &gone, None);
                }
                all.iter().for_each(|pod| self.take_pod(pod));
            }
            Change::Apply(pod) => self.take_pod(&pod),
            Change::Delete(pod) => self.pods.tell(&mut self.engine, &key(&pod.metadata), None),
        }
    }

    fn take_pod(&mut self, pod: &Arc<Pod>) {
        let facts = PodFacts::of(pod, &self.node);
        self.pods.tell(&mut self.engine, &key(&pod.metadata), Some(facts));
    }

    fn take_policies(&mut self, change: Change<NetworkPolicy>) {
        match change {
            Change::Reset(all) => {
                self.listed.policies = true;
                let there: BTreeSet<ObjectKey> = all.iter().map(|policy| key(&policy.metadata)).collect();
                let known: Vec<ObjectKey> = self.engine.view().policies.keys().cloned().collect();
                for gone in known.iter().filter(|key| !there.contains(*key)) {
                    self.engine.set_policy(gone, None);
                }
                all.iter().for_each(|policy| self.take_policy(policy));
            }
            Change::Apply(policy) => self.take_policy(&policy),
            Change::Delete(policy) => self.engine.set_policy(&key(&policy.metadata), None),
        }
    }

    fn take_policy(&mut self, object: &NetworkPolicy) {
        let key = key(&object.metadata);
        match Policy::parse(&key.namespace, object) {
            Ok((policy, problems)) => {
                for problem in problems {
                    tracing::warn!(object.ns = %key.namespace, object.name = %key.name, reason = %problem,
                        "a rule of a NetworkPolicy makes no sense: it allows nothing");
                }
                self.engine.set_policy(&key, Some(policy));
            }
            Err(problem) => {
                tracing::warn!(object.ns = %key.namespace, object.name = %key.name, reason = %problem,
                    "a NetworkPolicy makes no sense: what it was before stays in force");
            }
        }
    }

    fn take_nodes(&mut self, change: Change<Node>) {
        match change {
            Change::Reset(all) => {
                self.listed.nodes = true;
                let name = |node: &Arc<Node>| node.metadata.name.clone().unwrap_or_default();
                let there: BTreeSet<String> = all.iter().map(name).collect();
                let known: Vec<String> = self.engine.relaying().cloned().collect();
                for gone in known.iter().filter(|name| !there.contains(*name)) {
                    self.engine.set_relays(gone, &[]);
                }
                all.iter().for_each(|node| self.take_node(node));
            }
            Change::Apply(node) => self.take_node(&node),
            Change::Delete(node) => {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                self.engine.set_relays(name, &[]);
            }
        }
    }

    fn take_node(&mut self, node: &Node) {
        let spec = node.spec.as_ref();
        let texts = spec
            .into_iter()
            .flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let mut networks: Vec<PodCidr> = texts.filter_map(|text| text.parse().ok()).collect();
        networks.sort_by_key(|network| network.net());
        networks.dedup();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if name == self.node {
            self.judge.set_networks(&networks);
        } else {
            self.engine.set_relays(name, &networks);
        }
    }

    fn take_call(&mut self, call: Call) {
        match call {
            Call::Attach(attachment, answer) => {
                let link = attachment.link.clone();
                self.pods.attach(&mut self.engine, attachment);
                self.pins_changed = true;
                self.waiting.push(Waiting {
                    link,
                    until: Instant::now() + ATTACH_WAIT_MAX,
                    answer,
                });
            }
            Call::Detach(link) => {
                self.pods.detach(&mut self.engine, &link);
                self.pins_changed = true;
            }
            Call::Restore(all) => {
                self.restored = true;
                self.pins_changed = true;
                all.into_iter()
                    .for_each(|attachment| self.pods.attach(&mut self.engine, attachment));
            }
        }
    }

    /// Whether somebody else changed our tables.
    fn look(&mut self) {
        if !self.listed.all() || self.retry.is_some() {
            return;
        }
        match self.tables.look(&mut self.socket, &self.engine) {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("somebody else changed the tables of NetworkPolicies, making them anew")
            }
            Err(error) => tracing::warn!(%error, "the tables of NetworkPolicies can not be looked at"),
        }
        if matches!(self.pins.is_intact(&mut self.socket), Ok(false)) {
            tracing::info!("somebody else changed the table of pods' addresses, making it anew");
            self.pins_changed = true;
        }
    }

    /// Brings the kernel along, and lets those go who waited for it.
    fn sync(&mut self) {
        let now = Instant::now();
        // Relays need not wait for the kernel.
        if self.listed.all() {
            self.judge.listed();
            self.judge.publish();
        }
        if self.listed.all() && self.retry.is_none_or(|at| at <= now) {
            match self.try_sync() {
                Ok(()) => self.settle(),
                Err(error) => {
                    let text = error.to_string();
                    metrics::counter!("svcnet_policy_sync_failures_total").increment(1);
                    if self.backoff.is_news(&text) {
                        tracing::error!(reason = %text, "NetworkPolicies are not in force, trying again");
                    }
                    self.component.not_ready(text);
                    self.tables.distrust();
                    self.retry = Some(now + self.backoff.next_delay());
                }
            }
        } else if !self.listed.all() {
            self.component
                .not_ready("waiting for the cluster's namespaces, pods and NetworkPolicies");
        }
        self.answer_late(now);
    }

    fn try_sync(&mut self) -> Result<(), nft::Error> {
        let start = Instant::now();
        let operations = self.tables.sync(&mut self.socket, &mut self.engine)?;
        let pinned = self.pin()?;
        if operations + pinned > 0 {
            metrics::counter!("svcnet_policy_operations_total").increment((operations + pinned) as u64);
            metrics::histogram!("svcnet_policy_sync_duration_seconds").record(start.elapsed());
            tracing::info!(
                plan.ops = operations,
                pins = pinned,
                elapsed_ms = start.elapsed().as_secs_f64() * 1000.0,
                "NetworkPolicies programmed"
            );
        }
        Ok(())
    }

    /// Pins what is attached, once all of that is known. A kernel without tables for bridges has pods go unpinned.
    fn pin(&mut self) -> Result<usize, nft::Error> {
        if !self.pins_changed || !self.restored {
            return Ok(0);
        }
        let pinned = match self.pins.set(&mut self.socket, self.pods.attachments()) {
            Err(error) if error.is_unsupported() => {
                if !std::mem::replace(&mut self.unpinned, true) {
                    tracing::warn!(%error, "pods are not kept from taking others' addresses: no nf_tables for bridges");
                }
                0
            }
            other => other?,
        };
        self.pins_changed = false;
        Ok(pinned)
    }

    /// The kernel holds all that is known.
    fn settle(&mut self) {
        self.retry = None;
        if self.backoff.reset() {
            tracing::info!("NetworkPolicies are in force again");
        }
        self.component.ready();
        let facts = Facts {
            policies: self.engine.view().policies.len(),
            isolated: self.engine.isolated_count(),
            families: self.tables.families().iter().map(Family::to_string).collect(),
        };
        #[expect(clippy::cast_precision_loss, reason = "gauges: nobody has 2^52 policies")]
        {
            metrics::gauge!("svcnet_policy_policies").set(facts.policies as f64);
            metrics::gauge!("svcnet_policy_isolated_addresses").set(facts.isolated as f64);
        }
        self.component.tell(&facts);
        let (pods, restored) = (&self.pods, self.restored);
        let waiting = std::mem::take(&mut self.waiting);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|w| restored && !pods.is_waited_for(&w.link));
        self.waiting = rest;
        for waiting in ready {
            // A caller that is gone has given up.
            _ = waiting.answer.send(Ok(()));
        }
    }

    /// Tells those who have waited too long what for.
    fn answer_late(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        let (late, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|w| w.until <= now);
        self.waiting = rest;
        for waiting in late {
            let refused = if !self.listed.all() {
                Refused::NotListed
            } else if let Some(key) = self.pods.held_for(&waiting.link) {
                Refused::Unknown(key.clone())
            } else {
                Refused::Kernel("see the agent's log".to_string())
            };
            _ = waiting.answer.send(Err(refused));
        }
    }
}

/// The next change, if there are to be any.
async fn receive<T>(feed: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match feed {
        Some(feed) => feed.recv().await,
        None => None,
    }
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
}
