//! One question to one upstream: over UDP, and over TCP where the answer does not fit.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::cache::Ask;
use super::stored::Stored;
use crate::wire::{UDP_MAX, u16_at};

/// How long one upstream may take for one try.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest datagram that we look at: upstreams that ignore our limit are still heard.
const DATAGRAM_MAX: usize = 4096;

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// Nothing came in time.
    #[error("no answer within {} s", TRY_TIMEOUT.as_secs())]
    Timeout,
    /// It cannot be reached, or it hung up.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came does not parse, or answers something else.
    #[error("the answer is malformed")]
    Malformed,
}

impl ExchangeError {
    /// In one word, for a metric.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Io(_) => "unreachable",
            Self::Malformed => "malformed",
        }
    }
}

/// Asks an upstream and returns its answer, whole.
pub(crate) async fn exchange(upstream: SocketAddr, ask: &Ask) -> Result<Vec<u8>, ExchangeError> {
    let answer = with_edns(upstream, ask, true).await?;
    // Servers from before EDNS (RFC 6891, 7): once more without.
    if matches!(answer.get(3).map(|flags| flags & 0xf), Some(1 | 4)) && u16_at(&answer, 10) == Some(0) {
        return with_edns(upstream, ask, false).await;
    }
    Ok(answer)
}

async fn with_edns(upstream: SocketAddr, ask: &Ask, edns: bool) -> Result<Vec<u8>, ExchangeError> {
    let message = message(ask, edns);
    let answer = in_time(over_udp(upstream, &message, ask)).await?;
    if answer.get(2).is_some_and(|flags| flags & 0x02 != 0) {
        return in_time(over_tcp(upstream, &message, ask)).await;
    }
    Ok(answer)
}

async fn in_time<T>(work: impl Future<Output = Result<T, ExchangeError>>) -> Result<T, ExchangeError> {
    tokio::time::timeout(TRY_TIMEOUT, work)
        .await
        .unwrap_or(Err(ExchangeError::Timeout))
}

/// A question with an id that nobody can guess.
fn message(ask: &Ask, edns: bool) -> Vec<u8> {
    let id: u16 = rand::random();
    let mut message = Vec::with_capacity(64);
    message.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; checking disabled as the client has it.
    message.extend_from_slice(&[
        1,
        u8::from(ask.checking_disabled()) << 4,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::from(edns),
    ]);
    message.extend_from_slice(ask.question());
    if edns {
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&(UDP_MAX as u16).to_be_bytes());
        message.extend_from_slice(&[0, 0, u8::from(ask.dnssec_ok()) << 7, 0, 0, 0]);
    }
    message
}

/// From a socket of its own, hence from a port that the kernel picked at random, and connected: only the upstream's
/// datagrams arrive, and that it is not there is heard at once.
async fn over_udp(upstream: SocketAddr, message: &[u8], ask: &Ask) -> Result<Vec<u8>, ExchangeError> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    let mut answer = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Anything else is late, forged or confused: the right one may still come.
        if is_answer(&answer[..length], message, ask) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, message: &[u8], ask: &Ask) -> Result<Vec<u8>, ExchangeError> {
    let mut stream = TcpStream::connect(upstream).await?;
    let framed = [&(message.len() as u16).to_be_bytes(), message].concat();
    stream.write_all(&framed).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    if is_answer(&answer, message, ask) {
        Ok(answer)
    } else {
        Err(ExchangeError::Malformed)
    }
}

fn is_answer(answer: &[u8], message: &[u8], ask: &Ask) -> bool {
    u16_at(message, 0).is_some_and(|id| Stored::answers(answer, id, ask.question()))
}
