//! Answering, over UDP and TCP.
//!
//! Each address has a few threads with a socket each (`SO_REUSEPORT`: the kernel spreads the clients over them), which
//! take questions in batches and answer what needs no upstream on the spot: cluster names and cached ones. What has to
//! wait goes to a task of the runtime, so that nobody waits behind it. Connections are tasks from the start.
//!
//! The cluster's DNS is local to each node: its address sits on `lo`, the server binds it, the proxy leaves it alone.
//! No translation and no conntrack is on the way of a query.

mod bind;
mod holder;
mod respond;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use svcnet_runtime::backoff::Backoff;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, PodRecords};
use crate::forward::Forwarder;
use crate::progress::Progress;
use crate::vip::Vip;
use crate::zone::{Settings, Zone};

pub(crate) use respond::Handler;

/// Threads at one address when nobody says how many: two saturate a home router's uplink a hundred times over.
const THREADS_MAX: usize = 4;

/// A DNS server without the watches: somebody else publishes zones.
pub struct Server {
    config: Config,
    handler: Arc<Handler>,
}

impl Server {
    /// A server with an empty zone that is not complete: it answers SERVFAIL for the cluster's names.
    pub fn new(config: Config) -> Self {
        let settings = Settings {
            apex: config.cluster_domain.clone(),
            ttl: config.ttl,
            servers: config.addresses.clone().into(),
            pods: config.pods == PodRecords::Verified,
        };
        let handler = Handler {
            zone: ArcSwap::from_pointee(Zone::empty(settings)),
            forwarder: Forwarder::new(&config),
        };
        Self {
            config,
            handler: Arc::new(handler),
        }
    }

    /// Where zones are published.
    pub fn publisher(&self) -> Publisher {
        Publisher(self.handler.clone())
    }

    /// Serves at every address until shutdown, from the moment that it can be had.
    pub(crate) async fn run(self, progress: Progress, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let threads = self.config.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS_MAX))
        });
        let vip = Vip::new(&self.config);
        for address in self.config.listen() {
            progress.waiting(format!("listening at {address}"));
        }
        {
            let (vip, progress, shutdown) = (vip.clone(), progress.clone(), shutdown.clone());
            tasks.spawn(async move { vip.keep(progress, shutdown).await });
        }
        for address in self.config.listen() {
            let (handler, progress, vip) = (self.handler.clone(), progress.clone(), vip.clone());
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = vip.placed(address.ip()) => {}
                }
                let Some(sockets) = sockets(address, threads, &progress, &shutdown).await else {
                    return;
                };
                progress.done(&format!("listening at {address}"));
                tracing::info!(src.addr = %address, threads, "answering DNS");
                serve(handler, sockets, address, shutdown).await;
            });
        }
        let forwarder = self.handler.forwarder.clone();
        tasks.spawn(async move { forwarder.watch_over(shutdown).await });
        tasks.join_all().await;
    }

    /// Serves like [`run`](Self::run), without telling anybody how far it is.
    pub async fn serve(self, shutdown: CancellationToken) {
        self.run(Progress::silent(), shutdown).await;
    }
}

/// Where zones are published. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Handler>);

impl Publisher {
    /// The zone that answers come from now.
    pub fn current(&self) -> Arc<Zone> {
        self.0.zone.load_full()
    }

    /// From now on, answers come from this zone.
    pub fn publish(&self, zone: Zone) {
        self.0.zone.store(Arc::new(zone));
    }
}

/// Binds, and tries again until it works; `None` on shutdown.
async fn sockets(
    address: SocketAddr,
    threads: usize,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> Option<bind::Sockets> {
    let mut backoff = Backoff::default();
    loop {
        match bind::bind(address, threads) {
            Ok(sockets) => return Some(sockets),
            Err(error) => {
                let reason = error.to_string();
                if backoff.is_news(&reason) {
                    tracing::warn!(src.addr = %address, reason, "cannot listen, trying again");
                    progress.failed(&format!("listening at {address}"), reason);
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

async fn serve(
    handler: Arc<Handler>,
    sockets: bind::Sockets,
    address: SocketAddr,
    shutdown: CancellationToken,
) {
    let threads = udp::spawn(&handler, sockets.udp, address, &shutdown);
    tcp::serve(handler, sockets.tcp, address, &shutdown).await;
    threads.stop().await;
}
