//! The place where whoever enforces policies on containers is asked: before a container has a link.

use std::fmt;
use std::net::IpAddr;

use svcnet_api::types::MacAddr;

use crate::ipam::Lease;
use crate::link::{host_name, mac_of};
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
    /// The Ethernet address of its end of the link; none for one that may have any.
    pub mac: Option<MacAddr>,
    /// The API hears of its pod only after it has started: whoever runs it told nobody else, and its labels are known only
    /// when it runs. It is to be let nothing until then.
    pub late: bool,
}

impl Subject<'_> {
    /// The node's end of its link: a port of the bridge.
    pub fn link(&self) -> String {
        host_name(self.attachment)
    }
}

impl<'a> From<&'a Lease> for Subject<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            attachment: &lease.attachment,
            pod: lease.pod.as_ref(),
            addresses: &lease.addresses,
            mac: (!lease.unpinned).then_some(lease.runtime.mac).and_then(|mac| {
                let own = || lease.addresses.first().map(|first| mac_of(*first));
                mac.or_else(own)
            }),
            late: false,
        }
    }
}

/// Isolates containers as policies want it. The daemon calls it from threads of its own, which may wait.
pub trait Isolation: fmt::Debug + Send + Sync {
    /// Whether it has heard of this pod, of this uid, from the API: then it is not [late](Subject::late), and nobody needs to be
    /// asked.
    fn knows(&self, pod: &PodRef) -> bool;

    /// Returns once the kernel isolates the container's addresses as policies want it. It is called before the container's
    /// link is made, with addresses that nobody else has.
    ///
    /// # Errors
    /// Why the container must not start. ADD fails with it, and [`Self::release`] is called.
    fn enforce(&self, subject: Subject<'_>) -> Result<(), String>;

    /// The container is gone, and its link with it: its addresses are about to be free for others. This does not wait
    /// for anything but the kernel.
    fn release(&self, subject: Subject<'_>);

    /// All containers that are attached when the daemon starts. They go on as they are; this waits for nothing but the
    /// kernel, too.
    fn restore(&self, all: &[Subject<'_>]);
}
