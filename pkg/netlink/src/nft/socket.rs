//! The socket to nf_tables: commits batches, reads back what the kernel holds.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::attr;
use super::batch::{self, Batch};
use crate::exchange::{Exchange, Failure, NLMSG_ERROR, Received, messages};

const NLM_F_REQUEST: u16 = 0x1;
/// Interrupted dumps and busy commits are tried again this often before they are an error.
const ATTEMPTS_MAX: u32 = 20;

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

impl Error {
    /// `what` says what the message of an index asks for.
    fn of(failure: Failure, what: impl FnOnce(usize) -> String) -> Self {
        match failure {
            Failure::Send { bytes, source } => Self::Send { bytes, source },
            Failure::Receive(error) => Self::Receive(error),
            Failure::Refused { index, errno, detail } => {
                let what = what(index);
                Self::Refused { what, errno, detail }
            }
        }
    }
}

/// A socket to nf_tables, in the network namespace of the thread that opened it.
pub struct Socket {
    exchange: Exchange,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink or permission is lacking.
    pub fn open() -> Result<Self, Error> {
        let exchange = Exchange::open(NETLINK_NETFILTER).map_err(Error::Open)?;
        Ok(Self { exchange })
    }

    /// The port by which notifications name who made a change.
    pub fn port(&self) -> u32 {
        self.exchange.port()
    }

    /// Carries a batch out as one transaction. An empty batch is not sent.
    ///
    /// # Errors
    /// When the kernel refuses any part of it; then nothing of it happened.
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        // The message before the end of the batch is the one that asks for an answer.
        let last = batch.message_count();
        let mut bytes = batch.finish();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = self.commit_once(&mut bytes, last);
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

    fn commit_once(&mut self, bytes: &mut [u8], last: usize) -> Result<(), Error> {
        // The error that stopped the batch leaves its last message unanswered.
        let outcome = self
            .exchange
            .ask(bytes, |index, message| match message.refusal(index) {
                Some(refusal) => ControlFlow::Break(Err(refusal)),
                None if message.kind == NLMSG_ERROR && index == last => ControlFlow::Break(Ok(())),
                None => ControlFlow::Continue(()),
            });
        self.exchange.drain();
        let described = |index| messages(bytes).nth(index).map(batch::describe);
        let what = |index| described(index).unwrap_or_else(|| "commit".to_string());
        outcome.flatten().map_err(|failure| Error::of(failure, what))
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
        let outcome = self.exchange.ask(request, |index, message| {
            let outcome = message.refusal(index).map(Err);
            match outcome.or_else(|| answer(message).map(Ok)) {
                Some(outcome) => ControlFlow::Break(outcome),
                None => ControlFlow::Continue(()),
            }
        });
        outcome
            .flatten()
            .map_err(|failure| Error::of(failure, |_| what.to_string()))
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
            let outcome = self.exchange.dump_once(request, |body| {
                if let [family, _, _, _, attributes @ ..] = body {
                    each(*family, attributes);
                }
            });
            let outcome = outcome.map_err(|failure| Error::of(failure, |_| format!("list {what}")));
            let outcome = outcome.and_then(|whole| if whole { Ok(()) } else { Err(interrupted(what)) });
            match outcome.as_ref().err().and_then(Error::errno) {
                Some(Errno::EINTR | Errno::EAGAIN) if attempt < ATTEMPTS_MAX => {
                    self.exchange.drain();
                    restart();
                }
                _ => return outcome,
            }
        }
        Ok(())
    }
}

fn interrupted(what: &str) -> Error {
    Error::Refused {
        what: format!("list {what}"),
        errno: Errno::EINTR,
        detail: None,
    }
}
