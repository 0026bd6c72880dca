//! The loop: nodes change, the kernel's state is changed by others, and now and then everything is looked at.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use svcnet_api::types::MacAddr;
use svcnet_netlink::monitor::{Event, Group, Happened, Monitor};
use svcnet_netlink::route::PROTOCOL_SVCNET;
use svcnet_netlink::rt;
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::underlay::{NoUnderlay, vxlan_overhead};
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::desired::{
    Desired, Entry, Facts, Key, Over, Unreachable, Waiting, desired, peer, peer_address, vxlan_address,
    vxlan_mac, vxlan_mtu,
};
use crate::observe::Links;
use crate::plan::{Op, Plan, plan};
use crate::probe::{Encapsulated, Finding, Prober, Target, Way};
use crate::status::{self, Checksums};
use crate::view::{NodeNet, View};
use crate::{Config, Kernel, KernelError, LINK_NAMES, Mode, apply, observe};

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
                sysctls: Sysctls::new(&ctx.run_dir, "overlay"),
                probes: Probes::default(),
                told: status::Facts::default(),
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
                finding = self.state.probes.next() => {
                    if self.state.found(finding) == Follow::Pass {
                        next_pass = Instant::now();
                    }
                }
                _ = table_look.tick() => {
                    self.state.look_around();
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
    current: Option<Current>,
    backoff: Backoff,
    sysctls: Sysctls,
    probes: Probes,
    told: status::Facts,
}

struct Current {
    facts: Facts,
    desired: Desired,
    links: Links,
}

/// What looks at what passes to the peers.
#[derive(Default)]
struct Probes {
    /// From which link and address.
    prober: Option<(u32, std::net::IpAddr, Prober)>,
    checksums: Checksums,
    /// Peers, ways or sizes have changed since they were told.
    stale: bool,
    /// That there are none has been said.
    failed: bool,
}

impl Probes {
    async fn next(&mut self) -> Finding {
        match &mut self.prober {
            Some((_, _, prober)) => prober.next().await,
            None => std::future::pending().await,
        }
    }

    /// From where packets leave now. What was found out elsewhere does not count.
    fn look_from(&mut self, facts: &Facts, every: Duration) {
        let (link, address) = (facts.underlay.link, facts.underlay.address);
        self.stale = true;
        if self
            .prober
            .as_ref()
            .is_some_and(|(l, a, _)| (*l, *a) == (link, address))
        {
            return;
        }
        if self.prober.take().is_some() {
            self.checksums = Checksums::Untested;
        }
        match Prober::start(address, every) {
            Ok(prober) => self.prober = Some((link, address, prober)),
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(%error, "what passes to other nodes is not looked at: it takes root (CAP_NET_RAW)");
            }
            Err(_) => {}
        }
    }
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
        self.probes.stale = true;
        let current = self.current.as_mut().filter(|_| name != self.view.own_name());
        let Some(current) = current else {
            self.view.set(name, next);
            return Follow::Pass;
        };
        let Current { facts, desired, .. } = current;
        let change = desired.take(&self.config, &mut self.view, facts, name, next);
        self.carry_out(&change)
    }

    /// Takes what was found out about the way to a peer.
    fn found(&mut self, finding: Finding) -> Follow {
        match finding {
            Finding::Path { name, path } => {
                let Some(Current { facts, desired, .. }) = &mut self.current else {
                    return Follow::Done;
                };
                if self.view.path(&name) == path || self.view.node(&name).is_none() {
                    return Follow::Done;
                }
                match path {
                    Some(bytes) => tracing::warn!(
                        node = %name, bytes, expected = facts.underlay.mtu,
                        "less passes to a node than the links say: packets are cut or refused before, and TCP is told"
                    ),
                    None => tracing::info!(node = %name, "all passes to a node again that should"),
                }
                let change = desired.take_path(&self.config, &mut self.view, facts, &name, path);
                self.carry_out(&change)
            }
            Finding::Checksums(checksums) => {
                self.probes.checksums = checksums;
                if checksums == Checksums::Corrupted {
                    tracing::warn!(
                        link = LINK_NAMES.vxlan,
                        "checksums that are left to the link arrive wrong at other nodes: they are computed before \
                         (tx-checksumming off), which costs throughput"
                    );
                    return Follow::Pass;
                }
                tracing::debug!(?checksums, "checksums over VXLAN");
                Follow::Done
            }
        }
    }

    fn carry_out(&mut self, change: &Plan) -> Follow {
        let Some(current) = &self.current else {
            return Follow::Pass;
        };
        let underlay = current.facts.underlay.link;
        let failed = !apply_and_tell(change, &mut self.kernel, underlay, &self.sysctls).is_empty();
        self.count_peers();
        if failed { Follow::Pass } else { Follow::Done }
    }

    /// Tells the probes where to look, and `/status` and the log how the peers are reached, when that has changed. Once a
    /// second at most, whatever the number of changes.
    fn look_around(&mut self) {
        let Some(Current { facts, .. }) = &self.current else {
            return;
        };
        let mut told = status::Facts {
            mode: self.config.mode.to_string(),
            link: facts.underlay.name.clone(),
            address: Some(facts.underlay.address),
            mtu: facts.underlay.mtu,
            checksums: self.probes.checksums,
            encapsulated: 0,
            direct: 0,
            ..self.told.clone()
        };
        if std::mem::take(&mut self.probes.stale) {
            self.look_at_peers(&mut told);
        } else {
            (told.encapsulated, told.direct) = (self.told.encapsulated, self.told.direct);
        }
        told.limited = self
            .view
            .paths()
            .map(|(name, path)| (name.to_string(), path))
            .collect();
        if told != self.told {
            self.component.tell(&told);
            self.told = told;
        }
    }

    fn look_at_peers(&self, told: &mut status::Facts) {
        let Some(Current { facts, .. }) = &self.current else {
            return;
        };
        let (mut targets, mut unreachable) = (BTreeMap::new(), BTreeMap::new());
        for name in self.view.peers() {
            let Some(net) = self.view.node(name) else { continue };
            let peer = peer(&self.config, &self.view, facts, name, net);
            if let Some(reason) = peer.unreachable {
                let text = reason.to_string();
                match reason {
                    _ if self.told.unreachable.get(name) == Some(&text) => {}
                    Unreachable::NotOnLink(_) => {
                        tracing::warn!(node = %name, reason = %text, "no way to pods of a node")
                    }
                    // So every node begins.
                    _ => tracing::debug!(node = %name, reason = %text, "no way to pods of a node"),
                }
                unreachable.insert(name.to_string(), text);
            }
            if let Some(target) = self.target(facts, name, net, &peer.entries) {
                match target.way {
                    Way::Encapsulated(_) => told.encapsulated += 1,
                    Way::Direct { .. } => told.direct += 1,
                }
                targets.insert(name.to_string(), target);
            }
        }
        told.unreachable = unreachable;
        if let Some((_, _, prober)) = &self.probes.prober {
            prober.aim(targets);
        }
    }

    /// How packets for a peer's pods go.
    fn target(&self, facts: &Facts, name: &str, net: &NodeNet, entries: &[Entry]) -> Option<Target> {
        let direct = entries.iter().find_map(|entry| match entry {
            Entry::Route {
                over: Over::Underlay,
                gateway,
                ..
            } => *gateway,
            _ => None,
        });
        if let Some(to) = direct {
            let from = facts.underlay.address;
            return Some(Target {
                way: Way::Direct { from, to },
                size: facts.underlay.mtu,
            });
        }
        let node = peer_address(facts, net)?;
        let own = self.view.own()?;
        let to = entries.iter().find_map(|entry| match entry {
            Entry::Neighbour { address, .. } => Some(*address),
            _ => None,
        })?;
        let same_family = own.pod_cidrs.iter().map(|cidr| vxlan_address(*cidr));
        let from = same_family
            .into_iter()
            .find(|from| from.is_ipv4() == to.is_ipv4())?;
        Some(Target {
            way: Way::Encapsulated(Encapsulated {
                nodes: (facts.underlay.address, node),
                port: self.config.port,
                vni: self.config.vni,
                macs: (vxlan_mac(self.view.own_name()), vxlan_mac(name)),
                ends: (from, to),
            }),
            size: vxlan_mtu(&self.config, facts) + vxlan_overhead(node),
        })
    }

    /// Whether an event contradicts what the kernel was told, or may change what it is to be told.
    fn concerns(&self, event: &Event) -> bool {
        let Some(Current {
            facts,
            desired,
            links,
        }) = &self.current
        else {
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
            Event::Neighbour(_, link, _, _) if Some(*link) != links.vxlan => false,
            Event::Neighbour(Happened::Set, _, address, Some(mac)) => {
                let mac = MacAddr::new(*mac);
                contradicts(
                    Happened::Set,
                    Entry::Neighbour {
                        address: *address,
                        mac,
                    },
                )
            }
            Event::Neighbour(_, _, address, _) => desired.entries.contains_key(&Key::Neighbour(*address)),
            Event::Fdb(_, e) if Some(e.link) != links.vxlan => false,
            Event::Fdb(happened, e) => contradicts(
                *happened,
                Entry::Fdb {
                    mac: MacAddr::new(e.mac),
                    destination: e.destination,
                },
            ),
            Event::Route(happened, route) => {
                let on_link = observe::on_link(route).filter(|_| route.link == links.underlay);
                let moves_peers = on_link.is_some_and(|net| {
                    self.config.mode != Mode::Vxlan
                        && facts.on_link.contains(&net) != (*happened == Happened::Set)
                });
                let ours = route.protocol == PROTOCOL_SVCNET
                    || desired.entries.contains_key(&Key::Route(route.destination));
                moves_peers
                    || ours
                        && match links.entry(route) {
                            Some(entry) => contradicts(*happened, entry),
                            // Of a form that is never made: somebody has put it in place of ours, or it is none of ours.
                            None => *happened == Happened::Set,
                        }
            }
        }
    }

    /// Whether the nftables table is as it was made; also when that can not be told.
    fn holds_table(&mut self) -> bool {
        let Some(Current { desired, .. }) = &self.current else {
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
        self.probes.look_from(&facts, self.config.verify_every);
        let facts = Facts {
            corrupts: self.probes.checksums == Checksums::Corrupted,
            ..facts
        };
        let desired = desired(&self.config, &self.view, &facts).map_err(Unready::Waiting)?;
        let (observed, links) = observe::observe(&mut self.kernel, &facts, &desired)?;
        let plan = plan(&desired, &observed);
        let underlay = facts.underlay.link;
        let errors = apply_and_tell(&plan, &mut self.kernel, underlay, &self.sysctls);
        let remade = plan
            .ops
            .iter()
            .any(|op| matches!(op, Op::AddLink(_) | Op::DeleteLink));
        let links = if remade {
            Links::read(&mut self.kernel.rt, &facts)?
        } else {
            links
        };
        self.current = Some(Current {
            facts,
            desired,
            links,
        });
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

fn apply_and_tell(plan: &Plan, kernel: &mut Kernel, underlay: u32, sysctls: &Sysctls) -> Vec<apply::Error> {
    if plan.is_empty() {
        return Vec::new();
    }
    let start = Instant::now();
    let errors = apply::apply(plan, kernel, underlay, sysctls);
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
