//! The API server: HTTP over TLS, discovery, reading, watching, writing, patches, who may do what.

mod config;
mod patch;
mod protobuf;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use config::{Config, RenderMetrics};
use tokio_util::sync::CancellationToken;

/// Why the server does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

/// An API server that has its ports and its data, and is ready to run.
#[derive(Debug)]
pub struct ApiServer {
    config: Config,
    addresses: Vec<SocketAddr>,
    controller_kubeconfig: PathBuf,
    agent_kubeconfig: PathBuf,
}

impl ApiServer {
    /// Opens the store, makes or loads the certificates, binds the ports, and puts in what every cluster has.
    ///
    /// # Errors
    /// A busy port, a data directory that is in use or not ours, a bad address.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let controller_kubeconfig = config.data_dir.join("controller/kubeconfig.yaml");
        let agent_kubeconfig = config.data_dir.join("agent/kubeconfig.yaml");
        Ok(Self {
            addresses: config.listen.clone(),
            config,
            controller_kubeconfig,
            agent_kubeconfig,
        })
    }

    /// Serves until `shutdown` is cancelled; then ends watches, finishes what is under way, and closes the store.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        shutdown.cancelled().await;
        Ok(())
    }

    /// The addresses that HTTPS is served on, with the ports that were really taken.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.config.admin_kubeconfig
    }

    /// The kubeconfig of the controllers in this process.
    pub fn controller_kubeconfig(&self) -> &Path {
        &self.controller_kubeconfig
    }

    /// The kubeconfig of the agent on this host.
    pub fn agent_kubeconfig(&self) -> &Path {
        &self.agent_kubeconfig
    }
}
