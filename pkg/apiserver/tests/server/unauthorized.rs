//! The matrix of what is refused: each verb on each kind, by each kind of stranger; and that the audit log names it.

use std::sync::Arc;

use http::{HeaderValue, Method};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use svcnet_api::{Kind, registry};

use crate::client::Client;
use crate::harness::{Running, auditing};

const VERBS: [(&str, Method, bool); 8] = [
    ("get", Method::GET, true),
    ("list", Method::GET, false),
    ("watch", Method::GET, false),
    ("create", Method::POST, false),
    ("update", Method::PUT, true),
    ("patch", Method::PATCH, true),
    ("delete", Method::DELETE, true),
    ("deletecollection", Method::DELETE, false),
];

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

fn path(kind: &Kind, verb: &str, named: bool) -> String {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let place = if kind.namespaced {
        "/namespaces/default"
    } else {
        ""
    };
    let name = if named { "/theirs" } else { "" };
    let watch = if verb == "watch" {
        "?watch=true&timeoutSeconds=1"
    } else {
        ""
    };
    format!("{root}{place}/{}{name}{watch}", kind.plural)
}

/// One who is refused.
struct Stranger<'a> {
    what: &'a str,
    client: &'a Client,
    token: &'a str,
    /// Who the audit log says it was.
    user: &'a str,
    code: u16,
    /// Why, in the audit log, where the answer does not tell.
    why: Option<&'a str>,
}

impl Stranger<'_> {
    async fn is_refused(&self, server: &Running, verb: &str, method: &Method, path: &str) -> Value {
        let what = format!("{} may not {verb} {path}", self.what);
        let bearer = format!("Bearer {}", self.token);
        // So that this very line can be found again.
        let agent = format!("matrix/{}", what.replace(' ', "-"));
        let mut headers = vec![
            ("user-agent", agent.as_str()),
            ("content-type", "application/json"),
        ];
        if *method == Method::PATCH {
            headers[1].1 = "application/merge-patch+json";
        }
        if !self.token.is_empty() {
            headers.push(("authorization", bearer.as_str()));
        }
        let (code, _, body) = self.client.ask(method.clone(), path, &headers, "{}").await;
        let body: Value =
            serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
        assert_eq!(code, self.code, "{what}: {body}");
        assert_eq!(body["status"], "Failure", "{what}");
        let line = server
            .audited_soon(&what, |line| line["userAgent"] == agent.as_str())
            .await;
        assert_eq!(line["user"]["username"], self.user, "{what}: {line}");
        assert_eq!(line["responseStatus"]["code"], self.code, "{what}: {line}");
        assert_eq!(
            line["annotations"]["authorization.k8s.io/decision"], "forbid",
            "{what}: {line}"
        );
        assert_eq!(line["requestURI"], path, "{what}: {line}");
        if let Some(why) = self.why {
            let told = line["annotations"]["svcnet.io/reason"]
                .as_str()
                .unwrap_or_default();
            assert!(told.contains(why), "{what}: {line}");
        }
        assert_eq!(line["verb"], verb, "{what}: {line}");
        let resource = line["objectRef"]["resource"].as_str().unwrap_or("tokens");
        assert!(
            path.contains(resource) || path.ends_with("renew"),
            "{what}: {line}"
        );
        body
    }
}

/// The real server's words for a role that does not allow it.
fn refusal(user: &str, verb: &str, kind: &Kind, named: bool) -> String {
    let object = if named { " \"theirs\"" } else { "" };
    let place = if kind.namespaced {
        "in the namespace \"default\""
    } else {
        "at the cluster scope"
    };
    format!(
        "{}{object} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\" {place}",
        kind.resource(),
        kind.plural,
        kind.group
    )
}

async fn audited_server() -> Running {
    Running::start_as(Arc::new(tempfile::tempdir().unwrap()), auditing).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_good_name() {
    let server = audited_server().await;
    let (admin, anonymous) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (revoked_id, revoked) = admin.token(json!({"role": "admin"})).await;
    assert_eq!(
        anonymous
            .send(Method::GET, "/api/v1/pods", &revoked, &Value::Null)
            .await
            .0,
        200
    );
    admin.revoke(&revoked_id).await;
    let (expired_id, expired) = admin.token(json!({"role": "admin", "ttlSeconds": 1})).await;
    // Good until its second is over.
    while anonymous
        .send(Method::GET, "/api/v1/pods", &expired, &Value::Null)
        .await
        .0
        != 401
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let expiry = format!("the token {expired_id} has expired");
    let forged = format!("{revoked_id}.{}", "0".repeat(40));
    let strangers = [
        ("a stranger", "", None),
        ("a revoked token", revoked.as_str(), Some("not known, or revoked")),
        ("an expired token", expired.as_str(), Some(expiry.as_str())),
        ("a forged token", forged.as_str(), Some("not known, or revoked")),
    ];
    for (what, token, why) in strangers {
        let stranger = Stranger {
            what,
            client: &anonymous,
            token,
            user: "system:anonymous",
            code: 401,
            why,
        };
        for kind in registry::kinds() {
            for (verb, method, named) in VERBS {
                let path = path(kind, verb, named);
                let body = stranger.is_refused(&server, verb, &method, &path).await;
                assert_eq!(
                    (&body["message"], &body["reason"]),
                    (&json!("Unauthorized"), &json!("Unauthorized"))
                );
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_changes_nothing_and_sees_no_secret() {
    let server = audited_server().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, token) = admin.token(json!({"role": "viewer", "user": "alice"})).await;
    let viewer = Stranger {
        what: "a viewer",
        client: &client,
        token: &token,
        user: "alice",
        code: 403,
        why: None,
    };
    for kind in registry::kinds() {
        for (verb, method, named) in VERBS {
            let path = path(kind, verb, named);
            let reads = matches!(verb, "get" | "list" | "watch");
            if reads && kind.plural != "secrets" {
                let (code, body) = client.send(method, &path, &token, &Value::Null).await;
                assert_eq!(code, if named { 404 } else { 200 }, "{path}: {body}");
                continue;
            }
            let body = viewer.is_refused(&server, verb, &method, &path).await;
            assert_eq!(body["message"], refusal("alice", verb, kind, named));
            assert_eq!(body["reason"], "Forbidden");
        }
    }
    for path in ["/svcnet/v1/tokens", "/svcnet/v1/renew"] {
        viewer.is_refused(&server, "post", &Method::POST, path).await;
    }
    assert_eq!(
        client.send(Method::GET, "/metrics", &token, &Value::Null).await.0,
        200
    );
    server.stop().await;
}

/// Objects of another node, and a Secret that no pod needs.
async fn make_theirs(admin: &Client) {
    let create = async |path: &str, object: Value| {
        let (code, made) = admin.send(Method::POST, path, "", &object).await;
        assert_eq!(code, 201, "{path}: {made}");
    };
    create("/api/v1/nodes", json!({"metadata": {"name": "theirs"}})).await;
    let container = json!([{"name": "c", "image": "i"}]);
    let pod = json!({"metadata": {"name": "theirs"}, "spec": {"nodeName": "n2", "containers": container}});
    create("/api/v1/namespaces/default/pods", pod).await;
    let about = json!({"kind": "Pod", "name": "theirs", "namespace": "default"});
    let event = json!({"metadata": {"name": "theirs"}, "involvedObject": about, "source": {"host": "n2"}});
    create("/api/v1/namespaces/default/events", event).await;
    create(
        LEASES,
        json!({"metadata": {"name": "theirs"}, "spec": {"holderIdentity": "n2"}}),
    )
    .await;
    create(
        "/api/v1/namespaces/default/secrets",
        json!({"metadata": {"name": "theirs"}}),
    )
    .await;
    let labels = json!({"metallb.io/node": "n2"});
    create(
        "/apis/metallb.io/v1beta1/namespaces/default/servicel2statuses",
        json!({"metadata": {"name": "theirs", "labels": labels}}),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_what_is_not_its_own_alone() {
    let server = audited_server().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, token) = admin.token(json!({"role": "node", "node": "n1"})).await;
    make_theirs(&admin).await;
    let node = Stranger {
        what: "a node",
        client: &client,
        token: &token,
        user: "system:node:n1",
        code: 403,
        why: None,
    };
    for kind in registry::kinds() {
        let own = matches!(
            kind.plural,
            "nodes" | "pods" | "events" | "leases" | "servicel2statuses"
        );
        for (verb, method, named) in VERBS {
            let path = path(kind, verb, named);
            let reads = matches!(verb, "get" | "list" | "watch");
            if reads && kind.plural != "secrets" {
                let (code, body) = client.send(method, &path, &token, &Value::Null).await;
                assert!(matches!(code, 200 | 404), "{path}: {code} {body}");
                continue;
            }
            // Its own kinds are judged by the object: of those that are not there it is told so.
            if own && (verb == "create" || kind.plural == "leases") && verb != "deletecollection" {
                continue;
            }
            if own && verb == "delete" && kind.plural == "events" {
                let body = node.is_refused(&server, verb, &method, &path).await;
                assert_eq!(body["message"], refusal("system:node:n1", verb, kind, named));
                continue;
            }
            let body = node.is_refused(&server, verb, &method, &path).await;
            assert_eq!(body["reason"], "Forbidden", "{body}");
            if !own && kind.plural != "secrets" {
                assert_eq!(body["message"], refusal("system:node:n1", verb, kind, named));
            }
        }
    }
    let theirs = format!("{LEASES}/theirs");
    for (verb, method) in [
        ("update", Method::PUT),
        ("patch", Method::PATCH),
        ("delete", Method::DELETE),
    ] {
        let body = node.is_refused(&server, verb, &method, &theirs).await;
        assert_eq!(
            body["message"],
            "leases.coordination.k8s.io \"theirs\" is forbidden: can only access node lease with the same name as the \
             requesting node"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_makes_nothing_in_the_name_of_another() {
    let server = audited_server().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, token) = admin.token(json!({"role": "node", "node": "n1"})).await;
    let about = json!({"kind": "Node", "name": "n1"});
    let container = json!([{"name": "c", "image": "i"}]);
    for (path, object) in [
        ("/api/v1/nodes", json!({"metadata": {"name": "n2"}})),
        (
            "/api/v1/namespaces/default/pods",
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n2", "containers": container}}),
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({"metadata": {"name": "e"}, "involvedObject": about, "source": {"host": "n2"}}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            json!({"metadata": {"name": "n2"}, "spec": {}}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            json!({"metadata": {"name": "n1"}, "spec": {}}),
        ),
    ] {
        let (code, body) = client.send(Method::POST, path, &token, &object).await;
        assert_eq!(code, 403, "{path}: {body}");
        let name = object["metadata"]["name"].as_str().unwrap();
        let line = server
            .audited_soon(path, |line| {
                line["requestURI"] == path && line["verb"] == "create"
            })
            .await;
        assert_eq!(line["objectRef"]["name"], name, "{line}");
        assert_eq!(line["responseStatus"]["reason"], "Forbidden");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_read_by_nodes_whose_pods_name_them() {
    let server = Running::start().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, n1) = admin.token(json!({"role": "node", "node": "n1"})).await;
    let (_, n2) = admin.token(json!({"role": "node", "node": "n2"})).await;
    for name in ["needed", "other"] {
        let secret = json!({"metadata": {"name": name}});
        admin
            .send(Method::POST, "/api/v1/namespaces/default/secrets", "", &secret)
            .await;
    }
    let secret = "/api/v1/namespaces/default/secrets/needed";
    assert_eq!(client.send(Method::GET, secret, &n1, &Value::Null).await.0, 403);
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "secret": {"secretName": "needed"}}],
        },
    });
    let (code, made) = admin
        .send(Method::POST, "/api/v1/namespaces/default/pods", "", &pod)
        .await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(client.send(Method::GET, secret, &n1, &Value::Null).await.0, 200);
    // As a kubelet does it.
    let list = "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dneeded";
    let (code, listed) = client.send(Method::GET, list, &n1, &Value::Null).await;
    assert_eq!((code, listed["items"].as_array().map(Vec::len)), (200, Some(1)));
    let (code, refused) = client.send(Method::GET, secret, &n2, &Value::Null).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "secrets \"needed\" is forbidden: User \"system:node:n2\" cannot get resource \"secrets\" in API group \"\" in the \
         namespace \"default\": no relationship found between node 'n2' and this object"
    );
    for path in [
        "/api/v1/secrets",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/other",
    ] {
        assert_eq!(
            client.send(Method::GET, path, &n1, &Value::Null).await.0,
            403,
            "{path}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_written_down_and_heartbeats_are_not() {
    let server = audited_server().await;
    let admin = Client::of(&server, "etc/kubeconfig.yaml");
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, made) = admin
        .send(
            Method::POST,
            maps,
            "",
            &json!({"metadata": {"generateName": "a-"}, "data": {"secret": "content"}}),
        )
        .await;
    assert_eq!(code, 201);
    let name = made["metadata"]["name"].as_str().unwrap().to_string();
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let (code, _) = admin
        .send(
            Method::POST,
            lease,
            "",
            &json!({"metadata": {"name": "l"}, "spec": {}}),
        )
        .await;
    assert_eq!(code, 201);
    assert_eq!(admin.get(&format!("{maps}/{name}")).await, 200);
    let headers = [
        ("impersonate-user", "bob"),
        ("impersonate-group", "system:masters"),
        ("content-type", "application/merge-patch+json"),
        ("audit-id", "ticket-7"),
    ];
    let (code, told, _) = admin
        .ask(
            Method::PATCH,
            &format!("{maps}/{name}"),
            &headers,
            r#"{"data": {}}"#,
        )
        .await;
    assert_eq!(
        (code, &told["audit-id"]),
        (200, &HeaderValue::from_static("ticket-7"))
    );
    let invalid = json!({"metadata": {"name": "B"}}).to_string();
    let (code, told, _) = admin
        .ask(
            Method::POST,
            maps,
            &[("content-type", "application/json")],
            invalid,
        )
        .await;
    assert_eq!(code, 422);
    let told = told["audit-id"].to_str().unwrap().to_string();
    assert_eq!(
        admin
            .send(Method::DELETE, &format!("{maps}/{name}"), "", &Value::Null)
            .await
            .0,
        200
    );

    let deleted = server
        .audited_soon("the deletion", |line| line["verb"] == "delete")
        .await;
    assert_eq!(deleted["objectRef"]["name"], name.as_str());
    check_lines(&server.audited(), &name, &["ticket-7", &told]);
    server.stop().await;
}

/// `ids` are those of the second and the third line.
fn check_lines(lines: &[Value], name: &str, ids: &[&str]) {
    let maps: Vec<&Value> = lines
        .iter()
        .filter(|l| l["objectRef"]["resource"] == "configmaps")
        .collect();
    let verbs: Vec<_> = maps
        .iter()
        .map(|l| (l["verb"].as_str().unwrap(), l["responseStatus"]["code"].as_u64()))
        .collect();
    assert_eq!(
        verbs,
        [
            ("create", Some(201)),
            ("patch", Some(200)),
            ("create", Some(422)),
            ("delete", Some(200))
        ]
    );
    assert_eq!([&maps[1]["auditID"], &maps[2]["auditID"]], *ids);
    assert_eq!(maps[0]["objectRef"]["name"], name, "the name that was generated");
    assert_eq!(maps[0]["user"]["username"], "svcnet-admin");
    assert_eq!(maps[0]["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(maps[1]["user"]["username"], "svcnet-admin");
    assert_eq!(maps[1]["impersonatedUser"]["username"], "bob");
    assert_eq!(maps[2]["responseStatus"]["reason"], "Invalid");
    assert!(
        !lines.iter().any(|l| l["objectRef"]["resource"] == "leases"),
        "{lines:#?}"
    );
    assert!(
        !serde_json::to_string(lines).unwrap().contains("content\""),
        "no contents"
    );
}
