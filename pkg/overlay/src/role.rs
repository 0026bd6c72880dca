//! The loop: nodes change, the kernel's state is changed by others, and now and then everything is looked at.

use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use svcnet_netlink::monitor::{Event, Group, Happened, Monitor};
use svcnet_netlink::rt;
use svcnet_netlink::underlay::NoUnderlay;
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::desired::{Desired, Entry, Facts, Key, Over, Waiting, desired, peer_entries};
use crate::plan::{Plan, plan};
use crate::view::{NodeNet, View};
use crate::{Config, Kernel, KernelError, LINK_NAMES, apply, observe};

/// Changes by others come in bursts: they are answered together.
const SETTLE: Duration = Duration::from_millis(50);
/// Everything is looked at this often even when nothing is told.
const RESYNC: Duration = Duration::from_secs(60);
/// The nftables table is looked at this often. To be told of its changes would make each change of the proxy's tables
/// dearer: the kernel writes a notification for every element as soon as anybody listens.
const TABLE_LOOK: Duration = Duration::from_secs(1);

/// Why the overlay can not run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no socket.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel does not tell of changes.
    #[error(transparent)]
    Subscribe(#[from] rt::Error),
    /// The subscription to changes failed.
    #[error("read changes of the network: {0}")]
    Monitor(#[source] std::io::Error),
}

/// Why a pass did not end with everything in place.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error("{0}")]
    Waiting(Waiting),
    #[error("{0}")]
    NoUnderlay(NoUnderlay),
    #[error(transparent)]
    Rtnl(#[from] rt::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Apply(String),
}

/// The overlay of one node.
pub struct Overlay {
    nodes: mpsc::Receiver<Change<Node>>,
    service_cidrs: mpsc::Receiver<Change<ServiceCIDR>>,
    shutdown: CancellationToken,
    state: State,
}

impl Overlay {
    /// Subscribes to the nodes.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn new(config: Config, ctx: &Context) -> Result<Self, Error> {
        Self::fed(config, ctx, ctx.informers.subscribe(Scope::default()))
    }

    /// The same with nodes from elsewhere.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn fed(config: Config, ctx: &Context, nodes: mpsc::Receiver<Change<Node>>) -> Result<Self, Error> {
        Ok(Self {
            nodes,
            service_cidrs: ctx.informers.subscribe(Scope::default()),
            shutdown: ctx.shutdown.clone(),
            state: State {
                view: View::new(&ctx.node_name),
                config,
                kernel: Kernel::open()?,
                component: ctx.health.component("overlay"),
                current: None,
                backoff: Backoff::default(),
            },
        })
    }

    /// Works until shutdown, and leaves the network as it is then.
    ///
    /// # Errors
    /// When the kernel stops telling of changes.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut monitor = Monitor::open(&[Group::Link, Group::Address, Group::Route, Group::Neighbour])?;
        // The last known nodes are given out first: until they are, what is there stays as it is.
        let mut listed = false;
        let mut next_pass = Instant::now() + RESYNC;
        let mut table_look = tokio::time::interval(TABLE_LOOK);
        table_look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                change = self.nodes.recv() => {
                    let Some(change) = change else { return Ok(()) };
                    listed |= matches!(change, Change::Reset(_));
                    if self.state.take(change) == Follow::Pass {
                        next_pass = Instant::now();
                    }
                }
                // A cluster before 1.33 has none: then the flag's networks are all.
                Some(change) = self.service_cidrs.recv() => {
                    if self.state.take_service_cidrs(&change) {
                        next_pass = Instant::now();
                    }
                }
                events = monitor.next() => {
                    let events = events.map_err(Error::Monitor)?;
                    if events.iter().any(|e| self.state.concerns(e)) {
                        next_pass = next_pass.min(Instant::now() + SETTLE);
                    }
                }
                _ = table_look.tick() => {
                    if !self.state.holds_table() {
                        next_pass = Instant::now();
                    }
                }
                () = sleep_until(next_pass), if listed => {
                    next_pass = Instant::now() + self.state.pass();
                }
            }
        }
    }
}

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// Nothing more: it has been carried out.
    Done,
    /// A look at everything.
    Pass,
}

struct State {
    config: Config,
    view: View,
    kernel: Kernel,
    component: Component,
    /// What the kernel was last told to hold, and what that was based on.
    current: Option<(Facts, Desired)>,
    backoff: Backoff,
}

impl State {
    /// Takes a change of the nodes. That of one peer is carried out at once, without looking at the others.
    fn take(&mut self, change: Change<Node>) -> Follow {
        let named = |node: &Node| (node.metadata.name.clone().unwrap_or_default(), NodeNet::of(node));
        match change {
            Change::Reset(nodes) => {
                self.view.reset(nodes.iter().map(|node| named(node)));
                Follow::Pass
            }
            Change::Apply(node) => {
                let (name, net) = named(&node);
                self.set_node(&name, Some(net))
            }
            Change::Delete(node) => self.set_node(&named(&node).0, None),
        }
    }

    /// Takes a change of the ServiceCIDRs. Whether routes follow from it.
    fn take_service_cidrs(&mut self, change: &Change<ServiceCIDR>) -> bool {
        let name = |cidr: &ServiceCIDR| cidr.metadata.name.clone().unwrap_or_default();
        let nets = |cidr: &ServiceCIDR| {
            let texts = cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
            texts.filter_map(|text| text.parse().ok()).collect()
        };
        match change {
            Change::Reset(all) => {
                let names = all.iter().map(|cidr| name(cidr)).collect();
                let gone = self.view.retain_service_cidrs(&names);
                let set = all
                    .iter()
                    .map(|cidr| self.view.set_service_cidr(&name(cidr), nets(cidr)));
                set.fold(gone, |changed, one| changed | one)
            }
            Change::Apply(cidr) => self.view.set_service_cidr(&name(cidr), nets(cidr)),
            Change::Delete(cidr) => self.view.set_service_cidr(&name(cidr), Vec::new()),
        }
    }

    fn set_node(&mut self, name: &str, next: Option<NodeNet>) -> Follow {
        if self.view.node(name) == next.as_ref() {
            return Follow::Done; // heartbeats and conditions
        }
        let current = self.current.as_mut().filter(|_| name != self.view.own_name());
        let Some((facts, desired)) = current else {
            self.view.set(name, next);
            return Follow::Pass;
        };
        let change = desired.take(&mut self.view, facts, name, next);
        if let Some(reason) = self
            .view
            .node(name)
            .and_then(|n| peer_entries(&self.view, facts, name, n).err())
        {
            tracing::debug!(node = %name, %reason, "a node has no route over the overlay");
        }
        let failed = !apply_and_tell(&change, &mut self.kernel).is_empty();
        self.count_peers();
        if failed { Follow::Pass } else { Follow::Done }
    }

    /// Whether an event contradicts what the kernel was told, or may change what it is to be told.
    fn concerns(&self, event: &Event) -> bool {
        let Some((facts, desired)) = &self.current else {
            // Waiting for something: only links and addresses can end that.
            return matches!(event, Event::Link(..) | Event::Address(..) | Event::Lost);
        };
        let contradicts = |happened: Happened, entry: Entry| {
            let wanted = desired.entries.get(&entry.key());
            match happened {
                Happened::Set => wanted != Some(&entry),
                Happened::Deleted => wanted == Some(&entry),
            }
        };
        match event {
            Event::Lost | Event::Address(..) => true,
            Event::LocalDeleted(_) => false,
            Event::Link(_, link) => {
                [LINK_NAMES.vxlan, LINK_NAMES.bridge, &facts.underlay.name].contains(&link.name.as_str())
            }
            Event::Neighbour(happened, _, address) => {
                // Of other links too: that the address is one of ours is rare enough.
                *happened == Happened::Deleted && desired.entries.contains_key(&Key::Neighbour(*address))
            }
            Event::Fdb(happened, e) => contradicts(
                *happened,
                Entry::Fdb {
                    mac: svcnet_api::types::MacAddr::new(e.mac),
                    destination: e.destination,
                },
            ),
            Event::Route(happened, r) => {
                let ours = desired.entries.get(&Key::Route(r.destination));
                let over = if matches!(
                    ours,
                    Some(Entry::Route {
                        over: Over::Bridge,
                        ..
                    })
                ) {
                    Over::Bridge
                } else {
                    Over::Vxlan
                };
                let entry = Entry::Route {
                    destination: r.destination,
                    over,
                    gateway: r.gateway,
                    source: r.source,
                };
                (ours.is_some() || r.protocol == svcnet_netlink::route::PROTOCOL_SVCNET)
                    && contradicts(*happened, entry)
            }
        }
    }

    /// Whether the nftables table is as it was made; also when that can not be told.
    fn holds_table(&mut self) -> bool {
        let Some((_, desired)) = &self.current else {
            return true;
        };
        observe::holds_masquerade(&mut self.kernel.nft, desired).unwrap_or(true)
    }

    /// Looks at everything and makes it right. Returns when to look again.
    fn pass(&mut self) -> Duration {
        match self.try_pass() {
            Ok(()) => {
                if self.backoff.reset() {
                    tracing::info!("the overlay is in place");
                }
                self.component.ready();
                self.count_peers();
                RESYNC
            }
            Err(unready) => {
                let text = unready.to_string();
                if self.backoff.is_news(&text) {
                    match unready {
                        // So every node begins.
                        Unready::Waiting(_) => tracing::info!(reason = %text, "the overlay waits"),
                        _ => tracing::warn!(reason = %text, "the overlay is not in place"),
                    }
                }
                self.component.not_ready(text);
                self.backoff.next_delay()
            }
        }
    }

    fn try_pass(&mut self) -> Result<(), Unready> {
        let facts = observe::facts(&self.config, &mut self.kernel.rt)?.map_err(Unready::NoUnderlay)?;
        let desired = desired(&self.config, &self.view, &facts).map_err(Unready::Waiting)?;
        let observed = observe::observe(&mut self.kernel, &desired)?;
        let plan = plan(&desired, &observed);
        self.current = Some((facts, desired));
        let errors = apply_and_tell(&plan, &mut self.kernel);
        match errors.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] => {
                let mut text = first.to_string();
                if !rest.is_empty() {
                    _ = write!(text, " (and {} more)", rest.len());
                }
                Err(Unready::Apply(text))
            }
        }
    }

    fn count_peers(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge: nobody has 2^52 nodes")]
        metrics::gauge!("svcnet_overlay_peers").set(self.view.peers().count() as f64);
    }
}

fn apply_and_tell(plan: &Plan, kernel: &mut Kernel) -> Vec<apply::Error> {
    if plan.is_empty() {
        return Vec::new();
    }
    let start = Instant::now();
    let errors = apply::apply(plan, kernel);
    for op in &plan.ops {
        tracing::debug!(%op, "applied");
    }
    metrics::counter!("svcnet_overlay_operations_total").increment(plan.ops.len() as u64);
    metrics::counter!("svcnet_overlay_errors_total").increment(errors.len() as u64);
    let elapsed_ms = start.elapsed().as_millis();
    tracing::info!(
        plan.ops = plan.ops.len(),
        errors = errors.len(),
        elapsed_ms,
        "overlay changed"
    );
    errors
}
