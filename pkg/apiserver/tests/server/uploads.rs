//! Requests of unusual shape: refused before the body is there, and with long heads.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{Running, read_until, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_a_refusal_that_comes_before_the_body() {
    let server = Running::start().await;
    let mut stream = TcpStream::connect(server.plain.trim_start_matches("http://"))
        .await
        .unwrap();
    for _ in 0..3 {
        let head = "POST /api/v1/namespaces/default HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "MethodNotAllowed").await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        stream.write_all(&[b' '; 100_000]).await.unwrap();
    }
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut stream, "\r\n\r\nok").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

/// What curl prints: the answer and its code, or why there is none.
async fn curl(server: &Running, path: &str, options: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sSk", "-w", " %{http_code}"])
        .args(options)
        .arg(format!("{}{path}", server.url))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), output)
        .await
        .expect("curl ends")
        .unwrap();
    text(&output.stderr) + &text(&output.stdout)
}

/// Selectors of many values make long addresses.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_address_is_read() {
    let server = Running::start().await;
    let names: Vec<String> = (0..4000).map(|number| format!("name-{number}")).collect();
    let path = format!(
        "/api/v1/namespaces?labelSelector=app%20in%20({})",
        names.join(",")
    );
    assert!(path.len() > 30_000, "{}", path.len());
    for version in ["--http1.1", "--http2"] {
        let told = curl(&server, &path, &[version]).await;
        assert!(told.ends_with(" 401"), "{version}: {told}");
    }
    server.stop().await;
}

/// curl sends head and body apart, and loses an answer whose stream is reset behind it.
#[tokio::test(flavor = "multi_thread")]
async fn curl_is_told_why_it_is_refused() {
    let server = Running::start().await;
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), vec![b' '; 4 << 20]).unwrap();
    let short = "{}".to_string();
    let long = format!("@{}", body.path().display());
    for (path, data) in [
        ("/api/v1/namespaces", &short),
        ("/api/v1/namespaces", &long),
        ("/svcnet/v1/join", &long),
        ("/nope", &short),
    ] {
        for version in ["--http1.1", "--http2"] {
            let told = curl(&server, path, &[version, "-X", "POST", "--data-binary", data]).await;
            assert!(told.ends_with(" 401"), "{version} {path} with {data}: {told}");
        }
    }
    server.stop().await;
}
