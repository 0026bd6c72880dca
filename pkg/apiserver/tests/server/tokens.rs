//! Tokens: made, used, listed, run out, revoked; and what of them lies on the disk.

use http::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::harness::Running;

const PODS: &str = "/api/v1/pods";

async fn code(client: &Client, token: &str) -> u16 {
    client.send(Method::GET, PODS, token, &Value::Null).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_until_it_is_revoked_and_so_are_its_watches() {
    let server = Running::start().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let wanted = json!({"role": "viewer", "user": "alice", "description": "for the dashboard"});
    let (id, token) = admin.token(wanted).await;
    assert_eq!(code(&client, &token).await, 200);
    assert_eq!(code(&client, &format!("{id}.x")).await, 401);
    let listed = admin
        .send(Method::GET, "/svcnet/v1/tokens", "", &Value::Null)
        .await
        .1;
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items[0]["id"], "server");
    assert_eq!(
        (&items[1]["id"], &items[1]["user"]),
        (&json!(id), &json!("alice"))
    );
    assert_eq!(items[1]["description"], "for the dashboard");
    let secret = token.split_once('.').unwrap().1;
    assert!(!listed.to_string().contains(secret));

    let mut watch = client.watch("/api/v1/namespaces?watch=true", &token).await;
    assert_eq!(watch.next_named().await.0, "ADDED");
    admin.revoke(&id).await;
    assert_eq!(code(&client, &token).await, 401);
    while watch.next().await.is_some() {}
    let path = format!("/svcnet/v1/tokens/{id}");
    assert_eq!(admin.send(Method::DELETE, &path, "", &Value::Null).await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_its_token_and_tokens_survive_a_restart() {
    let server = Running::start().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, short) = admin.token(json!({"role": "viewer", "ttlSeconds": 2})).await;
    let (_, long) = admin.token(json!({"role": "admin", "ttlSeconds": 3600})).await;
    let mut watch = client.watch("/api/v1/namespaces?watch=true", &short).await;
    while watch.next().await.is_some() {}
    assert_eq!(code(&client, &short).await, 401);
    assert_eq!(code(&client, &long).await, 200);
    let dir = server.stop().await;
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(code(&Client::anonymous(&server), &long).await, 200);
    assert_eq!(code(&Client::anonymous(&server), &short).await, 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_token_lies_on_the_disk() {
    let server = Running::start().await;
    let admin = Client::of(&server, "etc/kubeconfig.yaml");
    let (id, token) = admin.token(json!({"role": "admin"})).await;
    let dir = server.stop().await;
    let (mut files, mut seen) = (vec![dir.path().to_path_buf()], false);
    let secret = token.split_once('.').unwrap().1.as_bytes();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        seen |= bytes.windows(id.len()).any(|w| w == id.as_bytes());
        assert!(
            !bytes.windows(secret.len()).any(|w| w == secret),
            "{}",
            path.display()
        );
    }
    assert!(seen, "the token itself is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens_let_nodes_join_and_nothing_else() {
    let server = Running::start().await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let join = async |token: &str, node: &str| {
        svcnet_runtime::join::join(&server.url, &token.parse().unwrap(), node)
            .await
            .map(|_| ())
    };
    let (id, any) = admin.token(json!({"role": "join", "ttlSeconds": 3600})).await;
    join(&any, "n2").await.unwrap();
    assert_eq!(code(&client, &any).await, 403);
    let (_, one) = admin.token(json!({"role": "join", "node": "n3"})).await;
    join(&one, "n3").await.unwrap();
    let refused = join(&one, "n4").await.unwrap_err().to_string();
    assert!(
        refused.contains("lets the node \"n3\" join, and not \"n4\""),
        "{refused}"
    );
    admin.revoke(&id).await;
    let refused = join(&any, "n2").await.unwrap_err().to_string();
    assert!(refused.contains("the token is wrong"), "{refused}");
    let (_, viewer) = admin.token(json!({"role": "viewer"})).await;
    let body = json!({"node": "n2", "csr": ""});
    assert_eq!(
        client
            .send(Method::POST, "/svcnet/v1/join", &viewer, &body)
            .await
            .0,
        401
    );

    // The one in the file is replaced.
    let file = || {
        std::fs::read_to_string(server.path("data/token"))
            .unwrap()
            .trim()
            .to_string()
    };
    let before = file();
    join(&before, "n5").await.unwrap();
    admin.revoke("server").await;
    assert_ne!(file(), before);
    assert!(join(&before, "n5").await.is_err());
    join(&file(), "n5").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_token_can_be_is_refused() {
    let server = Running::start().await;
    let admin = Client::of(&server, "etc/kubeconfig.yaml");
    for (wanted, why) in [
        (json!({"role": "root"}), "role: Unsupported value: \"root\""),
        (json!({"role": "node"}), "node: Required value"),
        (
            json!({"role": "viewer", "user": "system:masters"}),
            "user: Invalid value",
        ),
        (json!({"role": "viewer", "ttl": 1}), "unknown field `ttl`"),
        (
            json!({"role": "viewer", "ttlSeconds": u64::MAX}),
            "ttlSeconds: Invalid value",
        ),
    ] {
        let (code, refused) = admin.send(Method::POST, "/svcnet/v1/tokens", "", &wanted).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(code == 400 && message.contains(why), "{wanted}: {refused}");
    }
    server.stop().await;
}
