use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Cluster, becomes, eventually};

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// `address port ready` of each endpoint in the slices of a Service.
async fn slices(cluster: &Cluster, service: &str) -> Vec<String> {
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let list = cluster.api::<EndpointSlice>().list(&selector).await.unwrap();
    let mut found = Vec::new();
    for slice in list.items {
        let ports: Vec<String> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| p.port)
            .map(|p| p.to_string())
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap();
            found.push(format!("{} {} {ready}", endpoint.addresses[0], ports.join(",")));
        }
    }
    found.sort();
    found
}

/// Ready and not-ready addresses in the Endpoints of a Service.
async fn endpoints(cluster: &Cluster, service: &str) -> Option<(Vec<String>, Vec<String>)> {
    let object = cluster.api::<Endpoints>().get_opt(service).await.unwrap()?;
    let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
    for subset in object.subsets.iter().flatten() {
        ready.extend(
            subset
                .addresses
                .iter()
                .flatten()
                .map(|address| address.ip.clone()),
        );
        not_ready.extend(
            subset
                .not_ready_addresses
                .iter()
                .flatten()
                .map(|address| address.ip.clone()),
        );
    }
    Some((ready, not_ready))
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_pods_and_the_service() {
    let cluster = Cluster::start().await;
    let spec = json!({"selector": {"app": "nginx"}, "ports": [{"port": 80, "targetPort": "http"}]});
    let made = cluster.create(service("nginx", spec)).await;
    assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10."));
    cluster.pod("a", "nginx", "n1", "10.244.1.5").await;
    cluster.pod("b", "nginx", "n2", "10.244.2.5").await;
    cluster.pod("c", "other", "n2", "10.244.2.6").await;
    becomes(
        vec![
            "10.244.1.5 8080 true".to_string(),
            "10.244.2.5 8080 true".to_string(),
        ],
        async || slices(&cluster, "nginx").await,
    )
    .await;
    let both = vec!["10.244.1.5".to_string(), "10.244.2.5".to_string()];
    becomes(Some((both, vec![])), async || endpoints(&cluster, "nginx").await).await;
    cluster.pod_ready("a", None, false).await;
    let (up, down) = (vec!["10.244.2.5".to_string()], vec!["10.244.1.5".to_string()]);
    becomes(Some((up, down)), async || endpoints(&cluster, "nginx").await).await;
    cluster
        .api::<Pod>()
        .delete("a", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    becomes(vec!["10.244.2.5 8080 true".to_string()], async || {
        slices(&cluster, "nginx").await
    })
    .await;
    cluster
        .api::<Service>()
        .delete("nginx", &DeleteParams::default())
        .await
        .unwrap();
    becomes((vec![], None), async || {
        (
            slices(&cluster, "nginx").await,
            endpoints(&cluster, "nginx").await,
        )
    })
    .await;
    becomes(0, async || {
        let selector = ListParams::default().labels("kubernetes.io/service-name=nginx");
        cluster
            .api::<EndpointSlice>()
            .list(&selector)
            .await
            .unwrap()
            .items
            .len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_made_endpoints_are_mirrored() {
    let cluster = Cluster::start().await;
    cluster
        .create(service("db", json!({"ports": [{"port": 3306}]})))
        .await;
    cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
            "subsets": [{"addresses": [{"ip": "192.168.1.23"}], "ports": [{"port": 3306}]}],
        }))
        .await;
    becomes(vec!["192.168.1.23 3306 true".to_string()], async || {
        slices(&cluster, "db").await
    })
    .await;
    let change = json!({"subsets": [{"addresses": [{"ip": "192.168.1.24"}], "ports": [{"port": 3306}]}]});
    cluster
        .api::<Endpoints>()
        .patch("db", &PatchParams::default(), &Patch::Merge(&change))
        .await
        .unwrap();
    becomes(vec!["192.168.1.24 3306 true".to_string()], async || {
        slices(&cluster, "db").await
    })
    .await;
    cluster
        .api::<Service>()
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    becomes((vec![], None), async || {
        (slices(&cluster, "db").await, endpoints(&cluster, "db").await)
    })
    .await;
    let own = cluster.api::<EndpointSlice>().get("kubernetes").await.unwrap();
    assert_eq!(
        own.endpoints.unwrap().len(),
        1,
        "the server's own slice is the server's"
    );
    assert_eq!(
        slices(&cluster, "kubernetes").await.len(),
        1,
        "and is not mirrored a second time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_were_away_catch_up() {
    let mut cluster = Cluster::start().await;
    let spec = json!({"selector": {"app": "nginx"}, "ports": [{"port": 80}]});
    cluster.create(service("nginx", spec.clone())).await;
    cluster.create(service("gone", spec)).await;
    cluster.pod("a", "nginx", "n1", "10.244.1.5").await;
    becomes(vec!["10.244.1.5 80 true".to_string()], async || {
        slices(&cluster, "gone").await
    })
    .await;
    cluster.stop_controllers().await;
    cluster
        .api::<Service>()
        .delete("gone", &DeleteParams::default())
        .await
        .unwrap();
    cluster.pod("b", "nginx", "n1", "10.244.1.6").await;
    cluster.start_controllers().await;
    becomes(
        vec!["10.244.1.5 80 true".to_string(), "10.244.1.6 80 true".to_string()],
        async || slices(&cluster, "nginx").await,
    )
    .await;
    becomes((vec![], None), async || {
        (slices(&cluster, "gone").await, endpoints(&cluster, "gone").await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_hand_is_repaired() {
    let cluster = Cluster::start().await;
    let spec = json!({"selector": {"app": "nginx"}, "ports": [{"port": 80}]});
    cluster.create(service("nginx", spec)).await;
    cluster.pod("a", "nginx", "n1", "10.244.1.5").await;
    let name = eventually("a slice with the pod", async || {
        let selector = ListParams::default().labels("kubernetes.io/service-name=nginx");
        let list = cluster.api::<EndpointSlice>().list(&selector).await.unwrap();
        let full = list
            .items
            .into_iter()
            .find(|slice| slice.endpoints.iter().flatten().count() == 1);
        full.and_then(|slice| slice.metadata.name)
    })
    .await;
    assert!(name.starts_with("nginx-"), "{name}");
    cluster
        .api::<EndpointSlice>()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    becomes(vec!["10.244.1.5 80 true".to_string()], async || {
        slices(&cluster, "nginx").await
    })
    .await;
    let emptied = json!({"subsets": null});
    cluster
        .api::<Endpoints>()
        .patch("nginx", &PatchParams::default(), &Patch::Merge(&emptied))
        .await
        .unwrap();
    becomes(Some((vec!["10.244.1.5".to_string()], vec![])), async || {
        endpoints(&cluster, "nginx").await
    })
    .await;
}
