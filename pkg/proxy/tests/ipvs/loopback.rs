//! Node ports on 127.0.0.1 and `::1`, which IPVS by itself does not serve.

use std::io::ErrorKind;

use serde_json::json;
use svcnet_proxy::ipvs;

use crate::names;
use crate::world::{
    self, A, B, C, NODE, PATIENCE, World, ask, ask_on, ask_udp, connect, node_ports, run, service, slice, udp,
};

const LOOPBACKS: [(&str, &str); 2] = [
    ("127.0.0.1:30080", "10.244.1.1"),
    ("[::1]:30080", "fd00:244:1::1"),
];

fn both_families(world: &mut World, spec: serde_json::Value) {
    let mut both = service("web", "10.96.1.1", node_ports(spec));
    both["spec"]["clusterIPs"] = json!(["10.96.1.1", "fd00:96::1"]);
    world.service(both);
}

fn local_routes(world: &World) -> String {
    ["-4", "-6"]
        .map(|family| run(&world.node, "ip", &[family, "route", "show", "table", "local"]))
        .concat()
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn node_ports_answer_on_both_loopbacks() {
    let mut world = crate::world();
    world::serve(&world.a, "a", "fd00:244:1::5");
    world::serve(&world.b, "b", "fd00:244:1::6");
    for policy in ["Cluster", "Local"] {
        both_families(
            &mut world,
            json!({ "type": "NodePort", "externalTrafficPolicy": policy }),
        );
        world.slice(slice("web", &[A, B]));
        world.slice(slice("web", &["fd00:244:1::5", "fd00:244:1::6"]));
        for (to, peer) in LOOPBACKS {
            assert_eq!(names(&world.node, to), ["a", "b"], "{to} {policy}");
            assert_eq!(ask(&world.node, to).unwrap().1, peer, "{to} {policy}");
            let socket = udp(&world.node, to);
            for _ in 0..3 {
                let (_, from) = ask_udp(&socket, PATIENCE).unwrap();
                assert_eq!(from, peer, "{to} {policy} over UDP");
            }
        }
    }
    // Others' ports there are the host's own.
    world::serve(&world.node, "node", "127.0.0.1");
    assert_eq!(
        ask(&world.node, "127.0.0.1:8080").unwrap(),
        ("node".into(), "127.0.0.1".into())
    );
    // A port with an endpoint on this node's own network, and on another node.
    world.slice(slice("web", &[C]));
    assert_eq!(
        ask(&world.node, "127.0.0.1:30080").unwrap(),
        ("c".into(), "172.31.0.1".into()),
        "elsewhere"
    );
    world::serve(&world.node, "node", NODE);
    world.slice(slice("web", &[NODE]));
    assert_eq!(names(&world.node, "127.0.0.1:30080"), ["node"], "the node itself");
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn without_endpoints_they_refuse_and_cleanup_takes_them() {
    let mut world = crate::world();
    both_families(&mut world, json!({ "type": "NodePort" }));
    world.slice(slice("web", &[A]));
    let mut open = connect(&world.node, "127.0.0.1:30080", PATIENCE).unwrap();
    ask_on(&mut open).unwrap();
    let mut none = slice("web", &[A]);
    none["endpoints"] = json!([]);
    world.slice(none);
    ask_on(&mut open).unwrap_or_else(|error| panic!("an open connection drains: {error}"));
    for (to, _) in LOOPBACKS {
        let error = connect(&world.node, to, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        // What a host sends itself is refused as it is sent.
        let refused = [ErrorKind::PermissionDenied, ErrorKind::ConnectionRefused];
        let error = ask_udp(&udp(&world.node, to), PATIENCE).unwrap_err();
        assert!(refused.contains(&error.kind()), "{to} over UDP: {error}");
    }
    let routes = local_routes(&world);
    for stand_in in ["192.0.0.8", "fd73:7663:6e65::3"] {
        assert!(routes.contains(stand_in), "{stand_in}: {routes}");
    }
    world.node.run(|| ipvs::cleanup().unwrap()).unwrap();
    let routes = local_routes(&world);
    for stand_in in ["192.0.0.8", "fd73:7663"] {
        assert!(!routes.contains(stand_in), "{stand_in} stays: {routes}");
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn they_answer_only_where_they_are_wanted() {
    let mut world = crate::world();
    for (addresses, here, outside) in [("localhost", true, false), ("172.30.0.0/16", false, true)] {
        world.restart_with_node_ports_on(addresses);
        let spec = node_ports(json!({ "type": "NodePort" }));
        world.apply_all(vec![service("web", "10.96.1.1", spec)], vec![slice("web", &[A])]);
        let answers = |from, to: &str| match ask(from, to) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to} {addresses}");
                false
            }
        };
        assert_eq!(answers(&world.node, "127.0.0.1:30080"), here, "{addresses}");
        assert_eq!(
            answers(&world.client, "172.30.0.11:30080"),
            outside,
            "{addresses}"
        );
    }
}
