//! Garbage collection, as clients see it.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Running, SOON};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn owner(name: &str, uid: &Value, blocks: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": blocks})
}

/// Makes a map with owners, and gives back its uid.
async fn map(server: &Running, name: &str, owners: &[Value], finalizers: &[&str]) -> Value {
    let metadata = json!({"name": name, "ownerReferences": owners, "finalizers": finalizers});
    let (code, made) = server.post(MAPS, &json!({"metadata": metadata})).await;
    assert_eq!(code, 201, "{made}");
    made["metadata"]["uid"].clone()
}

async fn get(server: &Running, name: &str) -> Option<Value> {
    let (code, object) = server.get(&format!("{MAPS}/{name}")).await;
    (code == 200).then_some(object)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < SOON, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn delete(server: &Running, name: &str, policy: &str) -> (u16, Value) {
    let options = json!({"propagationPolicy": policy}).to_string();
    server
        .http(
            Method::DELETE,
            &format!("{MAPS}/{name}"),
            "application/json",
            options,
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_nobody_any_more_goes_and_the_rest_stays() {
    let server = Running::start().await;
    let (a, b) = (
        map(&server, "a", &[], &[]).await,
        map(&server, "b", &[], &[]).await,
    );
    map(&server, "of-a", &[owner("a", &a, false)], &[]).await;
    let of_a = get(&server, "of-a").await.unwrap()["metadata"]["uid"].clone();
    map(&server, "of-of-a", &[owner("of-a", &of_a, false)], &[]).await;
    map(
        &server,
        "of-both",
        &[owner("a", &a, false), owner("b", &b, false)],
        &[],
    )
    .await;
    let foreign = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "d"});
    map(&server, "of-a-kind-elsewhere", &[foreign], &[]).await;
    // The owner of that name is another one.
    map(
        &server,
        "of-a-former-b",
        &[owner("b", &json!("former"), false)],
        &[],
    )
    .await;
    until("an owner that is not there", async || {
        get(&server, "of-a-former-b").await.is_none()
    })
    .await;

    server.kubectl(&["delete", "configmap", "a"]).await;
    until("the dependent goes", async || {
        get(&server, "of-a").await.is_none()
    })
    .await;
    until("and what belongs to it", async || {
        get(&server, "of-of-a").await.is_none()
    })
    .await;
    until("the reference goes", async || {
        let owners = get(&server, "of-both").await.unwrap()["metadata"]["ownerReferences"].clone();
        owners.as_array().unwrap().len() == 1 && owners[0]["name"] == "b"
    })
    .await;
    assert!(get(&server, "of-a-kind-elsewhere").await.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_may_be_left_behind() {
    let server = Running::start().await;
    let a = map(&server, "a", &[], &[]).await;
    map(&server, "of-a", &[owner("a", &a, true)], &[]).await;
    server
        .kubectl(&["delete", "configmap", "a", "--cascade=orphan"])
        .await;
    assert!(get(&server, "a").await.is_none());
    let left = get(&server, "of-a").await.unwrap();
    assert_eq!(left["metadata"].get("ownerReferences"), None, "{left}");
    assert_eq!(left["metadata"].get("deletionTimestamp"), None, "{left}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_waits_for_those_that_block_it() {
    let server = Running::start().await;
    let a = map(&server, "a", &[], &[]).await;
    map(&server, "blocks", &[owner("a", &a, true)], &["example.com/hold"]).await;
    map(
        &server,
        "does-not",
        &[owner("a", &a, false)],
        &["example.com/hold"],
    )
    .await;
    let (code, going) = delete(&server, "a", "Foreground").await;
    assert_eq!(code, 200);
    assert_eq!(going["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let terminating = async |name: &str| {
        let object = get(&server, name).await.unwrap();
        object["metadata"]["deletionTimestamp"].is_string()
    };
    until("the dependents go", async || {
        terminating("blocks").await && terminating("does-not").await
    })
    .await;
    assert!(terminating("a").await, "the owner waits");
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    let path = format!("{MAPS}/blocks");
    let (code, _) = server
        .http(Method::PATCH, &path, "application/merge-patch+json", patch)
        .await;
    assert_eq!(code, 200);
    until("the owner goes", async || get(&server, "a").await.is_none()).await;
    assert!(get(&server, "does-not").await.is_some(), "which blocks nothing");
    // Without dependents there is nothing to wait for.
    map(&server, "alone", &[], &[]).await;
    server
        .kubectl(&["delete", "configmap", "alone", "--cascade=foreground"])
        .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_due_when_the_server_stopped_is_done_when_it_starts() {
    let server = Running::start().await;
    let a = map(&server, "a", &[], &["example.com/hold"]).await;
    map(&server, "of-a", &[owner("a", &a, true)], &["example.com/hold"]).await;
    delete(&server, "a", "Foreground").await;
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    until("the dependent goes", async || {
        get(&server, "of-a").await.unwrap()["metadata"]["deletionTimestamp"].is_string()
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_are_none_are_refused() {
    let server = Running::start().await;
    map(&server, "a", &[], &[]).await;
    let (code, refused) = delete(&server, "a", "Sideways").await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Sideways\": supported values: \
         \"Foreground\", \"Background\", \"Orphan\", \"nil\""
    );
    assert!(get(&server, "a").await.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_named_twice_is_told_to_its_writer() {
    let server = Running::start().await;
    let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": uid});
    let twice = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": name, "ownerReferences": [owner("u1"), owner("u2"), owner("u1")],
        }})
    };
    let send = async |method: Method, path: &str, media: &str, body: &Value| {
        let headers = [("content-type", media)];
        let (code, headers, body) = server.http_full(method, path, &headers, body.to_string()).await;
        let warnings = headers.get_all("warning").iter();
        let warnings: Vec<String> = warnings.map(|w| w.to_str().unwrap().to_string()).collect();
        let object: Value = serde_json::from_slice(&body).unwrap();
        let owners = object["metadata"]["ownerReferences"]
            .as_array()
            .map_or(0, Vec::len);
        (code, owners, warnings)
    };
    let said = |moment: &str| {
        vec![format!(
            "299 - \".metadata.ownerReferences contains duplicate entries{moment}; API server dedups owner references in 1.20+, and \
             may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: u1\""
        )]
    };
    // Owners that are not there would take the object with them: it is looked at in the answers alone.
    let (path, json) = (format!("{MAPS}/a"), "application/json");
    let made = send(Method::POST, &format!("{MAPS}?dryRun=All"), json, &twice("a")).await;
    assert_eq!(made, (201, 2, said("")));
    assert_eq!(
        send(Method::POST, MAPS, json, &json!({"metadata": {"name": "a"}}))
            .await
            .0,
        201
    );
    let updated = send(Method::PUT, &format!("{path}?dryRun=All"), json, &twice("a")).await;
    assert_eq!(updated, (200, 2, said("")));
    let merge = "application/merge-patch+json";
    let patched = send(Method::PATCH, &format!("{path}?dryRun=All"), merge, &twice("a")).await;
    assert_eq!(patched, (200, 2, said(" after mutating admission happens")));
    server.stop().await;
}
