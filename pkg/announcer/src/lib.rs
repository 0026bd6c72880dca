//! Announces LoadBalancer addresses on the local network: exactly one node answers ARP and neighbour solicitations for
//! each, and another takes over within a second when it dies.
//!
//! - `view`: what concerns announcements of all that the API says.
//! - `desired`: which addresses this node is a candidate for, or why not.
//! - `membership`, `election`, `message`: who is alive, which candidate wins, how they talk.
//! - `plan`: from the addresses won to probes, claims and announcements, in time.
//! - `core`: all of these together, without clock and sockets. `engine`: with them, on a thread of its own.
//! - `links`, `apply`, `beats`: which links carry announcements, the frames on them, the heartbeat socket.
//! - `echo`: the owner of an address answers its pings. `events`, `statuses`, `metrics`: what people and
//!   their tools see.
//!
//! Elections need the nodes only: with the API away, an address still moves when its owner dies.

mod apply;
mod beats;
mod config;
mod core;
mod desired;
mod echo;
mod election;
mod engine;
mod events;
mod links;
mod membership;
mod message;
mod metrics;
mod plan;
mod statuses;
mod view;

pub use config::{
    Config, DEFAULT_EXCLUDED, DEFAULT_HEARTBEAT_PORT, DEFAULT_INTERVAL, DEFAULT_TIMEOUT, LinkPattern,
    PatternError,
};
pub use desired::NotAnnounced;
pub use echo::TABLE as NFT_TABLE;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use svcnet_api::metallb::{CONFIG_MAP_NAME, IPAddressPool, L2Advertisement};
use svcnet_api::wellknown::NAMESPACE_METALLB;
use svcnet_runtime::{Change, Context, Scope};
use tokio::sync::{mpsc, watch};

use crate::desired::Desired;
use crate::engine::Engine;
use crate::view::View;

/// How long to wait for MetalLB's kinds, which a cluster may not know.
const PATIENCE: Duration = Duration::from_secs(3);

/// The announcer of a node.
pub struct Announcer {
    config: Config,
    context: Context,
    changes: Changes,
}

/// Why an announcer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer would be declared dead although it beats in time.
    #[error(
        "announcer: the timeout ({timeout:?}) must be at least twice the heartbeat interval ({interval:?})"
    )]
    Timing {
        /// Time between two heartbeats.
        interval: Duration,
        /// Silence after which a peer is dead.
        timeout: Duration,
    },
    /// The system has no more threads.
    #[error("announcer: cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread that does the work is gone.
    #[error("announcer: stopped unexpectedly")]
    Stopped,
}

/// What it hears of.
struct Changes {
    services: mpsc::Receiver<Change<core_v1::Service>>,
    slices: mpsc::Receiver<Change<EndpointSlice>>,
    nodes: mpsc::Receiver<Change<core_v1::Node>>,
    pools: mpsc::Receiver<Change<IPAddressPool>>,
    advertisements: mpsc::Receiver<Change<L2Advertisement>>,
    config_maps: mpsc::Receiver<Change<core_v1::ConfigMap>>,
}

/// Which kinds have been listed. To begin without one of them would give up addresses for a moment.
#[derive(Debug, Default)]
struct Seen {
    services: bool,
    slices: bool,
    nodes: bool,
    pools: bool,
    advertisements: bool,
    config_maps: bool,
    /// Waited long enough for those that a cluster may not have.
    patient: bool,
}

impl Announcer {
    /// Subscribes to what it needs to know.
    ///
    /// # Errors
    /// When the periods contradict each other.
    pub fn new(config: Config, context: &Context) -> Result<Self, Error> {
        if config.timeout < config.interval * 2 || config.interval.is_zero() {
            return Err(Error::Timing {
                interval: config.interval,
                timeout: config.timeout,
            });
        }
        let informers = &context.informers;
        let legacy = Scope {
            namespace: Some(NAMESPACE_METALLB.to_string()),
            fields: Some(format!("metadata.name={CONFIG_MAP_NAME}")),
            ..Scope::default()
        };
        Ok(Self {
            config,
            context: context.clone(),
            changes: Changes {
                services: informers.subscribe(Scope::default()),
                slices: informers.subscribe(Scope::default()),
                nodes: informers.subscribe(Scope::default()),
                pools: informers.subscribe(Scope::default()),
                advertisements: informers.subscribe(Scope::default()),
                config_maps: informers.subscribe(legacy),
            },
        })
    }

    /// Works until shutdown. Its peers take its addresses over unless it is back within the timeout.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub async fn run(self) -> Result<(), Error> {
        let Self {
            config,
            context,
            changes,
        } = self;
        let (desired, receiver) = watch::channel(None);
        let (notices, notices_receiver) = mpsc::channel(events::QUEUE_LENGTH);
        let (announced, announced_receiver) = watch::channel(echo::Announced::new());
        let (statuses, statuses_receiver) = watch::channel(None);
        let class = config.load_balancer_class.clone();
        let engine = Engine {
            config,
            node: context.node_name.clone(),
            desired: receiver,
            notices,
            announced,
            statuses,
            health: context.health.component("announcer"),
            shutdown: context.shutdown.clone(),
        };
        let (ended, end) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        thread::Builder::new()
            .name("announcer".to_string())
            .spawn(move || {
                runtime.block_on(engine.run());
                _ = ended.send(());
            })
            .map_err(Error::Thread)?;
        // Beside the rest: a server that is slow to take events holds up nothing else.
        let writer = tokio::spawn(events::write(
            context.client.clone(),
            context.node_name.clone(),
            notices_receiver,
        ));
        let told = tokio::spawn(statuses::follow(
            context.client,
            context.node_name.clone(),
            statuses_receiver,
        ));
        let pings = tokio::spawn(echo::follow(announced_receiver));
        let view = View::new(&context.node_name);
        let result = tokio::select! {
            () = follow(view, class, changes, &desired) => Err(Error::Stopped),
            ended = end => ended.map_err(|_| Error::Stopped),
        };
        writer.abort();
        told.abort();
        // Ends with the engine.
        _ = pings.await;
        result
    }
}

/// Keeps the desired state up to date with the API.
async fn follow(
    mut view: View,
    class: Option<String>,
    mut changes: Changes,
    desired: &watch::Sender<Option<Arc<Desired>>>,
) {
    let mut seen = Seen::default();
    let mut dirty = false;
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        dirty |= tokio::select! {
            Some(change) = changes.services.recv() => {
                seen.services = true;
                view.change_service(&change)
            }
            Some(change) = changes.slices.recv() => {
                seen.slices = true;
                view.change_slice(&change)
            }
            Some(change) = changes.nodes.recv() => {
                seen.nodes = true;
                view.change_node(&change)
            }
            Some(change) = changes.pools.recv() => {
                seen.pools = true;
                view.change_pool(&change)
            }
            Some(change) = changes.advertisements.recv() => {
                seen.advertisements = true;
                view.change_advertisement(&change)
            }
            Some(change) = changes.config_maps.recv() => {
                seen.config_maps = true;
                view.change_config_map(&change)
            }
            () = &mut patience, if !seen.patient => {
                seen.patient = true;
                true
            }
            else => std::future::pending().await,
        };
        // While more is waiting, the answer would be outdated at once.
        if dirty && seen.enough() && changes.is_empty() {
            dirty = false;
            publish(&view, class.as_deref(), desired);
        }
    }
}

fn publish(view: &View, class: Option<&str>, desired: &watch::Sender<Option<Arc<Desired>>>) {
    let new = Desired::new(view, class);
    desired.send_if_modified(|old| {
        let changed = old.as_deref() != Some(&new);
        if changed {
            *old = Some(Arc::new(new));
        }
        changed
    });
}

impl Seen {
    fn enough(&self) -> bool {
        let configuration = self.pools && self.advertisements && self.config_maps;
        self.services && self.slices && self.nodes && (configuration || self.patient)
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.slices.is_empty()
            && self.nodes.is_empty()
            && self.pools.is_empty()
            && self.advertisements.is_empty()
            && self.config_maps.is_empty()
    }
}
