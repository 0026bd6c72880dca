//! gRPC to one of several endpoints: requests over one HTTP/2 connection, which is made anew, to the next endpoint, when it
//! breaks. A message is five bytes (not compressed, its length) and protocol buffers; the status comes in trailers.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::{Endpoint, EtcdConfig, EtcdTlsError, Resolve};

const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take. etcd itself gives up on a proposal after seven seconds at its usual settings.
const CALL_MAX: Duration = Duration::from_secs(8);
/// etcd ends connections that ping more often than every five seconds (`--grpc-keepalive-min-time`).
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_WAIT_MAX: Duration = Duration::from_secs(5);
/// Much is listed, and read as it comes.
const WINDOW: u32 = 4 << 20;

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody was asked.
    #[error("no endpoint of etcd can be reached ({0})")]
    Unreachable(String),
    /// Asked, and not answered: whether it was done is not known.
    #[error("etcd did not answer ({0})")]
    Broken(String),
    /// It said no: gRPC's code, and its words.
    #[error("{message}")]
    Refused { code: u32, message: String },
}

/// `RESOURCE_EXHAUSTED` of gRPC: etcd's quota, for one.
pub(crate) const RESOURCE_EXHAUSTED: u32 = 8;

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Messages>,
    endpoint: usize,
}

/// The way to an etcd.
pub(crate) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<TlsConnector>,
    resolve: Option<Resolve>,
    connection: Mutex<Option<Connection>>,
    /// Which endpoint is tried first.
    next: AtomicUsize,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// A body made of messages that are sent one after another. Ends when its sender is dropped.
pub(crate) struct Messages(mpsc::Receiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The messages that come back.
pub(crate) struct Stream {
    body: Incoming,
    buffer: BytesMut,
    method: &'static str,
}

impl Channel {
    pub(crate) fn new(config: &EtcdConfig) -> Result<Self, EtcdTlsError> {
        let tls = config.tls()?.map(|tls| TlsConnector::from(Arc::new(tls)));
        Ok(Self {
            endpoints: config.endpoints.clone(),
            tls,
            resolve: config.resolve.clone(),
            connection: Mutex::new(None),
            next: AtomicUsize::new(0),
        })
    }

    /// Makes a call of one question and one answer, as in `/etcdserverpb.KV/Range`.
    pub(crate) async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        question: &impl Message,
    ) -> Result<A, CallError> {
        let exchange = async {
            let (questions, mut answers) = self.open(method, question).await?;
            drop(questions);
            answers.next().await
        };
        match timeout(CALL_MAX, exchange).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(CallError::Broken(format!("{method}: nothing came"))),
            Ok(Err(error)) => {
                if matches!(error, CallError::Broken(_)) {
                    self.give_up().await;
                }
                Err(error)
            }
            // The next call tries another endpoint: this one may be cut off from the others.
            Err(_) => {
                self.give_up().await;
                Err(CallError::Broken(format!("{method}: no answer in {CALL_MAX:?}")))
            }
        }
    }

    /// Begins a call of many questions and answers. Further questions are made with [`framed`].
    pub(crate) async fn stream(
        &self,
        method: &'static str,
        first: &impl Message,
    ) -> Result<(mpsc::Sender<Bytes>, Stream), CallError> {
        timeout(CALL_MAX, self.open(method, first))
            .await
            .unwrap_or_else(|_| {
                Err(CallError::Unreachable(format!(
                    "{method}: no answer in {CALL_MAX:?}"
                )))
            })
    }

    async fn open(
        &self,
        method: &'static str,
        first: &impl Message,
    ) -> Result<(mpsc::Sender<Bytes>, Stream), CallError> {
        let Connection { mut sender, endpoint } = self.connection().await?;
        let (questions, body) = mpsc::channel(4);
        // Before any answer: etcd sends its headers with the first message.
        _ = questions.try_send(framed(first));
        let authority = &self.endpoints[endpoint];
        let request = Request::post(format!("{authority}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Messages(body))
            .map_err(|e| CallError::Unreachable(e.to_string()))?;
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(|e| CallError::Broken(format!("{method}: {}", chain(&e))))?
            .into_parts();
        if let Some(refused) = refused(&head.headers) {
            return Err(refused);
        }
        let buffer = BytesMut::new();
        Ok((questions, Stream { body, buffer, method }))
    }

    /// The connection that is there, or one to the next endpoint that answers.
    async fn connection(&self) -> Result<Connection, CallError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|c| !c.sender.is_closed()) {
            return Ok(connection.clone());
        }
        *kept = None;
        let mut why = Vec::new();
        for _ in 0..self.endpoints.len() {
            let index = self.next.load(Ordering::Relaxed) % self.endpoints.len();
            match timeout(CONNECT_MAX, self.connect(index)).await {
                Ok(Ok(sender)) => {
                    let connection = Connection {
                        sender,
                        endpoint: index,
                    };
                    *kept = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => why.push(format!("{}: {}", self.endpoints[index], chain(&error))),
                Err(_) => why.push(format!("{}: no answer in {CONNECT_MAX:?}", self.endpoints[index])),
            }
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(CallError::Unreachable(why.join("; ")))
    }

    async fn give_up(&self) {
        let mut kept = self.connection.lock().await;
        if kept.take().is_some() {
            self.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn connect(&self, index: usize) -> io::Result<SendRequest<Messages>> {
        let Endpoint { host, port, tls } = &self.endpoints[index];
        let stream = match (host.parse::<std::net::IpAddr>(), &self.resolve) {
            (Ok(ip), _) => TcpStream::connect((ip, *port)).await?,
            (Err(_), Some(resolve)) => {
                let mut addresses = resolve(host.clone()).await?;
                addresses.iter_mut().for_each(|a| a.set_port(*port));
                TcpStream::connect(&*addresses).await?
            }
            (Err(_), None) => return Err(io::Error::other("names are not looked up here")),
        };
        stream.set_nodelay(true)?;
        match self.tls.as_ref().filter(|_| *tls) {
            None => handshake(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                handshake(TokioIo::new(tls.connect(name, stream).await?)).await
            }
        }
    }
}

async fn handshake<I>(io: I) -> io::Result<SendRequest<Messages>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT_MAX)
        .handshake(io)
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(reason = %chain(&error), "a connection to etcd has ended");
        }
    });
    Ok(sender)
}

impl Stream {
    /// The next message; nothing when the other side has ended the call without complaint.
    pub(crate) async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, CallError> {
        let broken = |why: String| CallError::Broken(format!("{}: {why}", self.method));
        loop {
            if let Some((head, rest)) = self.buffer.split_at_checked(5) {
                let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if head[0] != 0 {
                    return Err(broken("a compressed answer".to_string()));
                }
                if rest.len() >= len {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(len).freeze();
                    return A::decode(message).map(Some).map_err(|e| broken(e.to_string()));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return refused(&trailers).map_or(Ok(None), Err);
                    }
                },
                Some(Err(error)) => return Err(broken(chain(&error))),
                None => return Err(broken("the answer was cut off".to_string())),
            }
        }
    }
}

/// A message behind its five bytes.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = Vec::with_capacity(5 + len);
    frame.push(0);
    frame.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    // Into a Vec, nothing can fail.
    _ = message.encode(&mut frame);
    frame.into()
}

/// What headers or trailers say of a call that was refused.
fn refused(headers: &HeaderMap) -> Option<CallError> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let code: u32 = text("grpc-status")?.parse().ok()?;
    let message = text("grpc-message").unwrap_or_default().to_string();
    // UNAVAILABLE and DEADLINE_EXCEEDED: no leader, or too long without one.
    match code {
        0 => None,
        4 | 14 => Some(CallError::Broken(message)),
        _ => Some(CallError::Refused { code, message }),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
