//! The socket to nf_tables: commits batches, reads back what the kernel holds.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::attr;
use super::batch::{self, Batch};

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_HEADER: usize = 16;
/// The kernel cuts a dump into pieces of up to 32 KiB; batches of acknowledgements are smaller.
const RECEIVE_BUFFER: usize = 256 << 10;
/// Interrupted dumps and busy commits are tried again this often before they are an error.
const ATTEMPTS_MAX: u32 = 20;
/// The kernel answers before the call that sends returns; what takes longer is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What can go wrong between us and nf_tables.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket: no nfnetlink in this kernel, or not allowed.
    #[error("open a netlink socket to nf_tables: {0}")]
    Open(#[source] io::Error),
    /// Sending failed.
    #[error("send {bytes} bytes to nf_tables: {source}")]
    Send {
        /// Size of the batch or request.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
    /// Receiving failed.
    #[error("receive from nf_tables: {0}")]
    Receive(#[source] io::Error),
    /// The kernel refused something, and with it the whole batch.
    #[error("nf_tables refused to {what}: {errno}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// The message that was refused, as in `add elements to ip svcnet services`.
        what: String,
        /// Why, as a number.
        errno: Errno,
        /// Why, in the kernel's words, where it has some.
        detail: Option<String>,
    },
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the kernel has no nf_tables, or not for that family.
    pub fn is_unsupported(&self) -> bool {
        let errno = match self {
            Self::Open(error) => error.raw_os_error().map(Errno::from_raw),
            // A kernel with netfilter's netlink and without nf_tables does not know the subsystem: EINVAL.
            other => other.errno(),
        };
        matches!(
            errno,
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL)
        )
    }
}

/// A socket to nf_tables, in the network namespace of the thread that opened it.
pub struct Socket {
    socket: RawSocket,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink or permission is lacking.
    pub fn open() -> Result<Self, Error> {
        let mut socket = RawSocket::new(NETLINK_NETFILTER).map_err(Error::Open)?;
        let port = socket.bind_auto().map_err(Error::Open)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // Errors need not carry the message back (a batch's may be 64 KiB), but words why.
        socket.set_cap_ack(true).map_err(Error::Open)?;
        socket.set_ext_ack(true).map_err(Error::Open)?;
        let timeout = nix::sys::time::TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(|e| Error::Open(e.into()))?;
        Ok(Self {
            socket,
            port,
            sequence: 0,
            send_buffer: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// The port by which notifications name who made a change.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Carries a batch out as one transaction. An empty batch is not sent.
    ///
    /// # Errors
    /// When the kernel refuses any part of it; then nothing of it happened.
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut bytes = batch.finish();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = self.commit_once(&mut bytes);
            match result.as_ref().err().and_then(Error::errno) {
                // A hash table that is growing, or a change in between.
                Some(Errno::EAGAIN | Errno::EINTR | Errno::EBUSY | Errno::ENOBUFS)
                    if attempt < ATTEMPTS_MAX =>
                {
                    std::thread::sleep(Duration::from_millis(u64::from(attempt)));
                }
                _ => return result,
            }
        }
    }

    fn commit_once(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        let messages: Vec<(usize, usize)> = batch::messages(bytes).collect();
        for (at, _) in &messages {
            self.sequence = self.sequence.wrapping_add(1);
            bytes[at + 8..at + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        }
        // The message before the end of the batch is the one that asks for an answer.
        let last = self.sequence.wrapping_sub(1);
        self.send(bytes)?;
        let mut failure: Option<Error> = None;
        loop {
            let answer = std::mem::take(&mut self.buffer);
            let answer = self.receive(answer);
            let answer = match answer {
                Ok(answer) => answer,
                // The error that stopped the batch leaves its last message unanswered.
                Err(_) if failure.is_some() => break,
                Err(error) => return Err(error),
            };
            let mut done = false;
            for message in Messages(&answer) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                let index = message.sequence.wrapping_sub(first) as usize;
                match message.error() {
                    None => done |= message.sequence == last,
                    Some((errno, detail)) => {
                        let what = messages
                            .get(index)
                            .map(|(at, len)| batch::describe(&bytes[*at..at + len]));
                        let what = what.unwrap_or_else(|| "commit".to_string());
                        failure.get_or_insert(Error::Refused { what, errno, detail });
                        done |= message.sequence == last;
                    }
                }
            }
            self.buffer = answer;
            if done || failure.is_some() {
                break;
            }
        }
        self.drain();
        failure.map_or(Ok(()), Err)
    }

    /// Throws away what else was answered: one refused batch can bring several errors.
    fn drain(&mut self) {
        let mut rest = Vec::with_capacity(RECEIVE_BUFFER);
        while self.socket.recv(&mut rest, libc::MSG_DONTWAIT).is_ok() {
            rest.clear();
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.widen(bytes.len());
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Send {
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

    fn receive(&mut self, mut buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
        loop {
            buffer.clear();
            buffer.reserve(RECEIVE_BUFFER);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => return Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Receive(error)),
            }
        }
    }

    /// How often the tables of this network namespace were changed, by whomever: one more for each transaction.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn generation(&mut self) -> Result<u32, Error> {
        const NFTA_GEN_ID: u16 = 1;
        let mut request = Vec::new();
        batch::put_header(
            &mut request,
            batch::SUBSYSTEM | batch::Message::GetGen as u16,
            NLM_F_REQUEST,
            0,
            0,
        );
        batch::finish_header(&mut request, 0);
        self.ask(&mut request, "read the generation", |message| {
            let attributes = attr::Reader::new(message.body.get(4..)?);
            attributes.find(NFTA_GEN_ID).and_then(attr::be32)
        })
    }

    /// Sends one request that is answered by an error number alone.
    pub(crate) fn request(&mut self, request: &mut [u8], what: &str) -> Result<(), Error> {
        self.ask(request, what, |message| {
            (message.kind == NLMSG_ERROR).then_some(())
        })
    }

    /// Sends one request, and reads until an error or what `answer` was looking for.
    fn ask<T>(
        &mut self,
        request: &mut [u8],
        what: &str,
        answer: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.send(request)?;
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let received = self.receive(buffer)?;
            let mut messages = Messages(&received).filter(|m| m.sequence == self.sequence);
            let result = messages.find_map(|m| {
                let error = if m.kind == NLMSG_ERROR { m.error() } else { None };
                match error {
                    Some((errno, detail)) => Some(Err(Error::Refused {
                        what: what.to_string(),
                        errno,
                        detail,
                    })),
                    None => answer(&m).map(Ok),
                }
            });
            self.buffer = received;
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Asks for a list of objects and hands each to `each`. A list that changed while it was read is read again from
    /// the start; `restart` is told so.
    pub(crate) fn dump(
        &mut self,
        request: &mut [u8],
        what: &str,
        mut restart: impl FnMut(),
        mut each: impl FnMut(u8, &[u8]),
    ) -> Result<(), Error> {
        for attempt in 1.. {
            self.sequence = self.sequence.wrapping_add(1);
            request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
            self.send(request)?;
            match self.dump_once(what, &mut each) {
                Err(Error::Refused {
                    errno: Errno::EINTR | Errno::EAGAIN,
                    ..
                }) if attempt < ATTEMPTS_MAX => {
                    self.drain();
                    restart();
                }
                result => return result,
            }
        }
        Ok(())
    }

    fn dump_once(&mut self, what: &str, each: &mut impl FnMut(u8, &[u8])) -> Result<(), Error> {
        let refused = |errno| Error::Refused {
            what: format!("list {what}"),
            errno,
            detail: None,
        };
        let mut interrupted = false;
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let answer = self.receive(buffer)?;
            for message in Messages(&answer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => {
                        let code = message.code();
                        self.buffer = answer;
                        return match (code, interrupted) {
                            (0, false) => Ok(()),
                            (0, true) => Err(refused(Errno::EINTR)),
                            (code, _) => Err(refused(Errno::from_raw(-code))),
                        };
                    }
                    NLMSG_ERROR => {
                        if let Some((errno, _)) = message.error() {
                            self.buffer = answer;
                            return Err(refused(errno));
                        }
                    }
                    _ => {
                        if let [family, _, _, _, attributes @ ..] = message.body {
                            each(*family, attributes);
                        }
                    }
                }
            }
            self.buffer = answer;
        }
    }
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
    fn code(&self) -> i32 {
        self.body
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, i32::from_ne_bytes)
    }

    /// Error number and words; nothing for an acknowledgement.
    pub(crate) fn error(&self) -> Option<(Errno, Option<String>)> {
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let code = self.code();
        if code == 0 {
            return None;
        }
        let mut detail = None;
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let capped = self.flags & NLM_F_CAPPED != 0;
            let echoed = self
                .body
                .get(4..8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u32::from_ne_bytes);
            let echoed = if capped { NLMSG_HEADER } else { echoed as usize };
            let attributes = self
                .body
                .get(4 + echoed.next_multiple_of(4)..)
                .unwrap_or_default();
            detail = attr::Reader::new(attributes)
                .find(NLMSGERR_ATTR_MSG)
                .map(|m| attr::text(m).to_string());
        }
        Some((Errno::from_raw(-code), detail))
    }
}

/// The messages of one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        let number = |at: usize| Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(self.0.get(at..at + 2)?.try_into().ok()?));
        let length = number(0)? as usize;
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
