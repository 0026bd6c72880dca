//! Datagrams: threads that take them in batches.

use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use svcnet_netlink::udp::{Batch, Datagram};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::respond::{Handler, Outcome, too_long};
use crate::stats::{Tally, Transport};

/// Longest question: many times what one needs.
const DATAGRAM_MAX: usize = 2048;

/// The threads of one address.
pub(super) struct Threads {
    threads: Vec<JoinHandle<()>>,
    sockets: Vec<Arc<UdpSocket>>,
}

/// Starts a thread for each socket.
pub(super) fn spawn(
    handler: &Arc<Handler>,
    sockets: Vec<UdpSocket>,
    address: SocketAddr,
    shutdown: &CancellationToken,
) -> Threads {
    let sockets: Vec<Arc<UdpSocket>> = sockets.into_iter().map(Arc::new).collect();
    let mut threads = Vec::new();
    for socket in &sockets {
        let zone = handler.zone.load().apex().to_string();
        let listener = Listener {
            handler: handler.clone(),
            socket: socket.clone(),
            tally: Tally::new(address, zone, Transport::Udp),
            runtime: Handle::current(),
            shutdown: shutdown.clone(),
        };
        let spawned = std::thread::Builder::new()
            .name("dns".to_string())
            .spawn(move || listener.keep_running());
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::error!(%error, "cannot start a thread"),
        }
    }
    Threads { threads, sockets }
}

impl Threads {
    /// Stops them, and waits until they have.
    pub(super) async fn stop(self) {
        let all = &self.threads;
        while !all.iter().all(JoinHandle::is_finished) {
            for socket in &self.sockets {
                // Fails, since there is no connection, and wakes the thread that waits for datagrams all the same.
                _ = SockRef::from(&**socket).shutdown(Shutdown::Read);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Listener {
    handler: Arc<Handler>,
    socket: Arc<UdpSocket>,
    tally: Tally,
    runtime: Handle,
    shutdown: CancellationToken,
}

impl Listener {
    /// A panic costs the batch that it happened in: a socket that nobody reads would go on taking its share of the clients.
    fn keep_running(mut self) {
        while std::panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            tracing::error!("a bug while answering DNS: some questions are lost");
            metrics::counter!("coredns_panics_total").increment(1);
        }
    }

    fn run(&mut self) {
        let mut batch = Batch::new(DATAGRAM_MAX);
        while !self.shutdown.is_cancelled() {
            if let Err(error) = batch.receive(self.socket.as_fd()) {
                // Memory is short, say: the next try may do better.
                tracing::warn!(%error, "cannot receive");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let zone = self.handler.zone.load();
            for datagram in batch.iter_mut() {
                let tally = &mut self.tally;
                if datagram.cut {
                    too_long(datagram.bytes, tally, datagram.reply);
                    continue;
                }
                let transport = Transport::Udp;
                match self
                    .handler
                    .respond(&zone, datagram.bytes, transport, tally, datagram.reply)
                {
                    Outcome::Reply | Outcome::Silence => {}
                    Outcome::Later(later) => {
                        let handler = self.handler.clone();
                        spawn_later(&self.runtime, handler, self.socket.clone(), &datagram, later);
                    }
                }
            }
            batch.reply(self.socket.as_fd());
            self.tally.flush();
        }
    }
}

fn spawn_later(
    runtime: &Handle,
    handler: Arc<Handler>,
    socket: Arc<UdpSocket>,
    datagram: &Datagram<'_>,
    later: super::respond::Later,
) {
    let Some(peer) = datagram.peer() else { return };
    let message = datagram.bytes.to_vec();
    runtime.spawn(async move {
        let mut out = Vec::new();
        let ended = handler.finish(later, &message, Transport::Udp, &mut out).await;
        // A full send buffer means a lost datagram, not a stuck task.
        _ = SockRef::from(&*socket).send_to_with_flags(&out, &peer.into(), libc::MSG_DONTWAIT);
        if let (Some((domain, rcode)), Ok(address)) = (ended, socket.local_addr()) {
            let zone = handler.zone.load().apex().to_string();
            let mut tally = Tally::new(address, zone, Transport::Udp);
            tally.response(domain, rcode);
            tally.flush();
        }
    });
}
