use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Cluster, becomes, eventually};

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    object["spec"]["ports"] = json!([{"port": 80}]);
    object
}

fn range(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs},
    })
}

async fn said(addresses: &Api<IPAddress>) -> Vec<String> {
    let list = addresses.list(&ListParams::default()).await.unwrap();
    let line = |address: &IPAddress| {
        let parent = &address.spec.parent_ref;
        let namespace = parent.namespace.as_deref().unwrap_or_default();
        let name = address.metadata.name.as_deref().unwrap_or_default();
        format!("{name} {} {namespace}/{}", parent.resource, parent.name)
    };
    let mut all: Vec<String> = list.items.iter().map(line).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cluster_ip_has_its_object() {
    let cluster = Cluster::start().await;
    let addresses: Api<IPAddress> = Api::all(cluster.client.clone());
    cluster
        .create(service("web", json!({"clusterIP": "10.96.7.7"})))
        .await;
    cluster
        .create(service("none", json!({"clusterIP": "None"})))
        .await;
    let system = [
        "10.96.0.1 services default/kubernetes",
        "10.96.0.10 services kube-system/kube-dns",
    ];
    let with = [system[0], system[1], "10.96.7.7 services default/web"].map(str::to_string);
    becomes(with.to_vec(), async || said(&addresses).await).await;
    let labels = addresses.get("10.96.7.7").await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels["ipaddress.kubernetes.io/ip-family"], "IPv4");
    // Whoever deletes one has freed nothing.
    addresses
        .delete("10.96.7.7", &DeleteParams::default())
        .await
        .unwrap();
    becomes(with.to_vec(), async || said(&addresses).await).await;
    // With the controllers away another Service gets the address: the object tells of it once they are back.
    let mut cluster = cluster;
    cluster.stop_controllers().await;
    let services: Api<Service> = cluster.api();
    services.delete("web", &DeleteParams::default()).await.unwrap();
    cluster
        .create(service("other", json!({"clusterIP": "10.96.7.7"})))
        .await;
    cluster.start_controllers().await;
    let other = [system[0], system[1], "10.96.7.7 services default/other"].map(str::to_string);
    becomes(other.to_vec(), async || said(&addresses).await).await;
    services.delete("other", &DeleteParams::default()).await.unwrap();
    becomes(system.map(str::to_string).to_vec(), async || {
        said(&addresses).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_others_is_kept_from_services() {
    let cluster = Cluster::start().await;
    let gateway = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.5.5"},
        "spec": {"parentRef": {"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "edge"}},
    });
    cluster.create(gateway.clone()).await;
    let ask = service("web", json!({"clusterIP": "10.96.5.5"}));
    let refused = cluster.try_create(ask.clone()).await.unwrap_err();
    assert!(
        refused.contains("failed to allocate IP 10.96.5.5: provided IP is already allocated"),
        "{refused}"
    );
    let addresses: Api<IPAddress> = Api::all(cluster.client.clone());
    addresses
        .delete("10.96.5.5", &DeleteParams::default())
        .await
        .unwrap();
    cluster.create(ask).await;
    let refused = cluster.try_create(gateway).await.unwrap_err();
    assert!(refused.contains("already exists"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_extended_live_and_go_when_they_are_empty() {
    let cluster = Cluster::start().await;
    let cidrs: Api<ServiceCIDR> = Api::all(cluster.client.clone());
    let default = cidrs.get("kubernetes").await.unwrap();
    assert_eq!(default.spec.unwrap().cidrs.unwrap(), ["10.96.0.0/12"]);

    let ask = |name: &str| service(name, json!({"clusterIP": "10.200.0.7"}));
    let refused = cluster.try_create(ask("web")).await.unwrap_err();
    assert!(
        refused.contains("The range of valid IPs is 10.96.0.0/12"),
        "{refused}"
    );
    let made = cluster.create(range("more", &["10.200.0.0/24"])).await;
    assert_eq!(made["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(made["status"]["conditions"][0]["status"], "True");
    cluster.create(ask("web")).await;
    for (wrong, words) in [
        (
            range("wide", &["fd00::/56"]),
            "spec.cidrs[0]: Invalid value: \"fd00::/56\": shortest allowed prefix length for service CIDR is 64, got 56",
        ),
        (
            range("small", &["10.201.0.0/32"]),
            "service network 10.201.0.0/32 has no address to give",
        ),
    ] {
        let refused = cluster.try_create(wrong).await.unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }

    cidrs.delete("more", &DeleteParams::default()).await.unwrap();
    let told = eventually("the range says that it is in use", async || {
        let conditions = cidrs.get("more").await.unwrap().status?.conditions?;
        conditions
            .into_iter()
            .find(|c| c.status == "False")
            .map(|c| (c.reason, c.message))
    })
    .await;
    assert_eq!(
        told,
        (
            "Terminating".to_string(),
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
                .to_string()
        )
    );
    // Nobody gets it away by force, and nobody gets a new address of it.
    let force = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let refused = cidrs.patch("more", &PatchParams::default(), &force).await;
    assert!(refused.unwrap_err().to_string().contains("still IPAddresses"));
    let late = service("late", json!({"clusterIP": "10.200.0.8"}));
    assert!(
        cluster
            .try_create(late)
            .await
            .unwrap_err()
            .contains("not in the valid range")
    );
    let services: Api<Service> = cluster.api();
    services.delete("web", &DeleteParams::default()).await.unwrap();
    becomes(true, async || cidrs.get_opt("more").await.unwrap().is_none()).await;
    // The default one is in use as long as there is a cluster; addresses go on to come from the flag's range.
    cidrs
        .delete("kubernetes", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the default range says that it is in use", async || {
        let conditions = cidrs.get("kubernetes").await.unwrap().status?.conditions?;
        conditions.into_iter().find(|c| c.status == "False")
    })
    .await;
    cluster.create(service("last", json!({}))).await;
}
