//! The gathering: what the API says, and what this node's kernel, DNS server and agent do.

mod api;
mod dns;
mod kernel;
mod probe;

use std::net::IpAddr;
use std::path::PathBuf;

use svcnet_proxy::inspect;
use svcnet_runtime::Status;

pub use api::{Settings, cluster};

use crate::cluster::Cluster;
use crate::explain::Explanation;
use crate::seen::{AgentSeen, Seen};
use crate::trace::{End, Trace, trace};
use crate::{SourceAsk, TargetAsk, confirm};

/// What is known of this node before anything is looked at.
#[derive(Debug, Clone)]
pub struct Here {
    /// Its name.
    pub node: String,
    /// What its agent tells of itself, or why it does not.
    pub agent: Result<Status, String>,
    /// The mode of its proxy.
    pub mode: svcnet_proxy::Mode,
    /// Addresses of its DNS server, if it runs one.
    pub dns: Vec<IpAddr>,
    /// Where its agent keeps state.
    pub data_dir: PathBuf,
}

impl Here {
    /// From what the agent of this host tells.
    pub fn of_agent(status: Status) -> Option<(Self, inspect::Facts)> {
        let facts: inspect::Facts = serde_json::from_value(status.get("proxy")?.facts.clone()).ok()?;
        let dns = status.get("dns").map(|part| part.facts["addresses"].clone());
        let here = Self {
            node: facts.node.clone(),
            mode: facts.mode,
            dns: dns
                .and_then(|dns| serde_json::from_value(dns).ok())
                .unwrap_or_default(),
            data_dir: facts.data_dir.clone(),
            agent: Ok(status),
        };
        Some((here, facts))
    }

    fn agent(&self) -> AgentSeen {
        match &self.agent {
            Err(why) => AgentSeen::Silent(why.clone()),
            Ok(status) => AgentSeen::Runs {
                roles: status.keys().cloned().collect(),
                not_ready: status
                    .iter()
                    .filter_map(|(role, part)| Some((role.clone(), part.reason.clone()?)))
                    .collect(),
            },
        }
    }
}

/// The domain of the cluster's names, as the agent of this host tells.
pub fn domain(status: &Status) -> Option<String> {
    let domain = status.get("dns")?.facts["domain"].as_str()?;
    Some(domain.to_string())
}

/// The answer, with this node's kernel looked at. With `try_it`, a connection is made as well, if the client is here.
///
/// Blocks: on sockets of this host, for seconds at most.
pub fn explain(
    cluster: &Cluster,
    here: Option<&Here>,
    source: &SourceAsk,
    target: &TargetAsk,
    try_it: bool,
) -> Explanation {
    let trace = trace(cluster, source, target);
    let seen = here.map(|here| look(cluster, here, &trace, try_it));
    confirm::confirm(cluster, trace, seen.as_ref())
}

fn look(cluster: &Cluster, here: &Here, trace: &Trace, try_it: bool) -> Seen {
    let mut seen = Seen::on(&here.node, here.agent());
    let End::Way(way) = &trace.end else { return seen };
    if let (Some(expected), Some(server)) = (&trace.dns, here.dns.first()) {
        seen.dns = Some(dns::ask(*server, expected));
    }
    if way.node.as_ref().is_some_and(|node| *node != here.node) {
        return seen;
    }
    kernel::look(cluster, here, trace.origin.as_ref(), way, &mut seen);
    if try_it {
        let tried = probe::connect(here, trace.origin.as_ref(), way);
        seen.probe = Some(tried);
    }
    seen
}
