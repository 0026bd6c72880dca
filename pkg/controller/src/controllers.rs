//! All controllers of a process.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ObjectReference;
use svcnet_runtime::{Component, Context, Informers};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::addresses::AddressController;
use crate::alloc::{Restored, ServiceAllocator};
use crate::config::Config;
use crate::endpoints::EndpointsController;
use crate::engine::{self, Controller};
use crate::life::NodeLifeController;
use crate::loadbalancer::LoadBalancerController;
use crate::namespaces::NamespaceController;
use crate::nodes::{NetworkTooSmall, NodeNetworkController};
use crate::recorder::{Notice, Recorder, Severity};

/// What Events name as their source.
const COMPONENT: &str = "svcnet-controller";

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDR cannot be cut into node networks.
    #[error("cannot give nodes their pod networks (--cluster-cidr)")]
    ClusterCidr(#[source] NetworkTooSmall),
    /// A controller has ended by itself, which none does unless it is broken.
    #[error("a controller has ended: {0}")]
    Ended(String),
}

/// The controllers, ready to run.
pub struct Controllers {
    informers: Informers,
    shutdown: CancellationToken,
    health: Component,
    tasks: JoinSet<()>,
    waiting_for: BTreeSet<&'static str>,
    synced: mpsc::Receiver<&'static str>,
    start: CancellationToken,
}

impl Controllers {
    /// Subscribes to what the controllers watch.
    ///
    /// They have watches of their own rather than the process's: those replay what was last known before the server
    /// answers, which is right for a data plane and wrong for who decides by what there is now.
    ///
    /// # Errors
    /// When the cluster CIDR is too small for one node.
    pub fn new(config: Config, context: &Context) -> Result<Self, Error> {
        let (client, shutdown) = (context.client.clone(), context.shutdown.clone());
        let informers = Informers::new(client.clone(), None, shutdown.clone());
        let (recorder, writer) = Recorder::new(client.clone(), COMPONENT);
        let node_networks =
            NodeNetworkController::new(client.clone(), recorder.clone(), &config.cluster_cidr)
                .map_err(Error::ClusterCidr)?;
        let (told, synced) = mpsc::channel(8);
        let mut all = Self {
            shutdown: shutdown.clone(),
            health: context.health.component("controller"),
            tasks: JoinSet::new(),
            waiting_for: BTreeSet::new(),
            synced,
            start: CancellationToken::new(),
            informers: informers.clone(),
        };
        all.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = writer => {}
            }
        });
        let restored = config.allocator.as_ref().map(ServiceAllocator::take_warnings);
        restored
            .into_iter()
            .flatten()
            .for_each(|restored| recorder.record(notice(restored)));
        all.add(
            EndpointsController::new(client.clone()),
            EndpointsController::sources(&informers),
            &told,
        );
        all.add(
            AddressController::new(client.clone()),
            AddressController::sources(&informers),
            &told,
        );
        all.add(node_networks, NodeNetworkController::sources(&informers), &told);
        let life = NodeLifeController::new(client.clone(), recorder.clone());
        all.add(life, NodeLifeController::sources(&informers), &told);
        let load_balancer = LoadBalancerController::new(client.clone(), recorder);
        all.add(load_balancer, LoadBalancerController::sources(&informers), &told);
        all.add(
            NamespaceController::new(client),
            NamespaceController::sources(&informers),
            &told,
        );
        Ok(all)
    }

    /// Whether controllers can be made of this.
    ///
    /// # Errors
    /// As for [`Controllers::new`].
    pub fn check(config: &Config) -> Result<(), Error> {
        crate::nodes::check(&config.cluster_cidr).map_err(Error::ClusterCidr)
    }

    fn add<C: Controller>(
        &mut self,
        controller: C,
        sources: Vec<futures::stream::BoxStream<'static, C::Event>>,
        synced: &mpsc::Sender<&'static str>,
    ) {
        self.waiting_for.insert(C::NAME);
        let (synced, shutdown, start) = (synced.clone(), self.shutdown.clone(), self.start.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = start.cancelled() => {}
            }
            engine::run(controller, sources, synced, shutdown).await;
        });
    }

    /// Works until shutdown.
    ///
    /// # Errors
    /// When a controller breaks. A server that is away is no error: it is waited for.
    pub async fn run(mut self) -> Result<(), Error> {
        self.informers.start();
        self.start.cancel();
        self.say_health();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(name) = self.synced.recv() => {
                    self.waiting_for.remove(name);
                    self.say_health();
                }
                Some(ended) = self.tasks.join_next() => {
                    if !self.shutdown.is_cancelled() {
                        return Err(Error::Ended(ended.err().map_or_else(|| "early".to_string(), |e| e.to_string())));
                    }
                }
            }
        }
        while self.tasks.join_next().await.is_some() {}
        Ok(())
    }

    fn say_health(&self) {
        if self.waiting_for.is_empty() {
            self.health.ready();
        } else {
            let names: Vec<&str> = self.waiting_for.iter().copied().collect();
            self.health
                .not_ready(format!("waiting for the first lists: {}", names.join(", ")));
        }
    }
}

fn notice(restored: Restored) -> Notice {
    Notice {
        about: ObjectReference {
            api_version: Some("v1".to_string()),
            kind: Some("Service".to_string()),
            namespace: Some(restored.namespace),
            name: Some(restored.name),
            uid: Some(restored.uid),
            ..ObjectReference::default()
        },
        severity: Severity::Warning,
        reason: restored.warning.reason(),
        message: restored.warning.to_string(),
    }
}
