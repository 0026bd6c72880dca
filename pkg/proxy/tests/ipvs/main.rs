//! The backend on IPVS against a kernel that has it: services read back, and real connections from each place that a
//! client can be in. `test/vm/run ipvs-kernel` runs them in a virtual machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod beside;
mod handover;
mod loopback;
mod sctp;
mod tuning;
#[path = "../world/mod.rs"]
#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use svcnet_netlink::ipvs::{Destination, Identity, Op, Service, Socket, Virtual};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::Backend;
use svcnet_proxy::ipvs::{self, Config, Ipvs, LINK};
use world::{
    A, B, C, CLIENT, NODE, PATIENCE, World, ask, ask_on, ask_udp, connect, ip, node_ports, service, slice,
    udp,
};

const VIP: &str = "10.96.1.1:80";
const NODE_PORT: &str = "172.30.0.11:30080";

fn backend() -> Box<dyn Backend> {
    let config = Config {
        pod_networks: world::pod_networks().to_vec(),
        service_networks: world::settings().service_cidrs,
        ..Config::default()
    };
    Box::new(Ipvs::open(&config).unwrap_or_else(|error| panic!("{error}")))
}

fn world() -> World {
    let world = World::with(backend);
    reach_from_outside(&world);
    world
}

/// ClusterIPs are routed here from outside, too.
fn reach_from_outside(world: &World) {
    ip(&world.client, &format!("route add 10.96.0.0/12 via {NODE}"));
}

/// The kernel's load balancer on the node.
fn kernel(world: &World) -> Socket {
    world.node.run(Socket::open).unwrap().unwrap().expect("IPVS")
}

fn listing(world: &World) -> String {
    world::run(&world.node, "ipvsadm", &["-Ln"])
}

fn at(text: &str, protocol: u8) -> Virtual {
    let at: std::net::SocketAddr = text.parse().unwrap();
    Virtual {
        ip: at.ip(),
        protocol,
        port: at.port(),
    }
}

/// The weights of a virtual service's destinations, by address.
fn weights(world: &World, text: &str, protocol: u8) -> Vec<(String, u32)> {
    let found = kernel(world)
        .destinations(Identity::Address(at(text, protocol)))
        .unwrap();
    let mut weights: Vec<(String, u32)> = found
        .iter()
        .map(|(destination, _)| (destination.at.ip().to_string(), destination.weight))
        .collect();
    weights.sort();
    weights
}

fn with_scheduler(mut service: Value, scheduler: &str) -> Value {
    service["metadata"]["annotations"] = json!({ "svcnet.io/scheduler": scheduler });
    service
}

/// The names of all who answer. Endpoints take turns, so few connections find them all.
fn names(ns: &OwnedNetNs, to: &str) -> Vec<String> {
    let names: BTreeSet<String> = (0..6).map(|_| ask(ns, to).unwrap().0).collect();
    names.into_iter().collect()
}

/// A world with a Service on these endpoints.
fn web(endpoints: &[&str]) -> World {
    let mut world = world();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", endpoints));
    world
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn the_kernel_can_and_a_probe_leaves_nothing() {
    let world = world();
    // Their names: a link that has just come up says so a moment later.
    let links = || {
        let shown = world::run(&world.node, "ip", &["-br", "link"]);
        let names = shown.lines().filter_map(|line| line.split_whitespace().next());
        names.map(str::to_string).collect::<Vec<_>>()
    };
    assert!(links().iter().any(|name| name == LINK));
    world.node.run(|| ipvs::cleanup().unwrap()).unwrap();
    let before = links();
    world
        .node
        .run(|| ipvs::probe().unwrap_or_else(|error| panic!("{error}")))
        .unwrap();
    assert_eq!(links(), before);
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn a_cluster_address_reaches_every_endpoint_from_everywhere() {
    let world = web(&[A, B, C]);
    for (from, what) in [
        (&world.a, "a pod"),
        (&world.node, "the node"),
        (&world.client, "outside"),
    ] {
        assert_eq!(names(from, VIP), ["a", "b", "c"], "from {what}");
    }
    for _ in 0..4 {
        let (name, peer) = ask(&world.a, VIP).unwrap();
        let wanted = if name == "a" { "10.244.1.1" } else { A };
        assert_eq!(
            peer, wanted,
            "{name}: a pod that reaches itself is masqueraded, others are not"
        );
        let (name, peer) = ask_udp(&udp(&world.a, VIP), PATIENCE).unwrap();
        let wanted = if name == "a" { "10.244.1.1" } else { A };
        assert_eq!(peer, wanted, "{name} over UDP");
        let (name, peer) = ask(&world.client, VIP).unwrap();
        let wanted = if name == "c" { "172.31.0.1" } else { "10.244.1.1" };
        assert_eq!(peer, wanted, "{name}: who comes from outside is masqueraded");
        let (name, peer) = ask(&world.node, VIP).unwrap();
        let wanted = if name == "c" { "172.31.0.1" } else { "10.244.1.1" };
        assert_eq!(peer, wanted, "{name}: the node comes from its own address");
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn two_endpoints_take_turns_and_the_listing_shows_them() {
    let world = web(&[A, B]);
    let answers: Vec<String> = (0..10).map(|_| ask(&world.client, VIP).unwrap().0).collect();
    for pair in answers.windows(2) {
        assert_ne!(pair[0], pair[1], "{answers:?}");
    }
    let text = listing(&world);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(lines.contains(&vec!["TCP", "10.96.1.1:80", "rr"]), "{text}");
    for endpoint in ["10.244.1.5:8080", "10.244.1.6:8080"] {
        let start = ["->", endpoint, "Masq", "1"];
        assert_eq!(
            lines.iter().filter(|line| line.starts_with(&start)).count(),
            2,
            "TCP and UDP: {text}"
        );
    }
    // All of our tables print, with names.
    let rules = world.listing();
    assert!(
        rules.contains("table ip svcnet-ipvs") && rules.contains("default/web:http"),
        "{rules}"
    );
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn every_scheduler_is_taken_and_changed_in_place() {
    let mut world = web(&[A, B]);
    let mut established = connect(&world.client, VIP, PATIENCE).unwrap();
    ask_on(&mut established).unwrap();
    for scheduler in [
        "rr", "wrr", "lc", "wlc", "dh", "sh", "sed", "nq", "lblc", "lblcr", "mh",
    ] {
        world.service(with_scheduler(service("web", "10.96.1.1", json!({})), scheduler));
        let services = kernel(&world).services().unwrap();
        let found = services
            .iter()
            .find(|s| s.identity == Identity::Address(at(VIP, 6)))
            .unwrap();
        assert_eq!(found.scheduler, scheduler);
        ask(&world.client, VIP).unwrap_or_else(|error| panic!("by {scheduler}: {error}"));
    }
    ask_on(&mut established).expect("the connection goes on");
    // What hashes the source sends a client to the same endpoint each time, and drops nobody while another drains.
    for scheduler in ["sh", "mh"] {
        world.service(with_scheduler(service("web", "10.96.1.1", json!({})), scheduler));
        world.slice(slice("web", &[A, B]));
        assert_eq!(names(&world.client, VIP).len(), 1, "{scheduler}");
        for rest in [A, B] {
            world.slice(slice("web", &[rest]));
            assert_eq!(
                names(&world.client, VIP).len(),
                1,
                "{scheduler}, only {rest} is left"
            );
        }
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn node_ports_answer_on_each_address_of_the_node() {
    let mut world = world();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A, C]));
    let port = format!("{NODE}:30080");
    for (from, what) in [
        (&world.client, "outside"),
        (&world.node, "the node"),
        (&world.b, "a pod"),
    ] {
        assert_eq!(names(from, &port), ["a", "c"], "from {what}");
    }
    assert_eq!(
        names(&world.b, "10.244.1.1:30080"),
        ["a", "c"],
        "the pods' side of the node"
    );
    for _ in 0..4 {
        let (name, peer) = ask(&world.client, &port).unwrap();
        let wanted = if name == "a" { "10.244.1.1" } else { "172.31.0.1" };
        assert_eq!(peer, wanted, "policy Cluster masquerades");
        ask_udp(&udp(&world.client, &port), PATIENCE).unwrap();
    }
    // An address that the node gets later.
    ip(&world.node, "addr add 172.30.0.77/24 dev lan");
    assert!(
        world.node.run(|| ()).is_ok() && world.engine().check().unwrap(),
        "the change is heard of"
    );
    world.sync();
    assert_eq!(names(&world.client, "172.30.0.77:30080"), ["a", "c"]);
    ip(&world.node, "addr del 172.30.0.77/24 dev lan");
    assert!(world.engine().check().unwrap(), "so is this one");
    world.sync();
    assert!(!listing(&world).contains("172.30.0.77"));
    assert!(
        !world.engine().check().unwrap(),
        "our own changes are not foreign ones"
    );
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn policy_local_keeps_the_source_and_drops_where_nothing_is_local() {
    let mut world = world();
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" });
    world.service(service("web", "10.96.1.1", node_ports(spec)));
    world.slice(slice("web", &[A, C]));
    for to in [format!("{NODE}:30080"), "203.0.113.7:80".into()] {
        for _ in 0..3 {
            assert_eq!(
                ask(&world.client, &to).unwrap(),
                ("a".into(), CLIENT.into()),
                "{to}"
            );
        }
        ask(&world.b, &to).unwrap();
        ask(&world.node, &to).unwrap();
    }
    world.slice(slice("web", &[C]));
    for to in [format!("{NODE}:30080"), "203.0.113.7:80".into()] {
        let error = connect(&world.client, &to, Duration::from_secs(2)).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::TimedOut,
            "{to} from outside is dropped, not refused"
        );
        assert_eq!(ask(&world.b, &to).unwrap().0, "c", "{to} from a pod");
        assert_eq!(ask(&world.node, &to).unwrap().0, "c", "{to} from the node");
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn nothing_but_the_services_ports_is_open_at_their_addresses() {
    let mut world = web(&[A]);
    let listener = world
        .node
        .run(|| TcpListener::bind("0.0.0.0:2222").unwrap())
        .unwrap();
    connect(&world.client, &format!("{NODE}:2222"), PATIENCE).expect("the host's own port");
    for (from, what) in [
        (&world.client, "outside"),
        (&world.a, "a pod"),
        (&world.node, "the node"),
    ] {
        let begin = Instant::now();
        let error = connect(from, "10.96.1.1:2222", PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {what}");
        assert!(begin.elapsed() < PATIENCE, "at once");
    }
    world::run(&world.client, "ping", &["-c", "1", "-w", "10", "10.96.1.1"]);
    // Without endpoints it is refused, too, though its port stays listed.
    world.slice(slice("web", &[]));
    for from in [&world.client, &world.a, &world.node] {
        let error = connect(from, VIP, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    for from in [&world.client, &world.a] {
        let error = ask_udp(&udp(from, VIP), PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP");
    }
    world.slice(slice("web", &[A]));
    ask(&world.client, VIP).unwrap();
    drop(listener);
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn clients_stay_where_they_are_asked_to() {
    let mut world = world();
    let affinity = json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 600 } } });
    world.service(service("web", "10.96.1.1", affinity));
    world.slice(slice("web", &[A, B]));
    assert_eq!(names(&world.client, VIP).len(), 1, "one client, one endpoint");
    assert!(
        listing(&world).contains("rr persistent 600"),
        "{}",
        listing(&world)
    );
    // When its endpoint goes, it moves on.
    let (name, _) = ask(&world.client, VIP).unwrap();
    world.slice(slice("web", &[if name == "a" { B } else { A }]));
    assert_ne!(names(&world.client, VIP), [name]);
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn an_endpoint_that_goes_keeps_its_connections_until_they_end() {
    let mut world = web(&[A, B]);
    let mut established = connect(&world.client, VIP, PATIENCE).unwrap();
    let (name, _) = ask_on(&mut established).unwrap();
    let (goes, stays, other) = if name == "a" { (A, B, "b") } else { (B, A, "a") };
    world.slice(slice("web", &[stays]));
    let mut expected = [(goes.to_string(), 0), (stays.to_string(), 1)];
    expected.sort();
    assert_eq!(weights(&world, VIP, 6), expected);
    assert_eq!(
        weights(&world, VIP, 17),
        [(stays.to_string(), 1)],
        "UDP has nothing to wait for"
    );
    assert_eq!(names(&world.client, VIP), [other], "new connections");
    // A restart of the agent changes nothing about it.
    let services = vec![service("web", "10.96.1.1", json!({}))];
    world.restart();
    assert_eq!(
        world.apply_all(services, vec![slice("web", &[stays])]).operations,
        0
    );
    world.tidy();
    assert_eq!(weights(&world, VIP, 6), expected, "it waits");
    assert_eq!(
        ask_on(&mut established).unwrap().0,
        name,
        "the connection goes on"
    );
    // It ends by a reset, which the kernel forgets soon.
    let linger = socket2::SockRef::from(&established);
    linger.set_linger(Some(Duration::ZERO)).unwrap();
    drop(established);
    let deadline = Instant::now() + 4 * PATIENCE;
    while weights(&world, VIP, 6).len() > 1 {
        assert!(Instant::now() < deadline, "{}", listing(&world));
        std::thread::sleep(Duration::from_millis(500));
        world.tidy();
    }
    assert_eq!(weights(&world, VIP, 6), [(stays.to_string(), 1)]);
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn udp_clients_come_to_the_endpoints_that_there_are() {
    let mut world = world();
    let socket = udp(&world.client, VIP);
    socket.send(b"?").unwrap();
    world.service(service("web", "10.96.1.1", json!({})));
    let reach = |name: &str| {
        let deadline = Instant::now() + PATIENCE;
        // The first packet to an endpoint that is gone may be what makes the kernel forget the connection.
        while ask_udp(&socket, Duration::from_millis(300))
            .ok()
            .map(|(name, _)| name)
            .as_deref()
            != Some(name)
        {
            assert!(Instant::now() < deadline, "still not at {name}");
        }
    };
    // What came before the first endpoint was tracked on its way to nobody.
    let report = world.slice(slice("web", &[C]));
    assert!(report.cleared > 0, "{report:?}");
    reach("c");
    world.slice(slice("web", &[A]));
    reach("a");
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn a_restart_writes_nothing_and_repairs_what_is_wrong() {
    let mut world = web(&[A, B]);
    let mut established = connect(&world.client, VIP, PATIENCE).unwrap();
    ask_on(&mut established).unwrap();
    let lists = || {
        (
            vec![service("web", "10.96.1.1", json!({}))],
            vec![slice("web", &[A, B])],
        )
    };
    world.restart();
    let (services, slices) = lists();
    assert_eq!(world.apply_all(services, slices).operations, 0, "all is there");
    // Weights of zero that an agent left which died: both endpoints serve again (k8s#92019).
    let set = |ip: &str| {
        let destination = Destination::masquerade(format!("{ip}:8080").parse().unwrap(), 0);
        Op::SetDestination(Identity::Address(at(VIP, 6)), destination)
    };
    kernel(&world).apply(&[set(A), set(B)]).unwrap();
    world.restart();
    let (services, slices) = lists();
    assert_eq!(world.apply_all(services, slices).operations, 2);
    assert_eq!(weights(&world, VIP, 6), [(A.to_string(), 1), (B.to_string(), 1)]);
    ask_on(&mut established).expect("the connection goes on");
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn what_others_remove_comes_back() {
    let mut world = web(&[A, B]);
    let before = listing(&world);
    world::run(&world.node, "ipvsadm", &["-C"]);
    let deadline = Instant::now() + PATIENCE;
    while listing(&world) != before {
        assert!(Instant::now() < deadline, "{}", listing(&world));
        std::thread::sleep(Duration::from_millis(200));
        world.tidy();
    }
    ask(&world.client, VIP).unwrap();
    for command in [
        format!("link del {LINK}"),
        format!("addr del 10.96.1.1/32 dev {LINK}"),
    ] {
        ip(&world.node, &command);
        assert!(world.engine().check().unwrap(), "{command} is heard of");
        world.sync();
        ask(&world.client, VIP).unwrap();
    }
    world::run(&world.node, "nft", &["flush", "ruleset"]);
    assert!(world.engine().check().unwrap());
    world.sync();
    assert_eq!(ask(&world.a, VIP).map(|_| ()).ok(), Some(()));
    assert!(world.listing().contains("svcnet-ipvs"));
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn source_ranges_let_only_some_in() {
    let mut world = world();
    let spec = |range: &str| json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": [range] });
    world.service(service("web", "10.96.1.1", spec("192.0.2.0/24")));
    world.slice(slice("web", &[A]));
    let error = connect(&world.client, "203.0.113.7:80", Duration::from_secs(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    ask(&world.client, VIP).expect("the cluster's address is not restricted");
    world.service(service("web", "10.96.1.1", spec("172.30.0.0/24")));
    ask(&world.client, "203.0.113.7:80").unwrap();
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn ipv6_works_alike() {
    let mut world = world();
    world.service(service("six", "fd00:96::1", json!({ "ipFamilies": ["IPv6"] })));
    world::serve(&world.a, "a6", "fd00:244:1::5");
    world::serve(&world.b, "b6", "fd00:244:1::6");
    world.slice(slice("six", &["fd00:244:1::5", "fd00:244:1::6"]));
    let vip = "[fd00:96::1]:80";
    assert_eq!(names(&world.a, vip), ["a6", "b6"], "from a pod");
    assert_eq!(names(&world.node, vip), ["a6", "b6"], "from the node");
    assert_eq!(ask_udp(&udp(&world.b, vip), PATIENCE).map(|_| ()).ok(), Some(()));
    let error = connect(&world.a, "[fd00:96::1]:81", PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    for (name, peer) in (0..8).map(|_| ask(&world.a, vip).unwrap()) {
        let wanted = if name == "a6" {
            "fd00:244:1::1"
        } else {
            "fd00:244:1::5"
        };
        assert_eq!(peer, wanted, "{name}");
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn cleanup_takes_ours_and_leaves_others() {
    let mut world = world();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A]));
    let foreign = Service {
        identity: Identity::Address(at(&format!("{NODE}:3306"), 6)),
        scheduler: "wlc".into(),
        flags: svcnet_netlink::ipvs::Flags::default(),
        persistence: None,
    };
    let mut kernel = kernel(&world);
    kernel.apply(&[Op::AddService(foreign.clone())]).unwrap();
    assert!(kernel.services().unwrap().len() > 4);
    assert!(
        world.node.run(|| ipvs::cleanup().unwrap()).unwrap(),
        "there was something"
    );
    assert_eq!(kernel.services().unwrap(), [foreign]);
    let links = world::run(&world.node, "ip", &["-br", "link"]);
    assert!(!links.contains(LINK), "{links}");
    assert_eq!(world::run(&world.node, "nft", &["list", "tables"]), "");
    assert!(
        !world.node.run(|| ipvs::cleanup().unwrap()).unwrap(),
        "nothing is left"
    );
}
