//! One descriptor for several: readable when any of them is.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Readable when one of the descriptors is that it was made of. They must outlive it, or it is never readable by them.
pub(super) struct Wake(Epoll);

impl Wake {
    pub(super) fn new(descriptors: &[&dyn AsFd]) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (number, descriptor) in (0u64..).zip(descriptors) {
            epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        Ok(Self(epoll))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
