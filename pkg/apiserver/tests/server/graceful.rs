//! Pods end when their node has ended them.

use std::time::Instant;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Running, SOON};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, node: &str, grace: i64) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": grace, "containers": [{"name": "c", "image": "i"}]},
    });
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

async fn with_node() -> Running {
    let server = Running::start().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    assert_eq!(server.post("/api/v1/nodes", &node).await.0, 201);
    server
}

/// A pod that its node has begun to run.
async fn started(server: &Running, pod: &Value) {
    assert_eq!(server.post(PODS, pod).await.0, 201);
    let path = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap());
    let status = json!({"status": {"phase": "Running", "startTime": "2026-11-27T00:00:00Z"}}).to_string();
    let merge = "application/merge-patch+json";
    assert_eq!(server.http(Method::PATCH, &path, merge, status).await.0, 200);
}

async fn delete(server: &Running, name: &str, options: Value) -> (u16, Value) {
    let path = format!("{PODS}/{name}");
    server
        .http(Method::DELETE, &path, "application/json", options.to_string())
        .await
}

#[tokio::test]
async fn a_pod_of_a_node_is_marked_and_goes_when_its_node_says_so() {
    let server = with_node().await;
    started(&server, &pod("p", "n1", 3600)).await;
    let mut watch = server.watch(&format!("{PODS}?watch=1")).await;
    assert_eq!(watch.next_named().await, ("ADDED".to_string(), "p".to_string()));
    let (code, dying) = delete(&server, "p", json!({})).await;
    assert_eq!(code, 200);
    assert_eq!(
        (&dying["kind"], &dying["metadata"]["deletionGracePeriodSeconds"]),
        (&json!("Pod"), &json!(3600))
    );
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(watch.next_named().await.0, "MODIFIED");
    let (_, again) = delete(&server, "p", json!({})).await;
    assert_eq!(again, dying, "a second deletion changes nothing");
    let (_, sooner) = delete(&server, "p", json!({"gracePeriodSeconds": 1800})).await;
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 1800);
    // It still is: its status is told, and it takes no new finalizer.
    let status = json!({"status": {"phase": "Running"}}).to_string();
    let (code, _) = server
        .http(
            Method::PATCH,
            &format!("{PODS}/p/status"),
            "application/merge-patch+json",
            status,
        )
        .await;
    assert_eq!(code, 200);
    let other = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}});
    assert_eq!(delete(&server, "p", other).await.0, 409);
    let (code, done) = server.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    assert_eq!((code, done["kind"].as_str()), (200, Some("Pod")), "{done}");
    assert_eq!(server.get(&format!("{PODS}/p")).await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn pods_that_nobody_runs_go_at_once() {
    let server = with_node().await;
    server.post(PODS, &pod("unbound", "", 3600)).await;
    server.post(PODS, &pod("by-hand", "n1", 3600)).await;
    started(&server, &pod("forced", "n1", 3600)).await;
    started(&server, &pod("quick", "n1", 0)).await;
    started(&server, &pod("done", "n1", 3600)).await;
    let (_, mut done) = server.get(&format!("{PODS}/done")).await;
    done["status"]["phase"] = "Succeeded".into();
    assert_eq!(server.put(&format!("{PODS}/done/status"), &done).await.0, 200);
    for (name, options) in [
        ("unbound", json!({})),
        ("by-hand", json!({})),
        ("forced", json!({"gracePeriodSeconds": 0})),
        ("quick", json!({})),
        ("done", json!({})),
    ] {
        assert_eq!(delete(&server, name, options).await.0, 200, "{name}");
        assert_eq!(server.get(&format!("{PODS}/{name}")).await.0, 404, "{name}");
    }
    server.stop().await;
}

/// The node is no more: the server does not wait for it.
#[tokio::test]
async fn a_pod_of_a_lost_node_goes() {
    let server = with_node().await;
    started(&server, &pod("p", "never", 3600)).await;
    assert_eq!(delete(&server, "p", json!({})).await.0, 200);
    let start = Instant::now();
    while server.get(&format!("{PODS}/p")).await.0 != 404 {
        assert!(start.elapsed() < SOON, "the pod stays");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn finalizers_hold_a_pod_beyond_its_grace_period() {
    let server = with_node().await;
    let mut held = pod("p", "n1", 3600);
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    started(&server, &held).await;
    delete(&server, "p", json!({})).await;
    let loose = json!({"metadata": {"finalizers": null}}).to_string();
    let merge = "application/merge-patch+json";
    server
        .http(Method::PATCH, &format!("{PODS}/p"), merge, loose)
        .await;
    let (code, still) = server.get(&format!("{PODS}/p")).await;
    assert_eq!(
        (code, still["metadata"].get("finalizers")),
        (200, None),
        "its node still has it"
    );
    assert_eq!(
        delete(&server, "p", json!({"gracePeriodSeconds": 0})).await.0,
        200
    );
    assert_eq!(server.get(&format!("{PODS}/p")).await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn what_has_no_meaning_here_is_answered_clearly() {
    let server = with_node().await;
    server.post(PODS, &pod("p", "n1", 0)).await;
    for (method, sub, words) in [
        (Method::GET, "log", "keeps no logs"),
        (Method::POST, "exec", "runs no containers"),
        (Method::POST, "portforward", "forwards no ports"),
    ] {
        let (code, refused) = server
            .http(method, &format!("{PODS}/p/{sub}"), "application/json", "")
            .await;
        assert_eq!(code, 405);
        assert!(refused["message"].as_str().unwrap().contains(words), "{refused}");
    }
    let (code, gone) = server.get(&format!("{PODS}/none/log")).await;
    assert_eq!(
        (code, gone["message"].as_str().unwrap()),
        (404, "pods \"none\" not found")
    );
    let (code, none) = server
        .post("/apis/apps/v1/namespaces/default/deployments", &json!({}))
        .await;
    assert_eq!(code, 404);
    assert!(
        none["message"]
            .as_str()
            .unwrap()
            .contains("a network without workloads"),
        "{none}"
    );
    server.stop().await;
}
