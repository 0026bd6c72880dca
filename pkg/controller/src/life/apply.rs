//! Writing Ready conditions.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use svcnet_api::metallb::{GROUP, VERSION};
use svcnet_api::wellknown::{LABEL_L2_STATUS_NODE, NAMESPACE_METALLB, NAMESPACE_NODE_LEASE};

use super::judge::{Renewal, Verdict};
use super::{
    Outcome, Plan, REASON_NEVER_UPDATED, REASON_NODE_NOT_READY, REASON_READY, REASON_UNKNOWN, renewal,
};
use crate::nodes::reference;
use crate::recorder::{Notice, Recorder, Severity};
use crate::view::{ObjectKey, Version};

pub(super) async fn apply(
    client: kube::Client,
    recorder: &Recorder,
    plan: Plan,
) -> Result<Outcome, kube::Error> {
    match plan {
        Plan::NodeUnknown {
            node,
            uid,
            seen,
            verdict,
        } => node_unknown(client, recorder, &node, &uid, seen, verdict).await,
        Plan::NodeReady { node, uid } => {
            let nodes: Api<Node> = Api::all(client);
            let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [
                condition("True", Some(REASON_READY), Some("the node's Lease is renewed again"))]}});
            let stored = nodes
                .patch_status(&node, &PatchParams::default(), &Patch::Strategic(&patch))
                .await?;
            tracing::info!(node, "node is back");
            recorder.record(Notice {
                about: reference(&node, &uid),
                severity: Severity::Normal,
                reason: "NodeReady",
                message: format!("Node {node} status is now: NodeReady"),
            });
            Ok(Outcome::Node(Box::new(stored)))
        }
        Plan::PodNotReady { pod, version } => {
            recorder.record(Notice {
                about: pod_reference(&pod, &version),
                severity: Severity::Warning,
                reason: REASON_NODE_NOT_READY,
                message: "Node is not ready".to_string(),
            });
            let condition = condition(
                "False",
                Some(REASON_NODE_NOT_READY),
                Some("the node does not answer"),
            );
            patch_pod(client, &pod, &version, condition).await
        }
        Plan::PodReady { pod, version } => {
            patch_pod(client, &pod, &version, condition("True", None, None)).await
        }
    }
}

async fn node_unknown(
    client: kube::Client,
    recorder: &Recorder,
    node: &str,
    uid: &str,
    seen: Option<Renewal>,
    verdict: Verdict,
) -> Result<Outcome, kube::Error> {
    // Our watch may be behind, most of all when the server was away: ask before taking a node's pods out of service.
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE_NODE_LEASE);
    let now_there = leases.get_opt(node).await?.map(|lease| renewal(&lease));
    if let Some(there) = now_there
        && there.time != seen.and_then(|seen| seen.time)
    {
        return Ok(Outcome::Renewed(node.to_string(), there));
    }
    let (reason, message) = match verdict {
        Verdict::NeverRenewed => (REASON_NEVER_UPDATED, "Kubelet never posted node status."),
        _ => (REASON_UNKNOWN, "Kubelet stopped posting node status."),
    };
    let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [
        condition("Unknown", Some(reason), Some(message))]}});
    let nodes: Api<Node> = Api::all(client.clone());
    let stored = nodes
        .patch_status(node, &PatchParams::default(), &Patch::Strategic(&patch))
        .await?;
    tracing::warn!(node, reason, "node is held for dead");
    end_announcements(client, node).await;
    recorder.record(Notice {
        about: reference(node, uid),
        severity: Severity::Normal,
        reason: REASON_NODE_NOT_READY,
        message: format!("Node {node} status is now: NodeNotReady"),
    });
    Ok(Outcome::Node(Box::new(stored)))
}

/// What a dead node says that it announces is true no more. Back again, it says what is true then.
async fn end_announcements(client: kube::Client, node: &str) {
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(GROUP, VERSION, "ServiceL2Status"),
        "servicel2statuses",
    );
    let statuses: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE_METALLB, &kind);
    let own = ListParams::default().labels(&format!("{LABEL_L2_STATUS_NODE}={node}"));
    // They are for people to look at: nothing waits for them.
    if let Err(error) = statuses.delete_collection(&DeleteParams::default(), &own).await {
        tracing::debug!(node, reason = %error, "cannot delete what a dead node says that it announces");
    }
}

async fn patch_pod(
    client: kube::Client,
    pod: &ObjectKey,
    version: &Version,
    condition: Value,
) -> Result<Outcome, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    // Against the state that was looked at: whoever runs the pod may just have written its own condition.
    let patch = json!({
        "metadata": {"uid": version.uid, "resourceVersion": version.revision},
        "status": {"conditions": [condition]},
    });
    let stored = pods
        .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(&patch))
        .await?;
    Ok(Outcome::Pod(Box::new(stored)))
}

fn condition(status: &str, reason: Option<&str>, message: Option<&str>) -> Value {
    // A null takes out what stood there.
    json!({
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": Time(Timestamp::now()),
    })
}

fn pod_reference(pod: &ObjectKey, version: &Version) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_string()),
        kind: Some("Pod".to_string()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(version.uid.clone()),
        ..ObjectReference::default()
    }
}
