//! Connections: TLS, HTTP/1.1 and HTTP/2 on top of it, and their orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::auth::{self, User};
use crate::handler;
use crate::pki::PkiError;
use crate::server::Server;

/// How long a client may take to shake hands, or to send the head of a request.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How often an idle HTTP/2 client must show that it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long requests that are under way may go on after the end has come.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How clients are met: with the serving certificate, and asked for one of theirs (not demanded).
pub(crate) fn acceptor(server: &Server) -> Result<TlsAcceptor, PkiError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(server.authority.der().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(server.serving.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves all the listeners until shutdown, and then what is under way.
pub(crate) async fn serve(
    server: Arc<Server>,
    listeners: Vec<TcpListener>,
    plain: Option<TcpListener>,
    acceptor: TlsAcceptor,
) {
    let connections = TaskTracker::new();
    let secure = listeners
        .into_iter()
        .map(|listener| (listener, Some(acceptor.clone())));
    let all: Vec<_> = secure
        .chain(plain.map(|listener| (listener, None)))
        .map(|(listener, acceptor)| {
            tokio::spawn(accept(server.clone(), listener, acceptor, connections.clone()))
        })
        .collect();
    for listener in all {
        _ = listener.await;
    }
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::info!("requests were still under way at the end");
    }
}

async fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    connections: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let (server, acceptor) = (server.clone(), acceptor.clone());
                connections.spawn(async move { connection(server, stream, from, acceptor).await });
            }
            Err(error) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(reason = %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, from: SocketAddr, acceptor: Option<TlsAcceptor>) {
    _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return requests(server, stream, User::apiserver()).await;
    };
    let shaken = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(src.addr = %from, reason = %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates
        .and_then(|c| c.first())
        .and_then(auth::from_certificate);
    requests(server, stream, user.unwrap_or_else(User::anonymous)).await;
}

async fn requests<S>(server: Arc<Server>, stream: S, user: User)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .max_concurrent_streams(1000);
    let (shared, shutdown) = (server.clone(), server.shutdown.clone());
    let service = service_fn(move |request| {
        let (server, user) = (shared.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(handler::handle(server, user, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(reason = %error, "a connection broke");
    }
}
