//! Real connections through real tables, from each place that a client can be in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;
use svcnet_netlink::netns::OwnedNetNs;
use world::{
    A, B, C, CLIENT, NODE, PATIENCE, World, ask, ask_on, ask_udp, connect, names, node_ports, service, slice,
    udp,
};

const VIP: &str = "10.96.1.1:80";

/// Over TCP and over UDP.
fn assert_refused(ns: &OwnedNetNs, to: &str) {
    let error = connect(ns, to, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    // What the kernel refuses to let out does not even leave the socket.
    let error = ask_udp(&udp(ns, to), PATIENCE).unwrap_err().kind();
    assert!(
        matches!(error, ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied),
        "{to} over UDP: {error}"
    );
}

#[test]
fn a_cluster_address_reaches_every_endpoint_from_everywhere() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A, B, C]));
    assert_eq!(names(&world.a, VIP), ["a", "b", "c"], "from a pod");
    assert_eq!(names(&world.node, VIP), ["a", "b", "c"], "from the node");
    // Pods keep their address, wherever the endpoint is.
    for _ in 0..20 {
        let (name, peer) = ask(&world.a, VIP).unwrap();
        let wanted = if name == "a" { "10.244.1.1" } else { A };
        assert_eq!(
            peer, wanted,
            "{name} (a pod that reaches itself is masqueraded, others are not)"
        );
        let (name, peer) = ask_udp(&udp(&world.a, VIP), PATIENCE).unwrap();
        assert_eq!(
            peer,
            if name == "a" { "10.244.1.1" } else { A },
            "{name} over UDP"
        );
    }
    // From outside, if it is routed here: answers must come back this way.
    world::ip(&world.client, &format!("route add 10.96.0.0/12 via {NODE}"));
    assert_eq!(names(&world.client, VIP), ["a", "b", "c"], "from outside");
}

#[test]
fn a_pod_reaches_itself() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    assert_eq!(ask(&world.a, VIP).unwrap(), ("a".into(), "10.244.1.1".into()));
    assert_eq!(
        ask_udp(&udp(&world.a, VIP), PATIENCE).unwrap(),
        ("a".into(), "10.244.1.1".into())
    );
    assert_eq!(ask(&world.b, VIP).unwrap(), ("a".into(), B.into()));
}

#[test]
fn node_ports_answer_on_every_address_of_the_node() {
    let mut world = World::new();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A, C]));
    let port = format!("{NODE}:30080");
    assert_eq!(names(&world.client, &port), ["a", "c"], "from outside");
    assert_eq!(names(&world.node, &port), ["a", "c"], "from the node");
    assert_eq!(
        names(&world.node, "127.0.0.1:30080"),
        ["a", "c"],
        "from the node through loopback"
    );
    assert_eq!(names(&world.b, "10.244.1.1:30080"), ["a", "c"], "from a pod");
    for _ in 0..10 {
        let (name, peer) = ask(&world.client, &port).unwrap();
        assert_eq!(
            peer,
            if name == "a" { "10.244.1.1" } else { "172.31.0.1" },
            "policy Cluster masquerades"
        );
        ask_udp(&udp(&world.client, &port), PATIENCE).unwrap();
    }
    // Nobody else's port, nobody else's address.
    assert_eq!(
        ask(&world.client, &format!("{NODE}:30081")).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn policy_local_keeps_the_source_and_drops_what_is_only_elsewhere() {
    let mut world = World::new();
    let spec =
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.9"] });
    world.service(service("web", "10.96.1.1", node_ports(spec)));
    world.slice(slice("web", &[A, C]));
    for to in ["203.0.113.7:80", "203.0.113.9:80", &format!("{NODE}:30080")] {
        for _ in 0..10 {
            assert_eq!(
                ask(&world.client, to).unwrap(),
                ("a".into(), CLIENT.into()),
                "{to}"
            );
        }
        assert_eq!(names(&world.b, to), ["a", "c"], "{to} from a pod");
        assert_eq!(names(&world.node, to), ["a", "c"], "{to} from the node");
    }
    world.slice(slice("web", &[C]));
    for to in ["203.0.113.7:80", &format!("{NODE}:30080")] {
        let error = connect(&world.client, to, Duration::from_millis(500)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}");
        assert_eq!(ask(&world.b, to).unwrap().0, "c");
    }
}

#[test]
fn no_endpoints_means_refused_at_once() {
    let mut world = World::new();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "LoadBalancer" })),
    ));
    let begin = Instant::now();
    for (ns, to) in [
        (&world.a, VIP),
        (&world.node, VIP),
        (&world.a, "203.0.113.7:80"),
        (&world.client, "203.0.113.7:80"),
        (&world.client, &format!("{NODE}:30080")),
    ] {
        assert_refused(ns, to);
    }
    // An answer, not a timeout, made each of them end.
    assert!(begin.elapsed() < PATIENCE);
    world.slice(slice("web", &[A]));
    assert_eq!(ask(&world.b, VIP).unwrap().0, "a");
}

#[test]
fn clients_stay_with_their_endpoint_until_it_goes() {
    let mut world = World::new();
    let affinity = json!({
        "type": "NodePort", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 600 } },
    });
    world.service(service("web", "10.96.1.1", node_ports(affinity)));
    world.slice(slice("web", &[A, B, C]));
    for (client, to) in [
        (&world.b, VIP.to_string()),
        (&world.node, VIP.to_string()),
        (&world.client, format!("{NODE}:30080")),
    ] {
        let first = ask(client, &to).unwrap().0;
        assert!((0..20).all(|_| ask(client, &to).unwrap().0 == first), "{to}");
    }
    let listing = world.listing();
    assert!(listing.contains("timeout 10m expires"), "{listing}");
    let stuck = ask(&world.b, VIP).unwrap().0;
    let left: Vec<&str> = [A, B, C]
        .into_iter()
        .zip(["a", "b", "c"])
        .filter(|(_, n)| *n != stuck)
        .map(|(at, _)| at)
        .collect();
    world.slice(slice("web", &left));
    let next = ask(&world.b, VIP).unwrap().0;
    assert_ne!(next, stuck);
    assert!((0..20).all(|_| ask(&world.b, VIP).unwrap().0 == next));
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    assert_eq!(names(&world.b, VIP).len(), 2, "no affinity any more");
    assert!(!world.listing().contains("stay-600"));
}

#[test]
fn udp_follows_its_endpoints_and_bystanders_are_left_alone() {
    let mut world = World::new();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.service(service("other", "10.96.2.2", json!({})));
    world.slice(slice("other", &[A]));
    // The first packets find nobody; the same socket finds the endpoint once there is one.
    let (inside, outside) = (udp(&world.b, VIP), udp(&world.client, &format!("{NODE}:30080")));
    let bystander = udp(&world.b, "10.96.2.2:80");
    assert_eq!(ask_udp(&bystander, PATIENCE).unwrap().0, "a");
    let entry = || {
        world::run(
            &world.node,
            "conntrack",
            &["-L", "-p", "udp", "-o", "id", "-d", "10.96.2.2"],
        )
    };
    let before = entry().split("id=").nth(1).map(str::to_string);
    for socket in [&inside, &outside] {
        assert!(ask_udp(socket, PATIENCE).is_err());
    }
    world.slice(slice("web", &[A]));
    for socket in [&inside, &outside] {
        assert_eq!(ask_udp(socket, PATIENCE).unwrap().0, "a");
    }
    let report = world.slice(slice("web", &[C]));
    assert_eq!(report.cleared, 2);
    for socket in [&inside, &outside] {
        assert_eq!(ask_udp(socket, PATIENCE).unwrap().0, "c", "the endpoint moved");
    }
    world.slice(slice("web", &[]));
    for socket in [&inside, &outside] {
        assert!(ask_udp(socket, PATIENCE).is_err(), "no endpoint any more");
    }
    let entry = || {
        world::run(
            &world.node,
            "conntrack",
            &["-L", "-p", "udp", "-o", "id", "-d", "10.96.2.2"],
        )
    };
    assert_eq!(
        entry().split("id=").nth(1).map(str::to_string),
        before,
        "the other service's connection is the same"
    );
}

#[test]
fn datagrams_to_an_address_before_it_was_a_services_are_refused_like_those_after() {
    let mut world = World::new();
    // Somebody has the address, listens, and never answers.
    let (vip, to) = ("203.0.113.7", "203.0.113.7:80");
    world::ip(&world.client, &format!("addr add {vip}/32 dev lo"));
    let silent = world.client.run(|| UdpSocket::bind(to)).unwrap().unwrap();
    let socket = udp(&world.a, to);
    socket.send(b"?").unwrap();
    let mut buffer = [0; 1];
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.recv(&mut buffer).unwrap(), 1);
    let load_balancer = service("web", "10.96.1.1", node_ports(json!({ "type": "LoadBalancer" })));
    assert_eq!(world.service(load_balancer).cleared, 1);
    let error = ask_udp(&socket, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn established_connections_outlive_changes_and_restarts() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    let mut stream = connect(&world.b, VIP, PATIENCE).unwrap();
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
    world.slice(slice("web", &[A, C]));
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
    world.slice(slice("web", &[C]));
    assert_eq!(
        ask_on(&mut stream).unwrap().0,
        "a",
        "draining endpoints keep their connections"
    );
    world.restart();
    world.apply_all(
        vec![service("web", "10.96.1.1", json!({}))],
        vec![slice("web", &[C])],
    );
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
    assert_eq!(names(&world.b, VIP), ["c"]);
}

#[test]
fn ipv6_has_the_same_shape() {
    let mut world = World::new();
    world::serve(&world.a, "a", "fd00:244:1::5");
    world::serve(&world.b, "b", "fd00:244:1::6");
    world.service(service(
        "web",
        "fd00:96::1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &["fd00:244:1::5", "fd00:244:1::6"]));
    let vip = "[fd00:96::1]:80";
    assert_eq!(names(&world.a, vip), ["a", "b"]);
    assert_eq!(names(&world.node, "[fd00:244:1::1]:30080"), ["a", "b"]);
    world.slice(slice("web", &["fd00:244:1::5"]));
    assert_eq!(
        ask(&world.a, vip).unwrap(),
        ("a".into(), "fd00:244:1::1".into()),
        "hairpin"
    );
    assert_eq!(ask(&world.b, vip).unwrap(), ("a".into(), "fd00:244:1::6".into()));
    world.slice(
        slice("web", &["fd00:244:1::5"])
            .as_object()
            .map(|_| {
                let mut empty = slice("web", &["fd00:244:1::5"]);
                empty["endpoints"] = json!([]);
                empty
            })
            .unwrap(),
    );
    assert_eq!(
        ask(&world.b, vip).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn other_ports_of_a_cluster_address_are_refused() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    for ns in [&world.b, &world.node] {
        assert_refused(ns, "10.96.1.1:81");
    }
    assert_eq!(ask(&world.b, VIP).unwrap().0, "a");
}

#[test]
fn a_cluster_address_that_the_node_has_is_refused_too() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    // As in ipvs mode, which open connections outlive.
    world::ip(&world.node, "addr add 10.96.1.1/32 dev lo");
    let listen = || TcpListener::bind("0.0.0.0:2222").unwrap();
    let _listener = world.node.run(listen).unwrap();
    for (ns, to) in [
        (&world.b, VIP),
        (&world.node, VIP),
        (&world.b, "10.96.1.1:2222"),
        (&world.node, "10.96.1.1:2222"),
    ] {
        assert_refused(ns, to);
    }
}

#[test]
fn source_ranges_let_in_only_who_is_in_them() {
    let mut world = World::new();
    let ranges = |ranges: serde_json::Value| {
        service(
            "web",
            "10.96.1.1",
            json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ranges }),
        )
    };
    world.slice(slice("web", &[A, C]));
    let lb = "203.0.113.7:80";
    let shut_out = |world: &World| {
        let error = connect(&world.client, lb, Duration::from_millis(500)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    };
    world.service(ranges(json!(["10.244.0.0/16"])));
    shut_out(&world);
    assert_eq!(names(&world.b, lb), ["a", "c"], "a pod is in the range");
    // The second lies within the first, the third is a single address.
    world.service(ranges(json!([
        "172.30.0.0/16",
        " 172.30.0.0/24 ",
        "198.51.100.1/32"
    ])));
    assert_eq!(names(&world.client, lb), ["a", "c"]);
    assert!(
        world.listing().contains("203.0.113.7 . tcp . 80 . 172.30.0.0/16"),
        "{}",
        world.listing()
    );
    world.restart();
    let (services, slices) = (
        vec![ranges(json!(["172.30.0.0/16", "198.51.100.1/32"]))],
        vec![slice("web", &[A, C])],
    );
    assert_eq!(world.apply_all(services, slices).operations, 0);
    world.service(ranges(json!(["not a network"])));
    shut_out(&world);
    assert_eq!(
        ask(&world.b, VIP).unwrap().0.len(),
        1,
        "the ClusterIP is not restricted"
    );
    world.service(ranges(json!([])));
    assert_eq!(names(&world.client, lb), ["a", "c"]);
}
