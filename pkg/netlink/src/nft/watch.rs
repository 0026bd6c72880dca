//! Notifications: who else changes our tables.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket as RawSocket, protocols::NETLINK_NETFILTER};

use nix::sys::socket::{setsockopt, sockopt};

use super::attr::{Reader, text};
use super::batch::{MESSAGE_HEADER, SUBSYSTEM};
use super::object::{Family, Table};
use super::socket::Error;
use crate::exchange::Messages;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
const RECEIVE_BUFFER: usize = 256 << 10;
/// How much the kernel keeps until it is read: some ten thousand notifications.
const KEPT_BYTES: usize = 8 << 20;

/// What happened to nf_tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something in this table was added, changed or removed by the socket of that port.
    Changed {
        /// The table.
        table: Table,
        /// [`super::Socket::port`] of who did it.
        port: u32,
    },
    /// More happened than could be kept: anything may have changed.
    Overrun,
}

/// Listens to the changes of all tables in a network namespace.
///
/// The kernel makes a notification for each element as long as anybody listens, which doubles the cost of a large
/// batch: [`Watch::pause`] around those.
pub struct Watch {
    socket: RawSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no nfnetlink or permission is lacking.
    pub fn open() -> Result<Self, Error> {
        let mut socket = RawSocket::new(NETLINK_NETFILTER).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.set_non_blocking(true).map_err(Error::Open)?;
        // Without the privilege to force it, less is kept, and Overrun comes sooner.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &KEPT_BYTES);
        socket.add_membership(GROUP).map_err(Error::Open)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Stops listening for a while. What happens meanwhile is not told later.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pause(&self) -> Result<(), Error> {
        self.socket.drop_membership(GROUP).map_err(Error::Receive)
    }

    /// Listens again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resume(&self) -> Result<(), Error> {
        self.socket.add_membership(GROUP).map_err(Error::Receive)
    }

    /// Hands what has happened since the last call to `each`; does not wait.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> Result<(), Error> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(RECEIVE_BUFFER);
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {
                    for message in Messages(&self.buffer) {
                        if let Some(event) = read(message.kind, message.port, message.body) {
                            each(event);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(Event::Overrun),
                Err(error) => return Err(Error::Receive(error)),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(kind: u16, port: u32, body: &[u8]) -> Option<Event> {
    /// `NFT_MSG_NEWGEN`, which ends each transaction and belongs to no table.
    const NEW_GENERATION: u16 = 15;
    const NFGENMSG: usize = MESSAGE_HEADER - 16;
    if kind & 0xff00 != SUBSYSTEM || kind & 0xff == NEW_GENERATION {
        return None;
    }
    let family = Family::from_number(*body.first()?)?;
    // The name of the table is attribute 1 of every kind of message.
    let name = Reader::new(body.get(NFGENMSG..)?).find(1).map(text)?;
    Some(Event::Changed {
        table: Table {
            bridge: false,
            family,
            name: name.to_string().into(),
        },
        port,
    })
}
