//! IPVS, the kernel's load balancer, over generic netlink: no `ipvsadm`, no library. Numbers as in
//! `include/uapi/linux/ip_vs.h`.
//!
//! - [`Service`] and [`Destination`] are values; [`Op`] is one change, and prints itself.
//! - [`Socket::apply`] carries changes out, in their order; there are no transactions.
//! - [`Socket::services`] and [`Socket::destinations`] read back.
//!
//! Three surprises of the kernel that shape callers:
//! - A connection to a destination that was deleted gets no packet through any more; one of weight zero keeps its
//!   connections and gets no new ones.
//! - The schedulers `sh` and `dh` send clients to destinations of weight zero too, and drop them there; [`Flags::SCHED_1`]
//!   makes `sh` (and `mh`) take another one.
//! - IPVS tells nobody of changes: who wants to know must look again.

mod codec;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use crate::genl::Error;
use crate::genl::{self, NLM_F_ACK};
use crate::nft::Family;

/// Requests that go to the kernel at once. Each can be answered by an error of a few hundred bytes, all of which must
/// fit into the receive buffer.
const REQUESTS_AT_ONCE: usize = 64;

/// Reads the body of a message as each thing that is asked for.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(body: &[u8]) {
    _ = (codec::read_info(body), codec::read_timeouts(body));
    if let Some(service) = codec::read_service(body) {
        codec::get_destinations(1, service.identity);
        codec::op(1, &Op::AddService(service), 0);
    }
    for family in [Family::Ip, Family::Ip6] {
        _ = codec::read_destination(body, family);
    }
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Virtual {
    /// The address.
    pub ip: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = SocketAddr::new(self.ip, self.port);
        match self.protocol {
            6 => write!(f, "{at} tcp"),
            17 => write!(f, "{at} udp"),
            132 => write!(f, "{at} sctp"),
            other => write!(f, "{at} protocol {other}"),
        }
    }
}

/// What packets a service takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// Those to an address and port.
    Address(Virtual),
    /// Those with a firewall mark.
    Mark {
        /// The family of their addresses.
        family: Family,
        /// The mark.
        mark: u32,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => at.fmt(f),
            Self::Mark { family, mark } => write!(f, "{family} mark {mark:#x}"),
        }
    }
}

/// What a scheduler is told beside its name (`IP_VS_SVC_F_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// One packet is one connection (UDP).
    pub const ONE_PACKET: Self = Self(0x4);
    /// For `sh` and `mh`: take another destination when the one that the hash says takes nobody.
    pub const SCHED_1: Self = Self(0x8);
    /// For `sh` and `mh`: the client's port counts too.
    pub const SCHED_2: Self = Self(0x10);
    /// What is not said by the kernel about itself, nor by [`Service::persistence`].
    const SETTABLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;

    /// Whether all of these are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Clients stay with their destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// How long after their last connection.
    pub seconds: u32,
    /// How many bits of a client's address count.
    pub prefix: u8,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// What packets it takes.
    pub identity: Identity,
    /// How a destination is chosen, as in `ipvsadm -s`. The kernel loads the module of that name.
    pub scheduler: Cow<'static, str>,
    /// What the scheduler is told.
    pub flags: Flags,
    /// How long clients stay, if they do.
    pub persistence: Option<Persistence>,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.identity, self.scheduler)?;
        if self.flags != Flags::default() {
            write!(f, " flags {:#x}", self.flags.0)?;
        }
        match self.persistence {
            Some(Persistence { seconds, prefix }) => write!(f, ", clients (/{prefix}) stay {seconds} s"),
            None => Ok(()),
        }
    }
}

/// How packets get to a destination (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Their destination is replaced, and the answers come back through here.
    Masquerade,
    /// To this host itself.
    Local,
    /// In a tunnel.
    Tunnel,
    /// As they are, to the destination's Ethernet address.
    Route,
    /// Past the cache.
    Bypass,
}

/// Where a service sends connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Its address and port.
    pub at: SocketAddr,
    /// How packets get there.
    pub forward: Forward,
    /// Its share of new connections; zero takes none.
    pub weight: u32,
    /// With so many connections it takes no more; zero is no bound.
    pub upper: u32,
    /// Below so many it takes them again.
    pub lower: u32,
}

impl Destination {
    /// One behind address translation, without bounds.
    pub fn masquerade(at: SocketAddr, weight: u32) -> Self {
        Self {
            at,
            forward: Forward::Masquerade,
            weight,
            upper: 0,
            lower: 0,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} weight {}", self.at, self.weight)
    }
}

/// The connections of a destination. The kernel's counters lag a moment behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Connections {
    /// Established.
    pub active: u32,
    /// All others: beginning, ending.
    pub inactive: u32,
    /// Clients that stay.
    pub persistent: u32,
}

/// What the kernel says of its load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its version, as major, minor, patch.
    pub version: (u8, u8, u8),
    /// Size of the connection table.
    pub table_size: u32,
}

/// How long idle connections are kept, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Adds a service; it must not be there.
    AddService(Service),
    /// Changes what a service does; its destinations and connections stay.
    SetService(Service),
    /// Removes a service with its destinations.
    DeleteService(Identity),
    /// Adds a destination to a service; it must not be there.
    AddDestination(Identity, Destination),
    /// Changes a destination.
    SetDestination(Identity, Destination),
    /// Removes a destination.
    DeleteDestination(Identity, SocketAddr),
}

impl Op {
    /// The service that it is about.
    pub fn identity(&self) -> Identity {
        match self {
            Self::AddService(service) | Self::SetService(service) => service.identity,
            Self::DeleteService(identity)
            | Self::AddDestination(identity, _)
            | Self::SetDestination(identity, _)
            | Self::DeleteDestination(identity, _) => *identity,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add service {service}"),
            Self::SetService(service) => write!(f, "set service {service}"),
            Self::DeleteService(identity) => write!(f, "delete service {identity}"),
            Self::AddDestination(identity, to) => write!(f, "add destination {to} of {identity}"),
            Self::SetDestination(identity, to) => write!(f, "set destination {to} of {identity}"),
            Self::DeleteDestination(identity, at) => write!(f, "delete destination {at} of {identity}"),
        }
    }
}

/// A socket to IPVS, in the network namespace of the thread that opened it.
pub struct Socket {
    socket: genl::Socket,
    family: u16,
}

impl Socket {
    /// Opens one; nothing when the kernel has no IPVS (a module that is not loaded counts as none).
    ///
    /// # Errors
    /// When the system has no more sockets.
    pub fn open() -> Result<Option<Self>, Error> {
        let mut socket = genl::Socket::open()?;
        let family = socket.family(codec::FAMILY)?;
        Ok(family.map(|family| Self { socket, family }))
    }

    /// What the kernel says of its load balancer.
    ///
    /// # Errors
    /// When permission is lacking.
    pub fn info(&mut self) -> Result<Info, Error> {
        let request = codec::get(self.family, codec::GET_INFO, NLM_F_ACK);
        let mut info = None;
        self.socket.ask(
            request,
            || "tell about IPVS".into(),
            |body| info = codec::read_info(body),
        )?;
        info.ok_or_else(|| unreadable("what IPVS says of itself"))
    }

    /// How long idle connections are kept.
    ///
    /// # Errors
    /// When permission is lacking.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let request = codec::get(self.family, codec::GET_CONFIG, NLM_F_ACK);
        let mut timeouts = None;
        self.socket.ask(
            request,
            || "tell the timeouts of IPVS".into(),
            |body| {
                timeouts = codec::read_timeouts(body);
            },
        )?;
        timeouts.ok_or_else(|| unreadable("the timeouts of IPVS"))
    }

    /// Sets how long idle connections are kept.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let request = codec::set_timeouts(self.family, timeouts);
        self.socket
            .ask(request, || "set the timeouts of IPVS".into(), |_| {})
    }

    /// All services.
    ///
    /// # Errors
    /// When permission is lacking.
    pub fn services(&mut self) -> Result<Vec<Service>, Error> {
        let request = codec::get(self.family, codec::GET_SERVICE, genl::NLM_F_DUMP);
        let found = std::cell::RefCell::new(Vec::new());
        self.socket.dump(
            &request,
            || "list services".into(),
            || found.borrow_mut().clear(),
            |body| found.borrow_mut().extend(codec::read_service(body)),
        )?;
        Ok(found.into_inner())
    }

    /// The destinations of a service; none when there is no such service.
    ///
    /// # Errors
    /// When permission is lacking.
    pub fn destinations(&mut self, of: Identity) -> Result<Vec<(Destination, Connections)>, Error> {
        let request = codec::get_destinations(self.family, of);
        let family = codec::family_of(of);
        let found = std::cell::RefCell::new(Vec::new());
        self.socket.dump(
            &request,
            || format!("list destinations of {of}"),
            || found.borrow_mut().clear(),
            |body| found.borrow_mut().extend(codec::read_destination(body, family)),
        )?;
        Ok(found.into_inner())
    }

    /// Carries changes out, in order, and says how many bytes that took. What comes after one that the kernel refuses
    /// may be done all the same.
    ///
    /// # Errors
    /// The first that the kernel refuses.
    pub fn apply(&mut self, ops: &[Op]) -> Result<usize, Error> {
        let mut bytes = 0;
        for chunk in ops.chunks(REQUESTS_AT_ONCE) {
            let last = chunk.len() - 1;
            let requests = chunk.iter().enumerate().map(|(index, op)| {
                let flags = if index == last { NLM_F_ACK } else { 0 };
                codec::op(self.family, op, flags)
            });
            let requests: Vec<Vec<u8>> = requests.collect();
            bytes += self.socket.request_all(&requests, |index| {
                chunk.get(index).map_or_else(String::new, Op::to_string)
            })?;
        }
        Ok(bytes)
    }
}

fn unreadable(what: &'static str) -> Error {
    Error::Receive(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        format!("{what} lacks what it should hold"),
    ))
}
