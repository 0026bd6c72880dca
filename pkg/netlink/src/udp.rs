//! Datagrams many at a time: `recvmmsg` and `sendmmsg`, for servers that answer hundreds of thousands a second.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Datagrams at a time: the arrays for the system calls live on the stack.
pub const BATCH: usize = 32;

/// Who sent a datagram, as the kernel told it.
#[derive(Clone, Copy)]
#[repr(C)]
union Peer {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Peer {
    const LENGTH: libc::socklen_t = size_of::<Self>() as libc::socklen_t;

    fn zeroed() -> Self {
        // SAFETY: all members are plain numbers, for which all bits zero is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    fn address(&self) -> Option<SocketAddr> {
        // SAFETY: every byte was initialised by `zeroed`, and all members are plain numbers, valid in any pattern.
        let (family, v4, v6) = unsafe { (self.family, self.v4, self.v6) };
        match i32::from(family) {
            libc::AF_INET => {
                let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let ip = v6.sin6_addr.s6_addr.into();
                let port = u16::from_be(v6.sin6_port);
                Some(std::net::SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

struct Slot {
    input: Box<[u8]>,
    length: usize,
    cut: bool,
    peer: Peer,
    peer_length: libc::socklen_t,
    reply: Vec<u8>,
}

/// A datagram that came in, and the place for the reply to it.
pub struct Datagram<'a> {
    /// What came.
    pub bytes: &'a [u8],
    /// Whether it was longer than a slot.
    pub cut: bool,
    /// What is sent back; left empty: nothing.
    pub reply: &'a mut Vec<u8>,
    peer: &'a Peer,
}

impl Datagram<'_> {
    /// Who sent it.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.address()
    }
}

/// Room for a batch of datagrams and of their replies.
pub struct Batch {
    slots: Vec<Slot>,
    filled: usize,
}

impl Batch {
    /// Room for [`BATCH`] datagrams of up to `size` bytes.
    pub fn new(size: usize) -> Self {
        let slot = || Slot {
            input: vec![0; size].into(),
            length: 0,
            cut: false,
            peer: Peer::zeroed(),
            peer_length: Peer::LENGTH,
            reply: Vec::with_capacity(size),
        };
        Self {
            slots: (0..BATCH).map(|_| slot()).collect(),
            filled: 0,
        }
    }

    /// Waits for a datagram and takes all that are there, up to [`BATCH`]. Says how many; after `shutdown` of the socket
    /// one empty datagram without a sender.
    ///
    /// # Errors
    /// What the kernel says, an interruption by a signal excepted.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; BATCH];
        let mut headers = [empty_header(); BATCH];
        for ((slot, vector), header) in self.slots.iter_mut().zip(&mut vectors).zip(&mut headers) {
            slot.peer = Peer::zeroed();
            vector.iov_base = slot.input.as_mut_ptr().cast();
            vector.iov_len = slot.input.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut slot.peer).cast();
            header.msg_hdr.msg_namelen = Peer::LENGTH;
        }
        let count = loop {
            // SAFETY: each header points at a vector and a peer that outlive the call and that nothing else uses meanwhile;
            // each vector points at a buffer of the length that it names. The kernel writes within those bounds.
            let got = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    self.slots.len() as libc::c_uint,
                    libc::MSG_WAITFORONE,
                    std::ptr::null_mut(),
                )
            };
            match usize::try_from(got) {
                Ok(count) => break count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        self.filled = 0;
                        return Err(error);
                    }
                }
            }
        };
        for (slot, header) in self.slots.iter_mut().zip(&headers).take(count) {
            slot.length = header.msg_len as usize;
            slot.cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            slot.peer_length = header.msg_hdr.msg_namelen;
            slot.reply.clear();
        }
        self.filled = count;
        Ok(count)
    }

    /// The datagrams of the last [`receive`](Self::receive).
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.slots[..self.filled].iter_mut().map(|slot| Datagram {
            bytes: &slot.input[..slot.length.min(slot.input.len())],
            cut: slot.cut,
            reply: &mut slot.reply,
            peer: &slot.peer,
        })
    }

    /// Sends the replies that are not empty, each to whom its datagram came from. Says how many could not be sent: their
    /// askers ask again.
    pub fn reply(&mut self, socket: BorrowedFd<'_>) -> usize {
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; BATCH];
        let mut headers = [empty_header(); BATCH];
        let mut count = 0;
        for slot in self.slots[..self.filled]
            .iter_mut()
            .filter(|slot| !slot.reply.is_empty())
        {
            let (vector, header) = (&mut vectors[count], &mut headers[count]);
            vector.iov_base = slot.reply.as_mut_ptr().cast();
            vector.iov_len = slot.reply.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut slot.peer).cast();
            header.msg_hdr.msg_namelen = slot.peer_length;
            count += 1;
        }
        self.filled = 0;
        let (mut at, mut failed) = (0, 0);
        while at < count {
            let rest = &mut headers[at..count];
            // SAFETY: as in `receive`; the kernel only reads through these pointers.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    0,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The error is about the first of the rest (an unreachable asker, say): leave that one out.
                _ => {
                    at += 1;
                    failed += 1;
                }
            }
        }
        failed
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a structure of numbers and pointers, for all of which zero is a value (the null pointer).
    unsafe { MaybeUninit::zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn replies_go_back_to_whom_they_are_for() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(address).unwrap();
            let there = server.local_addr().unwrap();
            let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind(address).unwrap()).collect();
            for (number, client) in clients.iter().enumerate() {
                client.send_to(&[number as u8; 3], there).unwrap();
            }
            let mut batch = Batch::new(16);
            let mut seen = 0;
            while seen < 3 {
                seen += batch.receive(server.as_fd()).unwrap();
                for datagram in batch.iter_mut() {
                    let from = datagram.peer().unwrap();
                    let number = usize::from(datagram.bytes[0]);
                    assert_eq!(from, clients[number].local_addr().unwrap());
                    // Client 1 gets no reply.
                    if number != 1 {
                        datagram.reply.extend_from_slice(&[number as u8 + 10]);
                    }
                }
                assert_eq!(batch.reply(server.as_fd()), 0);
            }
            let mut byte = [0; 4];
            assert_eq!(clients[0].recv(&mut byte).unwrap(), 1);
            assert_eq!(byte[0], 10);
            assert_eq!(clients[2].recv(&mut byte).unwrap(), 1);
            assert_eq!(byte[0], 12);
            clients[1].set_nonblocking(true).unwrap();
            assert!(clients[1].recv(&mut byte).is_err());
        }
    }

    #[test]
    fn long_datagrams_are_marked_and_shutdown_wakes() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&[7; 40], server.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(16);
        assert_eq!(batch.receive(server.as_fd()).unwrap(), 1);
        let datagram = batch.iter_mut().next().unwrap();
        assert!(datagram.cut && datagram.bytes.len() == 16);
        let other = server.try_clone().unwrap();
        let waiting = std::thread::spawn(move || {
            let count = batch.receive(other.as_fd()).unwrap();
            (count, batch.iter_mut().next().unwrap().peer())
        });
        while !waiting.is_finished() {
            // SAFETY: a call on a descriptor that `server` keeps open. It fails with ENOTCONN, and still wakes whoever waits.
            unsafe { libc::shutdown(server.as_raw_fd(), libc::SHUT_RD) };
            std::thread::yield_now();
        }
        assert_eq!(waiting.join().unwrap(), (1, None));
    }
}
