//! Taking an address and port.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::holder::{Holder, holders};

/// Datagrams that may wait: a burst of every pod of a node at once.
const RECEIVE_BUFFER: usize = 2 << 20;
const BACKLOG: i32 = 1024;

/// The sockets of one address.
pub(super) struct Sockets {
    pub(super) udp: Vec<std::net::UdpSocket>,
    pub(super) tcp: std::net::TcpListener,
}

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    /// Somebody else has it.
    #[error("{address} is taken{}", by(holders))]
    Busy {
        /// What was wanted.
        address: SocketAddr,
        /// Who may hold it.
        holders: Vec<Holder>,
    },
    /// The host does not have the address.
    #[error("this host does not have the address {0}")]
    NoAddress(SocketAddr),
    /// The kernel refuses.
    #[error("cannot listen at {address}: {error}")]
    Other {
        /// What was wanted.
        address: SocketAddr,
        /// What the kernel says.
        error: io::Error,
    },
}

fn by(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return ", by a process that cannot be told".to_string();
    }
    let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
    format!(" by {}", names.join(" and "))
}

/// Binds an address for TCP and, `threads` times, for UDP.
///
/// TCP goes first and is not shared: it keeps a second server of ours from taking half of the datagrams in silence,
/// which sharing the UDP port would let it do.
pub(super) fn bind(address: SocketAddr, threads: usize) -> Result<Sockets, BindError> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::Busy {
            address,
            holders: holders(address),
        },
        io::ErrorKind::AddrNotAvailable => BindError::NoAddress(address),
        _ => BindError::Other { address, error },
    };
    let tcp = tcp(address).map_err(refused)?;
    // Port 0, of tests: UDP gets the port that TCP was given.
    let address = tcp.local_addr().map_err(refused)?;
    let udp: Result<Vec<_>, io::Error> = (0..threads.max(1)).map(|_| udp(address)).collect();
    Ok(Sockets {
        udp: udp.map_err(refused)?,
        tcp,
    })
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    // Connections of a predecessor that linger do not matter.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Beyond net.core.rmem_max, as root may; else as much as that.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_had_once_and_the_holder_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = first.tcp.local_addr().unwrap();
        assert_eq!(first.udp.len(), 2);
        assert!(
            first
                .udp
                .iter()
                .all(|socket| socket.local_addr().unwrap() == address)
        );
        let Err(error) = bind(address, 2) else {
            panic!("bound twice")
        };
        let wanted = format!("(pid {}, {address}/tcp)", std::process::id());
        assert!(
            error.to_string().starts_with(&format!("{address} is taken by ")),
            "{error}"
        );
        assert!(error.to_string().contains(&wanted), "{error}");
        drop(first);
        assert!(bind(address, 1).is_ok());
    }

    #[test]
    fn an_address_that_is_not_there_is_told() {
        let Err(error) = bind("192.0.2.1:0".parse().unwrap(), 1) else {
            panic!("bound")
        };
        assert_eq!(
            error.to_string(),
            "this host does not have the address 192.0.2.1:0"
        );
    }
}
