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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{self, User};
use crate::handler::{self, Peer};
use crate::patient::Patient;
use crate::pki::PkiError;
use crate::server::Server;
use crate::upload::Upload;

/// How long a client may take to shake hands, or to send the head of a request.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How much the head of a request over HTTP/2 may hold: a selector may name many values (`http.DefaultMaxHeaderBytes` of Go).
const HEADERS_MAX: u32 = 1 << 20;
/// How often an idle HTTP/2 client must show that it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How often is looked at the clock for the end of a client's certificate, at least.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60 * 60);
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
    let stream = Patient::new(stream, server.config.limits.unread_max);
    let mut peer = Peer {
        user: User::apiserver(),
        from: Some(from),
        until: None,
        abort: CancellationToken::new(),
    };
    let Some(acceptor) = acceptor else {
        return requests(server, stream, peer).await;
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
    (peer.user, peer.until) = match user {
        Some((user, until)) => (user, Some(until)),
        None => (User::anonymous(), None),
    };
    requests(server, stream, peer).await;
}

/// Returns when the certificate of a client ends: no request is taken over this connection any more, and the client
/// shows the one that it has by now. Looks at the clock now and then, since a sleep knows nothing of its jumps.
async fn ended(until: Option<i64>) {
    let Some(until) = until else {
        return std::future::pending().await;
    };
    loop {
        let left = until - jiff::Timestamp::now().as_second();
        let Ok(left @ 1..) = u64::try_from(left) else {
            return;
        };
        tokio::time::sleep(Duration::from_secs(left).min(LOOK_EVERY_MAX)).await;
    }
}

async fn requests<S>(server: Arc<Server>, stream: S, peer: Peer)
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
        .max_header_list_size(HEADERS_MAX)
        .max_concurrent_streams(1000);
    let (shared, shutdown, abort) = (server.clone(), server.shutdown.clone(), peer.abort.clone());
    let (until, user) = (peer.until, peer.user.clone());
    // Whoever comes with a revoked one is told so by each answer.
    let was_good = !server.tokens.is_revoked(&user);
    let service = service_fn(move |request| {
        let (server, peer) = (shared.clone(), peer.clone());
        async move {
            Ok::<_, std::convert::Infallible>(handler::handle(server, peer, request.map(Upload::new)).await)
        }
    });
    let over = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = ended(until) => {}
            () = server.tokens.certificate_revoked(&user), if was_good => {}
        }
    };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = abort.cancelled() => return,
        () = over => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(reason = %error, "a connection broke");
    }
}
