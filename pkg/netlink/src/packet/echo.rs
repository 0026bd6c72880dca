//! Echo requests (RFC 792, RFC 4443) and the sockets for questions about a path: what is sent through them is never cut
//! into fragments, and what the kernel has heard of the path before does not count (`IP_PMTUDISC_PROBE`, ip(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes of an ICMP header.
pub const ICMP_LENGTH: usize = 8;
/// Bytes at the beginning of an echo's data by which its answer is recognised.
pub const TOKEN_LENGTH: usize = 8;
/// What is read of an answer: an IPv4 header with options, the ICMP header and the token.
const ANSWER_LENGTH: usize = 60 + ICMP_LENGTH + TOKEN_LENGTH;
/// `IP_PMTUDISC_PROBE`, for both families.
const PROBE: libc::c_int = 3;

/// An ICMP echo request, checksum included, with `length` bytes in all; its data begin with the token. That of IPv6 needs
/// the addresses for its checksum.
pub fn request(id: u16, token: [u8; TOKEN_LENGTH], length: usize, ends: (IpAddr, IpAddr)) -> Vec<u8> {
    let mut message = vec![0; length.max(ICMP_LENGTH + TOKEN_LENGTH)];
    message[0] = if ends.1.is_ipv4() { 8 } else { 128 };
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[ICMP_LENGTH..ICMP_LENGTH + TOKEN_LENGTH].copy_from_slice(&token);
    let sum = match ends {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
            let pseudo = [&from.octets()[..], &to.octets()[..], &length, &[0, 0, 0, 58]].concat();
            checksum(&[&pseudo, &message])
        }
        _ => checksum(&[&message]),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An IP packet around an ICMP message. IPv4's says that it is not to be cut.
pub fn packet(message: &[u8], ends: (IpAddr, IpAddr)) -> Vec<u8> {
    let length = |header: usize| {
        u16::try_from(header + message.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes()
    };
    let mut packet = match ends {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
            header[4..6].copy_from_slice(&length(0));
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (from, to) => {
            let [high, low] = length(20);
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, 1, 0, 0];
            header.extend(v4(from).octets());
            header.extend(v4(to).octets());
            let sum = checksum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
    };
    packet.extend(message);
    packet
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(a) => a,
        IpAddr::V6(a) => a.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

/// The Internet checksum (RFC 1071) of parts of which all but the last are of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Sends echo requests, and hears the answers to those with its id, whatever way they were sent by.
#[derive(Debug)]
pub struct EchoSocket {
    socket: AsyncFd<Socket>,
    v6: bool,
}

impl EchoSocket {
    /// Opens a raw socket. Needs CAP_NET_RAW and a tokio runtime.
    ///
    /// # Errors
    /// Without the privilege, or where the kernel has no IPv6.
    pub fn open(v6: bool, id: u16) -> io::Result<Self> {
        let (domain, protocol) = if v6 {
            (Domain::IPV6, Protocol::ICMPV6)
        } else {
            (Domain::IPV4, Protocol::ICMPV4)
        };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
        socket.attach_filter(&answers_to(v6, id))?;
        never_cut(&socket, v6)?;
        // SAFETY: the socket owns its file descriptor, always gives the same one, and nothing takes it out of the
        // AsyncFd before both are dropped together.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { socket, v6 })
    }

    /// Sends an echo request straight to an address.
    ///
    /// # Errors
    /// When there is no route, or the packet is larger than the link carries (EMSGSIZE).
    pub fn send(&self, message: &[u8], to: IpAddr) -> io::Result<()> {
        let socket = self.socket.get_ref();
        socket.send_to(message, &SocketAddr::new(to, 0).into()).map(drop)
    }

    /// Waits for an answer, and gives its token.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn receive(&self) -> io::Result<[u8; TOKEN_LENGTH]> {
        use std::io::Read as _;
        loop {
            let mut buffer = [0; ANSWER_LENGTH];
            let read = self.socket.async_io(Interest::READABLE, |socket| {
                let mut socket: &Socket = socket;
                socket.read(&mut buffer)
            });
            let length = read.await?;
            // IPv4's header is handed over with the message (raw(7)), IPv6's is not.
            let header = if self.v6 {
                0
            } else {
                usize::from(buffer[0] & 15) * 4
            };
            let token = buffer[..length].get(header + ICMP_LENGTH..header + ICMP_LENGTH + TOKEN_LENGTH);
            if let Some(token) = token.and_then(|bytes| bytes.try_into().ok()) {
                return Ok(token);
            }
        }
    }
}

/// A UDP socket whose datagrams are never cut.
///
/// # Errors
/// When the address is not this host's.
pub fn uncut_udp(from: IpAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(from, 0)),
        Type::DGRAM.nonblocking().cloexec(),
        None,
    )?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    never_cut(&socket, from.is_ipv6())?;
    Ok(socket)
}

fn never_cut(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    let value = PROBE;
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is a number of the length that is named, which the kernel only reads.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A classic BPF program that takes echo replies with this id. A raw socket of IPv4 sees the IP header before the message, one
/// of IPv6 does not.
fn answers_to(v6: bool, id: u16) -> Vec<SockFilter> {
    const HEADER_LENGTH_TO_X: u16 = 0xb1;
    const ZERO_TO_X: u16 = 0x01;
    const BYTE_BEHIND_X: u16 = 0x50;
    const HALF_BEHIND_X: u16 = 0x48;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let reply = if v6 { 129 } else { 0 };
    vec![
        SockFilter::new(if v6 { ZERO_TO_X } else { HEADER_LENGTH_TO_X }, 0, 0, 0),
        SockFilter::new(BYTE_BEHIND_X, 0, 0, 0),
        SockFilter::new(JUMP_EQUAL, 0, 3, reply),
        SockFilter::new(HALF_BEHIND_X, 0, 0, 4),
        SockFilter::new(JUMP_EQUAL, 0, 1, id.into()),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rtnl;
    use crate::netns::OwnedNetNs;

    #[test]
    fn checksums_are_right() {
        // RFC 1071, section 3.
        assert_eq!(
            !checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            0xddf2
        );
        let ends = ("10.244.1.0".parse().unwrap(), "10.244.2.0".parse().unwrap());
        let whole = packet(&request(7, *b"12345678", 100, ends), ends);
        assert_eq!(whole.len(), 120);
        assert_eq!((checksum(&[&whole[..20]]), checksum(&[&whole[20..]])), (0, 0));
    }

    #[test]
    fn answers_come_with_the_token_of_the_request() {
        let netns = OwnedNetNs::unique("svcnet-echo").unwrap();
        Rtnl::open_in(&netns).unwrap().set_loopback_up().unwrap();
        netns
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for here in ["127.0.0.1", "::1"] {
                        let here: IpAddr = here.parse().unwrap();
                        let socket = EchoSocket::open(here.is_ipv6(), 7).unwrap();
                        for (id, token) in [(8, *b"anothers"), (7, *b"12345678")] {
                            socket
                                .send(&request(id, token, 1000, (here, here)), here)
                                .unwrap();
                        }
                        let wait = std::time::Duration::from_secs(30);
                        let answer = tokio::time::timeout(wait, socket.receive()).await.unwrap();
                        assert_eq!(&answer.unwrap(), b"12345678");
                        let change = crate::link::Change {
                            mtu: Some(1500),
                            ..Default::default()
                        };
                        Rtnl::open().unwrap().change_link(1, &change).unwrap();
                        let large = request(7, *b"12345678", 1600, (here, here));
                        let error = socket.send(&large, here).unwrap_err();
                        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
                    }
                });
            })
            .unwrap();
    }
}
