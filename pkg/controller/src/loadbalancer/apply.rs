//! Writing addresses into the status of Services, and telling about it.

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::Plan;
use super::addresses::listed;
use crate::recorder::{Notice, Recorder, Severity};

pub(super) async fn apply(
    client: kube::Client,
    recorder: &Recorder,
    plan: Plan,
) -> Result<Option<Service>, kube::Error> {
    let about = ObjectReference {
        api_version: Some("v1".to_string()),
        kind: Some("Service".to_string()),
        namespace: Some(plan.service.namespace.clone()),
        name: Some(plan.service.name.clone()),
        uid: Some(plan.version.uid.clone()),
        ..ObjectReference::default()
    };
    if let Some(why) = &plan.failure {
        recorder.record(Notice {
            about: about.clone(),
            severity: Severity::Warning,
            reason: "AllocationFailed",
            message: format!("Failed to allocate IP for \"{}\": {why}", plan.service),
        });
    }
    let Some(addresses) = plan.status else {
        return Ok(None);
    };
    let ingress: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"ip": address.to_string()}))
        .collect();
    let ingress = if ingress.is_empty() {
        Value::Null
    } else {
        Value::Array(ingress)
    };
    let patch = json!({
        "metadata": {"uid": plan.version.uid, "resourceVersion": plan.version.revision},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let services: Api<Service> = Api::namespaced(client, &plan.service.namespace);
    let stored = services
        .patch_status(&plan.service.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    let (namespace, name) = (plan.service.namespace.as_str(), plan.service.name.as_str());
    if addresses.is_empty() {
        tracing::info!(
            object.kind = "Service",
            object.ns = namespace,
            object.name = name,
            "address taken back"
        );
    } else {
        let addresses = listed(&addresses);
        tracing::info!(
            object.kind = "Service",
            object.ns = namespace,
            object.name = name,
            addresses,
            "address given"
        );
        recorder.record(Notice {
            about,
            severity: Severity::Normal,
            reason: "IPAllocated",
            message: format!("Assigned IP {addresses}"),
        });
    }
    Ok(Some(stored))
}
