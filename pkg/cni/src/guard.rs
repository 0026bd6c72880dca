//! Who is told of pods before they start: whatever isolates them. The daemon does not know what a policy is; the process
//! that runs both puts them together.

use std::fmt;
use std::net::IpAddr;

use svcnet_api::types::MacAddr;

use crate::ipam::Lease;
use crate::link::{host_name, mac_of};
use crate::protocol::PodRef;

/// A pod's link, and who is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The node's end.
    pub link: String,
    /// The Ethernet address of the pod's end.
    pub mac: MacAddr,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Which pod it is, where the runtime tells.
    pub pod: Option<PodRef>,
}

impl Guarded {
    pub(crate) fn of(lease: &Lease, mac: MacAddr) -> Self {
        Self {
            link: host_name(&lease.attachment),
            mac,
            addresses: lease.addresses.clone(),
            pod: lease.pod.clone(),
        }
    }

    /// The same of a pod that was attached by an earlier daemon.
    pub(crate) fn restored(lease: &Lease) -> Option<Self> {
        lease
            .addresses
            .first()
            .map(|first| Self::of(lease, mac_of(*first)))
    }
}

/// Isolates pods.
pub trait Guard: fmt::Debug + Send + Sync {
    /// A pod is about to be attached. Returns when it is isolated as it should be; blocks until then.
    ///
    /// # Errors
    /// Why it can not be: the pod is not attached then.
    fn attach(&self, pod: Guarded) -> Result<(), String>;

    /// A pod's link is gone.
    fn detach(&self, link: &str);

    /// All pods that are attached when the daemon starts.
    fn restore(&self, pods: Vec<Guarded>);
}
