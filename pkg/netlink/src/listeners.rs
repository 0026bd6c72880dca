//! Ports that programs of this host wait at: listening TCP sockets, and UDP sockets that are bound and not connected.
//! Numbers as in `include/uapi/linux/sock_diag.h`, `inet_diag.h` and `include/net/tcp_states.h`.

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::exchange::{Exchange, Failure};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const TCP_LISTEN: u32 = 10;
/// An unconnected socket of UDP.
const TCP_CLOSE: u32 = 7;
/// `struct inet_diag_msg` up to the end of `idiag_inode`.
const MESSAGE_LENGTH: usize = 72;
const HEADER_LENGTH: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST_LENGTH: usize = 56;

/// Protocol of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A socket that waits for whoever comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port, in host byte order.
    pub port: u16,
    /// Its inode, by which `/proc/PID/fd` names it.
    pub inode: u32,
}

/// The kernel does not tell.
#[derive(Debug, thiserror::Error)]
#[error("list the sockets that listen: {0}")]
pub struct Error(String);

/// All sockets of the calling thread's network namespace that wait for whoever comes, at any address of either family.
///
/// # Errors
/// When the kernel lacks `sock_diag` or refuses.
pub fn list() -> Result<BTreeSet<Listener>, Error> {
    let mut socket = Exchange::open(NETLINK_SOCK_DIAG).map_err(|error| Error(error.to_string()))?;
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, number, state) in [
            (Protocol::Tcp, libc::IPPROTO_TCP, TCP_LISTEN),
            (Protocol::Udp, libc::IPPROTO_UDP, TCP_CLOSE),
        ] {
            let mut request = request(family, number, state);
            // A list that changes meanwhile is a list of a moment nearby: it is asked for again before long.
            socket
                .dump_once(&mut request, |body| found.extend(read(body, protocol)))
                .map_err(|failure| Error(describe(failure)))?;
        }
    }
    Ok(found)
}

fn describe(failure: Failure) -> String {
    match failure {
        Failure::Send { source, .. } | Failure::Receive(source) => source.to_string(),
        Failure::Refused { errno, detail, .. } => detail.unwrap_or_else(|| errno.to_string()),
    }
}

fn request(family: i32, protocol: i32, state: u32) -> Vec<u8> {
    let length = HEADER_LENGTH + REQUEST_LENGTH;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // The number is put in when it is sent.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol].map(|n| u8::try_from(n).unwrap_or_default()));
    bytes.extend([0; 2]);
    bytes.extend((1u32 << state).to_ne_bytes());
    bytes.resize(length, 0);
    bytes
}

fn read(body: &[u8], protocol: Protocol) -> Option<Listener> {
    let message: &[u8; MESSAGE_LENGTH] = body.first_chunk()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let inode = u32::from_ne_bytes([message[68], message[69], message[70], message[71]]);
    (port != 0).then_some(Listener {
        protocol,
        port,
        inode,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_listens_is_listed_and_what_is_connected_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::1]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(udp.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let all = list().unwrap();
        let has =
            |protocol: Protocol, port: u16| all.iter().any(|l| (l.protocol, l.port) == (protocol, port));
        assert!(has(Protocol::Tcp, tcp.local_addr().unwrap().port()));
        assert!(has(Protocol::Tcp, tcp6.local_addr().unwrap().port()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap().port()));
        assert!(!has(Protocol::Udp, connected.local_addr().unwrap().port()));
        assert!(!has(Protocol::Tcp, client.local_addr().unwrap().port()));
        let inode = std::fs::read_dir("/proc/self/fd").unwrap().find_map(|fd| {
            let to = std::fs::read_link(fd.ok()?.path()).ok()?;
            let text = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            let inode: u32 = text.parse().ok()?;
            all.iter()
                .any(|l| l.inode == inode && l.protocol == Protocol::Tcp)
                .then_some(inode)
        });
        assert!(inode.is_some(), "ours are among them, by inode");
    }
}
