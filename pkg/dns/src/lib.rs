//! The cluster's DNS server: the names of Services from watched state, all other names from the upstreams.
//!
//! Events of the watches go into [`zone::View`], which keeps what matters of them; [`zone::View::plan`] says what that
//! changes in the zone; the [`zone::Zone`] after the change replaces the former one. The threads of the [`server`] answer
//! out of whatever zone they see, [`wire`] reads and writes the messages, and `forward` asks others.

pub mod config;
mod feed;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod name;
mod progress;
pub mod server;
mod stats;
mod vip;
pub mod wire;
pub mod zone;

pub use config::{Config, PodRecords};
pub use server::{Publisher, Server};

use svcnet_runtime::Context;
use tokio_util::sync::CancellationToken;

use feed::Feed;
use progress::Progress;

/// Why the role cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was told what cannot work.
    #[error("the DNS server cannot start: {0}")]
    Config(String),
}

/// The DNS role of a node.
pub struct Dns {
    server: Server,
    feed: Feed,
    progress: Progress,
    shutdown: CancellationToken,
}

impl Dns {
    /// Subscribes to Services, EndpointSlices, Namespaces and, for their records, Pods.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: Config, ctx: &Context) -> Result<Self, Error> {
        config.check().map_err(Error::Config)?;
        let feed = Feed::subscribe(&ctx.informers, config.pods);
        let component = ctx.health.component("dns");
        component.tell(serde_json::json!({
            "addresses": config.addresses,
            "domain": config.cluster_domain.to_string().trim_end_matches('.'),
        }));
        Ok(Self {
            server: Server::new(config),
            feed,
            progress: Progress::new(component),
            shutdown: ctx.shutdown.clone(),
        })
    }

    /// Serves until shutdown. The cluster DNS addresses stay on the node.
    ///
    /// # Errors
    /// None so far: what goes wrong while it runs is tried again.
    pub async fn run(self) -> Result<(), Error> {
        let Self {
            server,
            feed,
            progress,
            shutdown,
        } = self;
        let publisher = server.publisher();
        tokio::join!(
            feed.run(publisher, progress.clone(), shutdown.clone()),
            server.run(progress, shutdown.clone())
        );
        Ok(())
    }
}
