//! Announces LoadBalancer addresses on the local network: exactly one node answers ARP and neighbour solicitations for
//! each, and another takes over within a second when it dies.

mod config;

pub use config::{
    Config, DEFAULT_EXCLUDED, DEFAULT_HEARTBEAT_PORT, DEFAULT_INTERVAL, DEFAULT_TIMEOUT, LinkPattern,
    PatternError,
};

use svcnet_runtime::Context;

/// The announcer of a node.
pub struct Announcer {
    context: Context,
}

/// Why an announcer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

impl Announcer {
    /// Subscribes to what it needs to know.
    ///
    /// # Errors
    /// None yet.
    pub fn new(_config: Config, context: &Context) -> Result<Self, Error> {
        Ok(Self {
            context: context.clone(),
        })
    }

    /// Works until shutdown.
    ///
    /// # Errors
    /// None yet.
    pub async fn run(self) -> Result<(), Error> {
        self.context.shutdown.cancelled().await;
        Ok(())
    }
}
