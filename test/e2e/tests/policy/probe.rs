//! Packets of three protocols from pod to pod, all at once: each pod's sockets are made in its namespace and watched
//! from here.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_netlink::netns::NetNs;
use svcnet_policy::model;

/// How long an answer may take in the first rounds. What is only late is asked for again, with more patience.
const ROUND: Duration = Duration::from_millis(350);
/// The patience is doubled every so many rounds.
const ROUNDS: u32 = 3;
/// And no more than so many times.
const DOUBLED_MAX: u32 = 4;
const SCTP: i32 = 132;

/// One question: does a packet of this pod arrive there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Question {
    /// Which pod sends: its number.
    pub(crate) from: usize,
    /// Which pod is sent to: its number.
    pub(crate) to: usize,
    /// The address of it.
    pub(crate) at: SocketAddr,
    /// The protocol.
    pub(crate) protocol: model::Protocol,
}

/// A pod as probes see it.
pub(crate) struct Prober {
    ns: NetNs,
    /// Where SCTP packets arrive: IPv4, IPv6. The kernel has no such protocol, so packets are made by hand.
    sctp: [UdpSocket; 2],
}

enum Asked {
    /// A connection in the making; whether a word was sent already.
    Tcp(Socket, bool),
    /// A datagram was sent; an answer is awaited.
    Udp(Socket),
    /// A packet was sent; it is awaited at the other end.
    Sctp,
    /// It could not even be sent.
    Refused,
}

impl Prober {
    /// In the network namespace of that name.
    pub(crate) fn new(namespace: &str) -> Self {
        let ns = NetNs::open(namespace).unwrap();
        let sctp = ns
            .run(|| {
                [Domain::IPV4, Domain::IPV6].map(|domain| {
                    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    UdpSocket::from(socket)
                })
            })
            .unwrap();
        Self { ns, sctp }
    }

    fn ask(&self, questions: &[Question]) -> Vec<Asked> {
        let asked = self.ns.run(|| questions.iter().map(ask).collect());
        asked.unwrap()
    }

    /// The SCTP packets that have arrived: who sent them, and to which port.
    fn arrived(&self) -> HashSet<(IpAddr, u16)> {
        let mut found = HashSet::new();
        for (socket, header) in self.sctp.iter().zip([20, 0]) {
            let mut buffer = [0; 256];
            // As a UDP socket, for its safe way to receive: the calls below are the same.
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(port) = buffer[..length].get(header + 2..header + 4) {
                    found.insert((from.ip(), u16::from_be_bytes([port[0], port[1]])));
                }
            }
        }
        found
    }
}

fn ask(question: &Question) -> Asked {
    let domain = Domain::for_address(question.at);
    let address = SockAddr::from(question.at);
    let made = match question.protocol {
        model::Protocol::TCP => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            match socket.connect(&address) {
                Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
                _ => Ok(Asked::Tcp(socket, false)),
            }
        }),
        model::Protocol::UDP => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect(&address)?;
            socket.send(b"hostname")?;
            Ok(Asked::Udp(socket))
        }),
        model::Protocol::SCTP => {
            Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).and_then(|socket| {
                let mut to = question.at;
                to.set_port(0);
                socket.send_to(&init(question.at.port()), &SockAddr::from(to))?;
                Ok(Asked::Sctp)
            })
        }
    };
    made.unwrap_or(Asked::Refused)
}

/// Asks all questions at once, for the `number`th time; the answers in the same order.
pub(crate) fn round(probers: &[Prober], questions: &[Question], number: u32) -> Vec<bool> {
    let patience = ROUND * (1 << (number / ROUNDS).min(DOUBLED_MAX));
    probers.iter().for_each(|prober| _ = prober.arrived());
    let mut asked: Vec<(Question, Asked)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..probers.len())
            .map(|number| {
                let own: Vec<Question> = questions.iter().filter(|q| q.from == number).copied().collect();
                scope.spawn(move || {
                    let asked = probers[number].ask(&own);
                    own.into_iter().zip(asked).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut answered: HashSet<Question> = HashSet::new();
    let begin = Instant::now();
    // The addresses of senders, as receivers see them, are the pods' own: no policy test is about translation.
    let sources: Vec<HashSet<IpAddr>> = (0..probers.len())
        .map(|number| {
            questions
                .iter()
                .filter(|q| q.to == number)
                .map(|q| q.at.ip())
                .collect()
        })
        .collect();
    while begin.elapsed() < patience && !asked.is_empty() {
        let arrived: Vec<HashSet<(IpAddr, u16)>> = probers.iter().map(Prober::arrived).collect();
        for (question, asked) in &mut asked {
            let yes = match asked {
                Asked::Tcp(socket, sent) => is_answered(socket, sent),
                Asked::Udp(socket) => {
                    matches!((&*socket).read(&mut [0; 64]), Ok(1..))
                }
                Asked::Sctp | Asked::Refused => arrived[question.to].iter().any(|(from, port)| {
                    *port == question.at.port()
                        && sources[question.from].contains(from)
                        && from.is_ipv6() == question.at.is_ipv6()
                }),
            };
            if yes {
                answered.insert(*question);
            }
        }
        asked.retain(|(question, _)| !answered.contains(question));
        thread::sleep(Duration::from_millis(5));
    }
    questions
        .iter()
        .map(|question| answered.contains(question))
        .collect()
}

/// Whether a word came back; sends it once there is a connection. (One that a relay took is none yet.)
fn is_answered(socket: &Socket, sent: &mut bool) -> bool {
    if !*sent && socket.peer_addr().is_ok() {
        *sent = socket.send(b"hostname\n").is_ok();
    }
    *sent && matches!((&*socket).read(&mut [0; 64]), Ok(1..))
}

/// An SCTP packet with an INIT chunk (RFC 9260, 3.3.2), as a client begins with; conntrack wants its checksum right.
fn init(port: u16) -> Vec<u8> {
    static SOURCES: AtomicU16 = AtomicU16::new(0);
    let source = 40_000 + SOURCES.fetch_add(1, Ordering::Relaxed) % 20_000;
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(7u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

/// A listener in a namespace that sends back whatever it is sent.
pub(crate) fn echo(namespace: &str, port: u16) {
    let ns = NetNs::open(namespace).unwrap();
    let listener = ns
        .run(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A connection from a namespace.
pub(crate) fn connect(namespace: &str, to: (IpAddr, u16)) -> std::io::Result<std::net::TcpStream> {
    let ns = NetNs::open(namespace).unwrap();
    let patience = Duration::from_secs(30);
    let stream = ns
        .run(|| std::net::TcpStream::connect_timeout(&to.into(), patience))
        .unwrap()?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(stream)
}

/// Whether a word comes back by now.
pub(crate) fn echoes(stream: &mut std::net::TcpStream) -> bool {
    if stream.write_all(b"x").is_err() {
        return false;
    }
    let mut buffer = [0; 64];
    match stream.read(&mut buffer) {
        Ok(length) => length > 0,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "{error}"
            );
            false
        }
    }
}
