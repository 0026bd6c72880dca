//! Reading and writing objects over HTTP.

use http::Method;
use serde_json::{Value, json};

use crate::harness::Running;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    })
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let server = Running::start().await;
    let (code, made) = server.post(SERVICES, &service("web", "10.96.1.1")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        made["spec"]["ports"][0]["protocol"], "TCP",
        "defaults are filled in"
    );
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].as_str().unwrap().len() == 36);
    let (code, again) = server.post(SERVICES, &service("web", "10.96.1.1")).await;
    assert_eq!((code, again["reason"].as_str().unwrap()), (409, "AlreadyExists"));
    assert_eq!(again["message"], "services \"web\" already exists");

    let one = format!("{SERVICES}/web");
    let (code, got) = server.get(&one).await;
    assert_eq!((code, &got), (200, &made));
    let mut changed = got.clone();
    changed["metadata"]["labels"]["x"] = "y".into();
    changed["status"] = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}});
    let (code, updated) = server.put(&one, &changed).await;
    assert_eq!(code, 200, "{updated}");
    assert_eq!(
        updated["status"]["loadBalancer"],
        json!({}),
        "the status has a subresource of its own"
    );
    let (code, conflict) = server.put(&one, &changed).await;
    assert_eq!(code, 409);
    assert_eq!(
        conflict["message"],
        "Operation cannot be fulfilled on services \"web\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    let (code, same) = server.put(&one, &updated).await;
    assert_eq!(
        (code, &same),
        (200, &updated),
        "a write that changes nothing takes no revision"
    );

    let (code, deleted) = server.delete(&one).await;
    assert_eq!((code, deleted["kind"].as_str()), (200, Some("Service")));
    assert_eq!(deleted["metadata"]["uid"], made["metadata"]["uid"]);
    let (code, gone) = server.get(&one).await;
    assert_eq!(code, 404);
    assert_eq!(gone["message"], "services \"web\" not found");
    assert_eq!(gone["details"], json!({"name": "web", "kind": "services"}));
    server.stop().await;
}

#[tokio::test]
async fn the_status_is_written_apart() {
    let server = Running::start().await;
    server.post(SERVICES, &service("web", "10.96.1.1")).await;
    let status = format!("{SERVICES}/web/status");
    let patch = json!({
        "spec": {"selector": {"a": "b"}}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
    });
    let (code, patched) = server
        .http(
            Method::PATCH,
            &status,
            "application/merge-patch+json",
            patch.to_string(),
        )
        .await;
    assert_eq!(code, 200, "{patched}");
    assert_eq!(patched["status"]["loadBalancer"]["ingress"][0]["ip"], "1.2.3.4");
    assert_eq!(patched["spec"].get("selector"), None);
    let (code, got) = server.get(&status).await;
    assert_eq!((code, &got), (200, &patched));
    let (code, none) = server
        .put(&format!("{MAPS}/x/status"), &map("x", &json!({})))
        .await;
    assert_eq!((code, none["reason"].as_str().unwrap()), (404, "NotFound"));
    server.stop().await;
}

#[tokio::test]
async fn lists_are_chunked_at_one_moment_and_selected() {
    let server = Running::start().await;
    for i in 0..10 {
        let mut object = map(&format!("m{i}"), &json!({}));
        object["metadata"]["labels"] = json!({"half": (i % 2).to_string()});
        assert_eq!(server.post(MAPS, &object).await.0, 201);
    }
    let (_, first) = server.get(&format!("{MAPS}?limit=4")).await;
    assert_eq!(names(&first), ["m0", "m1", "m2", "m3"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 6);
    server.post(MAPS, &map("m35", &json!({}))).await;
    server.delete(&format!("{MAPS}/m5")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = server.get(&format!("{MAPS}?limit=4&continue={token}")).await;
    assert_eq!(
        names(&second),
        ["m4", "m5", "m6", "m7"],
        "as it was when the list began"
    );
    assert_eq!(second["metadata"]["remainingItemCount"], 2);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let (_, third) = server.get(&format!("{MAPS}?limit=4&continue={token}")).await;
    assert_eq!(
        (names(&third), third["metadata"].get("continue")),
        (vec!["m8", "m9"], None)
    );
    assert_eq!(third["metadata"].get("remainingItemCount"), None);

    let (_, odd) = server
        .get(&format!("{MAPS}?labelSelector=half%3D1&limit=2"))
        .await;
    assert_eq!(names(&odd), ["m1", "m3"]);
    assert_eq!(
        odd["metadata"].get("remainingItemCount"),
        None,
        "not told of selections"
    );
    let token = odd["metadata"]["continue"].as_str().unwrap();
    let (_, odd) = server
        .get(&format!("{MAPS}?labelSelector=half%3D1&limit=2&continue={token}"))
        .await;
    assert_eq!(names(&odd), ["m7", "m9"]);
    let (_, one) = server
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm4"))
        .await;
    assert_eq!(names(&one), ["m4"]);
    let (code, refused) = server.get(&format!("{MAPS}?fieldSelector=spec.foo%3Dm4")).await;
    assert_eq!(code, 400, "{refused}");
    let (_, all) = server.get("/api/v1/configmaps?limit=500").await;
    // Of all namespaces: the server itself has put one into kube-system.
    let all = names(&all);
    assert_eq!(all.iter().filter(|name| name.starts_with('m')).count(), 10);
    assert!(all.contains(&"kube-proxy"), "{all:?}");
    let (code, refused) = server.get(&format!("{MAPS}?continue=rubbish")).await;
    assert_eq!(code, 400, "{refused}");
    let (code, future) = server.get(&format!("{MAPS}?resourceVersion=99999999")).await;
    assert_eq!((code, future["reason"].as_str().unwrap()), (504, "Timeout"));
    server.stop().await;
}

#[tokio::test]
async fn bad_bodies_are_refused_with_reasons() {
    let server = Running::start().await;
    let mut wrong = service("web", "10.96.1.1");
    wrong["spec"]["prots"] = json!([]);
    let (code, refused) = server
        .post(&format!("{SERVICES}?fieldValidation=Strict"), &wrong)
        .await;
    assert_eq!(code, 400);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("strict decoding error: unknown field \"spec.prots\""),
        "{message}"
    );
    let body = wrong.to_string();
    let headers = [("content-type", "application/json")];
    let (code, headers, _) = server.http_full(Method::POST, SERVICES, &headers, body).await;
    assert_eq!(code, 201);
    assert_eq!(headers["warning"], "299 - \"unknown field \\\"spec.prots\\\"\"");

    for (body, media, code) in [
        ("{", "application/json", 400),
        ("", "application/json", 400),
        ("[]", "application/json", 400),
        ("{}", "text/plain", 415),
        ("k8s\0\u{1}\u{2}", "application/vnd.kubernetes.protobuf", 400),
        ("a: [", "application/yaml", 400),
        (r#"{"kind":"Pod","apiVersion":"v1"}"#, "application/json", 400),
        (r#"{"kind":"Service","apiVersion":"v2"}"#, "application/json", 400),
        (
            r#"{"metadata":{"name":"x","namespace":"other"}}"#,
            "application/json",
            400,
        ),
        (
            r#"{"metadata":{"name":"x","resourceVersion":"1"}}"#,
            "application/json",
            400,
        ),
        (
            r#"{"metadata":{"name":"Not_A_Name"},"spec":{"ports":[{"port":1}]}}"#,
            "application/json",
            422,
        ),
        (r#"{"spec":{"ports":[{"port":1}]}}"#, "application/json", 422),
        (
            r#"{"metadata":{"name":"x"},"spec":{"ports":"many"}}"#,
            "application/json",
            400,
        ),
    ] {
        let (got, status) = server.http(Method::POST, SERVICES, media, body).await;
        assert_eq!(got, code, "{body} {status}");
        assert_eq!(status["kind"], "Status", "{body}");
    }
    let (code, _) = server
        .http(Method::POST, SERVICES, "application/json", vec![b' '; 4 << 20])
        .await;
    assert_eq!(code, 413);
    server.stop().await;
}

#[tokio::test]
async fn yaml_is_read_and_names_are_generated() {
    let server = Running::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: gen-}\ndata: {a: b}\n";
    let (code, one) = server.http(Method::POST, MAPS, "application/yaml", yaml).await;
    assert_eq!(code, 201, "{one}");
    let (_, two) = server.http(Method::POST, MAPS, "application/yaml", yaml).await;
    let name = one["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9);
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let server = Running::start().await;
    let (code, made) = server
        .post(&format!("{MAPS}?dryRun=All"), &map("m", &json!({"a": "b"})))
        .await;
    assert_eq!((code, made["data"]["a"].as_str().unwrap()), (201, "b"));
    assert_eq!(server.get(&format!("{MAPS}/m")).await.0, 404);
    server.post(MAPS, &map("m", &json!({}))).await;
    let (code, _) = server.delete(&format!("{MAPS}/m?dryRun=All")).await;
    assert_eq!((code, server.get(&format!("{MAPS}/m")).await.0), (200, 200));
    assert_eq!(server.delete(&format!("{MAPS}/m?dryRun=Some")).await.0, 422);
    server.stop().await;
}

#[tokio::test]
async fn namespaces_end_when_their_finalizers_are_gone() {
    let server = Running::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let (code, made) = server.post("/api/v1/namespaces", &space).await;
    assert_eq!((code, &made["spec"]["finalizers"]), (201, &json!(["kubernetes"])));
    let maps = "/api/v1/namespaces/x/configmaps";
    assert_eq!(server.post(maps, &map("m", &json!({}))).await.0, 201);
    let (code, dying) = server.delete("/api/v1/namespaces/x").await;
    assert_eq!(
        (code, dying["status"]["phase"].as_str().unwrap()),
        (200, "Terminating")
    );
    let (code, refused) = server.post(maps, &map("n", &json!({}))).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "configmaps \"n\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    let (code, missing) = server
        .post("/api/v1/namespaces/nope/configmaps", &map("n", &json!({})))
        .await;
    assert_eq!(
        (code, missing["message"].as_str().unwrap()),
        (404, "namespaces \"nope\" not found")
    );
    // Through a plain update the finalizers stay.
    let mut done = dying.clone();
    done["spec"]["finalizers"] = json!([]);
    let (_, kept) = server.put("/api/v1/namespaces/x", &done).await;
    assert_eq!(kept["spec"]["finalizers"], json!(["kubernetes"]));
    done["metadata"]["resourceVersion"] = kept["metadata"]["resourceVersion"].clone();
    assert_eq!(server.put("/api/v1/namespaces/x/finalize", &done).await.0, 200);
    assert_eq!(server.get("/api/v1/namespaces/x").await.0, 404);
    let (code, refused) = server.delete("/api/v1/namespaces/default").await;
    assert_eq!(code, 403, "{refused}");
    server.stop().await;
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let server = Running::start().await;
    let mut object = map("m", &json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(MAPS, &object).await;
    let one = format!("{MAPS}/m");
    let (code, dying) = server.delete(&one).await;
    assert_eq!(code, 200);
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    let (_, again) = server.delete(&one).await;
    assert_eq!(
        again["metadata"]["resourceVersion"],
        dying["metadata"]["resourceVersion"]
    );
    let patch = r#"{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}"#;
    let (code, refused) = server
        .http(Method::PATCH, &one, "application/merge-patch+json", patch)
        .await;
    assert_eq!(code, 422, "{refused}");
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    let (code, _) = server
        .http(Method::PATCH, &one, "application/merge-patch+json", patch)
        .await;
    assert_eq!((code, server.get(&one).await.0), (200, 404));
    server.stop().await;
}

#[tokio::test]
async fn deletions_keep_to_their_preconditions() {
    let server = Running::start().await;
    let (_, made) = server.post(MAPS, &map("m", &json!({}))).await;
    let one = format!("{MAPS}/m");
    let wrong = r#"{"preconditions":{"uid":"other"}}"#;
    let (code, refused) = server.http(Method::DELETE, &one, "application/json", wrong).await;
    assert_eq!((code, refused["reason"].as_str().unwrap()), (409, "Conflict"));
    let right = json!({"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Background"});
    assert_eq!(
        server
            .http(Method::DELETE, &one, "application/json", right.to_string())
            .await
            .0,
        200
    );

    for name in ["a", "b", "c"] {
        let mut object = map(name, &json!({}));
        object["metadata"]["labels"] = json!({"x": (name == "c").to_string()});
        server.post(MAPS, &object).await;
    }
    let (code, gone) = server.delete(&format!("{MAPS}?labelSelector=x%3Dfalse")).await;
    assert_eq!((code, names(&gone)), (200, vec!["a", "b"]));
    assert_eq!(names(&server.get(MAPS).await.1), ["c"]);
    assert_eq!(server.delete("/api/v1/configmaps").await.0, 405);
    server.stop().await;
}

#[tokio::test]
async fn forms_on_request() {
    let server = Running::start().await;
    server.post(SERVICES, &service("web", "10.96.1.1")).await;
    let accept = |a| [("accept", a)];
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, _, body) = server.http_full(Method::GET, SERVICES, &accept(table), "").await;
    let shown: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(shown["kind"], "Table");
    assert_eq!(shown["columnDefinitions"][0]["name"], "Name");
    assert_eq!(shown["rows"][1]["cells"][0], "web");
    assert_eq!(shown["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, _, body) = server
        .http_full(Method::GET, SERVICES, &accept(partial), "")
        .await;
    let shown: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (names(&shown), shown["items"][1].get("spec")),
        (vec!["kubernetes", "web"], None)
    );
    let (_, headers, body) = server
        .http_full(Method::GET, &format!("{SERVICES}?pretty=true"), &[], "")
        .await;
    assert_eq!(headers["content-type"], "application/json");
    assert!(body.starts_with(b"{\n  \"apiVersion\""));
    server.stop().await;
}

#[tokio::test]
async fn long_lists_are_compressed() {
    let server = Running::start().await;
    for i in 0..20 {
        server
            .post(MAPS, &map(&format!("m{i}"), &json!({"text": "x".repeat(20_000)})))
            .await;
    }
    let (_, headers, body) = server
        .http_full(Method::GET, MAPS, &[("accept-encoding", "gzip")], "")
        .await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut plain = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
    assert_eq!(names(&serde_json::from_str(&plain).unwrap()).len(), 20);
    assert!(body.len() < plain.len() / 10);
    server.stop().await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let server = Running::start().await;
    let (_, made) = server.post(SERVICES, &service("web", "10.96.1.1")).await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(server.post(leases, &lease).await.0, 201);
    let config = std::fs::read(&server.kubeconfig).unwrap();
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(server.get(&format!("{SERVICES}/web")).await, (200, made));
    assert_eq!(
        server.get(&format!("{leases}/n1")).await.0,
        404,
        "Leases are in memory alone"
    );
    let before = String::from_utf8(config).unwrap();
    let after = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let key = |text: &str| {
        text.lines()
            .find(|l| l.contains("client-key-data"))
            .unwrap()
            .to_string()
    };
    assert_eq!(key(&before), key(&after), "certificates outlive a restart");
    server.stop().await;
}

#[tokio::test]
async fn what_every_cluster_has_is_put_back() {
    let server = Running::start().await;
    let (_, before) = server.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(before["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(server.delete(&format!("{SERVICES}/kubernetes")).await.0, 200);
    let start = std::time::Instant::now();
    while server.get(&format!("{SERVICES}/kubernetes")).await.0 != 200 {
        assert!(start.elapsed() < crate::harness::SOON);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn what_may_be_made_by_an_update() {
    let server = Running::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let mut lease =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"}});
    let one = format!("{leases}/n1");
    assert_eq!(server.put(&one, &lease).await.0, 201);
    server.delete(&one).await;
    lease["metadata"]["resourceVersion"] = "7".into();
    assert_eq!(
        server.put(&one, &lease).await.0,
        404,
        "who renews what is lost must see it"
    );
    assert_eq!(
        server.put(&format!("{MAPS}/m"), &map("m", &json!({}))).await.0,
        404
    );
    server.stop().await;
}

#[tokio::test]
async fn an_idle_server_is_small() {
    let server = Running::start().await;
    for i in 0..200 {
        assert_eq!(server.post(MAPS, &map(&format!("m{i}"), &json!({}))).await.0, 201);
    }
    server.get("/openapi/v3/api/v1").await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("resident: {kib} KiB");
    // The tests' own program is larger than the one that ships: this notices a blunder, the bench measures.
    assert!(kib < 40 << 10, "{kib} KiB");
    server.stop().await;
}

#[tokio::test]
async fn root_paths() {
    let server = Running::start().await;
    let (code, _, body) = server.http_full(Method::GET, "/readyz?verbose", &[], "").await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(code, 200);
    assert!(
        text.contains("[+]store ok") && text.contains("readyz check passed"),
        "{text}"
    );
    let (_, _, body) = server.http_full(Method::GET, "/metrics", &[], "").await;
    assert_eq!(body, "svcnet_up 1\n");
    let (_, api) = server.get("/openapi/v3").await;
    let path = api["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, document) = server.get(path).await;
    assert_eq!(code, 200);
    assert!(
        document["components"]["schemas"]
            .get("io.k8s.api.core.v1.Service")
            .is_some()
    );
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, headers, body) = server
        .http_full(Method::GET, "/apis", &[("accept", v2)], "")
        .await;
    assert_eq!(
        headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let groups: Value = serde_json::from_slice(&body).unwrap();
    assert!(names(&groups).contains(&"discovery.k8s.io"));
    for (method, path, code) in [
        (Method::GET, "/api/v2", 404),
        (Method::GET, "/api/v1/gadgets", 404),
        (Method::GET, "/apis/none.example", 404),
        (Method::POST, "/version", 405),
        (Method::PUT, "/api/v1/services", 405),
        (Method::GET, "/api/v1/namespaces/default/pods/x/log", 404),
        (Method::GET, "/%ff", 404),
        (Method::GET, "/openapi/v1", 404),
    ] {
        let (got, status) = server.http(method, path, "application/json", "").await;
        assert_eq!((got, status["kind"].as_str()), (code, Some("Status")), "{path}");
    }
    server.stop().await;
}
