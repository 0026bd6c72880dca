//! A process as a pod: `svcnet pod run`.
//!
//! The supervisor does for one process what a kubelet and a container runtime do for a container: it makes the network
//! namespace, has the CNI plugin connect it, keeps the Pod object, restarts the process when it ends, says when the
//! pod is ready, and takes everything away at the end. What it holds is noted in a file under the run directory, so
//! that the next supervisor of the name can take it away if this one was killed.

pub mod cni;
pub mod object;
mod program;
pub mod readiness;
pub mod responder;
pub mod spec;
pub mod supervisor;
mod teardown;
pub mod traces;

pub use responder::Responder;
pub use spec::{ContainerPort, PodSpec, Protocol};
pub use supervisor::{PodError, remove, run};
