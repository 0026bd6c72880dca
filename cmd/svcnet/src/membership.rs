//! How an agent comes to its kubeconfig: from an earlier join, or by joining.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::join::{ClusterFacts, JoinToken, join};
use svcnet_runtime::renew;

/// A server that starts at the same time is there within a moment; one that is away costs nothing.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// What an agent has to join with, and where it keeps what it got.
pub(crate) struct Membership {
    /// The kubeconfig: given, or to be written.
    pub(crate) kubeconfig: PathBuf,
    /// Beside it, what the cluster said of itself.
    pub(crate) facts: PathBuf,
    /// The server to join; none to use the kubeconfig that is there.
    pub(crate) server: Option<String>,
    /// The token, if there is one.
    pub(crate) token: Option<JoinToken>,
    /// This node.
    pub(crate) node: String,
}

/// What was joined as what: another server, CA or name needs another certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    server: String,
    ca_hash: String,
    node: String,
    facts: ClusterFacts,
}

/// Makes sure of the kubeconfig. A server that is away is waited for, but only by a node that has not joined before.
pub(crate) async fn establish(membership: &Membership) -> anyhow::Result<Option<ClusterFacts>> {
    let before = read(&membership.facts).filter(|_| membership.kubeconfig.exists());
    let (Some(server), Some(token)) = (&membership.server, &membership.token) else {
        return Ok(before.map(|joined| joined.facts));
    };
    if let Some(joined) = before.filter(|joined| {
        joined.server == *server
            && joined.ca_hash == token.ca_hash()
            && joined.node == membership.node
            && !renew::has_expired(&membership.kubeconfig)
    }) {
        return Ok(Some(joined.facts));
    }
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let got = loop {
        match join(server, token, &membership.node).await {
            Ok(got) => break got,
            Err(error) if error.is_passing() => {
                let reason = format!("{:#}", anyhow::Error::from(error));
                if backoff.is_news(&reason) {
                    tracing::info!(server, reason, "waiting for the server, to join");
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    got.write_kubeconfig(&membership.kubeconfig, server)?;
    let joined = Joined {
        server: server.clone(),
        ca_hash: token.ca_hash(),
        node: membership.node.clone(),
        facts: got.facts,
    };
    let text = serde_json::to_vec_pretty(&joined)?;
    std::fs::write(&membership.facts, text)
        .with_context(|| format!("write {}", membership.facts.display()))?;
    tracing::info!(server, node = membership.node, "joined the cluster");
    Ok(Some(joined.facts))
}

/// What the cluster that this node has joined said of itself.
pub(crate) fn joined(data_dir: &Path) -> Option<ClusterFacts> {
    read(&facts_path(data_dir)).map(|joined| joined.facts)
}

/// Where an agent keeps it.
pub(crate) fn facts_path(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/cluster.json")
}

/// A damaged file is as good as none: joining writes another.
fn read(path: &Path) -> Option<Joined> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
