use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Cluster, becomes, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}}))
        .await;
    for object in [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "gone"},
               "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "gone",
               "finalizers": ["example.com/hold"]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "gone", "labels": {"a": "b"}},
               "spec": {"containers": [{"name": "c", "image": "none"}]}}),
    ] {
        cluster.create(object).await;
    }
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    let configs: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "gone");
    eventually("the held object is marked", async || {
        configs.get("held").await.unwrap().metadata.deletion_timestamp
    })
    .await;
    let phase = namespaces.get("gone").await.unwrap().status.unwrap().phase;
    assert_eq!(
        phase.as_deref(),
        Some("Terminating"),
        "what is held holds the namespace"
    );
    let free = json!({"metadata": {"finalizers": null}});
    configs
        .patch("held", &PatchParams::default(), &Patch::Merge(&free))
        .await
        .unwrap();
    becomes(true, async || namespaces.get_opt("gone").await.unwrap().is_none()).await;
    // The name can be used again, and is empty.
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}}))
        .await;
    assert_eq!(configs.list(&Default::default()).await.unwrap().items.len(), 0);
}
