//! The process's own HTTP listener: `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;

use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::serve::serve;

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
        "/metrics" => {
            metrics.run_upkeep();
            (StatusCode::OK, metrics.render())
        }
        _ => (
            StatusCode::NOT_FOUND,
            "try /healthz, /livez, /readyz or /metrics\n".to_string(),
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
