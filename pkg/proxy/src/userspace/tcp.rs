//! TCP: each connection is taken, another one is made to an endpoint, and what comes in at one goes out at the other.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::addresses::Hold;
use super::front::{Chosen, Front, Unserved};

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
/// For how long a connection that may go nowhere is left without an answer: as long as a client that has none goes on asking
/// (`tcp_syn_retries` of 6).
const DENIED_MAX: Duration = Duration::from_secs(127);
/// How often it is looked whether the peer of a connection that must wait has gone.
const LOOK: Duration = Duration::from_secs(1);
/// How often a connection that must wait tries again, whether or not policies change: endpoints may.
const AGAIN: Duration = Duration::from_secs(5);
/// What is read at once.
const CHUNK: usize = 8 * 1024;

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

async fn relay(client: TcpStream, peer: SocketAddr, front: Arc<Front>, permit: OwnedSemaphorePermit) {
    let Ok(local) = client.local_addr() else { return };
    let _address = front.shared.addresses.hold(local.ip());
    // Before anybody is asked about it, so that no change is missed.
    let mut changes = front.shared.changes();
    let found = match connect(peer, local, &front).await {
        // It waits at another place than those that are served, so that they are not in each other's way.
        Err(Unserved::Denied) => {
            drop(permit);
            let served = wait(&client, &mut changes, peer, local, &front).await;
            match served {
                Some(served) => Ok((
                    served,
                    front.shared.connections.clone().acquire_owned().await.ok(),
                )),
                None => Err(()),
            }
        }
        Err(Unserved::NoEndpoint) => Err(()),
        Ok(served) => Ok((served, Some(permit))),
    };
    let Ok(((server, chosen), _permit)) = found else {
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
    if exchange(&client, &server, &chosen, changes).await.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Relays both ways until both have ended; an end of data goes on as such, while the other direction goes on. While policies
/// deny the connection nothing passes, as in the kernel: a mistake in a policy costs no connection.
async fn exchange(
    client: &TcpStream,
    server: &TcpStream,
    chosen: &Chosen,
    mut changes: Option<watch::Receiver<u64>>,
) -> io::Result<()> {
    let both = async { tokio::try_join!(pump(client, server), pump(server, client)) };
    tokio::pin!(both);
    loop {
        if let Some(changes) = &mut changes {
            changes.borrow_and_update();
        }
        let admitted = chosen.is_admitted();
        tokio::select! {
            ended = &mut both, if admitted => return ended.map(drop),
            () = next(&mut changes) => {}
            () = gone(client), if !admitted => return Err(io::ErrorKind::ConnectionReset.into()),
            () = gone(server), if !admitted => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// What comes in at one goes out at the other, until it ends.
async fn pump(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        from.readable().await?;
        let length = match from.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // It has ended by itself meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// Waits for the next change of what is admitted; for ever where there will be none.
async fn next(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = changes {
        if receiver.changed().await.is_ok() {
            return;
        }
        *changes = None;
    }
    std::future::pending().await
}

/// Waits until the peer has gone, or has nothing more to say.
async fn gone(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Leaves a client that may reach no endpoint without an answer, until it may, or goes. Nothing when it is to go.
async fn wait(
    client: &TcpStream,
    changes: &mut Option<watch::Receiver<u64>>,
    peer: SocketAddr,
    local: SocketAddr,
    front: &Arc<Front>,
) -> Option<(TcpStream, Chosen)> {
    let _permit = front.shared.waiting.clone().try_acquire_owned().ok()?;
    let deadline = Instant::now() + DENIED_MAX;
    let asked = async {
        loop {
            _ = timeout(AGAIN, next(changes)).await;
            match connect(peer, local, front).await {
                Err(Unserved::Denied) => {}
                Err(Unserved::NoEndpoint) => return None,
                Ok(served) => return Some(served),
            }
        }
    };
    tokio::select! {
        served = timeout_at(deadline, asked) => served.ok().flatten(),
        () = gone(client) => None,
    }
}

/// Connects to an endpoint that answers.
async fn connect(
    peer: SocketAddr,
    local: SocketAddr,
    front: &Arc<Front>,
) -> Result<(TcpStream, Chosen), Unserved> {
    let (mut refused, mut silent) = (Vec::new(), Vec::new());
    for patience in PATIENCE {
        let untried = front.choose(peer.ip(), local, &[&refused[..], &silent[..]].concat());
        // One that was silent may answer yet; one that refused has answered.
        let chosen = match untried {
            Ok(chosen) => chosen,
            Err(_) => match front.choose(peer.ip(), local, &refused) {
                Ok(chosen) => chosen,
                // Some were reached, in vain: that is what the client is told.
                Err(Unserved::Denied) if !refused.is_empty() => return Err(Unserved::NoEndpoint),
                Err(unserved) => return Err(unserved),
            },
        };
        let failed: io::Error = match timeout(patience, reach(&chosen)).await {
            Ok(Ok(server)) => return Ok((server, chosen)),
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
    Err(Unserved::NoEndpoint)
}

/// Connects to an endpoint, from the address that this one asks for.
async fn reach(chosen: &Chosen) -> io::Result<TcpStream> {
    let Some(source) = &chosen.from else {
        return TcpStream::connect(chosen.at).await;
    };
    let socket = if chosen.at.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    leave_by(&socket, source.ip)?;
    // The port is chosen with the endpoint known, so that there are as many for each.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(source.ip, 0))?;
    socket.connect(chosen.at).await
}

/// Lets a socket be bound to an address that no link has.
pub(crate) fn leave_by<'a>(socket: impl Into<SockRef<'a>>, source: IpAddr) -> io::Result<()> {
    let socket = socket.into();
    if source.is_ipv4() {
        socket.set_freebind_v4(true)
    } else {
        socket.set_freebind_v6(true)
    }
}

/// Ends a connection as broken, and not as complete, when it is dropped.
fn reset(stream: &TcpStream) {
    _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
