//! Opening sockets for frontends.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};
use svcnet_netlink::nft::Family;

use super::door::Door;
use crate::model::{FrontendKey, Protocol};

/// Connections that may wait to be taken; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Of the files that may be open, the rest of the process has so many.
const FILES_OTHER: u64 = 512;

/// Where a frontend listens; at none, where a node port is to answer on addresses that the node does not have.
pub(crate) fn places(key: FrontendKey, door: &Door) -> Vec<SocketAddr> {
    let family = key.family();
    let at: Vec<IpAddr> = match (key, &door.at) {
        (FrontendKey::Address { ip, .. }, _) => vec![ip],
        (FrontendKey::NodePort { .. }, Some(at)) => at
            .iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .collect(),
        (FrontendKey::NodePort { .. }, None) => vec![match family {
            Family::Ip => [0; 4].into(),
            Family::Ip6 => [0; 16].into(),
        }],
    };
    at.into_iter().map(|ip| SocketAddr::new(ip, key.port())).collect()
}

/// A socket for a frontend, bound, and listening if it is of TCP. With `anywhere` the address need not be there.
pub(crate) fn open(key: FrontendKey, at: SocketAddr, door: &Door, anywhere: bool) -> io::Result<Socket> {
    let kind = match key.protocol() {
        Protocol::Udp => Type::DGRAM,
        Protocol::Tcp | Protocol::Sctp => Type::STREAM,
    };
    let socket = Socket::new(Domain::for_address(at), kind.nonblocking(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(anywhere)?;
    } else {
        socket.set_freebind_v4(anywhere)?;
    }
    socket.set_reuse_address(true)?;
    // A node port and the same port of an address beside each other, and a socket that is closing beside its heir.
    socket.set_reuse_port(true)?;
    guard(&socket, door, at.is_ipv6())?;
    socket.bind(&at.into())?;
    if kind == Type::DGRAM {
        // An answer leaves with the address that the question came to.
        if at.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
    } else {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// Sets who is let in.
pub(crate) fn guard<'a>(socket: impl Into<SockRef<'a>>, door: &Door, ipv6: bool) -> io::Result<()> {
    let socket = socket.into();
    match door.filter(ipv6) {
        Some(filter) => socket.attach_filter(&filter),
        None => match socket.detach_filter() {
            // None is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    }
}

/// How the files that this process may open are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Frontends with a socket.
    pub(crate) sockets: usize,
    /// TCP connections, of two sockets each.
    pub(crate) connections: usize,
    /// UDP clients.
    pub(crate) sessions: usize,
    /// TCP connections that may go nowhere, of one socket each.
    pub(crate) waiting: usize,
}

impl Limits {
    /// Half for frontends, a quarter each for TCP and UDP; of UDP's, a part for connections that wait.
    fn of(files: u64) -> Self {
        let quarter = usize::try_from(files.saturating_sub(FILES_OTHER) / 4).unwrap_or(usize::MAX / 4);
        let waiting = quarter / 10;
        Self {
            sockets: quarter * 2,
            connections: quarter / 2,
            sessions: quarter - waiting,
            waiting,
        }
    }

    /// Asks the kernel for as many files as it gives.
    pub(crate) fn raise() -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        // More than this many sockets are more memory than a host of this kind has.
        let most = hard.min(1 << 20);
        if soft < most && setrlimit(Resource::RLIMIT_NOFILE, most, hard).is_ok() {
            return Self::of(most);
        }
        Self::of(soft.min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_out() {
        let limits = Limits::of(20_512);
        assert_eq!(
            limits,
            Limits {
                sockets: 10_000,
                connections: 2_500,
                sessions: 4_500,
                waiting: 500,
            }
        );
        assert_eq!(Limits::of(100).sockets, 0);
    }
}
