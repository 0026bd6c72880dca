//! Two nodes in namespaces on one segment, fed with Nodes by hand: packets between their pods, and what is broken on
//! purpose is repaired.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod world;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use svcnet_netlink::link::{Change as LinkChange, Port};
use svcnet_netlink::route::{PROTOCOL_SVCNET, Route, RouteFilter};
use svcnet_runtime::Change;
use world::{Machine, Running, connect, eventually, node, pair, pings};

#[test]
fn pods_of_two_nodes_reach_each_other_and_full_packets_pass() {
    let pair = pair();
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    eventually("node to pod", || pings(&pair.a, "10.244.2.2"));
    eventually("and the other way", || pings(&pair.b, "10.244.1.2"));
    assert!(
        pair.pod_b.run("ping -c 1 -W 5 -M do -s 1422 10.244.1.2").0,
        "1450 bytes pass unfragmented"
    );

    let link = pair.a.json("ip -j -d link show svcnet.1");
    assert_eq!(link[0]["mtu"], 1450);
    eventually("it tells of itself", || {
        pair.overlay_a.told()["encapsulated"] == 1
    });
    assert_eq!(link[0]["linkinfo"]["info_data"]["learning"], false);
    assert_eq!(link[0]["linkinfo"]["info_data"]["port"], 8472);
    let route = pair.a.json("ip -j route get 10.96.0.10");
    assert_eq!(
        (route[0]["dev"].as_str(), route[0]["prefsrc"].as_str()),
        (Some("svcnet0"), Some("10.244.1.1"))
    );
    // The source of a pod is seen by the pod: nothing masquerades within the cluster.
    let nft = pair.a.run("nft list ruleset").1;
    assert!(
        nft.contains("ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 accept"),
        "{nft}"
    );
    assert!(pair.a.json("nft -j list ruleset")["nftables"].is_array());
}

#[test]
fn what_others_break_is_repaired() {
    let pair = pair();
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    for harm in [
        "ip route del 10.244.2.0/24",
        "ip route replace 10.244.2.0/24 dev lo",
        "ip link set svcnet.1 down",
        "ip link set svcnet.1 mtu 1300",
        "ip link del svcnet.1",
        "ip neigh del 10.244.2.0 dev svcnet.1",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:01 dev svcnet.1",
        "bridge fdb replace 06:80:a9:3d:2e:9b dev svcnet.1 dst 172.30.0.99 self permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev svcnet.1 onlink mtu 600 proto 115",
        "bridge fdb del 06:80:a9:3d:2e:9b dev svcnet.1 dst 172.30.0.12",
        "ip addr del 10.244.1.0/32 dev svcnet.1",
        "ip route del 10.96.0.0/12",
        "nft flush ruleset",
        "nft flush chain ip svcnet-overlay postrouting",
    ] {
        let before = pair.a.run("ip -d link show svcnet.1").1;
        assert!(pair.a.run(harm).0, "{harm}: {before}");
        let whole = || {
            let routes = pair.a.run("ip route").1;
            let fdb = pair.a.run("bridge fdb show dev svcnet.1").1;
            let addresses = pair.a.run("ip addr show svcnet.1").1;
            let neighbours = pair.a.run("ip neigh show dev svcnet.1").1;
            neighbours.contains("10.244.2.0 lladdr 06:80:a9:3d:2e:9b PERMANENT")
                && !routes.contains("mtu 600")
                && !fdb.contains("172.30.0.99")
                && routes.contains("10.244.2.0/24 via 10.244.2.0 dev svcnet.1")
                && routes.contains("10.96.0.0/12 dev svcnet0")
                && fdb.contains("06:80:a9:3d:2e:9b dst 172.30.0.12")
                && addresses.contains("mtu 1450")
                && addresses.contains("10.244.1.0/32")
                && pair
                    .a
                    .run("nft list table ip svcnet-overlay")
                    .1
                    .contains("ip saddr 10.244.1.0/24 masquerade")
        };
        eventually(harm, whole);
        eventually(harm, || pings(&pair.pod_a, "10.244.2.2"));
    }
}

#[test]
fn peers_come_move_and_go_without_a_look_at_the_rest() {
    let pair = pair();
    pair.overlay_a.tell(Change::Apply(node(3, "172.30.0.13", true)));
    eventually("a new peer's route", || {
        pair.a
            .run("ip route show 10.244.3.0/24")
            .1
            .contains("via 10.244.3.0")
    });
    pair.overlay_a.tell(Change::Apply(node(3, "172.30.0.33", true)));
    eventually("its new address", || {
        pair.a
            .run("bridge fdb show dev svcnet.1")
            .1
            .contains("dst 172.30.0.33")
    });
    assert!(
        !pair
            .a
            .run("bridge fdb show dev svcnet.1")
            .1
            .contains("dst 172.30.0.13")
    );
    pair.overlay_a.tell(Change::Delete(node(3, "172.30.0.33", true)));
    eventually("its end", || {
        pair.a.run("ip route show 10.244.3.0/24").1.is_empty()
    });
    assert!(
        !pair
            .a
            .run("bridge fdb show dev svcnet.1")
            .1
            .contains("172.30.0.33")
    );
    eventually("the other peer is still there", || {
        pings(&pair.pod_a, "10.244.2.2")
    });
}

#[test]
fn waits_for_a_pod_cidr_and_keeps_all_in_place_when_it_stops() {
    let (mut a, mut b) = (Machine::new("a"), Machine::new("b"));
    connect(&mut a, "eth0", &mut b, "eth0", None, None);
    a.address("eth0", "172.30.0.11/24");
    let overlay = Running::start(&a.ns, 1);
    overlay.tell(Change::Reset(vec![node(1, "172.30.0.11", false)]));
    eventually("it says what it waits for", || {
        overlay.health.report().1.contains("waiting for a pod CIDR")
    });
    overlay.tell(Change::Apply(node(1, "172.30.0.11", true)));
    eventually("it is ready", || overlay.is_ready());
    drop(overlay);
    assert!(a.run("ip addr show svcnet.1").1.contains("10.244.1.0/32"));
    drop(b);
}

#[test]
fn a_thousand_peers_are_set_up_and_one_more_is_three_entries() {
    let (mut a, mut b) = (Machine::new("a"), Machine::new("b"));
    connect(&mut a, "eth0", &mut b, "eth0", None, None);
    a.address("eth0", "172.16.0.1/12");
    let overlay = Running::start(&a.ns, 1);
    let peer = |n: u32| {
        let node = json!({
            "metadata": { "name": format!("peer-{n}") },
            "spec": { "podCIDR": format!("10.{}.{}.0/24", 128 + n / 256, n % 256) },
            "status": { "addresses": [
                { "type": "InternalIP", "address": format!("172.17.{}.{}", n / 256, n % 256) },
            ] },
        });
        Arc::new(serde_json::from_value(node).unwrap())
    };
    let mut nodes: Vec<Arc<Node>> = (0..1000).map(peer).collect();
    nodes.push(node(1, "172.16.0.1", true));
    overlay.tell(Change::Reset(nodes));
    eventually("it is ready", || overlay.is_ready());
    let mut count = || {
        let link = a.rt.link("svcnet.1").unwrap().unwrap().index;
        let routes =
            a.rt.routes(RouteFilter {
                link: Some(link),
                protocol: Some(PROTOCOL_SVCNET),
            })
            .unwrap()
            .len();
        (
            routes,
            a.rt.neighbours(link).unwrap().len(),
            a.rt.fdb(link).unwrap().len(),
        )
    };
    assert_eq!(count(), (1000, 1000, 1000));
    overlay.tell(Change::Apply(peer(1000)));
    eventually("one more", || count() == (1001, 1001, 1001));
}

#[test]
fn pods_of_both_families_cross_the_overlay() {
    let (mut a, mut b) = (Machine::new("a"), Machine::new("b"));
    connect(&mut a, "eth0", &mut b, "eth0", None, None);
    a.address("eth0", "172.30.0.11/24");
    b.address("eth0", "172.30.0.12/24");
    let dual = |number: u8, address: &str| {
        let mut node = (*node(number, address, true)).clone();
        let spec = node.spec.as_mut().unwrap();
        spec.pod_cidrs
            .as_mut()
            .unwrap()
            .push(format!("fd00:10:244:{number}::/64"));
        Arc::new(node)
    };
    let nodes = vec![dual(1, "172.30.0.11"), dual(2, "172.30.0.12")];
    let running = [Running::start(&a.ns, 1), Running::start(&b.ns, 2)];
    let mut pods = [a.with_pod(1), b.with_pod(2)];
    for (number, (machine, pod)) in [&mut a, &mut b].into_iter().zip(&mut pods).enumerate() {
        let number = number + 1;
        machine.address("svcnet0", &format!("fd00:10:244:{number}::1/64"));
        pod.address("eth0", &format!("fd00:10:244:{number}::2/128"));
        let link = pod.rt.link("eth0").unwrap().unwrap().index;
        let gateway = format!("fd00:10:244:{number}::1").parse().unwrap();
        pod.rt
            .replace_route(Route::via("::/0".parse().unwrap(), gateway, link))
            .unwrap();
    }
    for overlay in &running {
        overlay.tell(Change::Reset(nodes.clone()));
    }
    eventually("IPv4", || pings(&pods[0], "10.244.2.2"));
    eventually("IPv6", || pings(&pods[0], "fd00:10:244:2::2"));
    // Pods of one node talk through it: their ports are isolated, so who followed a redirect would lose the other.
    let bridge = a.rt.link("svcnet0").unwrap().map(|l| l.index);
    let mut neighbour = Machine::new("pod");
    connect(&mut a, "pod2", &mut neighbour, "eth0", bridge, Some(1450));
    for port in ["pod", "pod2"] {
        let index = a.rt.link(port).unwrap().unwrap().index;
        a.rt.change_link(index, &LinkChange::up()).unwrap();
        let isolated = Port {
            isolated: true,
            hairpin: false,
        };
        a.rt.set_port(index, isolated).unwrap();
    }
    neighbour.address("eth0", "fd00:10:244:1::3/128");
    let link = neighbour.rt.link("eth0").unwrap().unwrap().index;
    let gateway = "fd00:10:244:1::1".parse().unwrap();
    neighbour
        .rt
        .replace_route(Route::via("::/0".parse().unwrap(), gateway, link))
        .unwrap();
    eventually("its neighbour", || pings(&pods[0], "fd00:10:244:1::3"));
    for _ in 0..5 {
        assert!(pings(&pods[0], "fd00:10:244:1::3"), "and still");
    }
    let rules = a.run("nft list table ip6 svcnet-overlay").1;
    assert!(
        rules.contains("oifname \"svcnet0\" icmpv6 type nd-redirect drop"),
        "{rules}"
    );
}
