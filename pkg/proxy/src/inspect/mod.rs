//! Looking at a node's proxy from beside it: what it should do, what the kernel holds, who is connected to whom.
//!
//! Nothing here changes anything (but for what [`Ipvs::diff`](crate::ipvs::Ipvs::diff) says), and nothing needs the proxy to run: [`Facts`] is what a running one tells of itself,
//! so that whoever looks computes with the very settings that it works with.

mod connections;
mod kernel;
mod ruleset;
mod show;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use svcnet_runtime::Change;

pub use connections::{Connections, count};
pub use kernel::{Difference, Kernel};
pub use ruleset::Ruleset;
pub use show::{EndpointShown, FrontendShown, Kind, ServiceShown, Traffic, show};

use crate::backend::{Backend, Error, Mode, Report};
use crate::config::Config;
use crate::engine::{Engine, Update};
use crate::model::{Frontend, FrontendKey};

/// What a proxy tells of itself (the part `proxy` of `/status`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Name of its node.
    pub node: String,
    /// The backend at work.
    pub mode: Mode,
    /// How it is run.
    pub config: Config,
    /// Where its process keeps state.
    pub data_dir: PathBuf,
    /// Services that it knows.
    pub services: usize,
    /// Frontends that they have.
    pub frontends: usize,
    /// When the kernel last took what it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Timestamp>,
}

/// A proxy on a node, running or not.
#[derive(Debug, Clone, Copy)]
pub struct OnNode<'a> {
    /// The node's name.
    pub name: &'a str,
    /// How the proxy is run.
    pub config: &'a Config,
    /// The Node object, where it is known: its zone decides about endpoints, its addresses about node ports.
    pub node: Option<&'a Node>,
}

/// The frontends that the proxy of that node should have, by their names and places: what [`Engine`] computes, from
/// scratch.
pub fn frontends(
    on: OnNode<'_>,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
) -> Vec<Frontend> {
    let mut engine = Engine::new(on.name, on.config.settings(), Box::new(Nobody));
    if let Some(node) = on.node {
        let node = Arc::new(node.clone());
        engine.apply_change(Update::Node(Change::Reset(vec![node])));
    }
    engine.apply_change(Update::Services(Change::Reset(services)));
    engine.apply_change(Update::Slices(Change::Reset(slices)));
    // Claims are settled by a sync; nobody refuses.
    let _settled = engine.sync();
    let mut frontends: Vec<Frontend> = engine.desired().collect();
    frontends.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
    frontends
}

/// The backend of one who only looks.
struct Nobody;

impl Backend for Nobody {
    fn name(&self) -> &'static str {
        Mode::Nftables.name()
    }

    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        _from_scratch: bool,
    ) -> Result<Report, Error> {
        frontends.for_each(drop);
        Ok(Report::default())
    }

    fn change(&mut self, _changes: Vec<(FrontendKey, Option<Frontend>)>) -> Result<Report, Error> {
        Ok(Report::default())
    }

    fn touched(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
