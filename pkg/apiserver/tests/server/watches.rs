//! Watches over HTTP.

use http::Method;
use serde_json::{Value, json};

use crate::harness::Running;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}})
}

async fn label(server: &Running, name: &str, labels: &Value) {
    let patch = json!({"metadata": {"labels": labels}}).to_string();
    let path = format!("{MAPS}/{name}");
    let (code, _) = server
        .http(Method::PATCH, &path, "application/merge-patch+json", patch)
        .await;
    assert_eq!(code, 200);
}

fn named(what: &str, name: &str) -> (String, String) {
    (what.to_string(), name.to_string())
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_goes_on() {
    let server = Running::start().await;
    server.post(MAPS, &map("a", &json!({}))).await;
    for revision in ["", "&resourceVersion=0"] {
        let mut watch = server.watch(&format!("{MAPS}?watch=1{revision}")).await;
        assert_eq!(watch.next_named().await, named("ADDED", "a"));
        server.post(MAPS, &map("b", &json!({}))).await;
        assert_eq!(watch.next_named().await, named("ADDED", "b"));
        label(&server, "b", &json!({"x": "y"})).await;
        assert_eq!(watch.next_named().await, named("MODIFIED", "b"));
        // Another namespace is none of its business.
        server
            .post("/api/v1/namespaces/kube-system/configmaps", &map("c", &json!({})))
            .await;
        server.delete(&format!("{MAPS}/b")).await;
        assert_eq!(watch.next_named().await, named("DELETED", "b"));
        server.delete("/api/v1/namespaces/kube-system/configmaps/c").await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_watch_from_a_revision_misses_and_doubles_nothing() {
    let server = Running::start().await;
    let (_, list) = server.get(MAPS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    for i in 0..20 {
        server.post(MAPS, &map(&format!("m{i}"), &json!({}))).await;
    }
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion={revision}"))
        .await;
    let mut last = 0;
    for i in 0..20 {
        let event = watch.next().await.unwrap();
        assert_eq!(event["object"]["metadata"]["name"], format!("m{i}"));
        let revision = event["object"]["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(revision > last);
        last = revision;
    }
    let mut rest = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion={last}"))
        .await;
    server.delete(&format!("{MAPS}/m3")).await;
    let event = rest.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    let revision: u64 = event["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(revision > last, "a deletion has a revision of its own");
    server.stop().await;
}

#[tokio::test]
async fn leaving_the_selection_is_a_deletion() {
    let server = Running::start().await;
    server.post(MAPS, &map("a", &json!({"app": "x"}))).await;
    server.post(MAPS, &map("b", &json!({"app": "y"}))).await;
    let mut watch = server
        .watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dx"))
        .await;
    assert_eq!(watch.next_named().await, named("ADDED", "a"));
    label(&server, "b", &json!({"app": "x"})).await;
    assert_eq!(watch.next_named().await, named("ADDED", "b"));
    label(&server, "a", &json!({"app": "z"})).await;
    let left = watch.next().await.unwrap();
    assert_eq!(
        (
            left["type"].as_str().unwrap(),
            &left["object"]["metadata"]["labels"]["app"]
        ),
        ("DELETED", &json!("x"))
    );
    label(&server, "a", &json!({"app": "w"})).await;
    server.delete(&format!("{MAPS}/a")).await;
    server.delete(&format!("{MAPS}/b")).await;
    assert_eq!(watch.next_named().await, named("DELETED", "b"));
    server.stop().await;
}

#[tokio::test]
async fn bookmarks_tell_how_far_the_watch_is() {
    let server = Running::start().await;
    server.post(MAPS, &map("a", &json!({}))).await;
    let path = format!(
        "{MAPS}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = server.watch(&path).await;
    assert_eq!(watch.next_named().await, named("ADDED", "a"));
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    // Changes elsewhere move the bookmark.
    let (_, made) = server
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}}))
        .await;
    let at = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mark = watch.next().await.unwrap();
    assert_eq!(
        (mark["type"].as_str().unwrap(), at(&mark["object"]) >= at(&made)),
        ("BOOKMARK", true)
    );
    server.stop().await;
}

#[tokio::test]
async fn watches_end_in_time_and_with_the_server() {
    let server = Running::start().await;
    let mut short = server.watch(&format!("{MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(short.next().await, None);
    let mut long = server.watch(&format!("{MAPS}?watch=1")).await;
    server.stop().await;
    assert_eq!(long.next().await, None);
}

#[tokio::test]
async fn a_forgotten_revision_is_gone_and_a_seen_one_goes_on_after_a_restart() {
    let server = Running::start().await;
    let (_, a) = server.post(MAPS, &map("a", &json!({}))).await;
    let (_, b) = server.post(MAPS, &map("b", &json!({}))).await;
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    let from = |object: &Value| {
        let revision = object["metadata"]["resourceVersion"].as_str().unwrap();
        format!("{MAPS}?watch=1&resourceVersion={revision}")
    };
    let mut gone = server.watch(&from(&a)).await;
    let event = gone.next().await.unwrap();
    assert_eq!(
        (event["type"].as_str().unwrap(), &event["object"]["code"]),
        ("ERROR", &json!(410))
    );
    assert_eq!(event["object"]["reason"], "Expired");
    let mut seen = server.watch(&from(&b)).await;
    server.post(MAPS, &map("c", &json!({}))).await;
    assert_eq!(seen.next_named().await, named("ADDED", "c"));
    // A revision of another server's life, too.
    let mut foreign = server
        .watch(&format!("{MAPS}?watch=1&resourceVersion=999999999999"))
        .await;
    assert_eq!(foreign.next().await.unwrap()["object"]["code"], 410);
    server.stop().await;
}
