//! The place where whoever enforces policies on containers is asked: before a container has a link.

use std::fmt;
use std::net::IpAddr;

use crate::ipam::Lease;
use crate::protocol::{Attachment, PodRef};

/// A container that is about to be attached, is attached, or was.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Which interface of which container.
    pub attachment: &'a Attachment,
    /// Its pod, if the runtime said one.
    pub pod: Option<&'a PodRef>,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
}

impl<'a> From<&'a Lease> for Subject<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            attachment: &lease.attachment,
            pod: lease.pod.as_ref(),
            addresses: &lease.addresses,
        }
    }
}

/// Isolates containers as policies want it. The daemon calls it from threads of its own, which may wait.
pub trait Isolation: fmt::Debug + Send + Sync {
    /// Returns once the kernel isolates the container's addresses as policies want it. It is called before the container's
    /// link is made, with addresses that nobody else has, and again for each attached container when the daemon starts.
    ///
    /// # Errors
    /// Why the container must not start. ADD fails with it, and [`Self::release`] is called.
    fn enforce(&self, subject: Subject<'_>) -> Result<(), String>;

    /// The container is gone, and its link with it: its addresses are about to be free for others. This does not wait
    /// for anything but the kernel.
    fn release(&self, subject: Subject<'_>);
}
