//! A pod network for each node, out of the cluster's.
//!
//! A network belongs to a node from the moment it is chosen, before it is written, until the Node is deleted: a write
//! that fails or whose answer is lost is tried again with the same network.

mod networks;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use futures::stream::BoxStream;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use svcnet_api::types::CidrList;
use svcnet_runtime::{Change, Informers, Scope};

use crate::engine::{Applying, Controller, Mark, source};
use crate::recorder::{Notice, Recorder, Severity};
use crate::view::{Version, View};

pub use networks::NetworkTooSmall;
use networks::{Exhausted, NodeNetworks};

const CONDITION: &str = "NetworkUnavailable";
const REASON_NONE_LEFT: &str = "CIDRNotAvailable";
const REASON_ASSIGNED: &str = "CIDRAssigned";

pub(crate) struct NodeNetworkController {
    client: kube::Client,
    recorder: Recorder,
    nodes: View<String, Observed>,
    networks: NodeNetworks,
    /// What each node has, or is about to have.
    owned: HashMap<String, Vec<IpNet>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    pod_cidrs: Vec<IpNet>,
    /// Whether the node says that there was no network for it.
    told_none_left: bool,
}

/// What a node is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    Assign {
        node: String,
        version: Version,
        nets: Vec<IpNet>,
        clear_condition: bool,
    },
    /// The condition is out of date.
    ClearCondition {
        node: String,
    },
    NoneLeft {
        node: String,
        uid: String,
    },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assign { node, nets, .. } => {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                write!(f, "give {node} the pod network {}", nets.join(","))
            }
            Self::ClearCondition { node } => write!(f, "take back that there is no pod network for {node}"),
            Self::NoneLeft { node, .. } => write!(f, "tell {node} that no pod network is left"),
        }
    }
}

/// Whether nodes can be given networks out of this.
pub(crate) fn check(cluster: &CidrList) -> Result<(), NetworkTooSmall> {
    NodeNetworks::new(cluster).map(|_| ())
}

impl NodeNetworkController {
    pub(crate) fn new(
        client: kube::Client,
        recorder: Recorder,
        cluster: &CidrList,
    ) -> Result<Self, NetworkTooSmall> {
        let networks = NodeNetworks::new(cluster)?;
        Ok(Self {
            client,
            recorder,
            nodes: View::default(),
            networks,
            owned: HashMap::new(),
        })
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Change<Node>>> {
        vec![source(informers.subscribe(Scope::default()), |change| change)]
    }

    fn changed(&mut self, object: &Node, mark: Mark<'_, String>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let observed = Observed::of(object);
        let nets = observed.pod_cidrs.clone();
        if self
            .nodes
            .apply(name.clone(), Version::of(&object.metadata), observed)
            .is_err()
        {
            return;
        }
        if !nets.is_empty() && self.owned.get(&name) != Some(&nets) {
            self.release(&name, mark);
            for net in &nets {
                if !self.networks.occupy(*net) {
                    tracing::warn!(node = name, net = %net, reason = "Overlap", "two nodes have the same pod network");
                }
            }
            self.owned.insert(name.clone(), nets);
        }
        mark(name);
    }

    fn release(&mut self, node: &str, mark: Mark<'_, String>) {
        let Some(nets) = self.owned.remove(node) else {
            return;
        };
        for net in nets {
            let shared = self.owned.values().flatten().any(|other| *other == net);
            if !shared {
                self.networks.free(net);
            }
        }
        for (name, _) in self.nodes.iter().filter(|(_, node)| node.pod_cidrs.is_empty()) {
            mark(name.clone());
        }
    }
}

impl Observed {
    fn of(object: &Node) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let singular = spec.pod_cidr.filter(|_| spec.pod_cidrs.is_none());
        let nets = spec.pod_cidrs.into_iter().flatten().chain(singular);
        let conditions = object
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let mut told = conditions.filter(|c| c.type_ == CONDITION && c.status == "True");
        Self {
            pod_cidrs: nets.filter_map(|net| net.parse().ok()).collect(),
            told_none_left: told.any(|c| c.reason.as_deref() == Some(REASON_NONE_LEFT)),
        }
    }
}

impl Controller for NodeNetworkController {
    type Key = String;
    type Event = Change<Node>;
    type Plan = Plan;
    type Outcome = Option<Box<Node>>;

    const NAME: &'static str = "node-networks";
    const PERIOD: Duration = Duration::from_secs(60);

    fn observe(&mut self, event: Change<Node>, mark: Mark<'_, String>) {
        match event {
            Change::Apply(object) => self.changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                if self.nodes.delete(&name, &Version::of(&object.metadata)).is_some() {
                    self.release(&name, mark);
                }
            }
            Change::Reset(all) => {
                let names = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                for (name, _) in self.nodes.retain(&names) {
                    self.release(&name, mark);
                }
                all.iter().for_each(|object| self.changed(object, mark));
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.nodes.is_listed()
    }

    fn plan(&mut self, name: &String) -> Option<Plan> {
        let node = self.nodes.get(name)?;
        let version = self.nodes.version(name)?.clone();
        if !node.pod_cidrs.is_empty() {
            return node
                .told_none_left
                .then(|| Plan::ClearCondition { node: name.clone() });
        }
        let nets = match self.owned.get(name) {
            Some(nets) => nets.clone(),
            None => match self.networks.take() {
                Ok(nets) => nets,
                Err(Exhausted) if node.told_none_left => return None,
                Err(Exhausted) => {
                    return Some(Plan::NoneLeft {
                        node: name.clone(),
                        uid: version.uid,
                    });
                }
            },
        };
        self.owned.insert(name.clone(), nets.clone());
        Some(Plan::Assign {
            node: name.clone(),
            version,
            nets,
            clear_condition: node.told_none_left,
        })
    }

    fn apply(&self, plan: Plan) -> Applying<Option<Box<Node>>> {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        Box::pin(async move {
            match write(client, &recorder, plan).await {
                Ok(node) => (Some(Box::new(node)), Ok(())),
                Err(error) => (None, Err(error)),
            }
        })
    }

    fn applied(&mut self, _: &String, node: Option<Box<Node>>, mark: Mark<'_, String>) {
        if let Some(node) = node {
            self.changed(&node, mark);
        }
    }
}

async fn write(client: kube::Client, recorder: &Recorder, plan: Plan) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(client);
    let params = PatchParams::default();
    match plan {
        Plan::Assign {
            node,
            version,
            nets,
            clear_condition,
        } => {
            let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
            let patch = json!({
                "metadata": {"resourceVersion": version.revision, "uid": version.uid},
                "spec": {"podCIDR": nets.first(), "podCIDRs": nets},
            });
            let stored = nodes.patch(&node, &params, &Patch::Merge(&patch)).await?;
            tracing::info!(
                object.kind = "Node",
                object.name = node,
                nets = nets.join(","),
                "pod network given"
            );
            if clear_condition {
                return nodes
                    .patch_status(&node, &params, &Patch::Strategic(&condition(false)))
                    .await;
            }
            Ok(stored)
        }
        Plan::ClearCondition { node } => {
            nodes
                .patch_status(&node, &params, &Patch::Strategic(&condition(false)))
                .await
        }
        Plan::NoneLeft { node, uid } => {
            tracing::warn!(
                object.kind = "Node",
                object.name = node,
                reason = REASON_NONE_LEFT,
                "no pod network is left"
            );
            recorder.record(Notice {
                about: reference(&node, &uid),
                severity: Severity::Warning,
                reason: REASON_NONE_LEFT,
                message: format!("Node {node} status is now: {REASON_NONE_LEFT}"),
            });
            nodes
                .patch_status(&node, &params, &Patch::Strategic(&condition(true)))
                .await
        }
    }
}

fn condition(none_left: bool) -> serde_json::Value {
    let (status, reason, message) = if none_left {
        (
            "True",
            REASON_NONE_LEFT,
            "no pod network is left in the cluster CIDR",
        )
    } else {
        (
            "False",
            REASON_ASSIGNED,
            "a pod network has been given to this node",
        )
    };
    json!({"status": {"conditions": [{
        "type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": Time(Timestamp::now()),
    }]}})
}

/// A Node, for Events about it.
pub(crate) fn reference(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_string()),
        kind: Some("Node".to_string()),
        name: Some(name.to_string()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
