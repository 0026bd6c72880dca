//! The process's own HTTP listener: `/healthz`, `/livez`, `/readyz`, `/status` and `/metrics`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::{Health, Status};
use crate::serve::serve;

/// How long a process of this host may take to tell of itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// The listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for health and metrics (--metrics-bind-address)")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// A listener that is open and not yet answering.
#[derive(Debug)]
pub struct OpsServer {
    listener: TcpListener,
}

impl OpsServer {
    /// Opens the listener, so that a busy port is told at the start.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError { address, source })?;
        Ok(Self { listener })
    }

    /// Answers until shutdown.
    pub async fn run(self, health: Health, metrics: PrometheusHandle, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = serve(self.listener, move |path| answer(path, &health, &metrics)) => {}
        }
    }
}

/// What a process on this host tells of itself at `/status`.
///
/// # Errors
/// When nobody answers at the address, or one who is not svcnet.
pub fn status(address: SocketAddr) -> io::Result<Status> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, and comes in one piece.
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or(("", ""));
    serde_json::from_str(body)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "what answers there is not svcnet"))
}

/// The answer to a path: status and text.
pub fn answer(path: &str, health: &Health, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/healthz" | "/livez" => (StatusCode::OK, "ok".to_string()),
        "/readyz" => {
            let (ready, text) = health.report();
            (
                if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                },
                text,
            )
        }
        "/status" => (StatusCode::OK, health.status()),
        "/metrics" => {
            metrics.run_upkeep();
            (StatusCode::OK, metrics.render())
        }
        _ => (
            StatusCode::NOT_FOUND,
            "try /healthz, /livez, /readyz, /status or /metrics\n".to_string(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    response
}
