//! The socket that heartbeats leave from and arrive at.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::UdpSocket;

/// Room for the lists of many peers at once.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Heartbeats go first where queues are full: class 6, "internetwork control".
const TRAFFIC_CLASS: u32 = 0xc0;

/// The heartbeat socket.
pub(crate) struct Beats {
    address: SocketAddr,
    socket: UdpSocket,
}

impl Beats {
    /// Opens the socket on an address of this node.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
        // The address may not be there yet, or go and come back; heartbeats must leave from it all the same.
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
            socket.set_tos_v4(TRAFFIC_CLASS)?;
        } else {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
            socket.set_tclass_v6(TRAFFIC_CLASS)?;
        }
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { address, socket })
    }

    /// Where heartbeats leave from and arrive.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a datagram to a peer. Never waits for room: a beat that is late is of no use. Past tokio, whose sockets
    /// refuse to send before they have once been polled: the first beat matters.
    pub(crate) fn send(&self, data: &[u8], peer: IpAddr) -> io::Result<()> {
        let target = SocketAddr::new(peer, self.address.port());
        SockRef::from(&self.socket)
            .send_to(data, &target.into())
            .map(drop)
    }
}

/// Waits for a datagram; without a socket, for ever. Gives its length and sender.
pub(crate) async fn receive(beats: Option<&Beats>, buffer: &mut [u8]) -> (usize, IpAddr) {
    let Some(beats) = beats else {
        return std::future::pending().await;
    };
    loop {
        // Errors are answers of the network to earlier beats: a peer that is not up yet refuses them.
        if let Ok((length, from)) = beats.socket.recv_from(buffer).await {
            return (length, from.ip());
        }
    }
}
