//! Generic netlink: families of commands that are found by name. Numbers as in `include/uapi/linux/genetlink.h`.

use std::io;
use std::ops::ControlFlow;

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::exchange::{Exchange, Failure, NLMSG_DONE, NLMSG_ERROR};
use crate::nft::attr::{Reader, Writer};
use crate::nft::batch::finish_header;

pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REQUEST: u16 = 0x1;
/// `struct genlmsghdr`.
const HEADER_BYTES: usize = 4;
/// A list is read so often until it rests.
const ATTEMPTS_MAX: u32 = 20;

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

    /// `what` says what the request of an index asks for.
    fn of(failure: Failure, what: impl FnOnce(usize) -> String) -> Self {
        match failure {
            Failure::Send { source, .. } => Self::Send(source),
            Failure::Receive(error) => Self::Receive(error),
            Failure::Refused { index, errno, detail } => {
                let what = what(index);
                Self::Refused { what, errno, detail }
            }
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
    exchange: Exchange,
}

impl Socket {
    /// Opens one.
    pub(crate) fn open() -> Result<Self, Error> {
        let exchange = Exchange::open(NETLINK_GENERIC).map_err(Error::Open)?;
        Ok(Self { exchange })
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
        mut request: Vec<u8>,
        what: impl Fn() -> String,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let outcome = self.exchange.ask(&mut request, |index, message| {
            match (message.kind, message.refusal(index)) {
                (_, Some(refusal)) => return ControlFlow::Break(Err(refusal)),
                (NLMSG_ERROR | NLMSG_DONE, None) => return ControlFlow::Break(Ok(())),
                _ => each(attributes(message.body)),
            }
            ControlFlow::Continue(())
        });
        outcome
            .flatten()
            .map_err(|failure| Error::of(failure, |_| what()))
    }

    /// Sends several requests at once, of which the last asks for an acknowledgement. The kernel carries out each that
    /// it can; the first that it refuses is the error. Says how many bytes went out.
    pub(crate) fn request_all(
        &mut self,
        requests: &[Vec<u8>],
        what: impl Fn(usize) -> String,
    ) -> Result<usize, Error> {
        let Some(last) = requests.len().checked_sub(1) else {
            return Ok(0);
        };
        let mut bytes = requests.concat();
        let mut failure = None;
        let outcome = self.exchange.ask(&mut bytes, |index, message| {
            if let Some(refusal) = message.refusal(index) {
                failure.get_or_insert(refusal);
            }
            // Only what is refused, and the last, is answered.
            if index == last {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        match outcome.err().or(failure) {
            Some(failure) => Err(Error::of(failure, what)),
            None => Ok(bytes.len()),
        }
    }

    /// Asks for a list and hands each item to `each`. A list that changed while it was read is read again from the
    /// start; `restart` is told so. One that never rests is taken as it is.
    pub(crate) fn dump(
        &mut self,
        request: &[u8],
        what: impl Fn() -> String,
        mut restart: impl FnMut(),
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let mut request = request.to_vec();
        for attempt in 1.. {
            let outcome = self
                .exchange
                .dump_once(&mut request, |body| each(attributes(body)));
            match outcome {
                Ok(false) if attempt < ATTEMPTS_MAX => restart(),
                outcome => {
                    return outcome
                        .map(drop)
                        .map_err(|failure| Error::of(failure, |_| what()));
                }
            }
        }
        Ok(())
    }
}

/// What follows the header of a message.
fn attributes(body: &[u8]) -> &[u8] {
    body.get(HEADER_BYTES..).unwrap_or_default()
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
            .request_all(&requests, |index| format!("do number {index}"))
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP));
        assert!(error.to_string().contains("do number 0"), "{error}");
        socket
            .request_all(
                &[message(16, (3, 1), NLM_F_ACK, |w| {
                    w.text(2, "nlctrl");
                })],
                |_| String::new(),
            )
            .unwrap();
    }
}
