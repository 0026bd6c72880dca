//! The daemon: listens for the plugin's calls, keeps the bridge right, and knows this node's pod networks.

mod attach;
mod busy;
mod check;
mod detach;
mod serve;

pub(crate) use detach::detach_without_daemon;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use svcnet_api::types::PodCidr;
use svcnet_api::wellknown::{BRIDGE_NAME, OWN_LINKS};
use svcnet_netlink::monitor::{Event, Group, Happened, Monitor};
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::underlay::{self, NoUnderlay};
use svcnet_netlink::{Rtnl, rt};
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::{Change, Component, Context, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ipam::{self, Ipam};
use crate::registrar::{Registrar, Teller};
use crate::{Config, bridge, conflist, cri, hostport, leases_dir, link, socket_path};
use serve::{Network, Server};

/// A call that is longer is none.
const CALL_BYTES_MAX: u64 = 1 << 20;
/// A plugin that takes longer to say what it wants has died.
const CALL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Changes by others come in bursts: they are answered together.
const SETTLE: Duration = Duration::from_millis(50);
/// What may be of use again in a moment is tidied up after this long.
const TIDY: Duration = Duration::from_secs(2);
/// The bridge is looked at this often even when nothing is told.
const RESYNC: Duration = Duration::from_secs(60);
/// How long a plugin that works without the daemon may hold the leases.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why the daemon can not run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The leases can not be read.
    #[error(transparent)]
    Leases(#[from] ipam::Error),
    /// The kernel gives no socket.
    #[error(transparent)]
    Netlink(#[from] rt::Error),
    /// The subscription to changes failed.
    #[error("read changes of the network: {0}")]
    Monitor(#[source] io::Error),
    /// The socket for the plugin can not be made.
    #[error("listen on {path}: {source}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why the pod network of this node is not in place.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error("waiting for a pod CIDR for node {0}")]
    PodCidr(String),
    #[error("{0}")]
    NoUnderlay(NoUnderlay),
    #[error(transparent)]
    Kernel(#[from] rt::Error),
    #[error(transparent)]
    HostPorts(#[from] hostport::Error),
    #[error(transparent)]
    Install(#[from] conflist::Error),
}

/// The CNI daemon of one node.
pub struct CniDaemon {
    nodes: mpsc::Receiver<Change<Node>>,
    shutdown: CancellationToken,
    client: kube::Client,
    socket: PathBuf,
    server: Arc<Server>,
    keeper: Keeper,
}

impl CniDaemon {
    /// Reads the leases and subscribes to the nodes.
    ///
    /// # Errors
    /// When the leases can not be read, or another daemon has them.
    pub fn new(config: Config, ctx: &Context) -> Result<Self, Error> {
        // The same watch as the overlay's.
        Self::fed(config, ctx, ctx.informers.subscribe(Scope::default()))
    }

    /// The same with nodes from elsewhere.
    ///
    /// # Errors
    /// As [`CniDaemon::new`].
    pub fn fed(config: Config, ctx: &Context, nodes: mpsc::Receiver<Change<Node>>) -> Result<Self, Error> {
        let ipam = open_leases(&leases_dir(&ctx.data_dir))?;
        let server = Arc::new(Server::new(
            ipam,
            &config,
            Registrar::default(),
            ctx.client.clone(),
        ));
        let keeper = Keeper {
            node_name: ctx.node_name.clone(),
            data_dir: ctx.data_dir.clone(),
            socket: socket_path(&ctx.run_dir),
            config,
            rt: Rtnl::open()?,
            component: ctx.health.component("cni"),
            backoff: Backoff::default(),
            own: None,
            underlay: None,
            sysctls: Sysctls::new(&ctx.run_dir, "cni"),
            server: Arc::clone(&server),
        };
        Ok(Self {
            nodes,
            shutdown: ctx.shutdown.clone(),
            client: ctx.client.clone(),
            socket: socket_path(&ctx.run_dir),
            server,
            keeper,
        })
    }

    /// Works until shutdown, and leaves pods and bridge as they are then.
    ///
    /// # Errors
    /// When it can not listen, or the kernel stops telling of changes.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut monitor = Monitor::open(&[Group::Link, Group::Address])?;
        let listener = listen(&self.socket).map_err(|source| Error::Listen {
            path: self.socket.clone(),
            source,
        })?;
        let server = Arc::clone(&self.server);
        // It may wait for a role that starts beside this one.
        tokio::task::spawn_blocking(move || server.tell_attached());
        let running = self.server.pods();
        let registrar = self.server.registrar.clone();
        let socket = self.keeper.config.cri_socket.clone();
        let teller = Teller {
            client: self.client,
            node: self.keeper.node_name.clone(),
            runtime: socket.map(cri::Runtime::new).or_else(cri::Runtime::find),
        };
        tokio::spawn(registrar.run(teller, running, self.shutdown.clone()));
        self.keeper.reconcile();

        let mut next_pass = Instant::now() + RESYNC;
        let mut next_reconciliation = Instant::now() + RESYNC;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                change = self.nodes.recv() => {
                    let Some(change) = change else { break };
                    if self.keeper.take(change) {
                        next_pass = Instant::now();
                    }
                }
                events = monitor.next() => {
                    let events = events.map_err(Error::Monitor)?;
                    if events.iter().any(|e| self.keeper.concerns(e)) {
                        next_pass = next_pass.min(Instant::now() + SETTLE);
                    }
                }
                () = sleep_until(next_pass) => {
                    if Instant::now() >= next_reconciliation {
                        next_reconciliation = Instant::now() + RESYNC;
                        self.keeper.reconcile();
                    }
                    next_pass = Instant::now() + self.keeper.pass();
                }
                () = self.server.untidy.notified() => {
                    next_pass = next_pass.min(Instant::now() + TIDY);
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => _ = tokio::spawn(serve(stream, Arc::clone(&self.server))),
                    Err(error) => {
                        tracing::warn!(%error, "a call of the plugin could not be accepted");
                        tokio::time::sleep(SETTLE).await; // out of descriptors: some may come free
                    }
                },
            }
        }
        // Calls after this find nobody, rather than a socket that nobody reads.
        let _ = fs::remove_file(&self.socket);
        Ok(())
    }
}

/// A plugin that works without the daemon may have the leases for a moment.
fn open_leases(dir: &Path) -> Result<Ipam, ipam::Error> {
    let give_up = std::time::Instant::now() + LOCK_WAIT_MAX;
    loop {
        match Ipam::open(dir) {
            Err(ipam::Error::Locked(_)) if std::time::Instant::now() < give_up => thread::sleep(SETTLE),
            other => return other,
        }
    }
}

/// The lock on the leases is ours, so a socket that is there is a dead daemon's.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(mut stream: UnixStream, server: Arc<Server>) {
    let exchange = async {
        let mut call = Vec::new();
        timeout(
            CALL_WAIT_MAX,
            (&mut stream).take(CALL_BYTES_MAX).read_to_end(&mut call),
        )
        .await??;
        // Kernel and disk: short, but not for the threads that everything else runs on.
        let answer = tokio::task::spawn_blocking(move || server.answer(&call)).await?;
        stream.write_all(&answer).await
    };
    if let Err(error) = exchange.await {
        tracing::warn!(%error, "a call of the plugin broke off");
    }
}

/// Keeps the bridge right, and tells the server what the node's pod networks are.
struct Keeper {
    node_name: String,
    data_dir: PathBuf,
    socket: PathBuf,
    config: Config,
    rt: Rtnl,
    component: Component,
    backoff: Backoff,
    own: Option<OwnNode>,
    underlay: Option<String>,
    sysctls: Sysctls,
    server: Arc<Server>,
}

/// The part of this node's Node that concerns its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnNode {
    cidrs: Vec<PodCidr>,
    host: Option<IpAddr>,
}

impl OwnNode {
    fn of(node: &Node) -> Self {
        let spec = node.spec.iter();
        let texts = spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(s.pod_cidr.as_ref()));
        let mut cidrs: Vec<PodCidr> = Vec::new();
        for cidr in texts.filter_map(|text| text.parse().ok()) {
            if !cidrs.contains(&cidr) {
                cidrs.push(cidr);
            }
        }
        let mut addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let internal = addresses.find(|a| a.type_ == "InternalIP");
        Self {
            cidrs,
            host: internal.and_then(|a| a.address.parse().ok()),
        }
    }
}

impl Keeper {
    /// Whether the change concerns this node's pod networks.
    fn take(&mut self, change: Change<Node>) -> bool {
        let is_own = |node: &&Arc<Node>| node.metadata.name.as_deref() == Some(&self.node_name);
        let next = match &change {
            Change::Reset(nodes) => nodes.iter().find(is_own).map(|n| OwnNode::of(n)),
            Change::Apply(node) if is_own(&node) => Some(OwnNode::of(node)),
            // Pods go on with the networks that they have: the node comes back, or another one is set up here.
            Change::Apply(_) | Change::Delete(_) => return false,
        };
        let first = self.own.is_none();
        let changed = next.is_some() && next != self.own;
        if next.is_some() {
            self.own = next;
        }
        changed || first
    }

    fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Lost | Event::Address(..) => true,
            Event::Link(happened, l) => {
                let loose =
                    *happened == Happened::Set && l.up && l.master.is_none() && l.name.starts_with("veth");
                l.name == BRIDGE_NAME || self.underlay.as_ref().is_none_or(|name| *name == l.name) || loose
            }
            _ => false,
        }
    }

    /// Looks at the bridge and makes it right. Returns when to look again.
    fn pass(&mut self) -> Duration {
        match self.try_pass() {
            Ok(()) => {
                if self.backoff.reset() {
                    tracing::info!("the pod network of this node is in place");
                }
                self.component.ready();
                RESYNC
            }
            Err(unready) => {
                let text = unready.to_string();
                if self.backoff.is_news(&text) {
                    match unready {
                        // So every node begins.
                        Unready::PodCidr(_) => {
                            tracing::info!(reason = %text, "the pod network of this node waits")
                        }
                        _ => tracing::warn!(reason = %text, "the pod network of this node is not in place"),
                    }
                }
                self.server.set_trouble(&text);
                self.component.not_ready(text);
                self.backoff.next_delay()
            }
        }
    }

    /// Compares the leases with what there is on this node, both ways.
    fn reconcile(&self) {
        let freed = self.server.forget_vanished().map(drop);
        if let Err(error) = freed.and_then(|()| self.server.delete_orphans()) {
            tracing::warn!(%error, "what containers left behind could not be looked for");
        }
    }

    /// # Errors
    /// What is missing or refused.
    fn try_pass(&mut self) -> Result<(), Unready> {
        let own = self.own.clone().filter(|own| !own.cidrs.is_empty());
        let own = own.ok_or_else(|| Unready::PodCidr(self.node_name.clone()))?;
        let mtu = self.mtu()?;
        let ports = self.server.attachments().iter().map(link::host_name).collect();
        let desired = bridge::desired(&own.cidrs, mtu, ports);
        let observed = bridge::observe(&mut self.rt, &desired)?;
        let ops = bridge::plan(&desired, &observed);
        if !ops.is_empty() {
            bridge::apply(&mut self.rt, &ops, &self.sysctls)?;
            for op in &ops {
                tracing::debug!(%op, "applied");
            }
            tracing::info!(plan.ops = ops.len(), "bridge changed");
        }
        self.server.look_at_host_ports()?;
        self.server.set_network(Network {
            cidrs: own.cidrs,
            mtu,
            host: own.host,
        });
        Ok(self.install()?)
    }

    fn mtu(&mut self) -> Result<u32, Unready> {
        let found = underlay::find(&mut self.rt, &self.config.underlay, &OWN_LINKS);
        match (found?, self.config.mtu) {
            (Ok(underlay), wanted) => {
                self.underlay = Some(underlay.name.clone());
                Ok(if self.config.direct {
                    wanted.unwrap_or(underlay.mtu)
                } else {
                    underlay.pod_mtu(wanted)
                })
            }
            (Err(_), Some(wanted)) => Ok(wanted),
            (Err(reason), None) => Err(Unready::NoUnderlay(reason)),
        }
    }

    /// Runtimes take the configuration for the sign that pods can start.
    fn install(&self) -> Result<(), conflist::Error> {
        if let Some(dir) = &self.config.cni_bin_dir {
            conflist::install_plugin(dir)?;
        }
        if let Some(dir) = &self.config.cni_conf_dir {
            conflist::install_config(dir, &self.socket, &self.data_dir)?;
        }
        Ok(())
    }
}
