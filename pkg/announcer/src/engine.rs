//! The announcer's own thread: sockets, time, and the core between them. Nothing else runs there, so that no other
//! work of the process delays heartbeats and answers, and it waits for nothing but the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use svcnet_netlink::Rtnl;
use svcnet_netlink::monitor::{Event, Group, Monitor};
use svcnet_netlink::packet::{arp, ndp};
use svcnet_runtime::Component;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::apply::{Content, Frame, Wire};
use crate::beats::{self, Beats};
use crate::config::Config;
use crate::core::Core;
use crate::desired::{Desired, Target};
use crate::echo::Announced;
use crate::events::Notice;
use crate::links;
use crate::membership::Timing;
use crate::message::{DATAGRAM_LENGTH_MAX, Message};
use crate::metrics;
use crate::plan::Operation;
use crate::statuses::{self, Statuses};

/// Time between two attempts to get a socket or to see the links.
const RETRY: Duration = Duration::from_millis(500);

/// What an engine runs with.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) node: String,
    /// `None` until the API has been seen.
    pub(crate) desired: watch::Receiver<Option<Arc<Desired>>>,
    pub(crate) notices: mpsc::Sender<Notice>,
    /// What is announced now.
    pub(crate) announced: watch::Sender<Announced>,
    /// The same by Service; `None` until the first election.
    pub(crate) statuses: watch::Sender<Option<Statuses>>,
    pub(crate) health: Component,
    pub(crate) shutdown: CancellationToken,
}

struct Running {
    engine: Engine,
    core: Core,
    wire: Wire,
    beats: Option<Beats>,
    retry_at: Option<Instant>,
    alive: BTreeSet<Box<str>>,
    /// The Services that metrics name for what is announced: they may be gone when it ends.
    counted: BTreeMap<IpAddr, Vec<Target>>,
}

/// What woke the engine up.
enum Woken {
    Shutdown,
    Time,
    Desired,
    Links,
    Frame(Frame),
    Datagram(usize, IpAddr),
}

impl Engine {
    /// Works until shutdown, in the network namespace of the calling thread. For a runtime of one thread.
    pub(crate) async fn run(mut self) {
        let Ok(()) = self.wait_for_desired().await else {
            return;
        };
        let timing = Timing {
            interval: self.config.interval,
            timeout: self.config.timeout,
        };
        let core = Core::new(
            &self.node,
            incarnation(),
            timing,
            self.config.probe,
            Instant::now(),
        );
        let (wire, frames) = Wire::new();
        let monitor = Monitor::open(&[Group::Link])
            .inspect_err(|error| tracing::warn!(%error, "links are looked at only now and then"))
            .ok();
        let mut running = Running {
            engine: self,
            core,
            wire,
            beats: None,
            retry_at: Some(Instant::now()),
            alive: BTreeSet::new(),
            counted: BTreeMap::new(),
        };
        running.take_desired();
        running.run(monitor, frames).await;
    }

    async fn wait_for_desired(&mut self) -> Result<(), ()> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(()),
            seen = self.desired.wait_for(Option::is_some) => seen.map(drop).map_err(drop),
        }
    }

    /// The address that heartbeats leave from.
    fn address(&self, desired: &Desired) -> Option<SocketAddr> {
        let configured = self.config.node_ips.first();
        let address = configured.or(desired.own.first())?;
        Some(SocketAddr::new(*address, self.config.heartbeat_port))
    }
}

impl Running {
    async fn run(mut self, mut monitor: Option<Monitor>, mut frames: mpsc::Receiver<Frame>) {
        let mut buffer = vec![0; DATAGRAM_LENGTH_MAX + 1];
        loop {
            self.work().await;
            let deadline = self.deadline();
            let concerns = |e: &Event| links::concerns(e, self.core.carriers(), &self.engine.config);
            let woken = tokio::select! {
                biased;
                () = self.engine.shutdown.cancelled() => Woken::Shutdown,
                (length, from) = beats::receive(self.beats.as_ref(), &mut buffer) => Woken::Datagram(length, from),
                Some(frame) = frames.recv() => Woken::Frame(frame),
                Ok(()) = self.engine.desired.changed() => Woken::Desired,
                () = links_changed(monitor.as_mut(), concerns) => Woken::Links,
                () = tokio::time::sleep_until(deadline.into()) => Woken::Time,
            };
            match woken {
                Woken::Shutdown => return self.stop().await,
                Woken::Datagram(length, from) => self.take_datagram(&buffer[..length], from),
                Woken::Frame(frame) => self.take_frame(&frame),
                Woken::Desired => self.take_desired(),
                Woken::Links => self.look_at_links(),
                Woken::Time => {}
            }
        }
    }

    fn deadline(&self) -> Instant {
        let work = self.beats.is_some().then(|| self.core.deadline());
        let far = Instant::now() + RETRY * 4;
        [work, self.retry_at]
            .into_iter()
            .flatten()
            .fold(far, Instant::min)
    }

    async fn work(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.open_beats(now);
            self.look_at_links();
        }
        // Without heartbeats this node would think that it is alone.
        if self.beats.is_none() {
            return;
        }
        let work = self.core.work(now);
        for operation in &work.operations {
            self.wire.apply(operation);
            self.tell(operation);
        }
        self.send(&work.messages).await;
        if work.changed {
            self.tell_peers();
            self.publish();
            metrics::states(&self.core);
        }
    }

    async fn send(&self, messages: &[(IpAddr, Message)]) {
        let Some(beats) = &self.beats else { return };
        for (address, message) in messages {
            let data = message.encode(&self.engine.config.key);
            if let Err(error) = beats.send(&data, *address) {
                tracing::trace!(peer = %address, %error, "heartbeat not sent");
            }
        }
        // Lets the readers of the links run even when beats are due without end.
        tokio::task::yield_now().await;
    }

    /// Neither releases addresses nor says farewell: what clients send here is forwarded all the same, and a restart
    /// within the timeout goes unnoticed.
    async fn stop(&mut self) {
        self.core.last_beat();
        self.work().await;
    }

    fn take_datagram(&mut self, data: &[u8], from: IpAddr) {
        let key = &self.engine.config.key;
        let message = match Message::decode(data, key) {
            Ok(message) => message,
            Err(malformed) => return metrics::rejected(malformed.name()),
        };
        if key.is_empty() && !self.core.is_from(&message.node, from) {
            return metrics::rejected("source");
        }
        if !self.core.receive(Instant::now(), message) {
            metrics::rejected("stale");
        }
    }

    fn take_frame(&mut self, frame: &Frame) {
        let now = Instant::now();
        let asked = match &frame.content {
            Content::Arp(arp) => {
                if !arp.sender.is_unspecified() {
                    self.core.claimed_by(now, IpAddr::V4(arp.sender), arp.sender_mac);
                }
                let request = arp.operation == arp::Operation::Request && arp.sender != arp.target;
                request.then_some(IpAddr::V4(arp.target))
            }
            Content::Ndp(ndp) => match ndp.message {
                ndp::Message::Advertisement { .. } => {
                    let mac = ndp.link_address.unwrap_or(ndp.source_mac);
                    self.core.claimed_by(now, IpAddr::V6(ndp.target), mac);
                    None
                }
                ndp::Message::Solicitation => Some(IpAddr::V6(ndp.target)),
            },
        };
        let (Some(address), Some(link)) = (asked, self.wire.link_name(frame.link)) else {
            return;
        };
        if self.core.answers(address, link) {
            metrics::request(address);
            self.wire.answer(frame.link, &frame.content);
            metrics::response(address);
        }
    }

    fn take_desired(&mut self) {
        let Some(desired) = self.engine.desired.borrow_and_update().clone() else {
            return;
        };
        let address = self.engine.address(&desired);
        let v6 = address.is_some_and(|a| a.is_ipv6());
        self.core.set_desired((*desired).clone(), v6);
        if self.beats.as_ref().map(Beats::address) != address {
            self.retry_at = Some(Instant::now());
        }
    }

    fn open_beats(&mut self, now: Instant) {
        let Some(address) = self.engine.address(self.core.desired()) else {
            self.engine
                .health
                .not_ready("this node has no address yet: neither --node-ip nor an InternalIP");
            return;
        };
        if self.beats.as_ref().is_some_and(|b| b.address() == address) {
            return;
        }
        match Beats::open(address) {
            Ok(beats) => {
                tracing::info!(src.addr = %address, "exchanging heartbeats");
                self.beats = Some(beats);
                self.core.listen(now);
                self.engine.health.ready();
            }
            Err(error) => {
                let why = format!("heartbeats on UDP {address}: {error}");
                // Said once: the text stays the same while the failure does.
                tracing::warn!(reason = why, "cannot exchange heartbeats, trying again");
                self.engine.health.not_ready(why);
                self.retry_at = Some(now + RETRY * 4);
            }
        }
    }

    fn look_at_links(&mut self) {
        match Rtnl::open().and_then(|mut rtnl| rtnl.links()) {
            Ok(found) => {
                let carriers = links::carriers(&found, &self.engine.config);
                if carriers != self.core.carriers() {
                    let names: Vec<&str> = carriers.iter().map(|c| c.name.as_str()).collect();
                    tracing::info!(links = names.join(","), "links to announce on");
                    let used = self.wire.set_carriers(carriers);
                    self.core.set_carriers(Instant::now(), used);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot see the links, trying again");
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Tells people and their tools what has been done.
    fn tell(&mut self, operation: &Operation) {
        match operation {
            Operation::Claim(address, links) => {
                tracing::info!(%address, %links, "announcing");
                metrics::takeover();
                let services = self.services(*address).to_vec();
                metrics::announced(&self.engine.node, *address, &services, true);
                self.counted.insert(*address, services);
                // MetalLB's words.
                let node = &self.engine.node;
                let message = format!("announcing from node {node:?} with protocol \"layer2\"");
                self.notify(*address, false, "nodeAssigned", &message);
            }
            Operation::Release(address) => {
                let reason = self.core.standing(*address).err().map(|r| r.to_string());
                tracing::info!(%address, reason, "no longer announcing");
                let services = self.counted.remove(address).unwrap_or_default();
                metrics::announced(&self.engine.node, *address, &services, false);
            }
            Operation::Report(address, contest) => {
                tracing::warn!(%address, reason = %contest, "address in use");
                metrics::contested(*address);
                self.notify(*address, true, "AddressInUse", &format!("{address} is {contest}"));
            }
            Operation::Probe(..) | Operation::Announce(..) => tracing::debug!(%operation, "sent"),
        }
    }

    fn services(&self, address: IpAddr) -> &[Target] {
        let known = self.core.desired().addresses.get(&address);
        known.map_or(&[], |a| a.services.as_slice())
    }

    fn notify(&self, address: IpAddr, warning: bool, reason: &'static str, message: &str) {
        for service in self.services(address) {
            let notice = Notice {
                service: service.clone(),
                warning,
                reason,
                message: message.to_string(),
            };
            _ = self.engine.notices.try_send(notice);
        }
    }

    fn publish(&self) {
        let standings = self.core.standings();
        let announced = standings
            .filter(|(_, standing)| standing.is_ok())
            .map(|(address, _)| {
                let names: Vec<String> = self.services(address).iter().map(|s| s.key.to_string()).collect();
                (address, names.join(", "))
            });
        let announced: Announced = announced.collect();
        self.publish_statuses(announced.keys());
        self.engine.announced.send_if_modified(|old| {
            let changed = *old != announced;
            if changed {
                *old = announced;
            }
            changed
        });
    }

    fn publish_statuses<'a>(&self, announced: impl Iterator<Item = &'a IpAddr>) {
        let mut all = Statuses::new();
        for address in announced {
            let Some(known) = self.core.desired().addresses.get(address) else {
                continue;
            };
            let links = known
                .verdict
                .as_ref()
                .map(statuses::interfaces)
                .unwrap_or_default();
            // As MetalLB has it: the first of a Service's addresses speaks for all of them.
            for service in &known.services {
                all.entry(service.key.clone()).or_insert_with(|| links.clone());
            }
        }
        self.engine.statuses.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&all);
            if changed {
                *old = Some(all);
            }
            changed
        });
    }

    fn tell_peers(&mut self) {
        let alive: BTreeSet<Box<str>> = self.core.membership().alive().map(Into::into).collect();
        for node in alive.difference(&self.alive) {
            tracing::info!(node = %node, "peer is alive");
        }
        for node in self.alive.difference(&alive) {
            tracing::info!(node = %node, "peer is silent or gone");
        }
        self.alive = alive;
    }
}

async fn links_changed(monitor: Option<&mut Monitor>, concerns: impl Fn(&Event) -> bool) {
    let Some(monitor) = monitor else {
        return tokio::time::sleep(RETRY).await;
    };
    loop {
        match monitor.next().await {
            Ok(events) if events.iter().any(&concerns) => return,
            Ok(_) => {}
            Err(_) => return tokio::time::sleep(RETRY).await,
        }
    }
}

/// Greater after each restart, unless the clock is set back; peers forgive that.
fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
