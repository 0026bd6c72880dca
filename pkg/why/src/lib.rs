//! Why a packet arrives, or why not: `svcnet why SOURCE NAME:PORT`.
//!
//! | module | what |
//! |---|---|
//! | [`ask`] | the question, parsed |
//! | [`cluster`] | what the API says, and how a node's proxy is run |
//! | [`trace`] | from both to the way that the connection should take: pure |
//! | [`seen`] | what the kernel of this node holds of that way, as plain data |
//! | [`confirm`] | from the way and what was seen to an [`Explanation`]: pure |
//! | [`look`] | the gathering: the API, the kernel, the DNS server, a connection as a probe |
//!
//! Every way to fail is a variant of [`NotReached`]; texts and JSON are made of that one value.
//!
//! This crate stands above the roles: it computes with the proxy's own `desired`, and so can not differ from it.

pub mod ask;
pub mod cluster;
pub mod confirm;
mod diagnose;
pub mod explain;
pub mod look;
mod names;
pub mod reason;
pub mod seen;
pub mod trace;

pub use ask::{SourceAsk, TargetAsk};
pub use cluster::Cluster;
pub use explain::{Explanation, Mark, Outcome, Step, What};
pub use reason::NotReached;

pub use seen::Seen;
pub use trace::{Trace, trace};
