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

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use svcnet_netlink::netns::OwnedNetNs;
use world::{A, B, C, PATIENCE, World, ask_on, names, service, slice};

const VIP: &str = "10.96.1.1:80";
const ROUNDS: usize = 1000;
/// Between two connections of a client: with 64,000 ports, none is used again within half a minute.
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
            ns.run(|| std::thread::spawn(move || connect_until_ended(&progress)))
                .unwrap(),
        )
    }

    /// How many connections there were.
    fn join(self) -> usize {
        self.0.join().unwrap()
    }
}

fn connect_until_ended(progress: &Progress) -> usize {
    let vip: SocketAddr = VIP.parse().unwrap();
    let mut count = 0;
    while !progress.ended.load(Ordering::SeqCst) {
        let oldest = progress.done.load(Ordering::SeqCst);
        let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)
            .unwrap_or_else(|error| panic!("connection {count}, in round {oldest}: {error}"));
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
        // conntrack remembers a closed connection for ten seconds, and sends one from the same port the same way.
        std::thread::sleep(PAUSE);
    }
    count
}

/// All that answer do so all the time, so a connection that fails was sent to nowhere.
#[test]
fn no_connection_is_lost_while_endpoints_come_and_go() {
    let mut world = World::new();
    let web = service("web", "10.96.1.1", json!({}));
    world.service(web.clone());
    world.slice(slice("web", choice(0).1));
    let progress = Arc::new(Progress::default());
    for ns in [&world.node, &world.b] {
        world::sysctl(ns, "net/ipv4/ip_local_port_range", "1024 65535");
    }
    // From the node itself, and through it.
    let clients = [&world.node, &world.b].map(|ns| Client::start(ns, &progress));
    for round in 1..=ROUNDS {
        let endpoints = slice("web", choice(round).1);
        progress.begun.store(round, Ordering::SeqCst);
        world.slice(endpoints.clone());
        progress.done.store(round, Ordering::SeqCst);
        if round % 100 == 0 {
            // Another agent takes over.
            world.restart();
            let report = world.apply_all(vec![web.clone()], vec![endpoints]);
            assert_eq!(report.operations, 0);
        }
        if clients.iter().any(|client| client.0.is_finished()) {
            break;
        }
    }
    progress.ended.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.join() > 0);
    }
    world.slice(slice("web", &[B]));
    assert_eq!(names(&world.a, VIP), ["b"], "none goes to one that is removed");
}
