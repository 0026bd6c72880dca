//! Our table is gone for a while: somebody flushes the ruleset, and the proxy makes it anew. What becomes of connections
//! then is for the kernel to say, and these tests say what that is.
//!
//! - Translation is decided with a connection's first packet, and kept. What stands goes on when the table is back.
//! - While no table at all has a rule that translates or asks about connections (an empty chain is none), the kernel does
//!   not even track them, and nothing is translated, what stands neither: packets of it get lost, and are sent again. (One that an endpoint sends meanwhile comes to the client from a stranger, who is sent a reset: such
//!   a connection ends, and nobody can keep it.)
//! - While another table has such rules, a connection that begins is decided about: it is not translated, and stays so
//!   with every packet that is sent again. The proxy has the kernel forget it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::time::Instant;

use serde_json::{Value, json};
use svcnet_netlink::conntrack;
use svcnet_netlink::nft::{Family, Socket};
use world::{A, PATIENCE, World, ask_on, connect, ip, run, service, slice};

const VIP: &str = "10.96.1.1:80";

fn web() -> (Vec<Value>, Vec<Value>) {
    (
        vec![service("web", "10.96.1.1", json!({}))],
        vec![slice("web", &[A])],
    )
}

/// What is not translated vanishes without a word.
fn world() -> World {
    let mut world = World::new();
    let (services, slices) = web();
    world.apply_all(services, slices);
    ip(
        &world.node,
        "neigh add 10.96.1.1 lladdr 02:00:00:00:00:01 dev svcnet0 nud permanent",
    );
    world
}

fn lose_the_table(world: &World) {
    run(&world.node, "nft", &["delete", "table", "ip", "svcnet"]);
}

fn make_it_anew(world: &mut World) {
    assert!(world.engine().check().unwrap(), "the change is heard of");
    world.sync();
}

/// Connections from the node to the address that nobody has answered.
fn unanswered(world: &World) -> usize {
    let list = || {
        let mut socket = Socket::open().unwrap();
        let to: std::net::SocketAddr = VIP.parse().unwrap();
        let ours = |entry: &conntrack::Entry| entry.is_unanswered() && entry.original.destination == to;
        conntrack::list(&mut socket, Family::Ip, 6, ours).unwrap().len()
    };
    world.node.run(list).unwrap()
}

fn nat_of_others(world: &World) {
    run(&world.node, "nft", &["add", "table", "ip", "other"]);
    for (hook, priority) in [("output", "-100"), ("postrouting", "100")] {
        let chain = format!("{{ type nat hook {hook} priority {priority} ; }}");
        run(&world.node, "nft", &["add", "chain", "ip", "other", hook, &chain]);
    }
    // As the overlay's: the kernel tracks connections for it.
    let rule = "add rule ip other postrouting ip daddr 198.51.100.1 masquerade";
    run(&world.node, "nft", &rule.split(' ').collect::<Vec<_>>());
}

#[test]
fn what_stands_goes_on_when_the_table_is_back() {
    for others in [false, true] {
        let mut world = world();
        if others {
            nat_of_others(&world);
        }
        let mut stream = connect(&world.node, VIP, PATIENCE).unwrap();
        ask_on(&mut stream).unwrap();
        lose_the_table(&world);
        if others {
            ask_on(&mut stream)
                .unwrap_or_else(|error| panic!("it is translated by what was decided: {error}"));
        } else {
            // Its question is lost, and sent again when the table is back.
            std::io::Write::write_all(&mut stream, b"?").unwrap();
        }
        make_it_anew(&mut world);
        let answer = ask_on(&mut stream);
        assert_eq!(answer.unwrap().0, "a", "with others: {others}");
    }
}

#[test]
fn who_connects_in_the_gap_is_served_after_it() {
    let mut world = world();
    nat_of_others(&world);
    lose_the_table(&world);
    let connecting = {
        let start =
            || std::thread::spawn(|| std::net::TcpStream::connect_timeout(&VIP.parse().unwrap(), PATIENCE));
        world.node.run(start).unwrap()
    };
    let begun = Instant::now();
    while unanswered(&world) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the kernel has decided about it");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    make_it_anew(&mut world);
    let mut stream = connecting.join().unwrap().unwrap();
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
}
