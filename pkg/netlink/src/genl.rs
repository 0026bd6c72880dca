//! Generic netlink: families of commands that are found by name. Numbers as in `include/uapi/linux/genetlink.h`.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::nft::attr::{Reader, Writer};
use crate::nft::batch::finish_header;
use crate::nft::socket::{Messages, NLMSG_DONE, NLMSG_ERROR};

pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// `struct genlmsghdr`.
const HEADER_BYTES: usize = 4;
const RECEIVE_BUFFER: usize = 64 << 10;
/// A list that never rests is an error after so many tries.
const ATTEMPTS_MAX: u32 = 20;
/// The kernel answers before the call that sends returns; what takes longer is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What can go wrong between us and a family of generic netlink.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("open a generic netlink socket: {0}")]
    Open(#[source] io::Error),
    /// Sending failed.
    #[error("send to generic netlink: {0}")]
    Send(#[source] io::Error),
    /// Receiving failed.
    #[error("receive from generic netlink: {0}")]
    Receive(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused to {what}: {errno}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// What it was asked, as in `add service 10.96.0.1:80 tcp`.
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
}

/// One message to a family: a command with attributes.
pub(crate) fn message(
    family: u16,
    (command, version): (u8, u8),
    flags: u16,
    attributes: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port follow when it is sent.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, version, 0, 0]);
    attributes(&mut Writer::new(&mut bytes));
    finish_header(&mut bytes, 0);
    bytes
}

/// A socket to generic netlink, in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = RawSocket::new(NETLINK_GENERIC).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        socket.set_cap_ack(true).map_err(Error::Open)?;
        socket.set_ext_ack(true).map_err(Error::Open)?;
        let timeout = nix::sys::time::TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(|e| Error::Open(e.into()))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// The number of the family of that name, if the kernel has it.
    pub(crate) fn family(&mut self, name: &str) -> Result<Option<u16>, Error> {
        /// `GENL_ID_CTRL`, the one family whose number is fixed.
        const CONTROL: u16 = 16;
        const CTRL_CMD_GETFAMILY: u8 = 3;
        const CTRL_ATTR_FAMILY_ID: u16 = 1;
        const CTRL_ATTR_FAMILY_NAME: u16 = 2;
        let request = message(CONTROL, (CTRL_CMD_GETFAMILY, 1), NLM_F_ACK, |w| {
            w.text(CTRL_ATTR_FAMILY_NAME, name);
        });
        let mut number = None;
        let found = self.ask(
            request,
            || format!("find the family {name}"),
            |body| {
                let id = Reader::new(body).find(CTRL_ATTR_FAMILY_ID);
                number = id.and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
            },
        );
        match found {
            Ok(()) => Ok(number),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one request that asks for an acknowledgement, and hands each answer before that to `each`.
    pub(crate) fn ask(
        &mut self,
        request: Vec<u8>,
        what: impl Fn() -> String,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.send_all(&mut [request])?;
        let last = self.sequence;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|sequence, answer| match answer {
                _ if sequence != last => {}
                Answer::Acknowledged | Answer::End { .. } => outcome = Some(Ok(())),
                Answer::Refused(errno, detail) => {
                    let what = what();
                    outcome = Some(Err(Error::Refused { what, errno, detail }));
                }
                Answer::Body { body, .. } => each(body),
            })?;
        }
        outcome.unwrap_or(Ok(()))
    }

    /// Sends several requests at once, of which the last asks for an acknowledgement. The kernel carries out each that
    /// it can; the first that it refuses is the error. Says how many bytes went out.
    pub(crate) fn request_all(
        &mut self,
        mut requests: Vec<Vec<u8>>,
        what: impl Fn(usize) -> String,
    ) -> Result<usize, Error> {
        if requests.is_empty() {
            return Ok(0);
        }
        let first = self.sequence.wrapping_add(1);
        let bytes = self.send_all(&mut requests)?;
        let last = self.sequence;
        let mut failure = None;
        let mut done = false;
        while !done {
            self.receive(|sequence, answer| {
                let index = sequence.wrapping_sub(first) as usize;
                if index >= requests.len() {
                    return;
                }
                done |= sequence == last;
                if let Answer::Refused(errno, detail) = answer {
                    let what = what(index);
                    failure.get_or_insert(Error::Refused { what, errno, detail });
                }
            })?;
        }
        failure.map_or(Ok(bytes), Err)
    }

    /// Asks for a list and hands each item to `each`. A list that changed while it was read is read again from the
    /// start; `restart` is told so.
    pub(crate) fn dump(
        &mut self,
        request: &[u8],
        what: impl Fn() -> String,
        mut restart: impl FnMut(),
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        for attempt in 1.. {
            self.send_all(&mut [request.to_vec()])?;
            let last = self.sequence;
            let mut whole = true;
            let mut outcome = None;
            while outcome.is_none() {
                self.receive(|sequence, answer| match answer {
                    _ if sequence != last => {}
                    Answer::Acknowledged => outcome = Some(Ok(())),
                    Answer::End { interrupted } => {
                        whole &= !interrupted;
                        outcome = Some(Ok(()));
                    }
                    Answer::Refused(errno, detail) => {
                        let what = what();
                        outcome = Some(Err(Error::Refused { what, errno, detail }));
                    }
                    Answer::Body { body, interrupted } => {
                        whole &= !interrupted;
                        each(body);
                    }
                })?;
            }
            if whole || attempt >= ATTEMPTS_MAX {
                return outcome.unwrap_or(Ok(()));
            }
            restart();
        }
        Ok(())
    }

    fn send_all(&mut self, requests: &mut [Vec<u8>]) -> Result<usize, Error> {
        for request in requests.iter_mut() {
            self.sequence = self.sequence.wrapping_add(1);
            request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        }
        let bytes = requests.concat();
        loop {
            match self.socket.send(&bytes, 0) {
                Ok(_) => return Ok(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Send(error)),
            }
        }
    }

    /// Reads one datagram and hands each answer in it to `each`, with the number of the request that it answers.
    fn receive(&mut self, mut each: impl FnMut(u32, Answer<'_>)) -> Result<(), Error> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(RECEIVE_BUFFER);
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Receive(error)),
            }
        }
        for message in Messages(&self.buffer) {
            let interrupted = message.flags & NLM_F_DUMP_INTR != 0;
            let answer = match message.kind {
                NLMSG_ERROR | NLMSG_DONE => match message.error() {
                    Some((errno, detail)) => Answer::Refused(errno, detail),
                    None if message.kind == NLMSG_DONE => Answer::End { interrupted },
                    None => Answer::Acknowledged,
                },
                _ => Answer::Body {
                    body: message.body.get(HEADER_BYTES..).unwrap_or_default(),
                    interrupted,
                },
            };
            each(message.sequence, answer);
        }
        Ok(())
    }
}

/// What the kernel says to a request.
enum Answer<'a> {
    /// It is done.
    Acknowledged,
    /// A list is at its end.
    End { interrupted: bool },
    /// It is not done.
    Refused(Errno, Option<String>),
    /// Attributes.
    Body { body: &'a [u8], interrupted: bool },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_name() {
        let mut socket = Socket::open().unwrap();
        assert_eq!(
            socket.family("nlctrl").unwrap(),
            Some(16),
            "the one that is always there"
        );
        assert_eq!(socket.family("no-such-family").unwrap(), None);
        // The socket is in order afterwards.
        assert_eq!(socket.family("nlctrl").unwrap(), Some(16));
    }

    #[test]
    fn lists_come_whole_and_refusals_name_what_was_asked() {
        let mut socket = Socket::open().unwrap();
        let request = message(16, (3, 1), NLM_F_DUMP, |_| {});
        let mut names = Vec::new();
        socket
            .dump(
                &request,
                || "list families".into(),
                || {},
                |body| {
                    names.extend(
                        Reader::new(body)
                            .find(2)
                            .map(|name| crate::nft::attr::text(name).to_string()),
                    );
                },
            )
            .unwrap();
        assert!(names.iter().any(|name| name == "nlctrl"), "{names:?}");

        let bad = |flags| message(16, (200, 1), flags, |_| {});
        let requests = vec![
            bad(0),
            message(16, (3, 1), NLM_F_ACK, |w| {
                w.text(2, "nlctrl");
            }),
        ];
        let error = socket
            .request_all(requests, |index| format!("do number {index}"))
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP));
        assert!(error.to_string().contains("do number 0"), "{error}");
        socket
            .request_all(
                vec![message(16, (3, 1), NLM_F_ACK, |w| {
                    w.text(2, "nlctrl");
                })],
                |_| String::new(),
            )
            .unwrap();
    }
}
