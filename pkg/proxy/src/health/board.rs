//! How the proxy does, shared between who knows and who answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// A change that has waited for so long is late: kube-proxy's twice the sync period.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// Set by the cluster autoscaler at nodes that it is about to delete.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    updated: Option<Timestamp>,
    waiting_since: Option<Timestamp>,
    going: bool,
}

/// How it does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether what was heard is in force, or not late yet.
    pub(crate) well: bool,
    /// Whether the node is to stay.
    pub(crate) eligible: bool,
    pub(crate) updated: Option<Timestamp>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change has come that is to be brought into force.
    pub(crate) fn queued(&self, now: Timestamp) {
        self.lock().waiting_since.get_or_insert(now);
    }

    /// Everything that had come is in force.
    pub(crate) fn updated(&self, now: Timestamp) {
        let mut state = self.lock();
        state.waiting_since = None;
        state.updated = Some(now);
    }

    /// The Node is like this.
    pub(crate) fn hear_node(&self, node: &Node) {
        let deleted = node.metadata.deletion_timestamp.is_some();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let doomed = taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TAINT_TO_BE_DELETED));
        self.lock().going = deleted || doomed;
    }

    pub(crate) fn look(&self, now: Timestamp) -> Look {
        let state = self.lock();
        // While it starts, nothing is late.
        let late = state.updated.is_some()
            && state
                .waiting_since
                .is_some_and(|since| now.duration_since(since) >= LATE);
        Look {
            well: !late,
            eligible: !state.going,
            updated: state.updated,
        }
    }
}
