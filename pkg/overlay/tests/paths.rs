//! The ways between nodes: over VXLAN and directly, smaller paths, links that corrupt checksums, addresses that move.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod world;

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use svcnet_netlink::ethtool::Ethtool;
use svcnet_netlink::link::Change as LinkChange;
use svcnet_netlink::sysctl;
use svcnet_overlay::Mode;
use svcnet_runtime::Change;
use world::{Machine, Pair, Running, connect, eventually, node, pair, pair_of, pings};

/// Ends with the test.
struct Background(Child);

impl Background {
    fn start(machine: &Machine, program: &str, arguments: &[&str]) -> Self {
        let spawn = || {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            command.stderr(Stdio::null()).spawn().unwrap()
        };
        Self(machine.ns.run(spawn).unwrap())
    }

    /// What it has printed, when it has ended by itself.
    fn output(mut self) -> String {
        let mut text = String::new();
        let mut stdout = self.0.stdout.take().unwrap();
        std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
        text
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pair {
    /// Both overlays end, as for an upgrade, and begin in another mode.
    fn restart_in(self, mode: Mode) -> Self {
        let Self {
            a,
            b,
            pod_a,
            pod_b,
            overlay_a,
            overlay_b,
        } = self;
        drop((overlay_a, overlay_b));
        let (overlay_a, overlay_b) = (
            Running::start_in(&a.ns, 1, mode),
            Running::start_in(&b.ns, 2, mode),
        );
        let nodes = vec![node(1, "172.30.0.11", true), node(2, "172.30.0.12", true)];
        overlay_a.tell(Change::Reset(nodes.clone()));
        overlay_b.tell(Change::Reset(nodes));
        let pair = Self {
            a,
            b,
            pod_a,
            pod_b,
            overlay_a,
            overlay_b,
        };
        eventually("both overlays are ready", || {
            pair.overlay_a.is_ready() && pair.overlay_b.is_ready()
        });
        pair
    }
}

#[test]
fn the_mode_changes_without_a_lost_packet_and_leaves_nothing_of_the_former_one() {
    let pair = pair();
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    let kept = ["-q", "-c", "400", "-i", "0.02", "-W", "20", "10.244.2.2"];
    let pinging = Background::start(&pair.pod_a, "ping", &kept);
    // With a step between, in which both ways are open: nodes do not change at the same moment.
    let pair = pair.restart_in(Mode::Auto);
    let route = pair.a.run("ip route show 10.244.2.0/24").1;
    assert!(
        route.contains("via 172.30.0.12 dev eth0 proto 115 onlink"),
        "{route}"
    );
    let pair = pair.restart_in(Mode::Direct);
    assert!(!pair.a.run("ip link show svcnet.1").0, "nothing is encapsulated");
    eventually("it is told", || pair.overlay_a.told()["direct"] == 1);
    assert_eq!(pair.overlay_a.told()["mode"], "direct");
    let pair = pair.restart_in(Mode::Auto).restart_in(Mode::Vxlan);
    let routes = pair.a.run("ip route show proto 115").1;
    assert!(
        routes.contains("via 10.244.2.0 dev svcnet.1") && !routes.contains("eth0"),
        "{routes}"
    );
    let said = pinging.output();
    assert!(said.contains("400 packets transmitted, 400 received"), "{said}");
}

/// Node 1 and node 2 on a switch that is a router too, node 3 behind it.
struct Site {
    router: Machine,
    nodes: Vec<Machine>,
    pods: Vec<Machine>,
    overlays: Vec<Running>,
}

fn site(mode: Mode) -> Site {
    let mut router = Machine::new("r");
    router.rt.add_bridge("br0", None, None).unwrap();
    router.address("br0", "172.30.0.1/24");
    let bridge = router.rt.link("br0").unwrap().map(|l| l.index);
    router
        .ns
        .run(|| sysctl::set("net/ipv4/ip_forward", "1").unwrap())
        .unwrap();
    let mut nodes: Vec<Machine> = (0..3).map(|_| Machine::new("n")).collect();
    let [first, second, third] = &mut nodes[..] else {
        panic!("three")
    };
    connect(&mut router, "p1", first, "eth0", bridge, None);
    connect(&mut router, "p2", second, "eth0", bridge, None);
    connect(&mut router, "p3", third, "eth0", None, None);
    router.address("p3", "172.31.0.1/24");
    for (node, address, gateway) in [
        (first, "172.30.0.11/24", "172.30.0.1"),
        (second, "172.30.0.12/24", "172.30.0.1"),
        (third, "172.31.0.13/24", "172.31.0.1"),
    ] {
        node.address("eth0", address);
        assert!(node.run(&format!("ip route add default via {gateway}")).0);
    }
    let overlays: Vec<Running> = (1..)
        .zip(&nodes)
        .map(|(n, node)| Running::start_in(&node.ns, n, mode))
        .collect();
    let pods = (1..).zip(&mut nodes).map(|(n, node)| node.with_pod(n)).collect();
    let all: Vec<_> = [(1, "172.30.0.11"), (2, "172.30.0.12"), (3, "172.31.0.13")]
        .map(|(n, address)| node(n, address, true))
        .into();
    for overlay in &overlays {
        overlay.tell(Change::Reset(all.clone()));
        eventually("an overlay is ready", || overlay.is_ready());
    }
    Site {
        router,
        nodes,
        pods,
        overlays,
    }
}

/// A client that believes its own link is told a smaller segment, in both directions.
fn clamped(site: &Site) {
    assert!(site.pods[2].run("ip route flush cache").0);
    let mut listening = Background::start(&site.pods[2], "nc", &["-l", "-k", "8080"]);
    let filter = "tcp[tcpflags] & tcp-syn != 0";
    let seen = Background::start(
        &site.pods[2],
        "tcpdump",
        &["-l", "-c", "2", "-nni", "eth0", filter],
    );
    let connects = || site.pods[0].run("nc -zw 1 10.244.3.2 8080").0;
    let mut ended = seen;
    eventually("both directions are seen", || {
        connects();
        ended.0.try_wait().unwrap().is_some()
    });
    let segments = ended.output();
    // At the pod itself: what came in is lowered, what it sends leaves as its link says and is lowered on the node.
    assert!(
        segments.lines().next().unwrap().contains("mss 1310"),
        "{segments}"
    );
    assert!(listening.0.try_wait().unwrap().is_none());
    let rules = site.nodes[0].run("nft list chain ip svcnet-overlay forward").1;
    assert!(
        rules.contains("ip saddr 10.244.1.0/24") && rules.contains("tcp option maxseg size set rt mtu"),
        "{rules}"
    );
}

#[test]
fn nodes_on_the_link_are_reached_directly_the_others_over_vxlan_and_a_smaller_path_is_found() {
    let mut site = site(Mode::Auto);
    let routes = |site: &Site| site.nodes[0].run("ip route show proto 115").1;
    let there = routes(&site);
    assert!(
        there.contains("10.244.2.0/24 via 172.30.0.12 dev eth0"),
        "{there}"
    );
    assert!(
        there.contains("10.244.3.0/24 via 10.244.3.0 dev svcnet.1"),
        "{there}"
    );
    eventually("to the pod on the link", || pings(&site.pods[0], "10.244.2.2"));
    eventually("to the pod behind the router", || {
        pings(&site.pods[0], "10.244.3.2")
    });
    eventually("it is told", || {
        let told = site.overlays[0].told();
        told["encapsulated"] == 1
            && told["direct"] == 1
            && told["limited"].as_object().is_some_and(|l| l.is_empty())
    });

    let smaller = |site: &mut Site, mtu| {
        let port = site.router.rt.link("p3").unwrap().unwrap().index;
        let change = LinkChange {
            mtu: Some(mtu),
            ..LinkChange::default()
        };
        site.router.rt.change_link(port, &change).unwrap();
    };
    smaller(&mut site, 1400);
    for node in [0, 2] {
        let peer = if node == 0 { "10.244.3.0" } else { "10.244.1.0" };
        eventually("the route says it", || {
            let route = site.nodes[node].run(&format!("ip route show {peer}/24")).1;
            // What comes to a veth may be longer than its own largest packet, by a VLAN tag (`is_skb_forwardable`).
            route.contains(if node == 0 { "mtu 1350" } else { "mtu 1354" })
        });
    }
    eventually("it is told", || site.overlays[0].told()["limited"]["n3"] == 1400);
    assert!(
        !site.nodes[0].run("ip route show 10.244.2.0/24").1.contains("mtu"),
        "the other path is as it was"
    );
    // What just fits passes whole; what does not is refused with a reason rather than lost.
    eventually("what fits passes", || {
        site.pods[0].run("ping -c 1 -W 1 -M do -s 1322 10.244.3.2").0
    });
    let (passed, said) = site.pods[0].run("ping -c 1 -W 2 -M do -s 1323 10.244.3.2");
    assert!(!passed && said.contains("mtu = 1350"), "{said}");
    clamped(&site);

    smaller(&mut site, 1500);
    eventually("the path is whole again", || !routes(&site).contains("mtu"));
    eventually("nothing is clamped", || {
        !site.nodes[0]
            .run("nft list table ip svcnet-overlay")
            .1
            .contains("maxseg")
    });
}

#[test]
fn direct_says_which_nodes_it_can_not_reach() {
    let site = site(Mode::Direct);
    eventually("to the pod on the link", || pings(&site.pods[0], "10.244.2.2"));
    eventually("it is told", || {
        let why = site.overlays[0].told()["unreachable"]["n3"].to_string();
        why.contains("--overlay direct") && why.contains("10.244.3.0/24")
    });
    assert!(site.nodes[0].run("ip route show 10.244.3.0/24").1.is_empty());
    assert!(
        site.overlays[0].is_ready(),
        "one node that is elsewhere is no reason to do nothing"
    );
}

#[test]
fn vxlan_over_ipv6_leaves_room_for_the_larger_header() {
    let (mut a, mut b) = (Machine::new("a"), Machine::new("b"));
    connect(&mut a, "eth0", &mut b, "eth0", None, None);
    for machine in [&a, &b] {
        machine
            .ns
            .run(|| sysctl::set("net/ipv6/conf/eth0/accept_dad", "0").unwrap())
            .unwrap();
    }
    let pair = pair_of(a, b, ["fd00:30::11/64", "fd00:30::12/64"]);
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    let link = pair.a.json("ip -j -d link show svcnet.1");
    assert_eq!(link[0]["mtu"], 1430);
    eventually("what fits passes whole", || {
        pair.pod_a.run("ping -c 1 -W 1 -M do -s 1402 10.244.2.2").0
    });
    eventually("it is looked at what passes", || {
        pair.overlay_a.told()["checksums"] == "right"
    });
    // The peer's link carries less: found, although no router says so.
    let index = pair
        .b
        .ns
        .run(|| {
            svcnet_netlink::Rtnl::open()
                .unwrap()
                .link("eth0")
                .unwrap()
                .unwrap()
                .index
        })
        .unwrap();
    let change = LinkChange {
        mtu: Some(1380),
        ..LinkChange::default()
    };
    svcnet_netlink::Rtnl::open_in(&pair.b.ns)
        .unwrap()
        .change_link(index, &change)
        .unwrap();
    eventually("the route says it", || {
        // 1380, and the 4 bytes that a veth takes beyond.
        pair.a.run("ip route show 10.244.2.0/24").1.contains("mtu 1314")
    });
}

#[test]
fn a_nodes_new_address_is_followed_by_itself_and_its_peers() {
    let pair = pair();
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    assert!(pair.a.run("ip addr del 172.30.0.11/24 dev eth0").0);
    assert!(pair.a.run("ip addr add 172.30.0.21/24 dev eth0").0);
    // As the Node's own role writes it.
    for overlay in [&pair.overlay_a, &pair.overlay_b] {
        overlay.tell(Change::Apply(node(1, "172.30.0.21", true)));
    }
    eventually("packets come from the new address", || {
        pair.a
            .run("ip -d link show svcnet.1")
            .1
            .contains("local 172.30.0.21")
    });
    eventually("and go there", || {
        let fdb = pair.b.run("bridge fdb show dev svcnet.1").1;
        fdb.contains("dst 172.30.0.21") && !fdb.contains("dst 172.30.0.11")
    });
    eventually("pod to pod", || pings(&pair.pod_a, "10.244.2.2"));
    eventually("the other way", || pings(&pair.pod_b, "10.244.1.2"));
}

#[test]
fn checksums_that_arrive_right_are_left_to_the_link() {
    let pair = pair();
    eventually("it is found out", || {
        pair.overlay_a.told()["checksums"] == "right"
    });
    let ethtool = pair.a.ns.run(Ethtool::open).unwrap().unwrap();
    assert!(ethtool.tx_checksum("svcnet.1").unwrap());
}

/// What a broken network card does: of an encapsulated packet it computes the outer checksum (here: none, which is allowed), and
/// passes the inner one on as it lies in memory, where it was left to somebody else.
const CARRIER: &str = "
import select, socket
ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2)]
for end, name in zip(ends, ('m1', 'm2')):
    end.bind((name, 0))
while True:
    for end in select.select(ends, [], [])[0]:
        frame, who = end.recvfrom(65535)
        if frame[12:14] == b'\\x08\\x00' and frame[23] == 17 and frame[36:38] == (8472).to_bytes(2, 'big'):
            frame = frame[:40] + bytes(2) + frame[42:]
        if who[2] != socket.PACKET_OUTGOING:
            try:
                ends[1 - ends.index(end)].send(frame)
            except OSError:
                pass
";

#[test]
fn checksums_that_arrive_wrong_are_computed_before() {
    let (mut a, mut b, mut middle) = (Machine::new("a"), Machine::new("b"), Machine::new("m"));
    connect(&mut middle, "m1", &mut a, "eth0", None, None);
    connect(&mut middle, "m2", &mut b, "eth0", None, None);
    for end in ["m1", "m2"] {
        middle
            .ns
            .run(|| sysctl::set(&format!("net/ipv6/conf/{end}/disable_ipv6"), "1").unwrap())
            .unwrap();
        assert!(middle.run(&format!("ip link set {end} promisc on")).0);
    }
    let _carrying = Background::start(&middle, "python3", &["-c", CARRIER]);
    let pair = pair_of(a, b, ["172.30.0.11/24", "172.30.0.12/24"]);
    eventually("echo requests pass", || pings(&pair.pod_a, "10.244.2.2"));
    eventually("it is found out", || {
        pair.overlay_a.told()["checksums"] == "corrupted"
    });
    let ethtool = pair.a.ns.run(Ethtool::open).unwrap().unwrap();
    eventually("and mended", || !ethtool.tx_checksum("svcnet.1").unwrap());
    // A datagram of the host arrives now.
    let receiver = pair
        .b
        .ns
        .run(|| UdpSocket::bind("10.244.2.0:9000").unwrap())
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let sender = pair
        .a
        .ns
        .run(|| UdpSocket::bind("10.244.1.0:0").unwrap())
        .unwrap();
    eventually("a datagram arrives", || {
        sender.send_to(b"whole", "10.244.2.0:9000").unwrap();
        receiver.recv(&mut [0; 8]).is_ok()
    });
    // Also on a link that is made anew.
    assert!(pair.a.run("ip link del svcnet.1").0);
    eventually("the new one too", || {
        ethtool.tx_checksum("svcnet.1").is_ok_and(|to_link| !to_link)
    });
}
