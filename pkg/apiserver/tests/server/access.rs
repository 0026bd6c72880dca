//! Who gets in: certificates, tokens, joining; and what keeps the server from starting.

use std::os::unix::fs::PermissionsExt as _;

use http::{Method, Request};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use svcnet_apiserver::{ApiServer, Error};

use crate::client::{Client, field};
use crate::harness::{Running, config};

#[tokio::test]
async fn strangers_see_health_and_version_alone() {
    let server = Running::start().await;
    let stranger = Client::anonymous(&server);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(stranger.get(path).await, 200, "{path}");
    }
    for path in [
        "/api",
        "/api/v1/services",
        "/api/v1/gadgets",
        "/metrics",
        "/openapi/v3",
        "/svcnet/v1/join",
    ] {
        let (code, status) = stranger.send(Method::POST, path, "", &json!({})).await;
        assert_eq!(
            (code, status["reason"].as_str()),
            (401, Some("Unauthorized")),
            "{path}"
        );
    }
    assert_eq!(stranger.get("/api/v1/secrets").await, 401);
    let (code, _) = stranger
        .send(Method::GET, "/version", "K10abc::server:wrong", &Value::Null)
        .await;
    assert_eq!(code, 401, "a wrong token is refused everywhere");
    server.stop().await;
}

#[tokio::test]
async fn files_that_hold_keys_are_private() {
    let server = Running::start().await;
    for file in [
        "etc/kubeconfig.yaml",
        "data/agent/kubeconfig.yaml",
        "data/controller/kubeconfig.yaml",
        "data/token",
        "data/pki/ca.key",
        "data/pki/serving.key",
        "data/pki/admin.key",
    ] {
        let mode = std::fs::metadata(server.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_certificate_names_all_that_the_server_is_called_by() {
    let server = Running::start().await;
    let client = Client::anonymous(&server);
    for name in [
        "127.0.0.1",
        "::1",
        "10.96.0.1",
        "localhost",
        "n1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "box.example",
    ] {
        let stream = client
            .stream(name)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            stream.get_ref().1.peer_certificates().unwrap().len(),
            2,
            "the authority goes along"
        );
    }
    assert!(client.stream("evil.example").await.is_err());
    let serving = std::fs::read(server.path("data/pki/serving.crt")).unwrap();
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(
        std::fs::read(server.path("data/pki/serving.crt")).unwrap(),
        serving,
        "kept when nothing has changed"
    );
    let dir = server.stop().await;
    let mut other = config(dir.path());
    other.tls_sans = vec!["other.example".to_string()];
    drop(ApiServer::start(other).await.unwrap());
    assert_ne!(
        std::fs::read(dir.path().join("data/pki/serving.crt")).unwrap(),
        serving
    );
}

#[tokio::test]
async fn a_node_joins_and_may_do_what_is_its_own() {
    let server = Running::start().await;
    let token: svcnet_runtime::join::JoinToken = std::fs::read_to_string(server.path("data/token"))
        .unwrap()
        .parse()
        .unwrap();
    let joined = svcnet_runtime::join::join(&server.url, &token, "n2")
        .await
        .unwrap();
    assert_eq!(joined.facts.service_cidr, "10.96.0.0/12");
    joined
        .write_kubeconfig(&server.path("n2/kubeconfig.yaml"), &server.url)
        .unwrap();
    let node = Client::of(&server, "n2/kubeconfig.yaml");

    let own = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n2"}, "status": {"phase": "Running"}});
    let (code, made) = node.send(Method::POST, "/api/v1/nodes", "", &own).await;
    assert_eq!(
        (code, &made["status"]["phase"]),
        (201, &json!("Running")),
        "{made}"
    );
    let mut other = own.clone();
    other["metadata"]["name"] = "n3".into();
    let (code, refused) = node.send(Method::POST, "/api/v1/nodes", "", &other).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "nodes \"n3\" is forbidden: node \"n2\" is not allowed to modify node \"n3\""
    );
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |node: &str| {
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        })
    };
    assert_eq!(node.send(Method::POST, pods, "", &pod("n3")).await.0, 403);
    let (code, made) = node.send(Method::POST, pods, "", &pod("n2")).await;
    assert_eq!(code, 201, "{made}");
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let (code, got) = node.send(Method::GET, service, "", &Value::Null).await;
    assert_eq!(code, 200);
    let (code, refused) = node.send(Method::PUT, service, "", &got).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "services \"kubernetes\" is forbidden: User \"system:node:n2\" cannot update resource \"services\" in API group \
         \"\" in the namespace \"default\""
    );
    assert_eq!(
        node.send(Method::DELETE, &format!("{pods}/p"), "", &Value::Null)
            .await
            .0,
        200
    );
    let agent = Client::of(&server, "data/agent/kubeconfig.yaml");
    assert_eq!(agent.get("/api/v1/nodes").await, 200);
    let controller = Client::of(&server, "data/controller/kubeconfig.yaml");
    assert_eq!(
        controller
            .send(Method::DELETE, "/api/v1/nodes/n2", "", &Value::Null)
            .await
            .0,
        200
    );
    server.stop().await;
}

#[tokio::test]
async fn those_who_may_not_join_are_told_why() {
    let server = Running::start().await;
    let right = std::fs::read_to_string(server.path("data/token")).unwrap();
    let wrong = format!("{}wrong", right.trim());
    let refused = svcnet_runtime::join::join(&server.url, &wrong.parse().unwrap(), "n2")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("the token is wrong"), "{refused}");
    let refused = svcnet_runtime::join::join(&server.url, &right.parse().unwrap(), "Not A Name")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("--node-name"), "{refused}");
    let client = Client::anonymous(&server);
    let (code, status) = client
        .send(
            Method::POST,
            "/svcnet/v1/join",
            right.trim(),
            &json!({"node": "n2", "csr": "rubbish"}),
        )
        .await;
    assert_eq!(code, 400, "{status}");
    // The token is good for joining alone.
    assert_eq!(
        client
            .send(Method::GET, "/api/v1/services", right.trim(), &Value::Null)
            .await
            .0,
        403
    );
    server.stop().await;
}

#[tokio::test]
async fn http_2_works_too() {
    let server = Running::start().await;
    let text = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let identity = (
        field(&text, "client-certificate-data"),
        field(&text, "client-key-data"),
    );
    let client = Client::new(&server, Some(identity), b"h2");
    let stream = client.stream("127.0.0.1").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let uri = format!("{}/api/v1/services", server.url);
    let response = sender
        .send_request(Request::get(uri).body(Full::new(Bytes::new())).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    drop(sender);
    server.stop().await;
}

#[tokio::test]
async fn what_is_in_use_is_said() {
    let server = Running::start().await;
    let second = ApiServer::start(config(server.dir.path())).await.unwrap_err();
    assert!(matches!(second, Error::Store(_)));
    assert!(
        second.to_string().contains("in use by another server (process"),
        "{second}"
    );

    let elsewhere = tempfile::tempdir().unwrap();
    let mut busy = config(elsewhere.path());
    busy.listen = vec![server.url.trim_start_matches("https://").parse().unwrap()];
    let busy = ApiServer::start(busy).await.unwrap_err();
    assert!(
        busy.to_string().contains("another program has that port"),
        "{busy}"
    );

    let mut open = config(elsewhere.path());
    open.listen_plain = Some("0.0.0.0:0".parse().unwrap());
    assert!(matches!(ApiServer::start(open).await, Err(Error::NotLoopback(_))));
    server.stop().await;
}
