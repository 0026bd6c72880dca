//! Connections (RFC 7766): many questions on one, answered as they are ready, in whatever order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::respond::{Handler, Outcome};
use crate::stats::{Tally, Transport};

/// A connection without a question for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// A client that does not take its answers for this long is hung up on.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// Connections at one address.
const CONNECTIONS_MAX: usize = 1000;
/// Answers of one connection that may wait to be taken; the client's further questions wait in the kernel.
const PIPELINE_MAX: usize = 64;

/// Accepts connections until shutdown.
pub(super) async fn serve(
    handler: Arc<Handler>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    shutdown: &CancellationToken,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(src.addr = %address, %error, "cannot answer over TCP");
            return shutdown.cancelled().await;
        }
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // With no room left the newcomer is hung up on; idle ones make room within seconds.
        let Ok(seat) = room.clone().try_acquire_owned() else {
            continue;
        };
        let (handler, shutdown) = (handler.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(handler, stream, address) => {}
            }
            drop(seat);
        });
    }
}

async fn connection(handler: Arc<Handler>, stream: TcpStream, address: SocketAddr) {
    _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let (answers, queue) = mpsc::channel(PIPELINE_MAX);
    let writing = tokio::spawn(write_answers(writer, queue));
    read_questions(handler, BufReader::new(reader), answers, address).await;
    _ = writing.await;
}

/// Until the client is done, silent for too long, or sends what is no question.
async fn read_questions(
    handler: Arc<Handler>,
    mut reader: BufReader<OwnedReadHalf>,
    answers: mpsc::Sender<Vec<u8>>,
    address: SocketAddr,
) {
    let zone = handler.zone.load().apex().to_string();
    let mut tally = Tally::new(address, zone.clone(), Transport::Tcp);
    while let Some(message) = read_message(&mut reader).await {
        let Ok(place) = answers.clone().reserve_owned().await else {
            return;
        };
        let mut out = framed();
        let mut body = Vec::new();
        let zone_now = handler.zone.load_full();
        let outcome = handler.respond(&zone_now, &message, Transport::Tcp, &mut tally, &mut body);
        tally.flush();
        match outcome {
            Outcome::Silence => return,
            Outcome::Reply => {
                finish_frame(&mut out, &body);
                place.send(out);
            }
            Outcome::Later(later) => {
                let (handler, zone) = (handler.clone(), zone.clone());
                tokio::spawn(async move {
                    if let Some((domain, rcode)) =
                        handler.finish(later, &message, Transport::Tcp, &mut body).await
                    {
                        let mut tally = Tally::new(address, zone, Transport::Tcp);
                        tally.response(domain, rcode);
                        tally.flush();
                    }
                    finish_frame(&mut out, &body);
                    place.send(out);
                });
            }
        }
    }
}

async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let read = async {
        let length = reader.read_u16().await?;
        let mut message = vec![0; usize::from(length)];
        reader.read_exact(&mut message).await?;
        Ok::<_, std::io::Error>(message)
    };
    tokio::time::timeout(IDLE_MAX, read).await.ok()?.ok()
}

async fn write_answers(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(answer) = queue.recv().await {
        match tokio::time::timeout(WRITE_MAX, writer.write_all(&answer)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

/// Room for the length that goes before a message.
fn framed() -> Vec<u8> {
    vec![0, 0]
}

fn finish_frame(out: &mut Vec<u8>, body: &[u8]) {
    out[..2].copy_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(body);
}
