//! UDP: each client of a frontend gets a socket towards its endpoint, for as long as datagrams come.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::AbortHandle;

use super::addresses::Hold;
use super::desired::Rules;
use super::front::{Chosen, Front};
use super::tcp::leave_by;

/// How long a client may be silent that has had no answer, and one that has: as conntrack's.
const IDLE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));
/// The largest datagram.
const DATAGRAM_MAX: usize = 65_536;

/// A client, and the address that it sends to.
type Peer = (SocketAddr, IpAddr);

/// A frontend's socket with its clients.
pub(crate) struct Desk {
    socket: UdpSocket,
    front: Arc<Front>,
    port: u16,
    clients: Mutex<HashMap<Peer, Client>>,
}

struct Client {
    line: Arc<Line>,
    task: AbortHandle,
}

/// The way to an endpoint.
struct Line {
    chosen: Chosen,
    socket: UdpSocket,
    used: Mutex<Instant>,
    answered: AtomicBool,
}

impl Desk {
    pub(crate) fn new(socket: UdpSocket, front: Arc<Front>, port: u16) -> Self {
        Self {
            socket,
            front,
            port,
            clients: Mutex::default(),
        }
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Peer, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New clients go by these; those whose endpoint is not among them are to choose again.
    pub(crate) fn direct(&self, rules: &Rules) {
        self.keep(|line| rules.has(line.chosen.at));
    }

    /// Forgets clients that are not to stay: what they send next is as from new ones.
    fn keep(&self, stays: impl Fn(&Line) -> bool) {
        // What they held goes when the lock is given back: that asks for other locks.
        let gone: Vec<(Peer, Client)> = {
            let mut clients = self.clients();
            clients.extract_if(|_, client| !stays(&client.line)).collect()
        };
        for (_, client) in &gone {
            client.task.abort();
        }
    }

    /// Forgets clients whenever policies deny them their endpoint.
    async fn heed(&self) {
        let Some(mut changes) = self.front.shared.changes() else {
            return std::future::pending().await;
        };
        while changes.changed().await.is_ok() {
            self.keep(|line| line.chosen.is_admitted());
        }
        std::future::pending().await
    }

    /// Relays until told to close. Then the clients are forgotten: what they send next may go another way.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut closing: watch::Receiver<Option<Duration>>,
        _address: Option<Hold>,
    ) {
        tokio::select! {
            biased;
            _ = closing.wait_for(Option::is_some) => {}
            () = self.heed() => {}
            () = self.receive() => {}
        }
        for (_, client) in self.clients().drain() {
            client.task.abort();
        }
    }

    async fn receive(self: &Arc<Self>) {
        while self.socket.readable().await.is_ok() {
            // Held only while there is something to put in: most sockets are silent.
            let mut buffer = vec![0; DATAGRAM_MAX];
            loop {
                let receive = || receive(&self.socket, &mut buffer);
                match self.socket.try_io(Interest::READABLE, receive) {
                    Ok((length, peer)) => self.forward(peer, &buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // About an earlier answer, to a client that has gone.
                    Err(error) => tracing::trace!(%error, "receive"),
                }
            }
        }
    }

    /// Sends a client's datagram on. One that can not be is lost, as datagrams may be.
    fn forward(self: &Arc<Self>, peer: Peer, datagram: &[u8]) {
        let known = self.clients().get(&peer).map(|client| client.line.clone());
        let Some(line) = known.or_else(|| self.admit(peer)) else {
            return;
        };
        line.touch();
        // Not by the runtime, which does not know yet that a new socket can be written to.
        if let Err(error) = SockRef::from(&line.socket).send(datagram) {
            tracing::trace!(%error, src.addr = %peer.0, "send to an endpoint");
        }
    }

    /// Chooses an endpoint for a new client.
    fn admit(self: &Arc<Self>, peer: Peer) -> Option<Arc<Line>> {
        let permit = self.front.shared.sessions.clone().try_acquire_owned().ok()?;
        let (client, local) = peer;
        // One that may go nowhere is lost without a word, as in the kernel.
        let chosen = self
            .front
            .choose(client.ip(), SocketAddr::new(local, self.port), &[])
            .ok()?;
        let line = match line_to(&chosen) {
            Ok(socket) => Arc::new(Line {
                chosen,
                socket,
                used: Mutex::new(Instant::now()),
                answered: AtomicBool::new(false),
            }),
            Err(error) => {
                tracing::debug!(%error, dst.addr = %chosen.at, "no socket towards an endpoint");
                return None;
            }
        };
        // Locked across the start, so that the task finds itself here when it ends.
        let mut clients = self.clients();
        let task = tokio::spawn(self.clone().answer(peer, line.clone(), permit)).abort_handle();
        clients.insert(
            peer,
            Client {
                line: line.clone(),
                task,
            },
        );
        drop(clients);
        // A change that came since it was chosen has found nobody to forget.
        if line.chosen.is_admitted() {
            return Some(line);
        }
        self.keep(|kept| !std::ptr::eq(kept, &*line));
        None
    }

    /// Sends answers back until there are none for a while.
    async fn answer(self: Arc<Self>, peer: Peer, line: Arc<Line>, _permit: OwnedSemaphorePermit) {
        loop {
            tokio::select! {
                ready = line.socket.readable() => {
                    if ready.is_err() || self.pass_back(peer, &line).is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep_until(line.deadline().into()) => {
                    if line.deadline() <= Instant::now() {
                        break;
                    }
                }
            }
        }
        self.clients().remove(&peer);
    }

    /// An error when the endpoint is gone.
    fn pass_back(&self, peer: Peer, line: &Line) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match line.socket.try_recv(&mut buffer) {
                Ok(length) => {
                    line.answered.store(true, Ordering::Relaxed);
                    line.touch();
                    if let Err(error) = send(&self.socket, peer, &buffer[..length]) {
                        tracing::trace!(%error, dst.addr = %peer.0, "send to a client");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Line {
    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn deadline(&self) -> Instant {
        let idle = if self.answered.load(Ordering::Relaxed) {
            IDLE.1
        } else {
            IDLE.0
        };
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) + idle
    }
}

fn line_to(chosen: &Chosen) -> io::Result<UdpSocket> {
    let at = chosen.at;
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking(), None)?;
    if let Some(source) = &chosen.from {
        leave_by(&socket, source.ip)?;
        socket.bind(&SocketAddr::new(source.ip, 0).into())?;
    }
    socket.connect(&at.into())?;
    UdpSocket::from_std(socket.into())
}

/// A datagram, who sent it, and to which address.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut vectors = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut vectors,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let client = message.address.as_ref().and_then(address_of);
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    match (client, local) {
        (Some(client), Some(local)) => Ok((message.bytes, (client, local))),
        _ => Err(io::Error::other("a datagram without addresses")),
    }
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|at| SocketAddrV4::from(*at).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|at| SocketAddrV6::from(*at).into()))
}

/// Sends to a client, from the address that it had sent to.
fn send(socket: &UdpSocket, (client, local): Peer, datagram: &[u8]) -> io::Result<()> {
    let to = SockaddrStorage::from(client);
    let vectors = [IoSlice::new(datagram)];
    let (v4, v6);
    let control = match local {
        IpAddr::V4(ip) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(ip.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(ip) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    sendmsg(
        socket.as_raw_fd(),
        &vectors,
        &[control],
        MsgFlags::MSG_DONTWAIT,
        Some(&to),
    )?;
    Ok(())
}
