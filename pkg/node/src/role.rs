//! The role: subscribes to this machine's Node, and registers, repairs and renews until shutdown.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use svcnet_api::wellknown::OWN_LINKS;
use svcnet_netlink::follow::Follow;
use svcnet_netlink::underlay::Choice;
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::apply::apply;
use crate::desired::{DesiredNode, Machine, desired};
use crate::heartbeat;
use crate::plan::plan;
use crate::ports;

/// Settings of the role.
#[derive(Debug, Clone)]
pub struct Config {
    /// The addresses that other nodes reach this one at (`--node-ip`), the first one first.
    pub node_ips: Vec<IpAddr>,
    /// Where that address was found, if it was not given: when there is another one, the Node says so.
    pub follow: Option<Choice>,
    /// What the Node tells of the machine; [`Machine::this`] outside of tests.
    pub machine: Machine,
}

/// Why the role cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Other nodes could not reach this one.
    #[error("no address to register node {node} with; give one with --node-ip")]
    NoAddress {
        /// The node.
        node: String,
    },
    /// The kernel does not tell when there is another address.
    #[error(transparent)]
    Kernel(#[from] svcnet_netlink::rt::Error),
}

/// The role, ready to run.
pub struct NodeRole {
    context: Context,
    health: Component,
    desired: DesiredNode,
    machine: Machine,
    follow: Option<Follow>,
    changes: mpsc::Receiver<Change<Node>>,
}

impl NodeRole {
    /// Subscribes to the Node.
    ///
    /// # Errors
    /// When there is no address to register.
    pub fn new(config: Config, context: &Context) -> Result<Self, Error> {
        let name = context.node_name.clone();
        if config.node_ips.is_empty() {
            return Err(Error::NoAddress { node: name });
        }
        // All Nodes rather than this one: other roles of the process watch them too, and share the watch.
        let changes = context.informers.subscribe(Scope::default());
        Ok(Self {
            context: context.clone(),
            health: context.health.component("node"),
            desired: desired(&name, &config.node_ips, &config.machine),
            machine: config.machine,
            follow: config.follow.map(follow).transpose()?,
            changes,
        })
    }

    /// Works until shutdown. The Node stays: whoever looks sees by its Lease that it is gone.
    ///
    /// # Errors
    /// None at present: a server that is away is waited for.
    pub async fn run(self) -> Result<(), Error> {
        let (client, shutdown) = (self.context.client.clone(), self.context.shutdown.clone());
        let name = self.desired.name.clone();
        let heartbeat = heartbeat::keep(client.clone(), &name, &shutdown);
        let registration = Registration {
            nodes: Api::all(client),
            desired: self.desired,
            machine: self.machine,
            observed: Observed::Unknown,
            health: self.health,
        };
        tokio::join!(heartbeat, async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = registration.keep(self.changes, self.follow) => {}
            }
        });
        Ok(())
    }
}

enum Observed {
    Unknown,
    Missing,
    There(Arc<Node>),
}

struct Registration {
    nodes: Api<Node>,
    desired: DesiredNode,
    machine: Machine,
    observed: Observed,
    health: Component,
}

impl Registration {
    async fn keep(mut self, mut changes: mpsc::Receiver<Change<Node>>, mut follow: Option<Follow>) {
        let mut failures = Backoff::default();
        let mut retry: Option<Instant> = None;
        let mut looks = tokio::time::interval(ports::LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if retry.is_none() {
                match self.repair().await {
                    Ok(()) => {
                        if failures.reset() {
                            tracing::info!(node = self.desired.name, "the node is registered again");
                        }
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        if failures.is_news(&reason) {
                            tracing::warn!(
                                node = self.desired.name,
                                reason,
                                "cannot register the node, trying again"
                            );
                        }
                        retry = Some(Instant::now() + failures.next_delay());
                    }
                }
            }
            let due = retry;
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.observe(change),
                    // The watches end with the process.
                    None => return,
                },
                _ = looks.tick() => self.look_at_ports(),
                () = sleep_until(due) => retry = None,
                address = next_address(follow.as_mut()) => {
                    let next = desired(&self.desired.name, &[address], &self.machine);
                    if next.addresses != self.desired.addresses {
                        tracing::info!(node = self.desired.name, %address, "this node has another address");
                        self.desired = next;
                        retry = None;
                    }
                }
            }
        }
    }

    fn observe(&mut self, change: Change<Node>) {
        let ours = |node: &Node| node.metadata.name.as_deref() == Some(self.desired.name.as_str());
        match change {
            Change::Reset(all) => {
                let found = all.into_iter().find(|node| ours(node));
                self.observed = found.map_or(Observed::Missing, Observed::There);
            }
            Change::Apply(node) if ours(&node) => self.observed = Observed::There(node),
            Change::Delete(node) if ours(&node) => self.observed = Observed::Missing,
            Change::Apply(_) | Change::Delete(_) => {}
        }
    }

    fn look_at_ports(&mut self) {
        match ports::look() {
            Ok(told) => self.desired.host_ports = Some(told),
            // What was told last stays.
            Err(error) => {
                tracing::debug!(node = self.desired.name, reason = %error, "cannot see which ports are taken")
            }
        }
    }

    async fn repair(&mut self) -> Result<(), kube::Error> {
        let observed = match &self.observed {
            Observed::Unknown => return Ok(()),
            Observed::Missing => None,
            Observed::There(node) => Some(&**node),
        };
        let plan = plan(&self.desired, observed);
        if !plan.0.is_empty() {
            tracing::info!(node = self.desired.name, plan = %plan, "writing the Node");
            match apply(&self.nodes, &self.desired, plan, Timestamp::now()).await {
                Ok(Some(node)) => self.observed = Observed::There(Arc::new(node)),
                Ok(None) => {}
                // What we knew was out of date: look, rather than wait for the watch to tell.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    let there = self.nodes.get_opt(&self.desired.name).await?;
                    self.observed = there.map_or(Observed::Missing, |node| Observed::There(Arc::new(node)));
                    return Err(kube::Error::Api(status));
                }
                Err(error) => return Err(error),
            }
        }
        self.health.ready();
        Ok(())
    }
}

fn follow(choice: Choice) -> Result<Follow, svcnet_netlink::rt::Error> {
    Follow::new(choice, &OWN_LINKS)
}

async fn next_address(follow: Option<&mut Follow>) -> IpAddr {
    match follow {
        Some(follow) => follow.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
