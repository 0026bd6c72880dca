//! A TLS client with a certificate, a token, or nothing.

use std::sync::Arc;

use base64::Engine as _;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::{Running, Watch};

/// What a kubeconfig, or nothing, gives a TLS client.
pub struct Client {
    address: String,
    tls: tokio_rustls::TlsConnector,
}

pub fn field(kubeconfig: &str, name: &str) -> Vec<u8> {
    let line = kubeconfig.lines().find(|l| l.trim().starts_with(name)).unwrap();
    let data = line.split(": ").nth(1).unwrap();
    base64::engine::general_purpose::STANDARD.decode(data).unwrap()
}

impl Client {
    pub fn new(server: &Running, identity: Option<(Vec<u8>, Vec<u8>)>, alpn: &[u8]) -> Self {
        let admin = std::fs::read_to_string(&server.kubeconfig).unwrap();
        let ca = CertificateDer::from_pem_slice(&field(&admin, "certificate-authority-data")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(&cert).unwrap()],
                    PrivateKeyDer::from_pem_slice(&key).unwrap(),
                )
                .unwrap(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        Self {
            address: server.url.trim_start_matches("https://").to_string(),
            tls: Arc::new(tls).into(),
        }
    }

    pub fn anonymous(server: &Running) -> Self {
        Self::new(server, None, b"http/1.1")
    }

    pub fn of(server: &Running, kubeconfig: &str) -> Self {
        let text = std::fs::read_to_string(server.path(kubeconfig)).unwrap();
        let identity = (
            field(&text, "client-certificate-data"),
            field(&text, "client-key-data"),
        );
        Self::new(server, Some(identity), b"http/1.1")
    }

    pub async fn stream(&self, name: &str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        self.tls
            .connect(ServerName::try_from(name.to_string()).unwrap(), stream)
            .await
    }

    pub async fn send(&self, method: Method, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let stream = self.stream("127.0.0.1").await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> u16 {
        self.send(Method::GET, path, "", &Value::Null).await.0
    }

    /// A token, made by the administrator: its id and the whole of it.
    pub async fn token(&self, wanted: Value) -> (String, String) {
        let (code, made) = self.send(Method::POST, "/svcnet/v1/tokens", "", &wanted).await;
        assert_eq!(code, 201, "{made}");
        let text = |field: &str| made[field].as_str().unwrap().to_string();
        (text("id"), text("token"))
    }

    pub async fn revoke(&self, id: &str) {
        let path = format!("/svcnet/v1/tokens/{id}");
        let (code, answer) = self.send(Method::DELETE, &path, "", &json!({})).await;
        assert_eq!(code, 200, "{answer}");
    }

    /// A request with headers, its answer unread.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, HeaderMap, Incoming) {
        let stream = self.stream("127.0.0.1").await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        (head.status.as_u16(), head.headers, body)
    }

    /// A watch with a token.
    pub async fn watch(&self, path: &str, token: &str) -> Watch {
        let bearer = format!("Bearer {token}");
        let (code, _, body) = self
            .ask(Method::GET, path, &[("authorization", &bearer)], "")
            .await;
        assert_eq!(code, 200, "{path}");
        Watch::new(body)
    }
}
