//! How endpoints are chosen, by real connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use svcnet_netlink::netns::OwnedNetNs;
use world::{A, B, C, World, annotated, ask, names, run, service, slice};

const VIP: &str = "10.96.1.1:80";

fn scheduled(scheduler: &str, weights: &str) -> serde_json::Value {
    let annotations = json!({ "svcnet.io/scheduler": scheduler, "svcnet.io/weights": weights });
    annotated(service("web", "10.96.1.1", json!({})), annotations)
}

fn asked(ns: &OwnedNetNs, count: usize) -> Vec<String> {
    (0..count).map(|_| ask(ns, VIP).unwrap().0).collect()
}

#[test]
fn rr_takes_turns_whoever_else_does() {
    let mut world = World::new();
    world.slice(slice("web", &[A, B, C]));
    world.service(scheduled("rr", "10.244.1.5=7"));
    let other = annotated(
        service("other", "10.96.1.2", json!({})),
        json!({ "svcnet.io/scheduler": "rr" }),
    );
    world.service(other);
    world.slice(slice("other", &[A, B, C]));
    let mut order = Vec::new();
    for _ in 0..9 {
        order.push(ask(&world.b, VIP).unwrap().0);
        ask(&world.b, "10.96.1.2:80").unwrap();
    }
    let first: BTreeSet<&String> = order[..3].iter().collect();
    assert_eq!(first.len(), 3, "{order:?}");
    assert!((3..9).all(|n| order[n] == order[n - 3]), "{order:?}");
}

#[test]
fn weights_are_kept_exactly_by_turns_and_zero_takes_none() {
    let mut world = World::new();
    world.slice(slice("web", &[A, B, C]));
    world.service(scheduled("wrr", "node/n1=3, 10.244.1.6=0"));
    let asked = asked(&world.b, 40);
    let count = |name: &str| asked.iter().filter(|n| *n == name).count();
    assert_eq!((count("a"), count("b"), count("c")), (30, 0, 10));
    // A connection that is there stays, whatever the weights say then.
    world.service(scheduled("wrr", ""));
    let mut stream = world::connect(&world.a, VIP, world::PATIENCE).unwrap();
    let name = world::ask_on(&mut stream).unwrap().0;
    let address = match name.as_str() {
        "a" => A,
        "b" => B,
        _ => C,
    };
    world.service(scheduled("wrr", &format!("{address}=0")));
    assert_eq!(world::ask_on(&mut stream).unwrap().0, name);
    assert!(!names(&world.a, VIP).contains(&name));
}

#[test]
fn a_source_keeps_its_endpoint_by_hash() {
    let mut world = World::new();
    world::ip(
        &world.client,
        &format!("route add 10.96.0.0/12 via {}", world::NODE),
    );
    world.slice(slice("web", &[A, B, C]));
    for scheduler in ["sh", "mh"] {
        world.service(scheduled(scheduler, ""));
        for ns in [&world.a, &world.b, &world.client] {
            let asked: BTreeSet<String> = asked(ns, 12).into_iter().collect();
            assert_eq!(asked.len(), 1, "{scheduler}: {asked:?}");
        }
        // Others have others: many sources reach them all.
        let mut reached = BTreeSet::new();
        for last in 20..60 {
            let source = format!("172.30.0.{last}");
            world::ip(&world.client, &format!("addr add {source}/32 dev eth0"));
            reached.insert(ask_from(&world.client, &source));
            world::ip(&world.client, &format!("addr del {source}/32 dev eth0"));
        }
        assert_eq!(reached.len(), 3, "{scheduler}: {reached:?}");
    }
}

/// Who answers a connection from that address.
fn ask_from(ns: &OwnedNetNs, source: &str) -> String {
    let (from, to): (SocketAddr, SocketAddr) = (format!("{source}:0").parse().unwrap(), VIP.parse().unwrap());
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), world::PATIENCE).unwrap();
        TcpStream::from(socket)
    };
    world::ask_on(&mut ns.run(connect).unwrap()).unwrap().0
}

/// Which endpoint stands at which place.
fn maglev_table(world: &World) -> Vec<String> {
    let listing = run(&world.node, "nft", &["list", "map", "ip", "svcnet", "endpoints"]);
    let tcp = listing
        .split(['{', ','])
        .filter(|part| part.contains("10.96.1.1 . tcp"));
    let mut places: Vec<(usize, String)> = tcp
        .map(|part| {
            let place = part
                .split(" . ")
                .nth(3)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap();
            let endpoint = part
                .rsplit(": ")
                .next()
                .unwrap()
                .trim_end_matches([' ', '}', '\n', '\t']);
            let index = place.rsplit(':').next().unwrap();
            (usize::from_str_radix(index, 16).unwrap(), endpoint.to_string())
        })
        .collect();
    places.sort();
    places.into_iter().map(|(_, endpoint)| endpoint).collect()
}

#[test]
fn maglev_is_the_same_however_it_came_about_and_moves_little() {
    let mut world = World::new();
    world.service(scheduled("mh", ""));
    world.slice(slice("web", &[C, B, A]));
    let three = maglev_table(&world);
    assert_eq!(three.len(), 1021);
    world.slice(slice("web", &[A, C]));
    let two = maglev_table(&world);
    let moved = three
        .iter()
        .zip(&two)
        .filter(|(b, a)| b != a && !b.starts_with(B))
        .count();
    assert!(moved < 1021 / 8, "{moved} of 1021 moved without need");
    world.slice(slice("web", &[B, A, C]));
    assert_eq!(maglev_table(&world), three);
    // Another node computes it anew.
    let mut other = World::new();
    other.slice(slice("web", &[A, B, C]));
    other.service(scheduled("mh", ""));
    assert_eq!(maglev_table(&other), three);
}
