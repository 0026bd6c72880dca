use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use svcnet_node::{Config, Machine, NodeRole};
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, becomes};

/// Status and reason of the Ready condition of the server's own node.
async fn node_ready(cluster: &Cluster) -> Option<String> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let conditions = nodes.get_opt("server").await.unwrap()?.status?.conditions?;
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")?;
    Some(format!("{} {}", ready.status, ready.reason.unwrap_or_default()))
}

async fn pod_ready(cluster: &Cluster, name: &str) -> String {
    let conditions = cluster
        .api::<Pod>()
        .get(name)
        .await
        .unwrap()
        .status
        .unwrap()
        .conditions
        .unwrap();
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .unwrap();
    format!("{} {}", ready.status, ready.reason.unwrap_or_default())
}

/// The node role of the server's own agent, until the token is cancelled.
async fn start_role(cluster: &Cluster) -> CancellationToken {
    let stop = cluster.shutdown.child_token();
    let context = cluster.agent_context(stop.clone()).await;
    let config = Config {
        node_ips: vec!["192.0.2.11".parse().unwrap()],
        follow: None,
        machine: Machine::this(),
    };
    let role = NodeRole::new(config, &context).unwrap();
    context.informers.start();
    tokio::spawn(async move { role.run().await.unwrap() });
    stop
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_dies_with_its_lease_and_comes_back_with_it() {
    let cluster = Cluster::start().await;
    let stop = start_role(&cluster).await;
    let ready = Some("True KubeletReady".to_string());
    becomes(ready.clone(), async || node_ready(&cluster).await).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    becomes(Some("10.244.0.0/24".to_string()), async || {
        nodes.get("server").await.unwrap().spec?.pod_cidr
    })
    .await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    becomes(true, async || leases.get_opt("server").await.unwrap().is_some()).await;
    cluster.pod("a", "nginx", "server", "10.244.0.5").await;
    cluster.pod("down", "nginx", "server", "10.244.0.6").await;
    cluster.pod_ready("down", None, false).await;
    cluster.pod("elsewhere", "nginx", "other", "10.244.1.5").await;

    stop.cancel();
    becomes(Some("Unknown NodeStatusUnknown".to_string()), async || {
        node_ready(&cluster).await
    })
    .await;
    becomes("False NodeNotReady".to_string(), async || {
        pod_ready(&cluster, "a").await
    })
    .await;
    assert_eq!(pod_ready(&cluster, "elsewhere").await, "True ");
    assert_eq!(pod_ready(&cluster, "down").await, "False ");

    start_role(&cluster).await;
    becomes(ready, async || node_ready(&cluster).await).await;
    becomes("True ".to_string(), async || pod_ready(&cluster, "a").await).await;
    assert_eq!(pod_ready(&cluster, "down").await, "False ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_somebody_deleted_registers_again() {
    let cluster = Cluster::start().await;
    start_role(&cluster).await;
    becomes(Some("True KubeletReady".to_string()), async || {
        node_ready(&cluster).await
    })
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let first = nodes.get("server").await.unwrap();
    let patch = kube::api::Patch::Merge(
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.99"}]}}),
    );
    nodes
        .patch_status("server", &Default::default(), &patch)
        .await
        .unwrap();
    let addresses = async || {
        let status = nodes.get("server").await.unwrap().status.unwrap();
        status
            .addresses
            .unwrap_or_default()
            .into_iter()
            .map(|a| a.address)
            .collect::<Vec<_>>()
    };
    becomes(vec!["192.0.2.11".to_string(), "server".to_string()], addresses).await;
    nodes.delete("server", &DeleteParams::default()).await.unwrap();
    becomes(true, async || {
        let again = nodes.get_opt("server").await.unwrap();
        again.is_some_and(|node| node.metadata.uid != first.metadata.uid)
    })
    .await;
    becomes(Some("True KubeletReady".to_string()), async || {
        node_ready(&cluster).await
    })
    .await;
}
