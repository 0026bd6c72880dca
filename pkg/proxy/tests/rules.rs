//! Rules of Services beyond the everyday ones, by real packets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};
use world::{
    A, B, C, CLIENT, NODE, PATIENCE, World, ask, ask_udp, connect, names, node_ports, run, service, slice,
    udp,
};

const VIP: &str = "10.96.1.1:80";
/// How long nothing comes of a packet that is dropped.
const SILENCE: Duration = Duration::from_millis(500);

/// A slice with conditions, zones or hints for some endpoints.
fn slice_with(service: &str, endpoints: &[(&str, Value)]) -> Value {
    let addresses: Vec<&str> = endpoints.iter().map(|(ip, _)| *ip).collect();
    let mut slice = slice(service, &addresses);
    for (index, (_, more)) in endpoints.iter().enumerate() {
        for (key, value) in more.as_object().unwrap() {
            slice["endpoints"][index][key] = value.clone();
        }
    }
    slice
}

fn going() -> Value {
    json!({ "conditions": { "ready": false, "serving": true, "terminating": true } })
}

fn shut_out(ns: &svcnet_netlink::netns::OwnedNetNs, to: &str) {
    let error = connect(ns, to, SILENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}");
}

#[test]
fn node_ports_answer_on_both_loopbacks() {
    let mut world = World::new();
    world::serve(&world.a, "a", "fd00:244:1::5");
    world::serve(&world.b, "b", "fd00:244:1::6");
    for policy in ["Cluster", "Local"] {
        let mut both = service(
            "web",
            "10.96.1.1",
            node_ports(json!({ "type": "NodePort", "externalTrafficPolicy": policy })),
        );
        both["spec"]["clusterIPs"] = json!(["10.96.1.1", "fd00:96::1"]);
        world.service(both);
        world.slice(slice("web", &[A, B]));
        world.slice(slice("web", &["fd00:244:1::5", "fd00:244:1::6"]));
        for (to, peer) in [
            ("127.0.0.1:30080", "10.244.1.1"),
            ("[::1]:30080", "fd00:244:1::1"),
        ] {
            assert_eq!(names(&world.node, to), ["a", "b"], "{to} {policy}");
            assert_eq!(ask(&world.node, to).unwrap().1, peer, "{to} {policy}");
            let socket = udp(&world.node, to);
            for _ in 0..3 {
                assert_eq!(
                    ask_udp(&socket, PATIENCE).unwrap().1,
                    peer,
                    "{to} {policy} over UDP"
                );
            }
        }
    }
    // A port of nobody's is the host's own.
    let error = ask(&world.node, "[::1]:30081").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    world::serve(&world.node, "node", "::1");
    assert_eq!(
        ask(&world.node, "[::1]:8080").unwrap(),
        ("node".into(), "::1".into())
    );
    let mut none = slice("web", &["fd00:244:1::5"]);
    none["endpoints"] = json!([]);
    world.slice(none);
    let error = ask(&world.node, "[::1]:30080").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "no endpoints");
    assert!(
        world
            .node
            .run(|| svcnet_proxy::nftables::cleanup().unwrap())
            .unwrap()
    );
    let routes = run(&world.node, "ip", &["-6", "route", "show", "table", "local"]);
    assert!(!routes.contains("fd73:7663"), "{routes}");
}

#[test]
fn node_ports_answer_only_on_the_addresses_that_are_wanted() {
    let mut world = World::new();
    let everything = || {
        let spec = node_ports(json!({ "type": "NodePort" }));
        (
            vec![service("web", "10.96.1.1", spec)],
            vec![slice("web", &[A, C])],
        )
    };
    let answers = |world: &World, to: &str| match ask(&world.node, to) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{to}: the host's own answer"
            );
            false
        }
    };
    let (node, loopback, bridge) = (format!("{NODE}:30080"), "127.0.0.1:30080", "10.244.1.1:30080");
    for (addresses, wanted) in [
        ("172.30.0.0/24", [true, false, false]),
        ("localhost", [false, true, false]),
        ("10.0.0.0/8,127.0.0.1/32", [false, true, true]),
        ("all", [true, true, true]),
    ] {
        world.restart_with_node_ports_on(addresses);
        let (services, slices) = everything();
        world.apply_all(services, slices);
        let got = [&*node, loopback, bridge].map(|to| answers(&world, to));
        assert_eq!(got, wanted, "{addresses}");
    }
    world.restart_with_node_ports_on("primary");
    let (services, slices) = everything();
    world.apply_all(services, slices);
    assert!(!answers(&world, &node), "the node's address is not known yet");
    world.node_object("a", NODE);
    assert_eq!(
        [&*node, loopback, bridge].map(|to| answers(&world, to)),
        [true, false, false]
    );
    // The node gets another address, live.
    world::ip(&world.node, "addr add 172.30.0.12/24 dev lan");
    world.node_object("a", "172.30.0.12");
    assert!(answers(&world, "172.30.0.12:30080") && !answers(&world, &node));
    assert_eq!(names(&world.client, "172.30.0.12:30080"), ["a", "c"]);
    world.listing();
}

#[test]
fn addresses_of_no_service_are_dropped_and_those_of_the_node_are_left_alone() {
    let mut world = World::new();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    shut_out(&world.b, "10.96.7.7:80");
    shut_out(&world.node, "10.96.7.7:80");
    // As the DNS role has it.
    world::ip(&world.node, "addr add 10.96.0.10/32 dev lo");
    world::serve(&world.node, "node", "10.96.0.10");
    assert_eq!(
        ask(&world.b, "10.96.0.10:8080").unwrap(),
        ("node".into(), B.into())
    );
    assert_eq!(ask(&world.b, VIP).unwrap().0, "a");
}

#[test]
fn source_ranges_bind_the_node_too() {
    let mut world = World::new();
    let ranges = |ranges: Value| {
        let spec = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ranges });
        service("web", "10.96.1.1", spec)
    };
    world.node_object("a", NODE);
    world.slice(slice("web", &[A, C]));
    let balancer = "203.0.113.7:80";
    world.service(ranges(json!(["172.30.0.100/32"])));
    assert_eq!(names(&world.client, balancer), ["a", "c"]);
    shut_out(&world.node, balancer);
    world.service(ranges(json!([format!("{NODE}/32")])));
    assert_eq!(names(&world.node, balancer), ["a", "c"]);
    shut_out(&world.client, balancer);
    // Where the address stands on a link of the node, the node speaks from it.
    world::ip(&world.node, "addr add 203.0.113.7/32 dev lo");
    assert_eq!(names(&world.node, balancer), ["a", "c"]);
}

#[test]
fn hints_keep_clients_near_and_follow_the_zone_of_the_node() {
    let mut world = World::new();
    world.node_object("a", NODE);
    world.service(service("web", "10.96.1.1", json!({})));
    let zone = |zone: &str| json!({ "hints": { "forZones": [{ "name": zone }] } });
    world.slice(slice_with(
        "web",
        &[(A, zone("a")), (B, zone("b")), (C, zone("b"))],
    ));
    assert_eq!(names(&world.b, VIP), ["a"]);
    world.node_object("b", NODE);
    assert_eq!(names(&world.b, VIP), ["b", "c"]);
    world.node_object("c", NODE);
    assert_eq!(names(&world.b, VIP), ["a", "b", "c"], "none is for this zone");
    let node = |node: &str| json!({ "hints": { "forNodes": [{ "name": node }] } });
    world.slice(slice_with(
        "web",
        &[(A, node("n1")), (B, node("n1")), (C, node("n2"))],
    ));
    assert_eq!(names(&world.node, VIP), ["a", "b"]);
}

#[test]
fn internal_policy_local_stays_here_and_falls_back_to_what_goes_away() {
    let mut world = World::new();
    let spec = json!({ "type": "LoadBalancer", "internalTrafficPolicy": "Local" });
    world.service(service("web", "10.96.1.1", node_ports(spec)));
    world.slice(slice("web", &[A, C]));
    for ns in [&world.a, &world.b, &world.node] {
        assert_eq!(names(ns, VIP), ["a"]);
        assert_eq!(
            names(ns, "203.0.113.7:80"),
            ["a", "c"],
            "only the ClusterIP is inside"
        );
        assert_eq!(names(ns, &format!("{NODE}:30080")), ["a", "c"]);
    }
    world.slice(slice_with("web", &[(A, going()), (C, json!({}))]));
    assert_eq!(
        names(&world.b, VIP),
        ["a"],
        "the last one here serves until it is gone"
    );
    assert_eq!(names(&world.b, "203.0.113.7:80"), ["c"]);
    world.slice(slice("web", &[C]));
    shut_out(&world.b, VIP);
    shut_out(&world.node, VIP);
}

#[test]
fn external_policy_local_falls_back_to_what_goes_away() {
    let mut world = World::new();
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" });
    world.service(service("web", "10.96.1.1", node_ports(spec)));
    world.slice(slice_with("web", &[(A, going()), (C, json!({}))]));
    for to in ["203.0.113.7:80", &format!("{NODE}:30080")] {
        for _ in 0..5 {
            assert_eq!(
                ask(&world.client, to).unwrap(),
                ("a".into(), CLIENT.into()),
                "{to}"
            );
        }
        assert_eq!(names(&world.b, to), ["c"], "pods go where it is ready");
    }
    // Nobody is ready anywhere.
    world.slice(slice_with("web", &[(A, going()), (C, going())]));
    assert_eq!(names(&world.b, VIP), ["a", "c"]);
    assert_eq!(names(&world.client, "203.0.113.7:80"), ["a"]);
}

#[test]
fn what_drains_keeps_its_udp_clients_and_what_is_gone_does_not() {
    let mut world = World::new();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A]));
    let (inside, outside) = (udp(&world.b, VIP), udp(&world.client, &format!("{NODE}:30080")));
    let asked = |name: &str, why: &str| {
        for socket in [&inside, &outside] {
            assert_eq!(ask_udp(socket, PATIENCE).unwrap().0, name, "{why}");
        }
    };
    asked("a", "the only one");
    let report = world.slice(slice_with("web", &[(A, going()), (C, json!({}))]));
    assert_eq!(report.cleared, 0);
    asked("a", "it is going away and still answers");
    assert_eq!(
        ask_udp(&udp(&world.b, VIP), PATIENCE).unwrap().0,
        "c",
        "a new one"
    );
    // The agent is away while the endpoint goes: nothing in the kernel's tables tells of it.
    world.restart();
    let spec = || service("web", "10.96.1.1", node_ports(json!({ "type": "NodePort" })));
    let report = world.apply_all(vec![spec()], vec![slice("web", &[C])]);
    assert_eq!((report.operations, report.cleared), (0, 2));
    asked("c", "it is gone");
    // Policy Local binds those outside, whom a remote endpoint contradicts, and not pods.
    let local = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
    world.slice(slice("web", &[B, C]));
    asked("c", "both are right");
    let report = world.service(service("web", "10.96.1.1", node_ports(local)));
    assert_eq!(report.cleared, 1);
    assert_eq!(ask_udp(&outside, PATIENCE).unwrap(), ("b".into(), CLIENT.into()));
    assert_eq!(ask_udp(&inside, PATIENCE).unwrap().0, "c");
}

#[test]
fn hundreds_of_endpoints_in_several_slices_and_several_services_on_one_endpoint() {
    let mut world = World::new();
    // All answer: one pod has most of the addresses.
    let many: Vec<String> = (0..250)
        .map(|n| format!("10.244.1.{n}"))
        .filter(|ip| ip != "10.244.1.1")
        .collect();
    let (first, second) = many.split_at(100);
    let pod = svcnet_netlink::netns::OwnedNetNs::unique("svcnet-px").unwrap();
    world::ip(&pod, "link set lo up");
    world::plug(&world.node, &pod, "10.244.1.7");
    for ip in many
        .iter()
        .filter(|ip| ![A, B, "10.244.1.7"].contains(&ip.as_str()))
    {
        world::ip(&pod, &format!("addr add {ip}/32 dev lo"));
        world::ip(&world.node, &format!("route add {ip}/32 via 10.244.1.7"));
    }
    world::serve(&pod, "all", "0.0.0.0");
    let part = |service: &str, name: &str, ips: &[String]| {
        let mut part = slice(service, &ips.iter().map(String::as_str).collect::<Vec<_>>());
        part["metadata"]["name"] = json!(format!("{service}-{name}"));
        for port in part["ports"].as_array_mut().unwrap() {
            port["port"] = json!(8080);
        }
        part
    };
    world.service(service("web", "10.96.1.1", json!({})));
    world.service(service("same", "10.96.1.2", json!({})));
    for service in ["web", "same"] {
        world.slice(part(service, "x", first));
        world.slice(part(service, "y", second));
    }
    for vip in [VIP, "10.96.1.2:80"] {
        for _ in 0..60 {
            let (name, peer) = ask(&world.b, vip).unwrap();
            let wanted = if name == "b" { "10.244.1.1" } else { B };
            assert_eq!(peer, wanted, "{name}");
        }
    }
    let listing = world.listing();
    assert!(listing.contains("numgen random mod 249 offset"), "all of them");
    let less = world.slice(part("web", "y", &second[1..]));
    assert!(less.operations <= 12, "{less:?}");
}

#[test]
fn load_balancer_without_node_ports() {
    let mut world = World::new();
    let spec = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false });
    world.service(service("web", "10.96.1.1", spec));
    world.slice(slice("web", &[A, C]));
    assert_eq!(names(&world.client, "203.0.113.7:80"), ["a", "c"]);
    assert_eq!(names(&world.b, VIP), ["a", "c"]);
}
