//! Requests to the kernel and what it answers, as nf_tables and generic netlink have it. Numbers as in
//! `include/uapi/linux/netlink.h`.
//!
//! The two differ in what a message holds. How messages are numbered, sent, answered, acknowledged and refused is the
//! same, and is here.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::nft::attr;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLMSG_HEADER: usize = 16;
/// The kernel cuts a dump into pieces of up to 32 KiB; acknowledgements of a batch are smaller.
const RECEIVE_BUFFER: usize = 64 << 10;
/// The kernel answers before the call that sends returns; what takes longer is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It did not go out.
    Send { bytes: usize, source: io::Error },
    /// Its answer did not come in.
    Receive(io::Error),
    /// The kernel refused.
    Refused {
        /// Which of the messages that were sent.
        index: usize,
        /// Why, as a number.
        errno: Errno,
        /// Why, in the kernel's words, where it has some.
        detail: Option<String>,
    },
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
pub(crate) struct Exchange {
    socket: Socket,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl Exchange {
    /// Opens one for a protocol (`NETLINK_NETFILTER`, `NETLINK_GENERIC`).
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors need not carry the message back (a batch's may be 64 KiB), but words why.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        let timeout = nix::sys::time::TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self {
            socket,
            port,
            sequence: 0,
            send_buffer: 0,
            buffer: Vec::new(),
        })
    }

    /// The port by which notifications name who made a change.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Numbers the messages in `bytes`, sends them in one call, and hands what answers them to `until`, with the index of
    /// the message that is answered, until that has what it wants.
    pub(crate) fn ask<T>(
        &mut self,
        bytes: &mut [u8],
        mut until: impl FnMut(usize, &Received<'_>) -> ControlFlow<T>,
    ) -> Result<T, Failure> {
        let (first, count) = self.number(bytes);
        self.send(bytes)?;
        loop {
            self.receive()?;
            for message in Messages(&self.buffer) {
                // What is left of the answers to an earlier request has another number.
                let index = message.sequence.wrapping_sub(first) as usize;
                if index < count
                    && let ControlFlow::Break(outcome) = until(index, &message)
                {
                    return Ok(outcome);
                }
            }
        }
    }

    /// Asks for a list and hands the body of each item to `each`. Says whether it is of one moment: false when something
    /// changed while it was read.
    pub(crate) fn dump_once(
        &mut self,
        request: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<bool, Failure> {
        let mut whole = true;
        self.ask(request, |index, message| {
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match (message.kind, message.refusal(index)) {
                (NLMSG_ERROR | NLMSG_DONE, Some(refusal)) => ControlFlow::Break(Err(refusal)),
                (NLMSG_ERROR | NLMSG_DONE, None) => ControlFlow::Break(Ok(())),
                _ => {
                    each(message.body);
                    ControlFlow::Continue(())
                }
            }
        })??;
        Ok(whole)
    }

    /// Throws away what else was answered: one refused batch can bring several errors.
    pub(crate) fn drain(&mut self) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(RECEIVE_BUFFER);
            if self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }

    /// Gives each message the next number; says the first of them, and how many there are.
    fn number(&mut self, bytes: &mut [u8]) -> (u32, usize) {
        let first = self.sequence.wrapping_add(1);
        let (mut at, mut count) = (0, 0);
        while let Some(length) = message_length(bytes, at) {
            self.sequence = self.sequence.wrapping_add(1);
            bytes[at + 8..at + 12].copy_from_slice(&self.sequence.to_ne_bytes());
            at += length.next_multiple_of(4);
            count += 1;
        }
        (first, count)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.widen(bytes.len());
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Failure::Send {
                        bytes: bytes.len(),
                        source,
                    });
                }
            }
        }
    }

    /// A batch goes in one call, and the kernel wants the send buffer to be larger than that.
    fn widen(&mut self, bytes: usize) {
        if bytes < self.send_buffer {
            return;
        }
        let wanted = bytes + (bytes / 8) + (1 << 20);
        // Without CAP_NET_ADMIN in the first user namespace the plain option is what is left, up to net.core.wmem_max.
        let forced = setsockopt(&self.socket, sockopt::SndBufForce, &wanted);
        if forced.is_ok() || setsockopt(&self.socket, sockopt::SndBuf, &wanted).is_ok() {
            self.send_buffer = wanted;
        }
    }

    /// Reads one datagram.
    fn receive(&mut self) -> Result<(), Failure> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(RECEIVE_BUFFER);
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Receive(error)),
            }
        }
    }
}

/// The length of the message that begins there, if it is whole.
fn message_length(bytes: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
    (length >= NLMSG_HEADER && at + length <= bytes.len()).then_some(length)
}

/// The messages in `bytes`, headers included.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = message_length(bytes, at)?;
        let message = bytes.get(at..at + length)?;
        at += length.next_multiple_of(4);
        Some(message)
    })
}

/// One netlink message.
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Who asked for the change that a notification tells of.
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

impl Received<'_> {
    /// Why the message of that index was refused; nothing for an acknowledgement, and for what is no answer of that kind.
    pub(crate) fn refusal(&self, index: usize) -> Option<Failure> {
        const NLMSGERR_ATTR_MSG: u16 = 1;
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return None;
        }
        let number = |at: usize| Some(i32::from_ne_bytes(self.body.get(at..at + 4)?.try_into().ok()?));
        let code = number(0).filter(|code| *code != 0)?;
        let mut detail = None;
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let capped = self.flags & NLM_F_CAPPED != 0;
            let echoed = number(4).map_or(0, i32::cast_unsigned) as usize;
            let echoed = if capped { NLMSG_HEADER } else { echoed };
            // The end of a list has a number alone before its attributes.
            let at = if self.kind == NLMSG_DONE {
                4
            } else {
                4 + echoed.next_multiple_of(4)
            };
            let attributes = attr::Reader::new(self.body.get(at..).unwrap_or_default());
            detail = attributes
                .find(NLMSGERR_ATTR_MSG)
                .map(|m| attr::text(m).to_string());
        }
        Some(Failure::Refused {
            index,
            errno: Errno::from_raw(-code),
            detail,
        })
    }
}

/// The messages of one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        let number = |at: usize| Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(self.0.get(at..at + 2)?.try_into().ok()?));
        let length = message_length(self.0, 0)?;
        let received = Received {
            kind: half(4)?,
            flags: half(6)?,
            sequence: number(8)?,
            port: number(12)?,
            body: self.0.get(NLMSG_HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(NLMSG_HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_found_one_after_the_other_and_a_torn_one_ends_them() {
        let mut bytes = [message(20, 1, b"five5"), message(21, 2, b"")].concat();
        let lengths: Vec<usize> = messages(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, [NLMSG_HEADER + 5, NLMSG_HEADER]);
        bytes.extend(&message(22, 3, b"torn")[..18]);
        let kinds: Vec<(u16, u32, &[u8])> = Messages(&bytes).map(|m| (m.kind, m.sequence, m.body)).collect();
        assert_eq!(kinds, [(20, 1, &b"five5"[..]), (21, 2, &b""[..])]);
    }

    #[test]
    fn what_refuses_says_why_and_what_acknowledges_does_not() {
        let refused = message(NLMSG_ERROR, 1, &(-libc::EPERM).to_ne_bytes());
        let acknowledged = message(NLMSG_ERROR, 1, &0i32.to_ne_bytes());
        let other = message(20, 1, &(-libc::EPERM).to_ne_bytes());
        let refusals = [refused, acknowledged, other].map(|bytes| {
            let refusal = Messages(&bytes).next().and_then(|message| message.refusal(7));
            refusal.map(|refusal| match refusal {
                Failure::Refused { index, errno, .. } => (index, errno),
                other => panic!("{other:?}"),
            })
        });
        assert_eq!(refusals, [Some((7, Errno::EPERM)), None, None]);
    }
}
