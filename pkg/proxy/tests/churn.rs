//! Clients that never pause, while endpoints come and go: a packet looks several things up on its way, and must find
//! them whichever changes between two of these looks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use svcnet_netlink::netns::OwnedNetNs;
use world::{A, B, C, NODE, PATIENCE, World, ask_on, names, service, slice};

const VIP: &str = "10.96.1.1:80";
const ROUNDS: usize = 300;
/// The ports that a client leaves from, each once: conntrack sends a connection from a port that it remembers the way of
/// the former one.
const PORTS: std::ops::Range<u16> = 1024..65_000;
/// Between two connections of a client, so that its ports last.
const PAUSE: Duration = Duration::from_micros(500);

/// Which endpoints there are, by name and by address, one round after the other.
const CHOICES: [(&[&str], &[&str]); 6] = [
    (&["a"], &[A]),
    (&["a", "b"], &[A, B]),
    (&["b"], &[B]),
    (&["b", "c"], &[B, C]),
    (&["a", "b", "c"], &[A, B, C]),
    (&["c"], &[C]),
];

fn choice(round: usize) -> (&'static [&'static str], &'static [&'static str]) {
    CHOICES[round % CHOICES.len()]
}

/// How far the changes are.
#[derive(Default)]
struct Progress {
    /// The last round that the kernel may know of.
    begun: AtomicUsize,
    /// The last round that the kernel knows of.
    done: AtomicUsize,
    ended: AtomicBool,
}

/// Opens connection after connection.
struct Client(JoinHandle<usize>);

impl Client {
    fn start(ns: &OwnedNetNs, progress: &Arc<Progress>) -> Self {
        let progress = progress.clone();
        // A thread stays in the namespace that it was made in.
        Self(
            ns.run(|| {
                let thread = std::thread::Builder::new().name(ns.name().to_string());
                thread.spawn(move || connect_until_ended(&progress))
            })
            .unwrap()
            .unwrap(),
        )
    }

    /// How many connections there were.
    fn join(self) -> usize {
        self.0.join().unwrap()
    }
}

fn connect_until_ended(progress: &Progress) -> usize {
    let mut count = 0;
    for port in PORTS {
        if progress.ended.load(Ordering::SeqCst) {
            break;
        }
        let oldest = progress.done.load(Ordering::SeqCst);
        let mut stream = match connect_from(port) {
            Ok(stream) => stream,
            // Somebody else's.
            Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
            Err(error) => panic!("connection {count} from port {port}, in round {oldest}: {error}"),
        };
        let (name, _) = ask_on(&mut stream).unwrap();
        let newest = progress.begun.load(Ordering::SeqCst);
        assert!(
            (oldest..=newest).any(|round| choice(round).0.contains(&&*name)),
            "{name} answered in rounds {oldest} to {newest}, when it was no endpoint"
        );
        // Closed at once and for good: the ports of a client are few, and each would be taken for a minute.
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
        count += 1;
        drop(stream);
        std::thread::sleep(PAUSE);
    }
    count
}

fn connect_from(port: u16) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    let vip: SocketAddr = VIP.parse().unwrap();
    socket.connect_timeout(&vip.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Has a Service's endpoints change under clients. All that answer do so all the time, so a connection that fails was
/// sent to nowhere.
fn churn(mut after: impl FnMut(&mut World, usize)) -> World {
    let mut world = World::new();
    world.service(web());
    world.slice(slice("web", choice(0).1));
    let progress = Arc::new(Progress::default());
    // From the node itself, through it, and from endpoints, who may reach themselves while they cease to be ones.
    world::ip(&world.client, &format!("route add 10.96.0.0/12 via {NODE}"));
    let sources = [&world.node, &world.client, &world.a, &world.b];
    let clients = sources.map(|ns| Client::start(ns, &progress));
    for round in 1..=ROUNDS {
        progress.begun.store(round, Ordering::SeqCst);
        world.slice(slice("web", choice(round).1));
        progress.done.store(round, Ordering::SeqCst);
        after(&mut world, round);
        // One has failed, or is out of ports.
        if clients.iter().any(|client| client.0.is_finished()) {
            break;
        }
    }
    progress.ended.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.join() > 0);
    }
    world
}

fn web() -> Value {
    service("web", "10.96.1.1", json!({}))
}

#[test]
fn no_connection_is_lost_while_endpoints_come_and_go() {
    let mut world = churn(|world, round| {
        if round % 100 == 0 {
            // Another agent takes over.
            world.restart();
            let report = world.apply_all(vec![web()], vec![slice("web", choice(round).1)]);
            assert_eq!(report.operations, 0);
        }
    });
    world.slice(slice("web", &[B]));
    assert_eq!(names(&world.a, VIP), ["b"], "none goes to one that is removed");
}

/// What a change makes is there before anything leads to it: a packet on its way sees the rules of before.
#[test]
fn no_connection_is_lost_in_a_chain_that_is_new() {
    churn(|world, _| {
        // Long after all packets of before, as tidying is everywhere.
        std::thread::sleep(Duration::from_millis(2));
        world.tidy();
    });
}
