//! Small HTTP listeners: an answer to a path, and nothing else.

use std::convert::Infallible;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Pause after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// What is answered.
pub type Answer = Response<Full<Bytes>>;

/// An answer of that status, type and text.
pub fn response(status: http::StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = http::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    response
}

/// Answers each request with what the function gives for its path, for ever.
pub async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer + Clone + Send + Sync + 'static) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting an HTTP connection failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<Incoming>| {
                let response = answer(request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "an HTTP connection broke");
            }
        });
    }
}
