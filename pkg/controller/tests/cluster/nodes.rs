use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{Cluster, becomes};

async fn networks(cluster: &Cluster) -> Vec<String> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let list = nodes.list(&Default::default()).await.unwrap();
    let show = |node: Node| {
        let spec = node.spec.unwrap_or_default();
        assert_eq!(
            spec.pod_cidr.as_ref(),
            spec.pod_cidrs.as_ref().and_then(|nets| nets.first())
        );
        format!(
            "{} {}",
            node.metadata.name.unwrap(),
            spec.pod_cidrs.unwrap_or_default().join(",")
        )
    };
    list.items.into_iter().map(show).collect()
}

async fn node(cluster: &Cluster, name: &str) {
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_a_network_of_its_own() {
    let mut cluster = Cluster::start_with("10.244.0.0/23,fd00:244::/48").await;
    node(&cluster, "n1").await;
    becomes(vec!["n1 10.244.0.0/24,fd00:244::/64".to_string()], async || {
        networks(&cluster).await
    })
    .await;
    cluster.stop_controllers().await;
    cluster.start_controllers().await;
    node(&cluster, "n2").await;
    let both = [
        "n1 10.244.0.0/24,fd00:244::/64",
        "n2 10.244.1.0/24,fd00:244:0:1::/64",
    ];
    becomes(both.map(str::to_string).to_vec(), async || {
        networks(&cluster).await
    })
    .await;
    node(&cluster, "n3").await;
    becomes(
        vec!["Node n3 status is now: CIDRNotAvailable".to_string()],
        async || cluster.events("default", "CIDRNotAvailable").await,
    )
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    // The second family goes on where it was: only what is scarce is used again at once.
    becomes(true, async || {
        networks(&cluster)
            .await
            .iter()
            .any(|n| n.starts_with("n3 10.244.0.0/24,fd00:"))
    })
    .await;
}
