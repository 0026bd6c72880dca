//! What one client may take, and what becomes of one that does not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use svcnet_apiserver::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{Client, field};
use crate::harness::{Running, SOON, Watch, read_until};

async fn limited(limits: Limits) -> Running {
    Running::start_as(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.limits = limits
    })
    .await
}

async fn json_of(body: hyper::body::Incoming) -> Value {
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_watches_and_no_more() {
    let server = limited(Limits {
        watches_max: 2,
        ..Limits::default()
    })
    .await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, alice) = admin.token(json!({"role": "viewer", "user": "alice"})).await;
    let (_, bob) = admin.token(json!({"role": "viewer", "user": "bob"})).await;
    let path = "/api/v1/namespaces?watch=true";
    let (_first, second) = (client.watch(path, &alice).await, client.watch(path, &alice).await);
    let bearer = format!("Bearer {alice}");
    let ask = async || {
        let headers = [("authorization", bearer.as_str())];
        client.ask(Method::GET, path, &headers, "").await
    };
    let (code, headers, body) = ask().await;
    assert_eq!(code, 429);
    assert_eq!(headers["retry-after"], "1");
    let refused = json_of(body).await;
    assert_eq!(refused["message"], "Too many requests, please try again later.");
    assert_eq!(
        (&refused["reason"], &refused["details"]),
        (&json!("TooManyRequests"), &json!({"retryAfterSeconds": 1}))
    );
    // Neither another client, nor other requests of this one.
    _ = client.watch(path, &bob).await;
    assert_eq!(
        client
            .send(Method::GET, "/api/v1/namespaces", &alice, &Value::Null)
            .await
            .0,
        200
    );
    drop(second);
    let start = Instant::now();
    while ask().await.0 != 200 {
        assert!(start.elapsed() < SOON, "the watch that ended still counts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_requests_under_way() {
    let server = limited(Limits {
        requests_max: 1,
        ..Limits::default()
    })
    .await;
    let (admin, client) = (
        Client::of(&server, "etc/kubeconfig.yaml"),
        Client::anonymous(&server),
    );
    let (_, alice) = admin.token(json!({"role": "admin", "user": "alice"})).await;
    let bearer = format!("authorization: Bearer {alice}\r\nhost: x\r\n");
    // A body that does not come: the request stays under way.
    let mut held = client.stream("127.0.0.1").await.unwrap();
    let head = format!("POST /api/v1/namespaces HTTP/1.1\r\n{bearer}content-length: 100\r\n\r\n");
    held.write_all(head.as_bytes()).await.unwrap();
    let start = Instant::now();
    loop {
        let (code, body) = client
            .send(Method::GET, "/api/v1/pods", &alice, &Value::Null)
            .await;
        if code == 429 {
            assert_eq!(body["reason"], "TooManyRequests");
            break;
        }
        assert!(start.elapsed() < SOON, "never refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Health is answered always, and others are not concerned.
    assert_eq!(
        client.send(Method::GET, "/livez", &alice, &Value::Null).await.0,
        200
    );
    assert_eq!(admin.get("/api/v1/pods").await, 200);
    drop(held);
    let start = Instant::now();
    while client
        .send(Method::GET, "/api/v1/pods", &alice, &Value::Null)
        .await
        .0
        != 200
    {
        assert!(start.elapsed() < SOON, "the request that ended still counts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_length_and_it_is_said() {
    let server = Running::start().await;
    let address = server.plain.trim_start_matches("http://").to_string();
    let limit = "Request entity too large: limit is 3145728";
    // Told by its head: refused before any of it has come.
    let mut told = TcpStream::connect(&address).await.unwrap();
    let head = "POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n";
    told.write_all(head.as_bytes()).await.unwrap();
    assert_answer(told, "413 Payload Too Large", limit).await;
    // Not told: refused when it has become too long.
    let mut untold = TcpStream::connect(&address).await.unwrap();
    let head = "POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    untold.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    for _ in 0..49 {
        if untold.write_all(&chunk).await.is_err() {
            break;
        }
    }
    assert_answer(untold, "413 Payload Too Large", limit).await;
    server.stop().await;
}

async fn assert_answer(mut stream: TcpStream, status: &str, message: &str) {
    let answer = read_until(&mut stream, message).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    assert!(
        answer.contains("\"reason\":\"RequestEntityTooLarge\""),
        "{answer}"
    );
}

/// A connection with small buffers: what is not read soon waits at the server.
async fn narrow(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_dropped() {
    let server = limited(Limits {
        unread_max: Duration::from_secs(1),
        watches_max: 1,
        ..Limits::default()
    })
    .await;
    let address = server.plain.trim_start_matches("http://").to_string();
    let mut deaf = narrow(&address).await;
    let head = "GET /api/v1/configmaps?watch=true HTTP/1.1\r\nhost: x\r\n\r\n";
    deaf.write_all(head.as_bytes()).await.unwrap();
    let mut begun = [0; 15];
    deaf.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    let watches = || async {
        server
            .get("/api/v1/configmaps?watch=true&timeoutSeconds=1")
            .await
            .0
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "m"}, "data": {"text": "x".repeat(500_000)}});
    assert_eq!(server.post(maps, &map).await.0, 201);
    let start = Instant::now();
    let mut number = 0;
    // It holds its only watch until it is dropped.
    while watches().await == 429 {
        assert!(start.elapsed() < SOON, "still there");
        number += 1;
        let mut map = map.clone();
        map["metadata"]["labels"] = json!({"number": number.to_string()});
        assert_eq!(server.put(&format!("{maps}/m"), &map).await.0, 200);
    }
    // What was on its way is there, and then the end, or a reset: never all of it.
    let mut got = 0;
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    while let Ok(read @ 1..) = deaf.read(&mut buffer).await {
        got += read;
        assert!(
            start.elapsed() < SOON,
            "the connection is still open after {got} bytes"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_is_too_slow_is_told_to_begin_anew() {
    let server = limited(Limits {
        unread_max: Duration::from_secs(600),
        ..Limits::default()
    })
    .await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let text = "x".repeat(900_000);
    let map = |number: usize| json!({"metadata": {"name": "m", "labels": {"number": number.to_string()}}, "data": {"text": text}});
    assert_eq!(server.post(maps, &map(0)).await.0, 201);
    let stream = narrow(server.plain.trim_start_matches("http://")).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/api/v1/configmaps?watch=true")
        .header("host", "x")
        .body(Full::new(Bytes::new()));
    let response = sender.send_request(request.unwrap()).await.unwrap();
    // More than the history holds, and all the buffers on the way.
    for number in 1..60 {
        assert_eq!(server.put(&format!("{maps}/m"), &map(number)).await.0, 200);
    }
    let mut watch = Watch::new(response.into_body());
    let mut last = Value::Null;
    while let Some(event) = watch.next().await {
        last = event;
    }
    assert_eq!(last["type"], "ERROR");
    assert_eq!(
        (&last["object"]["code"], &last["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_http_2_that_nobody_reads_ends_its_connection() {
    let server = limited(Limits {
        unread_max: Duration::from_secs(1),
        ..Limits::default()
    })
    .await;
    let text = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let identity = (
        field(&text, "client-certificate-data"),
        field(&text, "client-key-data"),
    );
    let stream = Client::new(&server, Some(identity), b"h2")
        .stream("127.0.0.1")
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    // It answers pings and takes other streams: only this one stands still.
    let connection = tokio::spawn(connection);
    let watch =
        Request::get(format!("{}/api/v1/configmaps?watch=true", server.url)).body(Full::new(Bytes::new()));
    let response = sender.send_request(watch.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |number: usize| {
        let labels = json!({"number": number.to_string()});
        json!({"metadata": {"name": "m", "labels": labels}, "data": {"text": "x".repeat(500_000)}})
    };
    assert_eq!(server.post(maps, &map(0)).await.0, 201);
    let (start, mut number) = (Instant::now(), 0);
    while !connection.is_finished() {
        assert!(start.elapsed() < SOON, "the connection is still there");
        number += 1;
        assert_eq!(server.put(&format!("{maps}/m"), &map(number)).await.0, 200);
    }
    drop(response);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_takes_as_long_as_its_client_says_or_the_server_allows() {
    let maps = "/api/v1/namespaces/default/configmaps";
    // A body that does not come.
    let ask = async |server: &Running, query: &str| {
        let admin = Client::of(server, "etc/kubeconfig.yaml");
        let mut stream = admin.stream("127.0.0.1").await.unwrap();
        let head = format!(
            "POST {maps}?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The server may close without a farewell of TLS.
        _ = stream.read_to_string(&mut answer).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let status: Value = serde_json::from_str(body).unwrap();
        (head.split(' ').nth(1).unwrap().to_string(), status)
    };
    let late = "Timeout: request did not complete within requested timeout - context deadline exceeded";
    let patient = Running::start().await;
    let (code, status) = ask(&patient, "timeout=300ms").await;
    assert_eq!((code.as_str(), &status["message"]), ("504", &json!(late)));
    assert_eq!(
        (&status["reason"], &status["details"]),
        (&json!("Timeout"), &json!({}))
    );
    let (code, status) = ask(&patient, "timeout=soon").await;
    let why = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
    assert_eq!((code.as_str(), &status["message"]), ("400", &json!(why)));
    // As kubectl asks: it is no limit for what is in time, and none for watches.
    let admin = Client::of(&patient, "etc/kubeconfig.yaml");
    assert_eq!(admin.get(&format!("{maps}?timeout=34s")).await, 200);
    let mut watch = admin.watch("/api/v1/namespaces?watch=true&timeout=1ms", "").await;
    let made = json!({"metadata": {"name": "late"}});
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        admin.send(Method::POST, "/api/v1/namespaces", "", &made).await.0,
        201
    );
    while watch.next_named().await.1 != "late" {}
    patient.stop().await;
    let hasty = limited(Limits {
        request_max: Duration::from_millis(300),
        ..Limits::default()
    })
    .await;
    assert_eq!(ask(&hasty, "timeout=34s").await.1["message"], late);
    hasty.stop().await;
}
