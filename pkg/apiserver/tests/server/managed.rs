//! Owners of fields and server-side apply, over HTTP.

use http::Method;
use serde_json::{Value, json};

use crate::harness::Running;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

fn service(part: Value) -> Value {
    let mut whole = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}});
    json_patch(&mut whole, part);
    whole
}

/// RFC 7396, as far as it is needed here.
fn json_patch(into: &mut Value, part: Value) {
    match (into, part) {
        (Value::Object(into), Value::Object(part)) => {
            for (key, value) in part {
                json_patch(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, part) => *into = part,
    }
}

async fn apply(server: &Running, manager: &str, more: &str, part: Value) -> (u16, Value) {
    let path = format!("{SERVICES}/web?fieldManager={manager}{more}");
    server
        .http(Method::PATCH, &path, APPLY, service(part).to_string())
        .await
}

/// Manager, operation and subresource of each entry, sorted: their own order is that of seconds.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let named = entries.iter().map(|e| {
        let text = |name: &str| e[name].as_str().unwrap_or_default();
        let name = format!(
            "{} {} {}",
            text("manager"),
            text("operation"),
            text("subresource")
        );
        name.trim_end().to_string()
    });
    let mut named: Vec<String> = named.collect();
    named.sort();
    named
}

fn owned_by(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries
        .iter()
        .find(|e| e["manager"] == manager)
        .map(|e| e["fieldsV1"].clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn every_write_has_an_owner() {
    let server = Running::start().await;
    let made =
        service(json!({"spec": {"clusterIP": "10.96.1.1", "selector": {"a": "b"}, "ports": [{"port": 80}]}}));
    let headers = [
        ("content-type", "application/json"),
        ("user-agent", "kubectl/v1.33.0 (linux/amd64)"),
    ];
    let (code, _, body) = server
        .http_full(Method::POST, SERVICES, &headers, made.to_string())
        .await;
    assert_eq!(code, 201);
    let made: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        owned_by(&made, "kubectl"),
        json!({"f:spec": {
            "f:clusterIP": {}, "f:internalTrafficPolicy": {},
            "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                ".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {},
            }},
            "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
        }}),
        "with the defaults, without what the server has allocated, without the status"
    );
    let one = format!("{SERVICES}/web?fieldManager=editor");
    let (_, patched) = server
        .http(
            Method::PATCH,
            &one,
            MERGE,
            json!({"metadata": {"labels": {"x": "1"}}}).to_string(),
        )
        .await;
    assert_eq!(owners(&patched), ["editor Update", "kubectl Update"]);
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
    let path = format!("{SERVICES}/web/status?fieldManager=announcer");
    let (_, told) = server.http(Method::PATCH, &path, MERGE, status.to_string()).await;
    assert_eq!(
        owners(&told),
        ["announcer Update status", "editor Update", "kubectl Update"]
    );
    assert_eq!(
        owned_by(&told, "announcer"),
        json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}})
    );

    // A client that drops what it does not know, and changes nothing, makes no revision.
    let mut bare = told.clone();
    bare["metadata"].as_object_mut().unwrap().remove("managedFields");
    let (code, same) = server.put(&format!("{SERVICES}/web"), &bare).await;
    assert_eq!(
        (code, same["metadata"]["resourceVersion"].clone()),
        (200, told["metadata"]["resourceVersion"].clone())
    );
    assert_eq!(
        same["metadata"]["managedFields"],
        told["metadata"]["managedFields"]
    );
    for reset in [json!([]), json!([{}])] {
        let (_, kubernetes) = server.get(&format!("{SERVICES}/kubernetes")).await;
        assert_eq!(
            owners(&kubernetes),
            ["svcnet Update"],
            "the server's own writes have an owner too"
        );
        bare["metadata"]["managedFields"] = reset;
        let (_, cleared) = server.put(&format!("{SERVICES}/web"), &bare).await;
        assert_eq!(cleared["metadata"].get("managedFields"), None, "{cleared}");
        bare["metadata"]["resourceVersion"] = cleared["metadata"]["resourceVersion"].clone();
    }
    server.stop().await;
}

#[tokio::test]
async fn an_apply_creates_merges_gives_up_and_writes_nothing_for_nothing() {
    let server = Running::start().await;
    let spec = json!({"spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80, "name": "http"}, {"port": 81, "name": "b"}]}});
    let (code, dry) = apply(&server, "a", "&dryRun=All", spec.clone()).await;
    assert_eq!((code, owners(&dry)), (201, vec!["a Apply".to_string()]), "{dry}");
    assert_eq!(server.get(&format!("{SERVICES}/web")).await.0, 404);
    let (code, made) = apply(&server, "a", "", spec.clone()).await;
    assert_eq!((code, owners(&made)), (201, vec!["a Apply".to_string()]));
    assert_eq!(
        made["spec"]["type"], "ClusterIP",
        "defaults are there, and nobody's"
    );
    assert_eq!(
        owned_by(&made, "a"),
        json!({"f:spec": {"f:clusterIP": {}, "f:ports": {
            "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}},
            "k:{\"port\":81,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}},
        }}})
    );
    let (code, again) = apply(&server, "a", "", spec.clone()).await;
    assert_eq!((code, &again), (200, &made), "not even a revision");
    let mut fewer = spec.clone();
    fewer["spec"]["ports"].as_array_mut().unwrap().pop();
    let (_, less) = apply(&server, "a", "", fewer).await;
    assert_eq!(
        less["spec"]["ports"],
        json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]),
        "what nobody owns besides goes"
    );
    server.stop().await;
}

#[tokio::test]
async fn conflicts_name_the_owner_and_force_takes() {
    let server = Running::start().await;
    let port = |n: u16| json!({"spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80, "targetPort": n}]}});
    server
        .post(
            &format!("{SERVICES}?fieldManager=kubectl-create"),
            &service(port(8080)),
        )
        .await;
    let (code, conflict) = apply(&server, "b", "", port(9090)).await;
    let field = ".spec.ports[port=80,protocol=\"TCP\"].targetPort";
    assert_eq!(
        (code, conflict),
        (
            409,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict",
                "code": 409,
                "message": format!("Apply failed with 1 conflict: conflict with \"kubectl-create\" using v1: {field}"),
                "details": {"causes": [{
                    "reason": "FieldManagerConflict", "message": "conflict with \"kubectl-create\" using v1",
                    "field": field,
                }]},
            })
        )
    );
    let (code, forced) = apply(&server, "b", "&force=true", port(9090)).await;
    assert_eq!(
        (code, forced["spec"]["ports"][0]["targetPort"].as_i64()),
        (200, Some(9090))
    );
    let ports =
        &owned_by(&forced, "kubectl-create")["f:spec"]["f:ports"]["k:{\"port\":80,\"protocol\":\"TCP\"}"];
    assert_eq!(
        (ports.get("f:targetPort"), ports.get("f:port")),
        (None, Some(&json!({})))
    );
    server.stop().await;
}

#[tokio::test]
async fn an_apply_must_say_who_it_is_and_nothing_else_takes_by_force() {
    let server = Running::start().await;
    let good = json!({"spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]}});
    let path = format!("{SERVICES}/web");
    let (code, refused) = server
        .http(Method::PATCH, &path, APPLY, service(good.clone()).to_string())
        .await;
    assert_eq!(code, 422);
    assert_eq!(
        (&refused["message"], &refused["details"]),
        (
            &json!(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
            ),
            &json!({"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [{
                "reason": "FieldValueRequired", "field": "fieldManager",
                "message": "Required value: is required for apply patch",
            }]})
        )
    );
    let (code, refused) = server
        .http(Method::PATCH, &format!("{path}?force=true"), MERGE, "{}")
        .await;
    assert_eq!(code, 422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("may not be specified for non-apply patch")
    );
    server.stop().await;
}

#[tokio::test]
async fn applies_that_are_none_are_refused_in_the_real_words() {
    let server = Running::start().await;
    let good = json!({"spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]}});
    for (part, code, words) in [
        (json!({"kind": "Pod"}), 400, "invalid object type: /v1, Kind=Pod"),
        (
            json!({"metadata": {"managedFields": []}}),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            json!({"metadata": {"name": "other"}}),
            400,
            "the name of the object (other) does not match the name on the URL (web)",
        ),
        (
            json!({"metadata": {"uid": "x"}}),
            409,
            "Operation cannot be fulfilled on services \"web\": uid mismatch: the provided object specified uid x, and \
             no existing object was found",
        ),
        (
            json!({"spec": {"foo": 1}}),
            500,
            "failed to create typed patch object (/web; /v1, Kind=Service): .spec.foo: field not declared in schema",
        ),
    ] {
        let mut whole = good.clone();
        json_patch(&mut whole, part);
        let (got, refused) = apply(&server, "a", "", whole).await;
        assert_eq!(
            (got, refused["message"].as_str().unwrap()),
            (code, words),
            "{refused}"
        );
    }
    let (_, made) = apply(&server, "a", "", good.clone()).await;
    let mut old = good;
    old["metadata"] = json!({"resourceVersion": "1", "labels": {"x": "y"}});
    let (code, refused) = apply(&server, "a", "", old.clone()).await;
    assert_eq!(
        (code, refused["reason"].as_str().unwrap()),
        (409, "Conflict"),
        "a revision is a condition"
    );
    old["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    assert_eq!(apply(&server, "a", "", old).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_status_is_applied_apart() {
    let server = Running::start().await;
    apply(
        &server,
        "a",
        "",
        json!({"spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]}}),
    )
    .await;
    let status = service(json!({
        "spec": {"type": "NodePort"},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "Fine", "message": "", "lastTransitionTime": "2026-11-27T00:00:00Z",
        }]},
    }));
    let path = format!("{SERVICES}/web/status?fieldManager=b");
    let (code, told) = server.http(Method::PATCH, &path, APPLY, status.to_string()).await;
    assert_eq!(code, 200, "{told}");
    assert_eq!(
        (&told["spec"]["type"], &told["status"]["conditions"][0]["reason"]),
        (&json!("ClusterIP"), &json!("Fine"))
    );
    assert_eq!(owners(&told), ["a Apply", "b Apply status"]);
    assert_eq!(owned_by(&told, "b").get("f:spec"), None);
    let path = format!("{SERVICES}/gone/status?fieldManager=b");
    let (code, _) = server
        .http(
            Method::PATCH,
            &path,
            APPLY,
            status.to_string().replace("web", "gone"),
        )
        .await;
    assert_eq!(code, 404, "a subresource makes nothing");
    server.stop().await;
}

/// Many appliers at once, each with a label of its own: none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn appliers_at_once_lose_nothing() {
    let server = std::sync::Arc::new(Running::start().await);
    let tasks: Vec<_> = (0..12)
        .map(|i| {
            let server = server.clone();
            tokio::spawn(async move {
                let part = json!({
                    "metadata": {"labels": {format!("l{i}"): "1"}},
                    "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]},
                });
                apply(&server, &format!("m{i}"), "", part).await
            })
        })
        .collect();
    for task in tasks {
        let (code, answer) = task.await.unwrap();
        assert!(code == 200 || code == 201, "{answer}");
    }
    let (_, all) = server.get(&format!("{SERVICES}/web")).await;
    assert_eq!(all["metadata"]["labels"].as_object().unwrap().len(), 12);
    assert_eq!(owners(&all).len(), 12);
}
