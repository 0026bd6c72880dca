//! The tables themselves: restarts, foreign hands, size, and that they print.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use serde_json::{Value, json};
use world::{A, B, C, NODE, World, annotated, ask, names, node_ports, run, service, slice};

const VIP: &str = "10.96.1.1:80";

/// A service of every kind.
fn assortment() -> (Vec<Value>, Vec<Value>) {
    let sticky = json!({ "type": "NodePort", "sessionAffinity": "ClientIP" });
    let local = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" });
    let mut sticky = service("sticky", "10.96.1.2", node_ports(sticky));
    for port in sticky["spec"]["ports"].as_array_mut().unwrap() {
        port["nodePort"] = json!(30081);
    }
    let services = vec![
        service("web", "10.96.1.1", json!({})),
        sticky,
        service("local", "10.96.1.3", node_ports(local)),
        service("empty", "10.96.1.4", json!({})),
        service("six", "fd00:96::1", json!({ "sessionAffinity": "ClientIP" })),
        annotated(
            service("turns", "10.96.1.5", json!({})),
            json!({ "svcnet.io/scheduler": "rr" }),
        ),
        annotated(
            service("six-turns", "fd00:96::2", json!({})),
            json!({ "svcnet.io/scheduler": "rr" }),
        ),
        annotated(
            service("hashed", "10.96.1.6", json!({})),
            json!({ "svcnet.io/scheduler": "sh" }),
        ),
        annotated(
            service("six-hashed", "fd00:96::3", json!({})),
            json!({ "svcnet.io/scheduler": "sh" }),
        ),
        annotated(
            service("weighed", "10.96.1.7", json!({})),
            json!({ "svcnet.io/scheduler": "wrr", "svcnet.io/weights": format!("{A}=2") }),
        ),
        annotated(
            service("maglev", "10.96.1.8", json!({})),
            json!({ "svcnet.io/scheduler": "mh" }),
        ),
    ];
    let slices = vec![
        slice("web", &[A, B, C]),
        slice("sticky", &[A, C]),
        slice("local", &[B, C]),
        slice("six", &["fd00:244:1::5"]),
        slice("turns", &[A, B, C]),
        slice("six-turns", &["fd00:244:1::5", "fd00:244:1::6"]),
        slice("hashed", &[A, B, C]),
        slice("six-hashed", &["fd00:244:1::5", "fd00:244:1::6"]),
        slice("weighed", &[A, B]),
        slice("maglev", &[A, C]),
    ];
    (services, slices)
}

#[test]
fn a_restart_over_a_right_state_writes_nothing() {
    let mut world = World::new();
    let (services, slices) = assortment();
    assert!(world.apply_all(services.clone(), slices.clone()).operations > 0);
    let handles = |world: &World| run(&world.node, "nft", &["-a", "list", "ruleset"]);
    let before = handles(&world);
    world.restart();
    assert_eq!(world.apply_all(services.clone(), slices.clone()).operations, 0);
    assert_eq!(handles(&world), before);

    // What changed while it was away is all that is written.
    world.restart();
    let mut fewer = slices.clone();
    fewer[0] = slice("web", &[A, C]);
    let report = world.apply_all(services, fewer);
    assert!((1..20).contains(&report.operations), "{report:?}");
    assert_eq!(names(&world.a, VIP), ["a", "c"]);
}

#[test]
fn foreign_changes_are_noticed_and_repaired() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    assert!(
        !world.engine().check().unwrap(),
        "our own changes are not foreign"
    );
    let listing = |world: &World| {
        let mut lines: Vec<String> = world
            .listing()
            .split([',', '\n'])
            .map(|l| l.trim().to_string())
            .collect();
        lines.sort();
        lines
    };
    let right = listing(&world);
    for damage in [
        "flush ruleset",
        "delete table ip svcnet",
        "flush chain ip svcnet services",
        "flush map ip svcnet endpoints",
        "delete element ip svcnet services { 10.96.1.1 . tcp . 80 }",
        "add rule ip svcnet n3 drop",
        "add element ip svcnet services { 10.96.7.7 . tcp . 80 : 5000:0003 }",
        "add table ip stranger",
    ] {
        run(&world.node, "nft", &damage.split(' ').collect::<Vec<_>>());
        assert_eq!(
            world.engine().check().unwrap(),
            !damage.contains("stranger"),
            "{damage}"
        );
        world.sync();
        if !damage.contains("stranger") {
            assert_eq!(listing(&world), right, "{damage}");
        }
        assert_eq!(names(&world.a, VIP), ["a", "b", "c"], "{damage}");
    }
}

#[test]
fn all_of_it_prints() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    let listing = world.listing();
    for line in [
        "comment \"svcnet proxy #",
        "10.96.1.1 . tcp . 80 comment \"default/web:http\" : 5000:3",
        "comment \"default/web:http\" : 10.244.1.5 . 8080",
        "dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints",
        "meta priority set numgen random mod 3 offset 1342177280 goto endpoint",
        "meta priority set numgen random mod 1 offset 1342210048 goto port-local-endpoint",
        "meta priority set 5000:8000 dnat ip to meta l4proto . th dport . meta priority map @port-endpoints",
        "type nat hook prerouting priority dstnat + 10",
        "meta priority & f000:0 == 5000:0 meta priority set none",
        "@restricted ip daddr . meta l4proto . th dport . ip saddr != @sources drop",
        "update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h",
        "meta priority set numgen inc mod 3 offset 1342177280 goto endpoint",
        "meta priority set jhash ip saddr mod 3 seed 0x73766373 offset 1342177280 goto endpoint",
        "meta priority set jhash ip6 saddr mod 2 seed 0x73766373 offset 1342177280 goto endpoint",
        "jhash ip saddr mod 1021 seed 0x73766373",
        "ip6 saddr set fd73:7663:6e65::1 meta priority set none comment \"node ports on ::1\"",
        "ip daddr 10.96.0.0/12 fib daddr type != local drop comment \"no service has that address\"",
        "elements = { 10.96.1.4 . tcp . 80 comment \"default/empty:http\"",
        "10.244.1.5 . 10.244.1.5",
    ] {
        assert!(listing.contains(line), "{line:?} is not in\n{listing}");
    }
}

/// The scratch value of the lookups does not leave the host, nor reach queues and tables behind ours.
#[test]
fn no_packet_goes_on_with_our_priority() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    let probe = "table ip probe {
        counter priorities {}
        counter translated {}
        chain post {
            type filter hook postrouting priority 200
            ct status dnat counter name translated
            meta priority & f000:0 == 5000:0 counter name priorities
        }
        chain input {
            type filter hook input priority 200
            meta priority & f000:0 == 5000:0 counter name priorities
        }
    }";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), probe).unwrap();
    run(&world.node, "nft", &["-f", file.path().to_str().unwrap()]);
    for from in [&world.a, &world.node] {
        for n in 1..=8 {
            // With and without endpoints, with clients that stay and without.
            let _ = ask(from, &format!("10.96.1.{n}:80"));
        }
    }
    for _ in 0..2 {
        let _ = ask(&world.client, &format!("{NODE}:30080"));
    }
    let packets = |counter| {
        let listed = run(&world.node, "nft", &["list", "counter", "ip", "probe", counter]);
        !listed.contains("packets 0 ")
    };
    assert!(packets("translated"), "packets came by");
    assert!(!packets("priorities"), "none with our priority");
}

/// An operator saves the ruleset of the host and loads it at boot: ours must not be what stops it. (Except for the
/// rules that record clients of services with affinity, which nft 1.0.6 prints and does not read.)
#[test]
fn a_saved_ruleset_loads_again() {
    let mut world = World::new();
    let (services, slices) = assortment();
    let lasting = |service: &Value| service["spec"]["sessionAffinity"].is_null();
    world.apply_all(services.into_iter().filter(lasting).collect(), slices);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("flush ruleset\n{}", world.listing())).unwrap();
    run(&world.node, "nft", &["-f", file.path().to_str().unwrap()]);
    assert_eq!(names(&world.a, VIP), ["a", "b", "c"]);
}

#[test]
fn ten_thousand_services_load_and_change_by_little() {
    let mut world = World::new();
    let many = || {
        (0..10_000u32)
            .map(|n| {
                let name = format!("s{n}");
                let vip = format!("10.100.{}.{}", n / 250, n % 250 + 1);
                (service(&name, &vip, json!({})), slice(&name, &[A, B, C]))
            })
            .unzip::<Value, Value, Vec<_>, Vec<_>>()
    };
    let (services, slices) = many();
    world.apply_all(services, slices);
    assert_eq!(names(&world.a, "10.100.39.250:80"), ["a", "b", "c"]);
    assert!(!world.engine().check().unwrap(), "nobody else was at it");
    let report = world.slice(slice("s9999", &[A, B]));
    assert!(report.operations <= 16, "{report:?}");
    assert!(report.bytes < 8_000, "{report:?}");
    assert_eq!(names(&world.a, "10.100.39.250:80"), ["a", "b"]);
    world.slice(slice("s9999", &[A, B, C]));

    world.restart();
    let (services, slices) = many();
    let report = world.apply_all(services, slices);
    assert_eq!(report.operations, 0, "{report:?}");
}

#[test]
fn cleanup_removes_our_tables_and_nothing_else() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    run(&world.node, "nft", &["add", "table", "ip", "stranger"]);
    assert!(
        world
            .node
            .run(|| svcnet_proxy::nftables::cleanup().unwrap())
            .unwrap()
    );
    assert_eq!(world.listing().trim(), "table ip stranger {\n}");
    assert!(
        !world
            .node
            .run(|| svcnet_proxy::nftables::cleanup().unwrap())
            .unwrap()
    );
}

#[test]
fn two_services_with_one_address_are_settled_by_name() {
    let mut world = World::new();
    let external = |name: &str, vip: &str| service(name, vip, json!({ "externalIPs": ["203.0.113.20"] }));
    world.service(external("zebra", "10.96.1.1"));
    world.slice(slice("zebra", &[A]));
    assert_eq!(names(&world.b, "203.0.113.20:80"), ["a"]);
    world.slice(slice("ant", &[B]));
    world.service(external("ant", "10.96.1.2"));
    assert_eq!(
        names(&world.a, "203.0.113.20:80"),
        ["b"],
        "the first by name has it"
    );
    world.slice(slice("zebra", &[C]));
    assert_eq!(names(&world.a, "203.0.113.20:80"), ["b"]);
    world.service(service("ant", "10.96.1.2", json!({})));
    assert_eq!(
        names(&world.a, "203.0.113.20:80"),
        ["c"],
        "the other has it once it is given up"
    );
}
