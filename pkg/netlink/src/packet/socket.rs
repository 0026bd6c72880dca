//! AF_PACKET sockets, one for each link and protocol.

use std::io;
use std::mem;

use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which frames a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ARP for IPv4, broadcast or sent to this host.
    Arp,
    /// Neighbour solicitations and advertisements of IPv6.
    Ndp,
}

/// What can go wrong with a socket.
#[derive(Debug, thiserror::Error)]
#[error("packet socket on link {index}: {step}: {source}")]
pub struct Error {
    /// The link.
    pub index: u32,
    /// What failed.
    pub step: &'static str,
    /// Why.
    pub source: io::Error,
}

/// A socket for the frames of one protocol on one link. Belongs to the network namespace that it was made in.
#[derive(Debug)]
pub struct LinkSocket {
    socket: AsyncFd<Socket>,
    index: u32,
}

impl LinkSocket {
    /// Opens a socket on the link with this index. Needs CAP_NET_RAW and a tokio runtime.
    ///
    /// # Errors
    /// When the link is gone, or without the privilege.
    pub fn open(index: u32, protocol: Protocol) -> Result<Self, Error> {
        let failed = |step| move |source| Error { index, step, source };
        // Protocol 0 receives nothing: no frame gets in before the filter and the link are set.
        let socket =
            Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None).map_err(failed("create"))?;
        socket
            .attach_filter(&protocol.filter())
            .map_err(failed("filter"))?;
        let address = link_address(index, protocol).map_err(failed("address"))?;
        socket.bind(&address).map_err(failed("bind"))?;
        // SAFETY: the socket owns its file descriptor, always gives the same one, and nothing takes it out of the
        // AsyncFd before both are dropped together.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(|e| failed("register")(e.into()))?;
        Ok(Self { socket, index })
    }

    /// Index of the link.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Waits for a frame and gives its length; what does not fit the buffer is cut off. Goes on waiting while the link
    /// is down; when it is deleted, nothing more arrives.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::Read as _;
        loop {
            let read = self.socket.async_io(Interest::READABLE, |socket| {
                let mut socket: &Socket = socket;
                socket.read(buffer)
            });
            match read.await {
                // Said once after the link has gone down.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                result => return result,
            }
        }
    }

    /// Sends a frame, Ethernet header included. Never waits: a link whose queue is full loses it, as Ethernet may.
    ///
    /// # Errors
    /// When the link is down or its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame).map(drop)
    }
}

impl Protocol {
    fn ethertype(self) -> u16 {
        match self {
            Self::Arp => 0x0806,
            Self::Ndp => 0x86dd,
        }
    }

    fn filter(self) -> Vec<SockFilter> {
        match self {
            // No more than broadcast: multicast ARP is nobody's business (metallb does the same).
            Self::Arp => filter(
                PACKET_BROADCAST,
                &[
                    (HALF, 12, &[0x0806]),
                    (HALF, 14, &[1]),
                    (HALF, 16, &[0x0800]),
                    (HALF, 18, &[0x0604]),
                ],
            ),
            Self::Ndp => filter(
                PACKET_MULTICAST,
                &[(HALF, 12, &[0x86dd]), (BYTE, 20, &[58]), (BYTE, 54, &[135, 136])],
            ),
        }
    }
}

// Values of `skb->pkt_type`, in the order of how little they concern us: to this host 0, broadcast 1, multicast 2, to
// other hosts 3 (also frames of VLANs that have no link here), outgoing 4.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
/// Where classic BPF finds `skb->pkt_type`: SKF_AD_OFF + SKF_AD_PKTTYPE.
const PACKET_TYPE_AT: u32 = 0xffff_f000 + 4;
const HALF: u16 = 0x28;
const BYTE: u16 = 0x30;

/// A classic BPF program: takes a frame whose packet type is at most `type_max` and whose field at each offset has one
/// of the values.
fn filter(type_max: u32, fields: &[(u16, u32, &[u32])]) -> Vec<SockFilter> {
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let tests: usize = fields.iter().map(|(_, _, values)| 1 + values.len()).sum();
    // Both returns stand at the end; jumps count instructions from the next one. Programs are a dozen long.
    let length = 2 + tests;
    let to_drop = |at: usize| u8::try_from(length - at).unwrap_or(u8::MAX);
    let mut program = vec![
        SockFilter::new(BYTE, 0, 0, PACKET_TYPE_AT),
        SockFilter::new(JUMP_GREATER, to_drop(1), 0, type_max),
    ];
    for &(load, offset, values) in fields {
        program.push(SockFilter::new(load, 0, 0, offset));
        for (i, &value) in values.iter().enumerate() {
            let left = values.len() - 1 - i;
            let to_next = u8::try_from(left).unwrap_or(u8::MAX);
            let otherwise = if left == 0 { to_drop(program.len()) } else { 0 };
            program.push(SockFilter::new(JUMP_EQUAL, to_next, otherwise, value));
        }
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0xffff));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

fn link_address(index: u32, protocol: Protocol) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the storage is zeroed and, as `sockaddr_storage`, large and aligned enough for every address family;
    // the family and the length that are left in it are those of a `sockaddr_ll`.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = &mut *storage.cast::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_protocol = protocol.ethertype().to_be();
            link.sll_ifindex = index;
            *length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_the_filters_end_at_their_returns() {
        // 2 for the packet type, 2 for each field, 1 more for a second value, 2 returns.
        assert_eq!(Protocol::Arp.filter().len(), 2 + 8 + 2);
        assert_eq!(Protocol::Ndp.filter().len(), 2 + 7 + 2);
    }
}
