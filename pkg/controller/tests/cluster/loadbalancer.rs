use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Cluster, becomes};

async fn address(cluster: &Cluster, name: &str) -> Option<String> {
    let status = cluster.api::<Service>().get(name).await.unwrap().status?;
    status.load_balancer?.ingress?.into_iter().next()?.ip
}

fn load_balancer(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
           "spec": {"type": "LoadBalancer", "selector": {"app": "nginx"}, "ports": [{"port": 80}]}})
}

async fn metallb_namespace(cluster: &Cluster) {
    let made = cluster
        .try_create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "metallb-system"}}));
    // The server may have made it.
    _ = made.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_from_pools_and_stay() {
    let mut cluster = Cluster::start().await;
    metallb_namespace(&cluster).await;
    cluster.create(load_balancer("a")).await;
    becomes(
        vec!["Failed to allocate IP for \"default/a\": no available IPs".to_string()],
        async || cluster.events("default", "AllocationFailed").await,
    )
    .await;
    assert_eq!(address(&cluster, "a").await, None);
    cluster
        .create(json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": {"name": "p", "namespace": "metallb-system"}, "spec": {"addresses": ["172.30.0.240-172.30.0.241"]},
        }))
        .await;
    becomes(Some("172.30.0.240".to_string()), async || {
        address(&cluster, "a").await
    })
    .await;
    becomes(vec!["Assigned IP [\"172.30.0.240\"]".to_string()], async || {
        cluster.events("default", "IPAllocated").await
    })
    .await;
    cluster.stop_controllers().await;
    cluster.create(load_balancer("b")).await;
    cluster.start_controllers().await;
    becomes(Some("172.30.0.241".to_string()), async || {
        address(&cluster, "b").await
    })
    .await;
    assert_eq!(address(&cluster, "a").await.as_deref(), Some("172.30.0.240"));
    let plain = json!({"spec": {"type": "ClusterIP"}});
    cluster
        .api::<Service>()
        .patch("a", &PatchParams::default(), &Patch::Merge(&plain))
        .await
        .unwrap();
    becomes(None, async || address(&cluster, "a").await).await;
    cluster.create(load_balancer("c")).await;
    becomes(Some("172.30.0.240".to_string()), async || {
        address(&cluster, "c").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_configuration_works_too() {
    let cluster = Cluster::start().await;
    metallb_namespace(&cluster).await;
    cluster.create(load_balancer("a")).await;
    let text =
        "address-pools:\n- name: default\n  protocol: layer2\n  addresses:\n  - 172.30.0.240-172.30.0.250\n";
    cluster
        .create(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "config", "namespace": "metallb-system"}, "data": {"config": text},
        }))
        .await;
    becomes(Some("172.30.0.240".to_string()), async || {
        address(&cluster, "a").await
    })
    .await;
}
