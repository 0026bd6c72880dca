//! Two servers on one etcd.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::etcd::{Etcd, SOON};
use crate::load::{Load, Told};
use crate::process::Server;

pub(crate) async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn holder(client: &kube::Client) -> String {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let lease = leases.get_opt("svcnet-controller").await.ok().flatten();
    lease.and_then(|l| l.spec?.holder_identity).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_two_dies_under_load_and_its_clients_go_on_at_the_other() {
    let etcd = Etcd::start().await;
    let args = Server::on(&etcd, "a-secret-of-our-own");
    let mut one = Server::new(&etcd.file("one"), "one", &args);
    let mut two = Server::new(&etcd.file("two"), "two", &args);
    let first = one.start().await;
    until("a server runs the controllers", async || {
        holder(&first).await.starts_with("one_")
    })
    .await;
    let second = two.start().await;
    assert_eq!(one.token(), two.token());

    let told = Arc::new(Told::default());
    let both = one.client_of_both(&two).await;
    let loads = [
        Load::begin(&both, &told, "both"),
        Load::begin(&second, &told, "second"),
    ];
    let many = |count| {
        let told = told.clone();
        async move {
            let begun = told.acknowledged.load(Ordering::Relaxed);
            until("writes are answered", async || {
                told.acknowledged.load(Ordering::Relaxed) > begun + count
            })
            .await;
        }
    };
    many(200).await;
    told.holds(&first).await;
    one.kill();
    // Those that had the other one only would not tell: the clients of both go on, and make theirs.
    many(200).await;
    for load in loads {
        load.end().await;
    }
    told.holds(&second).await;
    let last = Load::begin(&both, &told, "late");
    many(20).await;
    last.end().await;
    let revision = told.holds(&both).await;
    until("the other server runs the controllers", async || {
        holder(&second).await.starts_with("two_")
    })
    .await;

    // It comes back, and knows all of it.
    let first = one.start().await;
    assert!(told.holds(&first).await >= revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_see_each_others_writes_at_once_and_share_keys_and_tokens() {
    let etcd = Etcd::start().await;
    let mut one = Server::new(
        &etcd.file("one"),
        "one",
        &Server::on(&etcd, "a-secret-of-our-own"),
    );
    let first = one.start().await;
    // Another cluster's token does not open its keys, and none says where to take it from.
    for (token, said) in [("another-one", "--token"), ("", "DATA-DIR/token")] {
        let mut args = Server::on(&etcd, token);
        if token.is_empty() {
            args.truncate(args.len() - 2);
        }
        let mut stranger = Server::new(&etcd.file(&format!("stranger{token}")), "stranger", &args);
        stranger.spawn();
        let log = stranger.until_refused();
        assert!(
            log.contains(said) && log.contains("the cluster") | log.contains("a cluster"),
            "{log}"
        );
    }
    // The whole token is as good as its secret.
    let mut two = Server::new(&etcd.file("two"), "two", &Server::on(&etcd, &one.token()));
    let second = two.start().await;

    let maps = |client: &kube::Client| Api::<ConfigMap>::namespaced(client.clone(), "default");
    let params = PostParams::default();
    for turn in 0..20 {
        let (here, there) = if turn % 2 == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        let name = format!("m{turn}");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let made = maps(here).create(&params, &map).await.unwrap();
        let seen = maps(there).get(&name).await.unwrap();
        assert_eq!(seen.metadata.resource_version, made.metadata.resource_version);
        // Changes that name no revision are never refused, whoever else changes the object.
        let patch = |client: &kube::Client, key: &'static str| {
            let (maps, name) = (maps(client), name.clone());
            async move {
                for value in 0..5 {
                    let patch = Patch::Merge(json!({"data": {key: value.to_string()}}));
                    maps.patch(&name, &PatchParams::default(), &patch).await.unwrap();
                }
            }
        };
        tokio::join!(patch(here, "here"), patch(there, "there"));
        let both = maps(here).get(&name).await.unwrap().data.unwrap();
        assert_eq!((both["here"].as_str(), both["there"].as_str()), ("4", "4"));
        maps(there).delete(&name, &DeleteParams::default()).await.unwrap();
        assert!(maps(here).get_opt(&name).await.unwrap().is_none());
    }
    // Secrets are read by the one and the other, with the key that they share.
    let secrets = |client: &kube::Client| Api::<Secret>::namespaced(client.clone(), "default");
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}})).unwrap();
    secrets(&first).create(&params, &secret).await.unwrap();
    assert_eq!(
        secrets(&second).get("s").await.unwrap().data.unwrap()["a"].0,
        b"b"
    );
}

fn service(name: &str, spec: &Value) -> Service {
    let mut spec = spec.clone();
    spec["ports"] = json!([{"port": 80, "nodePort": spec["nodePort"]}]);
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("nodePort");
    }
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

/// What a server says to a Service: its address, or the refusal.
async fn make(client: &kube::Client, name: &str, spec: Value) -> Result<String, String> {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    match services
        .create(&PostParams::default(), &service(name, &spec))
        .await
    {
        Ok(made) => Ok(made.spec.unwrap().cluster_ip.unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message),
        Err(error) => panic!("{error}"),
    }
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_at_one_server_is_taken_at_the_other() {
    let etcd = Etcd::start().await;
    let mut args = Server::on(&etcd, "a-secret-of-our-own");
    // Six addresses, of which `kubernetes` and `kube-dns` have two.
    args.extend([
        "--service-cluster-ip-range".to_string(),
        "10.77.0.0/29".to_string(),
    ]);
    args.extend(["--cluster-dns".to_string(), "10.77.0.2".to_string()]);
    let mut one = Server::new(&etcd.file("one"), "one", &args);
    let mut two = Server::new(&etcd.file("two"), "two", &args);
    let (first, second) = (one.start().await, two.start().await);
    let post = PostParams::default();

    // A port.
    let port = json!({"type": "NodePort", "nodePort": 30_100});
    make(&first, "web", port.clone()).await.unwrap();
    let refused = make(&second, "other", port).await.unwrap_err();
    assert!(
        refused.contains("provided port is already allocated"),
        "{refused}"
    );
    // Freed at one, it is free at the other.
    let services: Api<Service> = Api::namespaced(first.clone(), "default");
    services.delete("web", &DeleteParams::default()).await.unwrap();
    let apart = json!({"type": "NodePort", "nodePort": 30_100, "clusterIP": "10.77.0.3"});
    make(&second, "other", apart).await.unwrap();

    // An address, and all of them.
    let taken = make(&first, "a", json!({"clusterIP": "10.77.0.5"}))
        .await
        .unwrap();
    let refused = make(&second, "b", json!({"clusterIP": taken})).await.unwrap_err();
    assert!(refused.contains("provided IP is already allocated"), "{refused}");
    for turn in 0..2 {
        make(&first, &format!("fill{turn}"), json!({})).await.unwrap();
    }
    for client in [&first, &second] {
        let refused = make(client, "full", json!({})).await.unwrap_err();
        assert!(refused.contains("failed to allocate"), "{refused}");
    }

    // A range that is made at one is drawn from at the other at once.
    let ranges: Api<ServiceCIDR> = Api::all(first.clone());
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.78.0.0/29"]}});
    ranges
        .create(&post, &serde_json::from_value(range).unwrap())
        .await
        .unwrap();
    let drawn = make(&second, "drawn", json!({})).await.unwrap();
    assert!(drawn.starts_with("10.78.0."), "{drawn}");

    // An address of somebody else's, a gateway's, is no Service's.
    let addresses: Api<IPAddress> = Api::all(first.clone());
    let theirs = if drawn == "10.78.0.6" {
        "10.78.0.5"
    } else {
        "10.78.0.6"
    };
    let foreign = json!({"metadata": {"name": theirs}, "spec": {"parentRef": {
        "group": "gateway.networking.k8s.io", "resource": "gateways", "namespace": "edge", "name": "front",
    }}});
    addresses
        .create(&post, &serde_json::from_value(foreign).unwrap())
        .await
        .unwrap();
    let wanted = json!({"clusterIP": theirs});
    let refused = make(&second, "gateway", wanted.clone()).await.unwrap_err();
    assert!(refused.contains("provided IP is already allocated"), "{refused}");
    addresses.delete(theirs, &DeleteParams::default()).await.unwrap();
    make(&second, "gateway", wanted).await.unwrap();

    // A range goes when nothing of it is used, whichever server was asked.
    let of_second: Api<ServiceCIDR> = Api::all(second.clone());
    of_second.delete("more", &DeleteParams::default()).await.unwrap();
    assert!(
        of_second
            .get("more")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    for name in ["drawn", "gateway"] {
        services.delete(name, &DeleteParams::default()).await.unwrap();
    }
    until("the range goes", async || {
        ranges.get_opt("more").await.unwrap().is_none()
    })
    .await;
}
