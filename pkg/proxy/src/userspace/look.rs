//! Looking at relays from beside the process that has them: the addresses that were made local for them, and the sockets
//! that listen there.
//!
//! Where a relay sends its connections is known to its process alone: only that it is there can be seen.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use svcnet_netlink::Rtnl;
use svcnet_netlink::local::LocalFor;

use super::Error;
use super::desired::{Desired, Wanted, listen_at, wanted};
use super::sockets;
use crate::model::{Frontend, FrontendKey, Protocol};

/// The kernel's lists of sockets, of the thread's network namespace: protocol, and the state of those that take what
/// comes (`TCP_LISTEN`, and `TCP_CLOSE` for a UDP socket that is connected to nobody).
const LISTS: [(&str, Protocol, &str); 4] = [
    ("/proc/thread-self/net/tcp", Protocol::Tcp, "0A"),
    ("/proc/thread-self/net/tcp6", Protocol::Tcp, "0A"),
    ("/proc/thread-self/net/udp", Protocol::Udp, "07"),
    ("/proc/thread-self/net/udp6", Protocol::Udp, "07"),
];

/// A place where a socket takes what comes.
pub type Listening = (Protocol, SocketAddr);

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Addresses that were made local for relays.
    pub placed: BTreeSet<IpAddr>,
    /// Addresses that this host has by itself.
    pub own: BTreeSet<IpAddr>,
    /// Sockets that take what comes, whoever has them.
    pub listening: BTreeSet<Listening>,
    /// Addresses with TCP connections, which keep them.
    pub connected: BTreeSet<IpAddr>,
}

/// Looks.
///
/// # Errors
/// When the kernel can not be asked.
pub fn see() -> Result<Seen, Error> {
    let mut links = Rtnl::open()?;
    let own = links.addresses(None)?.into_iter();
    let mut seen = Seen {
        placed: links.local_addresses(LocalFor::Relays)?.into_iter().collect(),
        own: own.map(|address| address.net.addr()).collect(),
        ..Seen::default()
    };
    for (path, protocol, takes) in LISTS {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::Sockets(error)),
        };
        for (at, state) in text.lines().skip(1).filter_map(socket) {
            if state == takes {
                seen.listening.insert((protocol, at));
            } else if protocol == Protocol::Tcp {
                seen.connected.insert(at.ip());
            }
        }
    }
    Ok(seen)
}

/// Address and state of a socket in a line of the kernel's list (`tcp4_seq_show`): the number, the address as words of the
/// host's byte order, the peer's, the state.
fn socket(line: &str) -> Option<(SocketAddr, &str)> {
    let mut words = line.split_whitespace();
    let at = words.nth(1)?;
    let state = words.nth(1)?;
    let (ip, port) = at.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = if ip.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let mut bytes = [0; 16];
        for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
            chunk.copy_from_slice(&word(index)?);
        }
        Ipv6Addr::from(bytes).into()
    };
    Some((SocketAddr::new(ip, port), state))
}

/// What would have to be done for sockets to be as they should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Make an address local.
    Place(IpAddr),
    /// Give an address up.
    Release(IpAddr),
    /// Listen for a frontend.
    Open(FrontendKey),
    /// Listen no more: no frontend is there, or none with endpoints.
    Close(Protocol, SocketAddr),
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Place(ip) => write!(f, "place {ip}"),
            Self::Release(ip) => write!(f, "release {ip}"),
            Self::Open(key) => write!(f, "open {key}"),
            Self::Close(protocol, at) => write!(f, "close {at} {protocol}"),
        }
    }
}

/// What differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// What there is to do.
    pub operations: Vec<Operation>,
    /// Frontends that this mode can not serve, and why.
    pub impossible: Vec<(FrontendKey, &'static str)>,
}

impl Difference {
    /// What there is to do for a frontend, or why nothing can be.
    pub fn of(&self, key: FrontendKey) -> Vec<String> {
        let at = match key {
            FrontendKey::Address { ip, .. } => Some(ip),
            FrontendKey::NodePort { .. } => None,
        };
        let concerns = |operation: &&Operation| match operation {
            Operation::Place(ip) | Operation::Release(ip) => at == Some(*ip),
            Operation::Open(other) => *other == key,
            Operation::Close(protocol, place) => {
                *protocol == key.protocol() && place.port() == key.port() && at == Some(place.ip())
            }
        };
        let impossible = self.impossible.iter().filter(|(other, _)| *other == key);
        let operations = self.operations.iter().filter(concerns).map(ToString::to_string);
        operations
            .chain(impossible.map(|(_, why)| (*why).to_string()))
            .collect()
    }
}

/// Compares; `node_ports` are the networks of addresses that node ports answer on, if not all.
pub fn diff(
    frontends: impl IntoIterator<Item = Frontend>,
    seen: &Seen,
    pods: &[IpNet],
    node_ports: Option<&[IpNet]>,
) -> Difference {
    let mut desired = Desired::default();
    let node_ports = node_ports.map(|networks| listen_at(networks, seen.own.iter().copied()));
    let node_ports = node_ports.as_deref();
    for frontend in frontends {
        desired.set(frontend.key, Some(wanted(&frontend, pods, node_ports)));
    }
    let mut difference = Difference::default();
    let mut listen = BTreeSet::new();
    let missing = desired
        .addresses
        .keys()
        .filter(|ip| !seen.placed.contains(ip) && !seen.own.contains(ip));
    difference
        .operations
        .extend(missing.map(|ip| Operation::Place(*ip)));
    for (key, wanted) in &desired.wanted {
        match wanted {
            Wanted::Relay { door, .. } => {
                let places = sockets::places(*key, door).into_iter();
                let places: Vec<Listening> = places.map(|at| (key.protocol(), at)).collect();
                if !places.iter().all(|place| seen.listening.contains(place)) {
                    difference.operations.push(Operation::Open(*key));
                }
                listen.extend(places);
            }
            Wanted::Nobody => {}
            Wanted::Impossible(why) => difference.impossible.push((*key, *why)),
        }
    }
    // At other addresses the host's own programs listen.
    let relays = |ip: &IpAddr| seen.placed.contains(ip) && !seen.own.contains(ip);
    let needless = seen.listening.iter().filter(|(_, at)| relays(&at.ip()));
    let needless = needless.filter(|at| !listen.contains(at));
    difference
        .operations
        .extend(needless.map(|(protocol, at)| Operation::Close(*protocol, *at)));
    let stays = |ip: &&IpAddr| desired.addresses.contains_key(ip) || seen.connected.contains(ip);
    let released = seen.placed.iter().filter(|ip| !stays(ip));
    difference
        .operations
        .extend(released.map(|ip| Operation::Release(*ip)));
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_sockets_is_read() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0101600A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0
   1: 000000FD000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0 0
";
        let found: Vec<_> = list.lines().skip(1).filter_map(socket).collect();
        if cfg!(target_endian = "little") {
            assert_eq!(found[0], ("10.96.1.1:80".parse().unwrap(), "0A"));
            assert_eq!(found[1], ("[fd00::1]:53".parse().unwrap(), "07"));
        }
        assert_eq!(found.len(), 2);
    }
}
