//! The Container Runtime Interface (`runtime.v1` of `k8s.io/cri-api`): what runs on this node, asked of the runtime itself
//! over its socket. One gRPC call at a time, which is one HTTP/2 request; no more of gRPC is needed here.

mod wire;

pub use wire::{Message, Reader};

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where runtimes listen: containerd, CRI-O, and the containerd of k3s.
pub const SOCKETS: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];
/// A runtime that pulls an image or stops a container takes its time.
const CALL_WAIT_MAX: Duration = Duration::from_secs(60);
/// `NOT_FOUND` of gRPC.
const NOT_FOUND: u32 = 5;

/// Why the runtime gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("connect to the container runtime at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or is none of gRPC.
    #[error("ask the container runtime for {method}: {source}")]
    Http {
        /// What was asked.
        method: String,
        /// Why.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("the container runtime does not answer {0}")]
    TimedOut(String),
    /// It refused, or its answer makes no sense.
    #[error("{method} of the container runtime: {message} (status {status})")]
    Refused {
        /// What was asked.
        method: String,
        /// The status of gRPC.
        status: u32,
        /// In words.
        message: String,
    },
}

impl Error {
    /// Whether there is no such thing, or not yet.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == NOT_FOUND)
    }
}

/// A container runtime, by its socket.
#[derive(Debug, Clone)]
pub struct Runtime {
    socket: PathBuf,
}

impl Runtime {
    /// The one that listens there.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The first that listens where runtimes do.
    pub fn find() -> Option<Self> {
        let there = SOCKETS.iter().find(|path| Path::new(path).exists());
        there.map(Self::new)
    }

    /// The labels of a pod's sandbox, without those that the kubelet adds for itself; nothing when the runtime knows no
    /// such sandbox (yet: it learns of it only after ADD).
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn pod_labels(&self, sandbox: &str) -> Result<Option<BTreeMap<String, String>>, Error> {
        let request = Message::new().text(1, sandbox);
        match self.call("RuntimeService/PodSandboxStatus", &request).await {
            Ok(answer) => {
                let status = Reader(&answer).message(1);
                let mut labels = status.map(|s| s.map(7)).unwrap_or_default();
                labels.retain(|key, _| !key.starts_with("io.kubernetes."));
                Ok(Some(labels))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a call, as in `RuntimeService/Version`.
    ///
    /// # Errors
    /// When the runtime does not answer, or refuses.
    pub async fn call(&self, method: &str, request: &Message) -> Result<Bytes, Error> {
        timeout(CALL_WAIT_MAX, self.exchange(method, request))
            .await
            .map_err(|_| Error::TimedOut(method.to_string()))?
    }

    async fn exchange(&self, method: &str, request: &Message) -> Result<Bytes, Error> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| Error::Connect {
            path: self.socket.clone(),
            source,
        })?;
        let broken = |source| Error::Http {
            method: method.to_string(),
            source,
        };
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(connection);
        let answer = async {
            let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(framed(request)))
                .unwrap_or_default();
            let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
            let body = body.collect().await.map_err(broken)?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            let status = status(&trailers).or_else(|| status(&head.headers));
            unframed(method, status, &body.to_bytes())
        };
        let answer = answer.await;
        driver.abort();
        answer
    }
}

/// A message behind its five bytes: not compressed, and so long.
fn framed(message: &Message) -> Bytes {
    let bytes = message.as_bytes();
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame.into()
}

fn unframed(method: &str, status: Option<(u32, String)>, body: &Bytes) -> Result<Bytes, Error> {
    let refused = |status, message| Error::Refused {
        method: method.to_string(),
        status,
        message,
    };
    match status {
        // UNKNOWN of gRPC.
        None => Err(refused(2, "it said nothing of how the call ended".to_string())),
        Some((0, _)) if body.len() < 5 => Err(refused(2, "it answered nothing".to_string())),
        Some((0, _)) => Ok(body.slice(5..)),
        Some((status, message)) => Err(refused(status, message)),
    }
}

fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let status = text("grpc-status")?.parse().ok()?;
    Some((status, text("grpc-message").unwrap_or_default().to_string()))
}
