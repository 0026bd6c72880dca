//! Certificates that are renewed while they are in use: here they last for seconds.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use svcnet_runtime::{connect, renew};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, field};
use crate::harness::{Running, SOON};

/// Long enough for a slow machine to renew in time, short enough to wait for.
const LAST: Duration = Duration::from_secs(12);

async fn short_lived() -> Running {
    Running::start_as(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.certificates_last = LAST
    })
    .await
}

/// The end of a client certificate, in seconds since 1970.
fn end(kubeconfig: &Path) -> i64 {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    end_of(&CertificateDer::from_pem_slice(&field(&text, "client-certificate-data")).unwrap())
}

fn end_of(der: &CertificateDer<'_>) -> i64 {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    certificate.validity().not_after.timestamp()
}

async fn past(end: i64) {
    while jiff::Timestamp::now().as_second() <= end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_are_renewed_and_its_clients_go_on() {
    let server = short_lived().await;
    let admin = server.kubeconfig.clone();
    let client = connect::client(&admin).await.unwrap();
    let namespaces = Api::<Namespace>::all(client);
    namespaces.get("default").await.unwrap();
    let serving = async || {
        let stream = Client::anonymous(&server).stream("127.0.0.1").await.unwrap();
        end_of(&stream.get_ref().1.peer_certificates().unwrap()[0])
    };
    let (first_admin, first_serving) = (end(&admin), serving().await);
    // The same client, over the ends of two of its certificates.
    for _ in 0..2 {
        let until = end(&admin);
        while jiff::Timestamp::now().as_second() <= until {
            namespaces.get("default").await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    assert!(end(&admin) > first_admin);
    assert!(serving().await > first_serving);
    for file in ["data/agent/kubeconfig.yaml", "data/controller/kubeconfig.yaml"] {
        assert!(end(&server.path(file)) > first_admin, "{file}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_its_certificate_and_goes_on() {
    let server = short_lived().await;
    let token = std::fs::read_to_string(server.path("data/token"))
        .unwrap()
        .parse()
        .unwrap();
    let joined = svcnet_runtime::join::join(&server.url, &token, "n2")
        .await
        .unwrap();
    let path = server.path("n2/kubeconfig.yaml");
    joined.write_kubeconfig(&path, &server.url).unwrap();
    // Half a second into this certificate, so that both have their own seconds.
    let client = connect::client(&path).await.unwrap();
    let namespaces = Api::<Namespace>::all(client.clone());
    let shutdown = CancellationToken::new();
    let keeping = tokio::spawn(renew::keep(
        client,
        path.clone(),
        "n2".to_string(),
        shutdown.clone(),
    ));
    let first = end(&path);
    while jiff::Timestamp::now().as_second() <= first {
        namespaces.get("default").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(end(&path) > first && !renew::has_expired(&path));
    // Nobody keeps it any longer: then it is worth nothing.
    shutdown.cancel();
    keeping.await.unwrap().unwrap();
    past(end(&path)).await;
    assert!(renew::has_expired(&path));
    let start = Instant::now();
    while namespaces.get("default").await.is_ok() {
        assert!(
            start.elapsed() < SOON,
            "an expired certificate still opens the door"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_node_renews_and_only_its_own() {
    let server = Running::start().await;
    let (admin, stranger) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, token) = admin.token(json!({"role": "node", "node": "n1"})).await;
    let csr = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        json!({"csr": params.serialize_request(&key).unwrap().pem().unwrap()})
    };
    let path = "/svcnet/v1/renew";
    let (own, other) = (csr("system:node:n1"), csr("system:node:n2"));
    assert_eq!(stranger.send(Method::POST, path, "", &own).await.0, 401);
    assert_eq!(
        stranger.send(Method::POST, path, &token, &own).await.0,
        403,
        "a token would outlive itself"
    );
    assert_eq!(admin.send(Method::POST, path, "", &own).await.0, 403);
    let agent = Client::of(&server, "data/agent/kubeconfig.yaml");
    let (code, answer) = agent.send(Method::POST, path, "", &own).await;
    assert_eq!(code, 200, "{answer}");
    assert!(
        answer["certificate"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    assert_eq!(agent.send(Method::POST, path, "", &other).await.0, 400);
    assert_eq!(agent.send(Method::GET, path, "", &Value::Null).await.0, 405);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_is_revoked_and_it_may_join_again() {
    let server = Running::start().await;
    let admin = Client::of(&server, "etc/kubeconfig.yaml");
    let token = std::fs::read_to_string(server.path("data/token"))
        .unwrap()
        .parse()
        .unwrap();
    let join = async |file: &str| {
        let joined = svcnet_runtime::join::join(&server.url, &token, "n2")
            .await
            .unwrap();
        joined.write_kubeconfig(&server.path(file), &server.url).unwrap();
        Client::of(&server, file)
    };
    let path = "/api/v1/namespaces";
    let stolen = join("n2/stolen.yaml").await;
    let (_, named) = admin.token(json!({"role": "node", "node": "n2"})).await;
    let (_, other) = admin.token(json!({"role": "node", "node": "n3"})).await;
    assert_eq!(stolen.get(path).await, 200);
    let mut watch = stolen.watch(&format!("{path}?watch=true"), "").await;
    assert_eq!(watch.next_named().await.0, "ADDED");
    let node = "/svcnet/v1/tokens/nodes/n2";
    assert_eq!(stolen.send(Method::DELETE, node, "", &Value::Null).await.0, 403);
    let (code, answer) = admin.send(Method::DELETE, node, "", &Value::Null).await;
    assert_eq!((code, &answer["details"]["name"]), (200, &json!("n2")));
    // What was there ends, what is asked anew is refused, renewing too.
    while watch.next().await.is_some() {}
    let (code, refused) = stolen.send(Method::GET, path, "", &Value::Null).await;
    assert_eq!((code, &refused["message"]), (401, &json!("Unauthorized")));
    let renewing = stolen
        .send(Method::POST, "/svcnet/v1/renew", "", &json!({}))
        .await;
    assert_eq!(renewing.0, 401);
    let stranger = Client::anonymous(&server);
    let by = async |token: &str| stranger.send(Method::GET, path, token, &Value::Null).await.0;
    assert_eq!((by(&named).await, by(&other).await), (401, 200));
    // In the same second or not: a certificate that is made afterwards is good, and the first one stays bad.
    let again = join("n2/again.yaml").await;
    assert_eq!((again.get(path).await, stolen.get(path).await), (200, 401));
    // That of the server's own agent is made anew where it lies.
    let own = Client::of(&server, "data/agent/kubeconfig.yaml");
    assert_eq!(own.get(path).await, 200);
    let (code, _) = admin
        .send(Method::DELETE, "/svcnet/v1/tokens/nodes/n1", "", &Value::Null)
        .await;
    assert_eq!((code, own.get(path).await), (200, 401));
    let start = Instant::now();
    while Client::of(&server, "data/agent/kubeconfig.yaml").get(path).await != 200 {
        assert!(start.elapsed() < SOON, "the agent of the server is left out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    let of = |file: &str| Client::of(&server, file);
    assert_eq!(of("n2/stolen.yaml").get(path).await, 401);
    assert_eq!(of("n2/again.yaml").get(path).await, 200);
    assert_eq!(of("data/agent/kubeconfig.yaml").get(path).await, 200);
    server.stop().await;
}
