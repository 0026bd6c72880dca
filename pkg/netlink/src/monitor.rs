//! Notifications of changes to links, addresses, routes and neighbours, whoever makes them.
//!
//! They say that something changed, for reconcilers to look again: when the socket overflows the kernel drops some,
//! which is reported as [`Event::Lost`].
//!
//! [`Monitor`] is for async code, [`Listener`] for threads that poll.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::addr::Address;
use crate::link::{Link, Mac};
use crate::local;
use crate::neigh::{self, FdbEntry, Neighbour};
use crate::route::Route;
use crate::rt::{Error, Frame, Refusal};

/// Longer than any notification.
const BUFFER_BYTES: usize = 16 * 1024;

/// Groups of notifications (`RTNLGRP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Links come, change and go.
    Link,
    /// Addresses of both families.
    Address,
    /// Routes of both families.
    Route,
    /// Neighbours and forwarding entries.
    Neighbour,
}

impl Group {
    fn numbers(self) -> &'static [u32] {
        match self {
            Self::Link => &[1],
            Self::Neighbour => &[3],
            Self::Address => &[5, 9],
            Self::Route => &[7, 11],
        }
    }
}

/// Whether the object is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// New or changed.
    Set,
    /// Gone.
    Deleted,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Of a link.
    Link(Happened, Box<Link>),
    /// Of an address.
    Address(Happened, Address),
    /// Of a unicast route of the main table.
    Route(Happened, Route),
    /// An address that svcnet had made local ([`crate::local`]) is so no longer.
    LocalDeleted(IpAddr),
    /// Of a neighbour, by link and address: set when it is permanent now, with its Ethernet address, deleted when it is
    /// not or no more.
    Neighbour(Happened, u32, IpAddr, Option<Mac>),
    /// Of a forwarding entry with a tunnel endpoint.
    Fdb(Happened, FdbEntry),
    /// Changes were lost: look at everything again.
    Lost,
}

impl Event {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        use Happened::{Deleted, Set};
        use RouteNetlinkMessage as M;
        match message {
            // A bridge speaks of its ports in messages of its own family: no link comes or goes with them.
            M::NewLink(m) | M::DelLink(m) if m.header.interface_family == AddressFamily::Bridge => None,
            M::NewLink(m) => Some(Self::Link(Set, Box::new(Link::from_message(&m)))),
            M::DelLink(m) => Some(Self::Link(Deleted, Box::new(Link::from_message(&m)))),
            M::NewAddress(m) => Address::from_message(&m).map(|a| Self::Address(Set, a)),
            M::DelAddress(m) => Address::from_message(&m).map(|a| Self::Address(Deleted, a)),
            M::NewRoute(m) => Route::from_message(&m).map(|r| Self::Route(Set, r)),
            M::DelRoute(m) => match local::address_of(local::LocalFor::Relays, &m) {
                Some(address) => Some(Self::LocalDeleted(address)),
                None => Route::from_message(&m).map(|r| Self::Route(Deleted, r)),
            },
            M::NewNeighbour(m) => match FdbEntry::from_message(&m) {
                Some(entry) => Some(Self::Fdb(Set, entry)),
                None => {
                    let mac = Neighbour::from_message(&m).map(|neighbour| neighbour.mac);
                    let happened = if mac.is_some() { Set } else { Deleted };
                    address_of(&m).map(|address| Self::Neighbour(happened, m.header.ifindex, address, mac))
                }
            },
            M::DelNeighbour(m) => match FdbEntry::from_message(&m) {
                Some(entry) => Some(Self::Fdb(Deleted, entry)),
                None => {
                    address_of(&m).map(|address| Self::Neighbour(Deleted, m.header.ifindex, address, None))
                }
            },
            _ => None,
        }
    }
}

fn address_of(message: &NeighbourMessage) -> Option<IpAddr> {
    if message.header.family == AddressFamily::Bridge {
        None
    } else {
        neigh::destination(message)
    }
}

fn subscribe(groups: &[Group]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for number in groups.iter().flat_map(|g| g.numbers()) {
        socket.add_membership(*number)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The changes of one datagram.
pub(crate) fn events(mut rest: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((frame, next)) = Frame::split(rest) {
        rest = next;
        events.extend(frame.decode().and_then(Event::from_message));
    }
    events
}

/// A subscription that is read when its descriptor says so, without a runtime.
pub struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Listener {
    /// Subscribes in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no more sockets.
    pub fn open(groups: &[Group]) -> Result<Self, Error> {
        let socket = subscribe(groups)
            .map_err(|e| Refusal::from(e).about("subscribe to", "changes of the network"))?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Hands what has happened since the last call to `each`; does not wait.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> Result<(), Error> {
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => match self.buffer.get(..length) {
                    Some(datagram) => events(datagram).into_iter().for_each(&mut each),
                    None => each(Event::Lost),
                },
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => each(Event::Lost),
                Err(errno) => {
                    let error = Refusal::from(io::Error::from(errno));
                    return Err(error.about("hear of", "changes of the network"));
                }
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A subscription, to be read within a tokio runtime.
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no more sockets.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open(groups: &[Group]) -> Result<Self, Error> {
        let open = || -> io::Result<AsyncFd<Socket>> {
            let socket = subscribe(groups)?;
            // SAFETY: the socket owns its descriptor, which stays open and the same until it is dropped, and it is
            // dropped with this AsyncFd.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
        };
        let socket = open().map_err(|e| Refusal::from(e).about("subscribe to", "changes of the network"))?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// The next changes: at least one.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|fd| {
                let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
                recv(fd.as_raw_fd(), buffer, flags).map_err(io::Error::from)
            });
            let length = match read {
                Err(_would_block) => continue,
                Ok(Ok(length)) => length,
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(vec![Event::Lost]);
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(e)) => return Err(e),
            };
            let Some(datagram) = self.buffer.get(..length) else {
                return Ok(vec![Event::Lost]);
            };
            let events = events(datagram);
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}
