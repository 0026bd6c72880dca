//! The socket to rtnetlink: requests, dumps, and what the kernel says when it refuses.
//!
//! A socket belongs to the network namespace of the thread that opened it, wherever it is used afterwards. So one
//! visit to a namespace ([`Rtnl::open_in`]) is enough to work in it from anywhere.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::netns::{self, NetNs};

/// What the kernel never exceeds in one read (`NLMSG_GOODSIZE` up to 32 KiB for dumps).
const BUFFER_BYTES: usize = 32 * 1024;
/// `NLM_F_DUMP_INTR`: something changed while the dump was read.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: the acknowledgement carries text.
const ACK_TLVS: u16 = 0x200;
/// `NLM_F_CAPPED`: the acknowledgement repeats only the header of the request.
const ACK_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG`.
const ATTRIBUTE_MESSAGE: u16 = 1;
/// A dump of a table that never rests is taken as it is after so many tries.
const DUMP_ATTEMPTS_MAX: usize = 5;

/// A failed operation: what was tried on which object, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {source}{}", Hint(.hint))]
pub struct Error {
    /// What was tried, as in `add route`.
    pub operation: &'static str,
    /// On which object, as in `10.244.2.0/24 dev 4`.
    pub object: String,
    /// Why it failed.
    pub source: io::Error,
    /// The kernel's own words, when it said more than an error number.
    pub hint: Option<String>,
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl Error {
    pub(crate) fn errno(&self) -> Errno {
        self.source
            .raw_os_error()
            .map_or(Errno::UnknownErrno, Errno::from_raw)
    }

    /// Whether the object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Errno::EEXIST
    }

    /// Whether the object, or the link that it belongs to, is not there (any more).
    pub fn is_gone(&self) -> bool {
        matches!(
            self.errno(),
            Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL
        )
    }

    /// Whether the kernel lacks the feature.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.errno(),
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT
        )
    }
}

/// Turns a failed deletion of what was not there into a success.
///
/// # Errors
/// Any other failure.
pub fn deleted(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

/// A failure before it is known what it was about.
#[derive(Debug)]
pub(crate) struct Refusal {
    source: io::Error,
    hint: Option<String>,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, hint: None }
    }
}

impl Refusal {
    pub(crate) fn about(self, operation: &'static str, object: impl fmt::Display) -> Error {
        Error {
            operation,
            object: object.to_string(),
            source: self.source,
            hint: self.hint,
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(
            self.source.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH)
        )
    }

    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(
            self.source.raw_os_error().map(Errno::from_raw),
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
        )
    }
}

/// A socket to rtnetlink in one network namespace.
///
/// The operations are in the modules of their objects: [`crate::link`], [`crate::addr`], [`crate::route`],
/// [`crate::neigh`].
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtnl")
            .field("fd", &self.socket.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl Rtnl {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no more of them.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Dumps are filtered by the kernel rather than here.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| Refusal::from(e).about("open", "the rtnetlink socket"))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Opens a socket in another namespace.
    ///
    /// # Errors
    /// When the namespace can not be entered.
    pub fn open_in(netns: &NetNs) -> Result<Self, Error> {
        let failed = |e: netns::Error| Error {
            operation: "open rtnetlink in",
            object: netns.path().display().to_string(),
            source: io::Error::other(e),
            hint: None,
        };
        netns.run(Self::open).map_err(failed)?
    }

    /// How many requests it has sent. A dump is one, unless it had to be read again.
    pub fn requests_sent(&self) -> u32 {
        self.sequence
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| None::<()>)
            .map(drop)
    }

    /// Sends a request and returns what comes before its acknowledgement.
    pub(crate) fn get<T>(
        &mut self,
        message: RouteNetlinkMessage,
        keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let (found, _) = self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, keep)?;
        Ok(found.into_iter().next())
    }

    /// All objects of a kind. A dump that a change interrupted is read again.
    pub(crate) fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        for _ in 1..DUMP_ATTEMPTS_MAX {
            let (found, whole) = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, &mut keep)?;
            if whole {
                return Ok(found);
            }
        }
        self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, keep)
            .map(|(found, _)| found)
    }

    /// One request with all that answers it; false when a change interrupted the answer.
    fn exchange<T>(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut found = Vec::new();
        let mut whole = true;
        loop {
            let length = self.receive()?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((frame, next)) = Frame::split(rest) {
                rest = next;
                if frame.sequence != self.sequence {
                    continue; // the late answer to a request that was given up
                }
                whole &= frame.flags & DUMP_INTERRUPTED == 0;
                match frame.kind {
                    libc_kind::ERROR | libc_kind::DONE => {
                        return frame.verdict().map(|()| (found, whole));
                    }
                    _ => found.extend(frame.decode().and_then(&mut keep)),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => return Err(Errno::EMSGSIZE.into()),
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

mod libc_kind {
    /// `NLMSG_ERROR`.
    pub(super) const ERROR: u16 = 2;
    /// `NLMSG_DONE`.
    pub(super) const DONE: u16 = 3;
}

/// One message as it lies in the buffer.
pub(crate) struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    const HEADER_BYTES: usize = 16;

    /// The first message, and what follows it.
    pub(crate) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let header = bytes.get(..Self::HEADER_BYTES)?;
        let word = |at: usize| {
            header
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_ne_bytes)
        };
        let half = |at: usize| {
            header
                .get(at..at + 2)
                .and_then(|b| b.try_into().ok())
                .map(u16::from_ne_bytes)
        };
        let length = word(0)? as usize;
        let payload = bytes.get(Self::HEADER_BYTES..length)?;
        let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((
            Self {
                kind: half(4)?,
                flags: half(6)?,
                sequence: word(8)?,
                payload,
            },
            next,
        ))
    }

    /// The message, unless it is one that this version of the model does not know.
    pub(crate) fn decode(&self) -> Option<RouteNetlinkMessage> {
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        header.flags = self.flags;
        RouteNetlinkMessage::deserialize(&header, self.payload)
            .inspect_err(
                |error| tracing::warn!(kind = self.kind, %error, "a message of the kernel is not understood"),
            )
            .ok()
    }

    /// What an acknowledgement says.
    fn verdict(&self) -> Result<(), Refusal> {
        let code = self
            .payload
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, i32::from_ne_bytes);
        if code == 0 {
            return Ok(());
        }
        let hint = if self.flags & ACK_TLVS == 0 {
            None
        } else {
            self.hint()
        };
        Err(Refusal {
            source: io::Error::from_raw_os_error(code.saturating_neg()),
            hint,
        })
    }

    fn hint(&self) -> Option<String> {
        let mut attributes = self.payload.get(4..)?;
        if self.kind == libc_kind::ERROR {
            let repeated = attributes
                .get(..4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_ne_bytes)? as usize;
            let skip = if self.flags & ACK_CAPPED == 0 {
                repeated
            } else {
                Self::HEADER_BYTES
            };
            attributes = attributes.get(skip.next_multiple_of(4)..)?;
        }
        while let Some(head) = attributes.get(..4) {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            if u16::from_ne_bytes([head[2], head[3]]) == ATTRIBUTE_MESSAGE {
                let text = attributes.get(4..length)?;
                return Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_string());
            }
            attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
        }
        None
    }
}
