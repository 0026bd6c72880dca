//! Who answers at an address over TCP and UDP, and where the first packet of an SCTP association arrives: not every kernel
//! has sockets for SCTP, and the tables need none.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use svcnet_netlink::netns::NetNs;

/// Generous: machines can be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Silence that counts as having been dropped.
const SILENCE: Duration = Duration::from_millis(1500);
const SCTP: i32 = 132;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    fn socket(self, domain: Domain) -> Socket {
        let (kind, protocol) = match self {
            Self::Tcp => (Type::STREAM, Protocol::TCP),
            Self::Udp => (Type::DGRAM, Protocol::UDP),
        };
        Socket::new(domain, kind, Some(protocol)).unwrap()
    }
}

/// Answers with its name and the asker's address until it is dropped.
pub(crate) struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    pub(crate) fn start(ns: &NetNs, transport: Transport, port: u16, name: &str) -> Self {
        Self::start_at(ns, transport, (Ipv6Addr::UNSPECIFIED, port).into(), name)
    }

    pub(crate) fn start_at(ns: &NetNs, transport: Transport, at: SocketAddr, name: &str) -> Self {
        let socket = ns.run(|| {
            let socket = transport.socket(Domain::for_address(at));
            if at.is_ipv6() {
                socket.set_only_v6(false).unwrap();
            }
            socket.bind(&at.into()).unwrap();
            if transport != Transport::Udp {
                socket.listen(16).unwrap();
            }
            socket
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (its_stop, name) = (Arc::clone(&stop), name.to_string());
        let thread = thread::spawn(move || {
            while !its_stop.load(Ordering::SeqCst) {
                let _ = answer_one(&socket, transport, &name);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

fn answer_one(socket: &Socket, transport: Transport, name: &str) -> io::Result<()> {
    let text = |from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
    if transport == Transport::Udp {
        let mut bytes = [std::mem::MaybeUninit::uninit(); 64];
        let (_, from) = socket.recv_from(&mut bytes)?;
        let answer = text(from.as_socket().unwrap());
        return socket.send_to(answer.as_bytes(), &from).map(drop);
    }
    let (mut peer, from) = socket.accept()?;
    peer.write_all(text(from.as_socket().unwrap()).as_bytes())
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The name of who answers, and whom they see.
pub(crate) fn ask(ns: &NetNs, transport: Transport, to: &str) -> Result<(String, IpAddr), io::ErrorKind> {
    ask_within(ns, transport, to, PATIENCE)
}

/// What is dropped is known by the silence.
pub(crate) fn is_silent(ns: &NetNs, transport: Transport, to: &str) -> bool {
    let kind = ask_within(ns, transport, to, SILENCE).unwrap_err();
    matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn ask_within(
    ns: &NetNs,
    transport: Transport,
    to: &str,
    patience: Duration,
) -> Result<(String, IpAddr), io::ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let asking = || {
        let socket = transport.socket(Domain::for_address(to));
        socket.set_read_timeout(Some(patience))?;
        socket.connect_timeout(&to.into(), patience)?;
        exchange(&socket)
    };
    ns.run(asking).unwrap().map_err(|e| e.kind())
}

/// Asks over a socket that is connected.
pub(crate) fn exchange(mut socket: &Socket) -> io::Result<(String, IpAddr)> {
    // TCP servers do not wait for it, and may have closed already.
    let _ = socket.send(b"who?");
    let mut bytes = [0; 128];
    let length = socket.read(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let (name, seen) = text
        .split_once(' ')
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok((name.to_string(), seen.parse().unwrap()))
}

/// A datagram socket of a client that goes on using it.
pub(crate) fn flow(ns: &NetNs, to: &str) -> Socket {
    let to: SocketAddr = to.parse().unwrap();
    let socket = ns.run(|| {
        let socket = Transport::Udp.socket(Domain::for_address(to));
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    });
    socket.unwrap()
}

/// The port that an INIT to this address arrives at in the other namespace.
pub(crate) fn sctp_arrives(from: &NetNs, to: &str, at: &NetNs) -> Option<u16> {
    let to: SocketAddr = to.parse().unwrap();
    let raw = |ns: &NetNs| {
        let open = || Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(SCTP))).unwrap();
        ns.run(open).unwrap()
    };
    let (sender, mut receiver) = (raw(from), raw(at));
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let begun = std::time::Instant::now();
    let mut source_port = 40_000;
    while begun.elapsed() < PATIENCE {
        // Another port is another association.
        source_port += 1;
        let packet = sctp_init(source_port, to.port());
        sender
            .send_to(&packet, &SocketAddr::new(to.ip(), 0).into())
            .unwrap();
        let mut bytes = [0; 256];
        let Ok(length) = receiver.read(&mut bytes) else {
            continue;
        };
        // A raw IPv6 socket gives no header.
        let header = if to.is_ipv4() {
            usize::from(bytes[0] & 0xf) * 4
        } else {
            0
        };
        let sctp = &bytes[header..length];
        return Some(u16::from_be_bytes([sctp[2], sctp[3]]));
    }
    None
}

/// An INIT chunk (RFC 9260, 3.3.2): connection tracking looks at it, checksum included.
fn sctp_init(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(destination_port.to_be_bytes());
    packet.extend([0; 8]); // verification tag of an INIT, and the checksum for now
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x0102_0304u32.to_be_bytes()); // initiate tag
    packet.extend(65_536u32.to_be_bytes()); // window
    packet.extend([0, 1, 0, 1]); // streams out and in
    packet.extend(1u32.to_be_bytes()); // initial TSN
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
