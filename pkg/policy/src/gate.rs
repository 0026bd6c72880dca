//! What starts pods waits here until the kernel isolates them as their policies want: a pod has no moment without.

use std::net::IpAddr;

use svcnet_api::types::MacAddr;
use tokio::sync::{mpsc, oneshot};

use crate::known::Shared;
use crate::model::ObjectKey;

/// A pod's link, and who is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The node's end: a port of the pods' bridge.
    pub link: String,
    /// The Ethernet address of the pod's end. Without, nothing is pinned: others may change it.
    pub mac: Option<MacAddr>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Which pod it is; none where the runtime does not tell.
    pub pod: Option<PodId>,
}

/// Which pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// Its name.
    pub key: ObjectKey,
    /// Who it is. Without, it is a pod that the API need not know.
    pub uid: Option<String>,
    /// The API hears of it only after it has started. It is let nothing until then, and nobody waits for that.
    pub late: bool,
}

/// Why a pod can not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody knows its labels.
    #[error("the API does not know the pod {0} yet, so nobody can tell which NetworkPolicies are about it")]
    Unknown(ObjectKey),
    /// The cluster's policies are not known.
    #[error("the cluster's NetworkPolicies are not known to this node yet")]
    NotListed,
    /// The kernel did not take it.
    #[error("the kernel does not hold the NetworkPolicies: {0}")]
    Kernel(String),
    /// The role has ended.
    #[error("the role that enforces NetworkPolicies has ended")]
    Ended,
}

/// What the role is told.
#[derive(Debug)]
pub(crate) enum Call {
    Attach(Attachment, oneshot::Sender<Result<(), Refused>>),
    Detach(String),
    Restore(Vec<Attachment>),
}

/// Where pods are announced. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    /// As long as it has to be: what calls are pods that start and end.
    calls: mpsc::UnboundedSender<Call>,
    known: Shared,
}

impl Gate {
    pub(crate) fn new(known: Shared) -> (Self, mpsc::UnboundedReceiver<Call>) {
        let (calls, receiver) = mpsc::unbounded_channel();
        (Self { calls, known }, receiver)
    }

    /// Whether the API has told of this pod, of this uid. Then it is isolated as its labels say when it is attached, whether it
    /// is [late](PodId::late) or not.
    pub fn knows(&self, key: &ObjectKey, uid: &str) -> bool {
        let known = self.known.read();
        let facts = known.pods.get(key);
        facts.is_some_and(|facts| facts.uids.iter().any(|known| known == uid))
    }

    /// Announces a pod, and blocks until it is isolated and its address pinned; not for threads of an async runtime.
    ///
    /// # Errors
    /// When that can not be within ten seconds. Then the pod is as good as detached.
    pub fn attach(&self, attachment: Attachment) -> Result<(), Refused> {
        let (answer, answered) = oneshot::channel();
        let link = attachment.link.clone();
        self.calls
            .send(Call::Attach(attachment, answer))
            .map_err(|_| Refused::Ended)?;
        let result = answered.blocking_recv().unwrap_or(Err(Refused::Ended));
        if result.is_err() {
            self.detach(&link);
        }
        result
    }

    /// A pod is gone. Does not wait.
    pub fn detach(&self, link: &str) {
        // A role that has ended needs to know nothing.
        _ = self.calls.send(Call::Detach(link.to_string()));
    }

    /// All pods that are attached, at the start of who attaches them: whatever else is pinned is let go. Does
    /// not wait.
    pub fn restore(&self, all: Vec<Attachment>) {
        _ = self.calls.send(Call::Restore(all));
    }
}
