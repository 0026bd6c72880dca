//! TCP: each connection is taken, another one is made to an endpoint, and what comes in at one goes out at the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::addresses::Hold;
use super::front::{Chosen, Front};

/// How long each endpoint may take to answer, and how many are asked in turn. The first is longer than the kernel takes to
/// try a second time: one packet that is lost is no reason to pass an endpoint over.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(1500),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// A peer that is silent for so long is asked whether it is there, and so often again.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));
/// Pause when no connection can be taken: too many open files, for one.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until told to close, and then those that came before, and those that come in the time given.
pub(crate) async fn serve(
    listener: Arc<TcpListener>,
    front: Arc<Front>,
    mut closing: watch::Receiver<Option<Duration>>,
    _address: Option<Hold>,
) {
    loop {
        tokio::select! {
            biased;
            _ = closing.wait_for(Option::is_some) => break,
            () = take_one(&listener, &front) => {}
        }
    }
    let grace = (*closing.borrow()).unwrap_or_default();
    let deadline = tokio::time::Instant::now() + grace;
    while tokio::time::timeout_at(deadline, take_one(&listener, &front))
        .await
        .is_ok()
    {}
}

/// Takes a connection and lets it go its way.
async fn take_one(listener: &TcpListener, front: &Arc<Front>) {
    // Before it is taken: what can not be relayed yet waits in the kernel's queue.
    let Ok(permit) = front.shared.connections.clone().acquire_owned().await else {
        return std::future::pending().await;
    };
    match listener.accept().await {
        Ok((client, peer)) => {
            tokio::spawn(relay(client, peer, front.clone(), permit));
        }
        Err(error) => {
            tracing::debug!(%error, "a connection could not be taken");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn relay(mut client: TcpStream, peer: SocketAddr, front: Arc<Front>, _permit: OwnedSemaphorePermit) {
    let Ok(local) = client.local_addr() else { return };
    let _address = front.shared.addresses.hold(local.ip());
    let Some((mut server, _chosen)) = connect(peer, local, &front).await else {
        return reset(&client);
    };
    for stream in [&client, &server] {
        // Without these a relay is only slower, and keeps dead connections for longer.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE.0)
            .with_interval(KEEPALIVE.1);
        _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
        _ = stream.set_nodelay(true);
    }
    // An end of data goes on as such, while the other direction goes on; a reset ends both.
    if copy_bidirectional(&mut client, &mut server).await.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Connects to an endpoint that answers.
async fn connect(peer: SocketAddr, local: SocketAddr, front: &Arc<Front>) -> Option<(TcpStream, Chosen)> {
    let (mut refused, mut silent) = (Vec::new(), Vec::new());
    for patience in PATIENCE {
        let untried = front.choose(peer.ip(), local, &[&refused[..], &silent[..]].concat());
        // One that was silent may answer yet; one that refused has answered.
        let chosen = match untried {
            Some(chosen) => chosen,
            None => front.choose(peer.ip(), local, &refused)?,
        };
        let failed: io::Error = match timeout(patience, TcpStream::connect(chosen.at)).await {
            Ok(Ok(server)) => return Some((server, chosen)),
            Ok(Err(error)) => {
                refused.push(chosen.at);
                error
            }
            Err(_) => {
                silent.push(chosen.at);
                io::ErrorKind::TimedOut.into()
            }
        };
        tracing::debug!(src.addr = %peer, dst.addr = %chosen.at, reason = %failed, "an endpoint does not answer");
    }
    None
}

/// Ends a connection as broken, and not as complete, when it is dropped.
fn reset(stream: &TcpStream) {
    _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
