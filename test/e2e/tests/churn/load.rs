//! Clients that open connection after connection, and what answers them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use svcnet_netlink::netns::NetNs;

/// How long a connection may take: generous, machines can be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two connections of a client: of its 64,000 ports none is used again within half a minute.
const PAUSE: Duration = Duration::from_micros(500);

/// Opens connections until it is ended or one fails.
pub(crate) struct Client {
    name: String,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize, String>>,
}

impl Client {
    pub(crate) fn start(name: &str, netns: &NetNs, to: SocketAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        // A thread stays in the namespace that it was made in.
        let thread = netns
            .run(|| std::thread::spawn(move || connect_until(&seen, to)))
            .unwrap();
        Self {
            name: format!("{name} to {to}"),
            ended,
            thread,
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// How many connections there were; why the last one failed, if it did.
    pub(crate) fn end(self) -> Result<usize, String> {
        self.ended.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .unwrap()
            .map_err(|why| format!("{}: {why}", self.name))
    }
}

fn connect_until(ended: &AtomicBool, to: SocketAddr) -> Result<usize, String> {
    let mut count = 0;
    while !ended.load(Ordering::SeqCst) {
        ask(to).map_err(|error| format!("connection {count}: {error}"))?;
        count += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(count)
}

fn ask(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    // The other side closes first, so that the port is free again at once.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match &answer[..] {
        b"!" => Ok(()),
        other => Err(std::io::Error::other(format!("answered {other:?}"))),
    }
}

/// An endpoint that answers until it is dropped; who comes then is refused.
pub(crate) struct Endpoint {
    pub(crate) at: SocketAddr,
    netns: NetNs,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    pub(crate) fn open(netns: NetNs, at: SocketAddr) -> Self {
        let listener = netns.run(|| TcpListener::bind(at).unwrap()).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || answer(stream));
                if seen.load(Ordering::SeqCst) {
                    break;
                }
            }
            // Who came before the end is answered.
            if listener.set_nonblocking(true).is_ok() {
                while let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nonblocking(false);
                    std::thread::spawn(move || answer(stream));
                }
            }
        });
        Self {
            at,
            netns,
            ended,
            thread: Some(thread),
        }
    }
}

/// A client that is gone does not matter here: it tells itself what went wrong.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut question = [0];
    if stream.read_exact(&mut question).is_ok() {
        let _ = stream.write_all(b"!");
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the one who waits for a connection.
        let _ = self.netns.run(|| TcpStream::connect(self.at));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
