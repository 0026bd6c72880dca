//! All controllers of a process.

use svcnet_runtime::{Component, Context};

use crate::config::Config;

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// The controllers, ready to run.
pub struct Controllers {
    context: Context,
    health: Component,
}

impl Controllers {
    /// Subscribes to what the controllers watch.
    ///
    /// # Errors
    /// When the settings contradict each other.
    pub fn new(config: Config, context: &Context) -> Result<Self, Error> {
        _ = config;
        Ok(Self {
            context: context.clone(),
            health: context.health.component("controller"),
        })
    }

    /// Works until shutdown.
    ///
    /// # Errors
    /// None at present: a server that is away is waited for.
    pub async fn run(self) -> Result<(), Error> {
        self.health.ready();
        self.context.shutdown.cancelled().await;
        Ok(())
    }
}
