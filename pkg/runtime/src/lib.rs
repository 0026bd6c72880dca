//! What every role runs on: the API connection, watches, health, metrics, logs and shutdown.
//!
//! A role is built in two steps: `new` subscribes to what it watches, `run` works until shutdown. Between the two,
//! [`Informers::start`] opens one watch for each kind, shared by all the roles of the process.

pub mod backoff;
pub mod connect;
pub mod events;
pub mod health;
mod identity;
pub mod informer;
pub mod join;
mod journal;
mod kinds;
pub mod memory;
pub mod ops;
pub mod renew;
pub mod resolve;
pub mod serve;
pub mod servers;
pub mod telemetry;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

pub use health::{Component, Health, Part, Status};
pub use informer::{Change, Informers, Scope, last_known};

/// What a role runs on. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// This node's name, as in `Node.metadata.name`.
    pub node_name: String,
    /// The API.
    pub client: kube::Client,
    /// The process's watches.
    pub informers: Informers,
    /// Where roles say whether they are ready.
    pub health: Health,
    /// Cancelled once, when the process is to stop.
    pub shutdown: CancellationToken,
    /// State that survives a restart (`--data-dir`).
    pub data_dir: PathBuf,
    /// Sockets and what need not survive (`--run-dir`).
    pub run_dir: PathBuf,
}
