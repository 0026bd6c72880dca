//! Links, addresses, routes, neighbours and notifications, against the kernel in namespaces of their own, read back
//! with `ip -j`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change, Kind, Port, VethEnd, Vxlan};
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::monitor::{Event, Group, Happened, Listener, Monitor};
use svcnet_netlink::neigh::{FdbEntry, Neighbour, Resolution};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::qdisc::TokenBucket;
use svcnet_netlink::route::{PROTOCOL_SVCNET, Packet, Route, RouteFilter, Way};

fn json(ns: &OwnedNetNs, program: &str, arguments: &str) -> Value {
    let run = || Command::new(program).args(arguments.split(' ')).output().unwrap();
    let output = ns.run(run).unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn end(name: &str) -> VethEnd<'_> {
    VethEnd {
        name,
        mac: None,
        master: None,
        netns: None,
    }
}

/// A namespace with a bridge `br` that holds 10.244.1.1/24.
fn with_bridge() -> (OwnedNetNs, Rtnl, u32) {
    let ns = OwnedNetNs::unique("svcnet-rt").unwrap();
    let mut rt = Rtnl::open_in(&ns).unwrap();
    rt.add_bridge("br", Some([2, 0, 0, 0, 0, 1]), Some(1450)).unwrap();
    let bridge = rt.link("br").unwrap().unwrap();
    rt.replace_address(Address {
        link: bridge.index,
        net: "10.244.1.1/24".parse().unwrap(),
    })
    .unwrap();
    (ns, rt, bridge.index)
}

#[test]
fn a_veth_pair_is_plugged_in_with_its_peer_in_another_namespace() {
    let (node, mut rt, bridge) = with_bridge();
    let pod = OwnedNetNs::unique("svcnet-rt").unwrap();
    let near = VethEnd {
        master: Some(bridge),
        ..end("veth0")
    };
    let far = VethEnd {
        mac: Some([0x0a, 0x58, 10, 244, 1, 2]),
        netns: Some(&pod),
        ..end("eth0")
    };
    rt.add_veth(near, far, Some(1450)).unwrap();
    let veth = rt.link("veth0").unwrap().unwrap();
    assert_eq!(
        (veth.kind, veth.master, veth.mtu, veth.up),
        (Kind::Veth, Some(bridge), 1450, true)
    );
    rt.set_port(
        veth.index,
        Port {
            isolated: true,
            hairpin: false,
        },
    )
    .unwrap();
    assert_eq!(
        rt.link_at(veth.index).unwrap().unwrap().port,
        Some(Port {
            isolated: true,
            hairpin: false
        })
    );
    let shown = json(&node, "ip", "-j -d link show dev veth0");
    assert_eq!(shown[0]["linkinfo"]["info_slave_data"]["isolated"], true);

    let shown = json(&pod, "ip", "-j link show dev eth0");
    assert_eq!(
        (shown[0]["address"].as_str(), shown[0]["mtu"].as_u64()),
        (Some("0a:58:0a:f4:01:02"), Some(1450))
    );
    let again = rt.add_veth(end("veth0"), end("x"), None).unwrap_err();
    assert!(again.is_exists(), "{again}");

    rt.delete_link(veth.index).unwrap();
    rt.delete_link(veth.index).unwrap();
    rt.delete_link_named("veth0").unwrap();
    let left: Vec<String> = Rtnl::open_in(&pod)
        .unwrap()
        .links()
        .unwrap()
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(left, ["lo"]);
}

/// The same with a VXLAN link `svcnet.1` on a veth.
fn with_vxlan() -> (OwnedNetNs, Rtnl, u32, u32) {
    let (ns, mut rt, bridge) = with_bridge();
    rt.add_veth(end("under"), end("other"), None).unwrap();
    let under = rt.link("under").unwrap().unwrap().index;
    let local = "172.30.0.11".parse().unwrap();
    rt.replace_address(Address {
        link: under,
        net: "172.30.0.11/24".parse().unwrap(),
    })
    .unwrap();
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: Some(local),
        device: Some(under),
        learning: false,
    };
    rt.add_vxlan("svcnet.1", &vxlan, Some([2, 1, 1, 1, 1, 1]), 1450)
        .unwrap();
    let link = rt.link("svcnet.1").unwrap().unwrap();
    assert_eq!((link.kind, link.mtu), (Kind::Vxlan(vxlan), 1450));

    (ns, rt, bridge, link.index)
}

#[test]
fn routes_read_back_as_set() {
    let (node, mut rt, bridge, link) = with_vxlan();
    let route = Route::via(
        "10.244.2.0/24".parse().unwrap(),
        "10.244.2.0".parse().unwrap(),
        link,
    );
    let service =
        Route::on_link("10.96.0.0/12".parse().unwrap(), bridge).from_source("10.244.1.1".parse().unwrap());
    for route in [route, service, route] {
        rt.replace_route(route).unwrap();
    }
    let ours = RouteFilter {
        protocol: Some(PROTOCOL_SVCNET),
        link: None,
    };
    let mut routes = rt.routes(ours).unwrap();
    routes.sort();
    assert_eq!(routes, [service, route]);
    let over = RouteFilter {
        link: Some(link),
        protocol: None,
    };
    assert!(rt.routes(over).unwrap().contains(&route));
    let shown = json(&node, "ip", "-j route show 10.244.2.0/24");
    assert_eq!(shown[0]["flags"], serde_json::json!(["onlink"]));

    let to = rt.route_to("10.244.2.9".parse().unwrap()).unwrap().unwrap();
    assert_eq!((to.link, to.gateway), (link, Some("10.244.2.0".parse().unwrap())));
    assert_eq!(rt.route_to("8.8.8.8".parse().unwrap()).unwrap(), None);

    rt.delete_route(route).unwrap();
    rt.delete_route(route).unwrap();
    assert_eq!(rt.routes(ours).unwrap(), [service]);
}

#[test]
fn neighbours_and_forwarding_entries_read_back_as_set() {
    let (_node, mut rt, _bridge, link) = with_vxlan();
    let mac = [2, 2, 2, 2, 2, 2];
    let neighbour = Neighbour {
        link,
        address: "10.244.2.0".parse().unwrap(),
        mac,
    };
    let mut entry = FdbEntry {
        link,
        mac,
        destination: "172.30.0.12".parse().unwrap(),
    };
    rt.replace_neighbour(neighbour).unwrap();
    rt.replace_fdb(entry).unwrap();
    entry.destination = "172.30.0.13".parse().unwrap();
    rt.replace_fdb(entry).unwrap();
    assert_eq!(rt.neighbours(link).unwrap(), [neighbour]);
    assert_eq!(rt.fdb(link).unwrap(), [entry]);
    rt.delete_fdb(entry).unwrap();
    rt.delete_fdb(entry).unwrap();
    rt.delete_neighbour(neighbour).unwrap();
    rt.delete_neighbour(neighbour).unwrap();
    assert!(rt.fdb(link).unwrap().is_empty() && rt.neighbours(link).unwrap().is_empty());
}

#[test]
fn a_refusal_names_operation_object_and_reason() {
    let (_node, mut rt, bridge) = with_bridge();
    let nowhere = Route {
        onlink: false,
        ..Route::via(
            "10.9.0.0/16".parse().unwrap(),
            "10.8.0.1".parse().unwrap(),
            bridge,
        )
    };
    let error = rt.replace_route(nowhere).unwrap_err().to_string();
    let wanted = format!("set route 10.9.0.0/16 via 10.8.0.1 dev #{bridge}: ");
    assert!(
        error.starts_with(&wanted) && error.contains("Nexthop has invalid gateway"),
        "{error}"
    );
    assert_eq!(rt.link("nosuch").unwrap(), None);
    let gone = rt.change_link(4711, &Change::up()).unwrap_err();
    assert!(gone.is_gone(), "{gone}");
}

#[test]
fn addresses_come_and_go_in_both_families() {
    let (_node, mut rt, bridge) = with_bridge();
    let v6 = Address {
        link: bridge,
        net: "fd00:10:244:1::1/64".parse().unwrap(),
    };
    rt.replace_address(v6).unwrap();
    rt.replace_address(v6).unwrap();
    assert!(rt.addresses(Some(bridge)).unwrap().contains(&v6));
    let v6_route = Route::via(
        "fd00:10:244:2::/64".parse().unwrap(),
        "fd00:10:244:2::".parse().unwrap(),
        bridge,
    );
    rt.replace_route(v6_route).unwrap();
    assert!(
        rt.routes(RouteFilter {
            protocol: Some(PROTOCOL_SVCNET),
            link: None
        })
        .unwrap()
        .contains(&v6_route)
    );
    rt.delete_address(v6).unwrap();
    rt.delete_address(v6).unwrap();
    assert!(!rt.addresses(None).unwrap().contains(&v6));
}

#[test]
fn changes_by_others_are_told() {
    let (node, _rt, bridge) = with_bridge();
    let seen = node
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut monitor =
                    Monitor::open(&[Group::Link, Group::Address, Group::Route, Group::Neighbour]).unwrap();
                for words in [
                    "addr del 10.244.1.1/24 dev br",
                    "link add v1 type veth peer name v2",
                    "link set v1 master br up",
                    "neigh add 10.244.1.9 lladdr 02:00:00:00:00:09 dev br nud permanent",
                    "neigh del 10.244.1.9 dev br",
                    "link del v1",
                ] {
                    assert!(
                        Command::new("ip")
                            .args(words.split(' '))
                            .status()
                            .unwrap()
                            .success(),
                        "{words}"
                    );
                }
                let mut seen = Vec::new();
                let gone = |e: &Event| matches!(e, Event::Link(Happened::Deleted, l) if l.name == "v1");
                while !seen.iter().any(gone) {
                    let more = tokio::time::timeout(Duration::from_secs(30), monitor.next()).await;
                    seen.extend(more.expect("notifications").unwrap());
                }
                seen
            })
        })
        .unwrap();
    let address = Address {
        link: bridge,
        net: "10.244.1.1/24".parse().unwrap(),
    };
    assert!(
        seen.contains(&Event::Address(Happened::Deleted, address)),
        "{seen:?}"
    );
    let neighbour: IpAddr = "10.244.1.9".parse().unwrap();
    assert!(
        seen.iter().any(
            |e| matches!(e, Event::Neighbour(Happened::Set, l, a, Some(_)) if (*l, *a) == (bridge, neighbour))
        ),
        "{seen:?}"
    );
    assert!(
        seen.contains(&Event::Neighbour(Happened::Deleted, bridge, neighbour, None)),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|e| matches!(e, Event::Link(Happened::Set, l) if l.master == Some(bridge)))
    );
}

#[test]
fn sysctls_are_those_of_the_thread() {
    let ns = OwnedNetNs::unique("svcnet-rt").unwrap();
    let forward = "net/ipv4/ip_forward";
    let outside = svcnet_netlink::sysctl::read(forward).unwrap();
    ns.run(|| {
        let flipped = if svcnet_netlink::sysctl::read(forward).unwrap() == "1" {
            "0"
        } else {
            "1"
        };
        assert!(svcnet_netlink::sysctl::set(forward, flipped).unwrap().is_some());
        assert!(svcnet_netlink::sysctl::set(forward, flipped).unwrap().is_none());
    })
    .unwrap();
    assert_eq!(svcnet_netlink::sysctl::read(forward).unwrap(), outside);
    assert!(
        svcnet_netlink::sysctl::read("net/ipv4/nosuch")
            .unwrap_err()
            .is_gone()
    );
}

/// Addresses of no link: sockets bind to them, packets are delivered, and what others made local stays theirs.
#[test]
fn addresses_are_made_local_and_taken_back() {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    let ns = OwnedNetNs::unique("svcnet-rt").unwrap();
    ns.run(|| {
        let mut rt = Rtnl::open().unwrap();
        rt.set_loopback_up().unwrap();
        let (v4, v6): (IpAddr, IpAddr) = ("10.96.0.9".parse().unwrap(), "fd00:96::9".parse().unwrap());
        let source: IpAddr = "127.0.0.7".parse().unwrap();
        for (address, source) in [(v4, Some(source)), (v6, None), (v4, None)] {
            rt.add_local_address(LocalFor::Relays, address, source).unwrap();
        }
        let mut there = rt.local_addresses(LocalFor::Relays).unwrap();
        there.sort();
        assert_eq!(there, [v4, v6]);
        for address in [v4, v6] {
            let domain = socket2::Domain::for_address(SocketAddr::new(address, 0));
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_freebind_v6(true).unwrap();
            }
            socket.bind(&SocketAddr::new(address, 80).into()).unwrap();
            socket.listen(1).unwrap();
            let listener = TcpListener::from(socket);
            let stream = TcpStream::connect(SocketAddr::new(address, 80)).unwrap();
            if address.is_ipv4() {
                assert_eq!(stream.local_addr().unwrap().ip(), source);
            }
            let (served, _) = listener.accept().unwrap();
            assert_eq!(served.local_addr().unwrap().ip(), address);
        }
        let own: IpAddr = "10.96.0.7".parse().unwrap();
        assert!(
            Command::new("ip")
                .args(["address", "add", "10.96.0.7/32", "dev", "lo"])
                .status()
                .unwrap()
                .success()
        );
        rt.add_local_address(LocalFor::Relays, own, None).unwrap();
        rt.delete_local_address(LocalFor::Relays, own).unwrap();
        assert!(
            TcpListener::bind(SocketAddr::new(own, 80)).is_ok(),
            "the host's own stays"
        );
        for address in [v4, v6, v4] {
            rt.delete_local_address(LocalFor::Relays, address).unwrap();
        }
        assert!(rt.local_addresses(LocalFor::Relays).unwrap().is_empty());
        assert!(TcpListener::bind(SocketAddr::new(v4, 80)).is_err());
        // The last address of a link's network is a broadcast address, until it is claimed.
        let link =
            "ip link add b0 type bridge && ip address add 10.244.1.1/24 brd + dev b0 && ip link set b0 up";
        assert!(Command::new("sh").args(["-ec", link]).status().unwrap().success());
        let last: IpAddr = "10.244.1.255".parse().unwrap();
        for _ in 0..2 {
            rt.claim_local_address(LocalFor::RelaySource, last).unwrap();
        }
        let listener = TcpListener::bind(SocketAddr::new(last, 80)).unwrap();
        let stream = TcpStream::connect(SocketAddr::new(last, 80)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(rt.local_addresses(LocalFor::RelaySource).unwrap(), [last]);
        rt.delete_local_address(LocalFor::RelaySource, last).unwrap();
        assert!(
            TcpStream::connect(SocketAddr::new(last, 80)).is_err(),
            "as before"
        );
    })
    .unwrap();
}

#[test]
fn a_thread_hears_of_changes_without_a_runtime() {
    let (node, _rt, bridge) = with_bridge();
    let mut listener = node
        .run(|| Listener::open(&[Group::Link, Group::Address]))
        .unwrap()
        .unwrap();
    let mut heard = Vec::new();
    listener.drain(|event| heard.push(event)).unwrap();
    assert_eq!(heard, [], "nothing has happened");
    let address = Address {
        link: bridge,
        net: "10.9.0.1/32".parse().unwrap(),
    };
    let mut rt = Rtnl::open_in(&node).unwrap();
    rt.replace_address(address).unwrap();
    rt.delete_address(address).unwrap();
    // The kernel tells before it answers the request.
    listener.drain(|event| heard.push(event)).unwrap();
    let expected = [Happened::Set, Happened::Deleted].map(|happened| Event::Address(happened, address));
    assert_eq!(heard, expected);
}

#[test]
fn dummy_links_are_made_or_said_to_be_lacking() {
    let node = OwnedNetNs::unique("svcnet-dummy").unwrap();
    let mut rt = Rtnl::open_in(&node).unwrap();
    match rt.add_dummy("vip0") {
        Ok(()) => {
            let link = rt.link("vip0").unwrap().expect("the link");
            assert_eq!(link.kind, Kind::Other("dummy".into()));
            assert!(link.no_arp && !link.up, "{link:?}");
            assert!(rt.add_dummy("vip0").unwrap_err().is_exists());
        }
        // Not every kernel has them.
        Err(error) => assert!(error.is_unsupported(), "{error}"),
    }
}

#[test]
fn the_way_of_a_packet_is_the_kernels_own_answer() {
    let (ns, mut rt, bridge) = with_bridge();
    rt.change_link(bridge, &Change::up()).unwrap();
    rt.set_loopback_up().unwrap();
    ns.run(|| svcnet_netlink::sysctl::set("net/ipv4/ip_forward", "1").unwrap())
        .unwrap();
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    let (pod, far) = (address("10.244.1.5"), address("10.244.2.5"));
    let far_net = "10.244.2.0/24".parse().unwrap();
    assert_eq!(rt.way_of(Packet::to(far)).unwrap(), Way::NoRoute);
    assert_eq!(rt.way_of(Packet::to(address("10.244.1.1"))).unwrap(), Way::Here);
    rt.replace_route(Route::via(far_net, address("10.244.1.9"), bridge))
        .unwrap();
    for packet in [Packet::to(far), Packet::through(pod, bridge, far)] {
        let Way::Along(route) = rt.way_of(packet).unwrap() else {
            panic!("{packet}");
        };
        assert_eq!((route.gateway, route.link), (Some(address("10.244.1.9")), bridge));
    }
    let run = || {
        Command::new("ip")
            .args(["route", "add", "blackhole", "10.244.3.0/24"])
            .status()
    };
    assert!(ns.run(run).unwrap().unwrap().success());
    assert_eq!(
        rt.way_of(Packet::to(address("10.244.3.1"))).unwrap(),
        Way::Refused
    );
    // By a mark, another table is asked.
    for arguments in [
        "rule add fwmark 7 table 100",
        "route add 10.244.2.0/24 via 10.244.1.8 dev br table 100",
    ] {
        let run = || Command::new("ip").args(arguments.split(' ')).status();
        assert!(ns.run(run).unwrap().unwrap().success(), "{arguments}");
    }
    let marked = Packet {
        mark: 7,
        ..Packet::to(far)
    };
    let Way::Along(route) = rt.way_of(marked).unwrap() else {
        panic!("{marked}");
    };
    assert_eq!(route.gateway, Some(address("10.244.1.8")));
}

#[test]
fn it_is_told_how_far_a_neighbour_is_known() {
    let (_ns, mut rt, bridge) = with_bridge();
    rt.change_link(bridge, &Change::up()).unwrap();
    let address: IpAddr = "10.244.1.7".parse().unwrap();
    assert_eq!(rt.resolution(bridge, address).unwrap(), None);
    let mac = [2, 0, 0, 0, 0, 7];
    rt.replace_neighbour(Neighbour {
        link: bridge,
        address,
        mac,
    })
    .unwrap();
    assert_eq!(
        rt.resolution(bridge, address).unwrap(),
        Some(Resolution::Permanent(mac))
    );
    let other: IpAddr = "10.244.1.8".parse().unwrap();
    assert_eq!(rt.resolution(bridge, other).unwrap(), None);
}

#[test]
fn links_are_slowed_down_both_ways() {
    let ns = OwnedNetNs::unique("svcnet-qdisc").unwrap();
    let mut rt = Rtnl::open_in(&ns).unwrap();
    let end = |name| VethEnd {
        name,
        mac: None,
        master: None,
        netns: None,
    };
    rt.add_veth(end("near"), end("far"), None).unwrap();
    rt.add_ifb("ifb-near", 1450).unwrap();
    assert!(rt.add_ifb("ifb-near", 1450).unwrap_err().is_exists());
    let [near, ifb] = ["near", "ifb-near"].map(|name| rt.link(name).unwrap().unwrap().index);
    for rate_bytes in [1_250_000, 6_000_000_000] {
        let bucket = TokenBucket {
            rate_bytes,
            burst_bytes: 65_536,
        };
        rt.limit_link(near, bucket).unwrap();
        let qdiscs = rt.qdiscs(near).unwrap();
        let root: Vec<_> = qdiscs.iter().filter(|q| q.root).collect();
        assert_eq!(
            (root[0].kind.as_str(), root[0].rate_bytes),
            ("tbf", Some(rate_bytes))
        );
    }
    rt.redirect_ingress(near, ifb).unwrap();
    assert!(rt.qdiscs(near).unwrap().iter().any(|q| q.kind == "ingress"));
    let show = || {
        Command::new("tc")
            .args(["filter", "show", "dev", "near", "ingress"])
            .output()
    };
    let shown = String::from_utf8(ns.run(show).unwrap().unwrap().stdout).unwrap();
    assert!(shown.contains("Redirect to device ifb-near"), "{shown}");
}
