//! Clients that open connection after connection, and what answers them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use svcnet_netlink::netns::NetNs;

/// How long a connection may take: generous, machines can be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// The ports that connections leave from, one after the other: connection tracking remembers each for two minutes.
const PORTS: std::ops::Range<u16> = 1100..65_000;
/// Between two connections of a client, so that no port is used again within that time.
const PAUSE: Duration = Duration::from_millis(1);

/// A connection that did not come to its end.
pub(crate) struct Failure {
    pub(crate) why: String,
    /// The port that it left from.
    pub(crate) port: u16,
}

/// What a client has done, while it goes on.
#[derive(Default)]
struct Progress {
    /// It is to end.
    ended: AtomicBool,
    /// Connections that came to their end.
    connections: AtomicUsize,
}

/// Opens connections, one after the other, until it is ended or one fails.
pub(crate) struct Client {
    name: String,
    progress: Arc<Progress>,
    thread: JoinHandle<Result<Duration, Failure>>,
}

impl Client {
    pub(crate) fn start(name: &str, netns: &NetNs, to: SocketAddr) -> Self {
        let progress = Arc::<Progress>::default();
        let told = progress.clone();
        // A thread stays in the namespace that it was made in.
        let thread = netns
            .run(|| std::thread::spawn(move || connect_until_ended(&told, to)))
            .unwrap();
        Self {
            name: format!("{name} to {to}"),
            progress,
            thread,
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// How many connections have come to their end.
    pub(crate) fn connections(&self) -> usize {
        self.progress.connections.load(Ordering::SeqCst)
    }

    /// How long the slowest connection took; why the last one failed, if it did.
    pub(crate) fn end(self) -> Result<Duration, Failure> {
        self.progress.ended.store(true, Ordering::SeqCst);
        let ended = self.thread.join().unwrap();
        ended.map_err(|failure| Failure {
            why: format!("{}: {}", self.name, failure.why),
            ..failure
        })
    }
}

fn connect_until_ended(progress: &Progress, to: SocketAddr) -> Result<Duration, Failure> {
    let mut slowest = Duration::ZERO;
    for port in PORTS.cycle() {
        if progress.ended.load(Ordering::SeqCst) {
            break;
        }
        let begun = Instant::now();
        match ask(port, to) {
            Ok(()) => {
                slowest = slowest.max(begun.elapsed());
                progress.connections.fetch_add(1, Ordering::SeqCst);
            }
            // Somebody else's.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => {
                let count = progress.connections.load(Ordering::SeqCst);
                let took = begun.elapsed();
                let why = format!("connection {count}, from port {port}, after {took:?}: {error}");
                return Err(Failure { why, port });
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(slowest)
}

fn ask(port: u16, to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"?")?;
    // The other side closes first, so that the port is free again at once.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match &answer[..] {
        b"!" => Ok(()),
        other => Err(io::Error::other(format!("answered {other:?}"))),
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
