//! Real connections through relays on sockets, from each place that a client can be in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use svcnet_netlink::Rtnl;
use svcnet_netlink::local::LocalFor;
use svcnet_proxy::{Admission, Admitted, Protocol};
use tokio::sync::watch;
use world::{
    A, B, C, CLIENT, NODE, PATIENCE, World, ask, ask_on, ask_udp, connect, names, node_ports, service, slice,
    udp,
};

const VIP: &str = "10.96.1.1:80";
/// Long enough that an answer would have come.
const A_WHILE: Duration = Duration::from_millis(700);

fn local_addresses(world: &World) -> Vec<String> {
    let found = world
        .node
        .run(|| Rtnl::open().unwrap().local_addresses(LocalFor::Relays).unwrap())
        .unwrap();
    found.into_iter().map(|ip| ip.to_string()).collect()
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that is not open says so.
fn refused(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

/// Whether pod b is refused. A socket that is closing may take one more.
fn is_refused(world: &World) -> bool {
    connect(&world.b, VIP, PATIENCE).is_err_and(|error| refused(&error))
}

#[test]
fn a_cluster_address_reaches_every_endpoint_from_everywhere() {
    let mut world = World::userspace();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A, B, C]));
    assert_eq!(local_addresses(&world), ["10.96.1.1"]);
    world::ip(&world.client, &format!("route add 10.96.0.0/12 via {NODE}"));
    for (from, who) in [
        (&world.a, "a pod"),
        (&world.node, "the node"),
        (&world.client, "outside"),
    ] {
        assert_eq!(names(from, VIP), ["a", "b", "c"], "from {who}");
        let mut heard: Vec<String> = (0..40)
            .map(|_| ask_udp(&udp(from, VIP), PATIENCE).unwrap().0)
            .collect();
        heard.sort();
        heard.dedup();
        assert_eq!(heard, ["a", "b", "c"], "over UDP from {who}");
    }
    assert_eq!(ask(&world.a, VIP).unwrap().1.split('.').count(), 4);
    let other = connect(&world.a, "10.96.1.1:81", PATIENCE).unwrap_err();
    assert!(refused(&other), "a port that no Service has: {other}");
    // Nobody but the owner answers for it by ARP.
    let arp = world
        .node
        .run(|| svcnet_netlink::sysctl::read("net/ipv4/conf/all/arp_ignore").unwrap());
    assert_eq!(arp.unwrap(), "1");
}

#[test]
fn node_ports_answer_on_every_address_of_the_node() {
    let mut world = World::userspace();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A]));
    for (from, to) in [
        (&world.client, format!("{NODE}:30080")),
        (&world.node, "127.0.0.1:30080".into()),
        (&world.node, format!("{NODE}:30080")),
        (&world.b, "10.244.1.1:30080".into()),
    ] {
        assert_eq!(ask(from, &to).unwrap().0, "a", "{to}");
        // Connected sockets take answers only from the address that they asked.
        assert_eq!(
            ask_udp(&udp(from, &to), PATIENCE).unwrap().0,
            "a",
            "{to} over UDP"
        );
    }
}

/// On other addresses than those that are to answer, nobody listens; those that come later answer.
#[test]
fn node_ports_answer_only_where_they_are_to() {
    let mut world = World::userspace();
    world.restart_with_node_ports_on("192.0.2.0/24,localhost");
    let web = service("web", "10.96.1.1", node_ports(json!({ "type": "NodePort" })));
    world.apply_all(vec![web], vec![slice("web", &[A])]);
    assert_eq!(ask(&world.node, "127.0.0.1:30080").unwrap().0, "a");
    let port = format!("{NODE}:30080");
    for from in [&world.client, &world.node] {
        let error = connect(from, &port, PATIENCE).unwrap_err();
        assert!(refused(&error), "{error}");
        assert!(refused(&ask_udp(&udp(from, &port), PATIENCE).unwrap_err()));
    }
    world::ip(&world.node, "addr add 192.0.2.7/32 dev lo");
    until("the new address answers", || {
        connect(&world.b, "192.0.2.7:30080", PATIENCE).is_ok_and(|mut stream| ask_on(&mut stream).is_ok())
    });
    assert_eq!(
        ask_udp(&udp(&world.b, "192.0.2.7:30080"), PATIENCE).unwrap().0,
        "a"
    );
    assert_eq!(ask(&world.node, "127.0.0.1:30080").unwrap().0, "a");
}

#[test]
fn ipv6_is_the_same() {
    let mut world = World::userspace();
    let (pod, vip) = ("fd00:244:1::5", "[fd00:96::1]:80");
    world::serve(&world.a, "a", pod);
    let spec = node_ports(json!({ "type": "NodePort", "clusterIPs": ["fd00:96::1"] }));
    world.service(service("web", "fd00:96::1", spec));
    world.slice(slice("web", &[pod]));
    assert_eq!(ask(&world.b, vip).unwrap().0, "a");
    assert_eq!(ask_udp(&udp(&world.b, vip), PATIENCE).unwrap().0, "a");
    assert_eq!(ask(&world.node, "[::1]:30080").unwrap().0, "a");
    assert_eq!(
        ask_udp(&udp(&world.node, "[::1]:30080"), PATIENCE).unwrap().0,
        "a"
    );
}

#[test]
fn without_endpoints_it_is_refused_and_elsewhere_is_dropped() {
    let mut world = World::userspace();
    world.service(service(
        "web",
        "10.96.1.1",
        json!({ "internalTrafficPolicy": "Local" }),
    ));
    let error = connect(&world.a, VIP, PATIENCE).unwrap_err();
    assert!(refused(&error), "{error}");
    assert!(refused(&ask_udp(&udp(&world.a, VIP), PATIENCE).unwrap_err()));
    world.slice(slice("web", &[C]));
    let error = connect(&world.a, VIP, A_WHILE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let error = ask_udp(&udp(&world.a, VIP), A_WHILE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    world.slice(slice("web", &[A, C]));
    assert_eq!(names(&world.b, VIP), ["a"]);
    assert_eq!(ask_udp(&udp(&world.b, VIP), PATIENCE).unwrap().0, "a");
    world.slice(slice("web", &[]));
    until("it is refused", || is_refused(&world));
}

/// Policy `Local`: pods and the node go anywhere, others only to what is here.
#[test]
fn others_are_dropped_where_no_endpoint_is_local() {
    let mut world = World::userspace();
    let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
    world.service(service("web", "10.96.1.1", node_ports(spec)));
    world.slice(slice("web", &[C]));
    let port = format!("{NODE}:30080");
    assert_eq!(ask(&world.node, &port).unwrap().0, "c");
    assert_eq!(ask(&world.a, "10.244.1.1:30080").unwrap().0, "c");
    let error = connect(&world.client, &port, A_WHILE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    world.slice(slice("web", &[B, C]));
    assert_eq!(names(&world.client, &port), ["b"]);
    assert_eq!(names(&world.a, "10.244.1.1:30080"), ["b", "c"]);
}

#[test]
fn source_ranges_let_in_only_who_is_in_them() {
    let mut world = World::userspace();
    let of = |range: &str| {
        let spec = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": [range] });
        service("web", "10.96.1.1", spec)
    };
    world.service(of("192.0.2.0/24"));
    world.slice(slice("web", &[A]));
    let error = connect(&world.client, "203.0.113.7:80", A_WHILE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(ask_udp(&udp(&world.client, "203.0.113.7:80"), A_WHILE).is_err());
    let error = connect(&world.node, "203.0.113.7:80", A_WHILE).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::TimedOut,
        "the node itself is bound too: {error}"
    );
    world.service(of(&format!("{CLIENT}/32")));
    assert_eq!(ask(&world.client, "203.0.113.7:80").unwrap().0, "a");
    assert_eq!(
        ask_udp(&udp(&world.client, "203.0.113.7:80"), PATIENCE)
            .unwrap()
            .0,
        "a"
    );
    assert_eq!(
        ask(&world.b, VIP).unwrap().0,
        "a",
        "the cluster address has no ranges"
    );
}

#[test]
fn connections_outlive_their_endpoint_and_their_service() {
    let mut world = World::userspace();
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    let mut stream = connect(&world.b, VIP, PATIENCE).unwrap();
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
    let datagrams = udp(&world.b, VIP);
    assert_eq!(ask_udp(&datagrams, PATIENCE).unwrap().0, "a");
    world.slice(slice("web", &[C]));
    assert_eq!(ask_on(&mut stream).unwrap().0, "a", "it drains");
    assert_eq!(names(&world.b, VIP), ["c"]);
    assert_eq!(
        ask_udp(&datagrams, PATIENCE).unwrap().0,
        "c",
        "datagrams go where they belong now"
    );
    world.apply_all(Vec::new(), Vec::new());
    assert_eq!(ask_on(&mut stream).unwrap().0, "a");
    assert_eq!(local_addresses(&world), ["10.96.1.1"], "as long as it is needed");
    until("it is refused", || is_refused(&world));
    drop(stream);
    until("the address goes with its last connection", || {
        local_addresses(&world).is_empty()
    });
}

#[test]
fn each_direction_ends_by_itself_and_a_reset_is_one() {
    let mut world = World::userspace();
    let server = world
        .a
        .run(|| std::net::TcpListener::bind((A, 8080)).err())
        .unwrap();
    assert!(server.is_some(), "the usual server of the pod is there");
    let own = world
        .b
        .run(|| std::net::TcpListener::bind((B, 9000)).unwrap())
        .unwrap();
    let mut to_own = slice("web", &[B]);
    to_own["ports"] = json!([{ "name": "http", "port": 9000, "protocol": "TCP" }]);
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(to_own);
    let mut client = connect(&world.a, VIP, PATIENCE).unwrap();
    client.write_all(b"all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut served, _) = own.accept().unwrap();
    let mut text = String::new();
    served.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all");
    served.write_all(b"and back").unwrap();
    drop(served);
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "and back");
    // Closing with data unread is a reset.
    let mut client = connect(&world.a, VIP, PATIENCE).unwrap();
    client.write_all(b"unread").unwrap();
    let (mut served, _) = own.accept().unwrap();
    served.read_exact(&mut [0]).unwrap();
    drop(served);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    // An endpoint that does not answer is passed over.
    drop(own);
    let other: Value = {
        let mut slice = slice("web", &[B, A]);
        slice["ports"] = json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]);
        slice
    };
    world.slice(other);
    world::ip(&world.b, "addr del 10.244.1.6/32 dev eth0");
    for _ in 0..6 {
        assert_eq!(ask(&world.node, VIP).unwrap().0, "a");
    }
}

#[test]
fn clients_stay_with_their_endpoint_until_it_goes() {
    let mut world = World::userspace();
    let spec = json!({ "sessionAffinity": "ClientIP" });
    world.service(service("web", "10.96.1.1", spec));
    world.slice(slice("web", &[A, C]));
    let first = names(&world.b, VIP);
    assert_eq!(first.len(), 1);
    let (left, name) = if first == ["a"] { (C, "c") } else { (A, "a") };
    world.slice(slice("web", &[left]));
    assert_eq!(names(&world.b, VIP), [name]);
    world.slice(slice("web", &[A, C]));
    assert_eq!(names(&world.b, VIP), [name]);
}

/// Somebody removes the addresses; another process has a port, and gives it up.
#[test]
fn what_others_disturb_is_mended() {
    let mut world = World::userspace();
    let thief = world
        .node
        .run(|| std::net::TcpListener::bind("0.0.0.0:30080").unwrap())
        .unwrap();
    world.service(service(
        "web",
        "10.96.1.1",
        node_ports(json!({ "type": "NodePort" })),
    ));
    world.slice(slice("web", &[A]));
    assert_eq!(
        ask_udp(&udp(&world.client, &format!("{NODE}:30080")), PATIENCE)
            .unwrap()
            .0,
        "a"
    );
    drop(thief);
    until("the port is served", || {
        connect(&world.client, &format!("{NODE}:30080"), PATIENCE)
            .is_ok_and(|mut stream| ask_on(&mut stream).is_ok())
    });
    world::ip(&world.node, "route del local 10.96.1.1 dev lo table local");
    until("the address is back", || local_addresses(&world) == ["10.96.1.1"]);
    assert_eq!(ask(&world.b, VIP).unwrap().0, "a");
}

/// As those of ipvs mode go, when this mode has taken over.
#[test]
fn an_address_that_a_link_gives_up_is_made_local() {
    let mut world = World::userspace();
    world::ip(&world.node, "address add 10.96.1.1/32 dev lo");
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A]));
    assert_eq!(names(&world.b, VIP), ["a"]);
    assert!(local_addresses(&world).is_empty(), "the link has it");
    world::ip(&world.node, "address delete 10.96.1.1/32 dev lo");
    until("the address is local again", || {
        local_addresses(&world) == ["10.96.1.1"]
    });
    assert_eq!(names(&world.b, VIP), ["a"]);
}

/// A process that ended leaves addresses behind; the next takes them over, and away.
#[test]
fn what_an_earlier_process_left_is_taken_over() {
    let mut world = World::userspace();
    let place = |ip: &str| {
        let ip = ip.parse().unwrap();
        world
            .node
            .run(|| {
                Rtnl::open()
                    .unwrap()
                    .add_local_address(LocalFor::Relays, ip, None)
                    .unwrap()
            })
            .unwrap();
    };
    place("10.96.1.1");
    place("10.96.1.2");
    world.restart();
    let web = service("web", "10.96.1.1", json!({}));
    world.apply_all(vec![web.clone()], vec![slice("web", &[A])]);
    assert_eq!(local_addresses(&world), ["10.96.1.1"]);
    assert_eq!(ask(&world.b, VIP).unwrap().0, "a");
    let again = world.apply_all(vec![web], vec![slice("web", &[A])]);
    assert_eq!(again.operations, 0);
}

/// The address that relays connect from to pods elsewhere: the broadcast address of the pods' bridge.
const RELAY: &str = "10.244.1.255";

/// Denies one client one endpoint.
#[derive(Debug, Default)]
struct Policy {
    denied: Mutex<Vec<(IpAddr, IpAddr)>>,
    changes: watch::Sender<u64>,
}

impl Policy {
    fn deny(&self, denied: &[(&str, &str)]) {
        let pairs = denied
            .iter()
            .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
        *self.denied.lock().unwrap() = pairs.collect();
        self.changes.send_modify(|number| *number += 1);
    }
}

impl Admission for Policy {
    fn admits(&self, client: IpAddr, endpoint: SocketAddr, _: Protocol) -> Admitted {
        if self.denied.lock().unwrap().contains(&(client, endpoint.ip())) {
            return Admitted::No;
        }
        let elsewhere = endpoint.ip() == C.parse::<IpAddr>().unwrap();
        Admitted::Yes {
            from: elsewhere.then(|| RELAY.parse().unwrap()),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn sources(world: &World) -> Vec<IpAddr> {
    let found = world.node.run(|| {
        Rtnl::open()
            .unwrap()
            .local_addresses(LocalFor::RelaySource)
            .unwrap()
    });
    found.unwrap()
}

#[test]
fn relays_do_as_policies_say() {
    let policy = Arc::new(Policy::default());
    let mut world = World::relaying(Some(policy.clone()));
    world.service(service("web", "10.96.1.1", json!({})));
    world.slice(slice("web", &[A, C]));
    for _ in 0..20 {
        let seen = [
            ask(&world.b, VIP).unwrap(),
            ask_udp(&udp(&world.b, VIP), PATIENCE).unwrap(),
        ];
        for (name, seen) in seen {
            assert_eq!(seen.starts_with(RELAY), name == "c", "{name} saw {seen}");
        }
    }
    assert_eq!(sources(&world), [RELAY.parse::<IpAddr>().unwrap()]);
    // One of two endpoints is denied: the other one serves. The node itself is not asked about.
    policy.deny(&[(B, C)]);
    assert_eq!(names(&world.b, VIP), ["a"]);
    assert_eq!(names(&world.node, VIP), ["a", "c"]);
    // Both are: what stands is held, what begins waits, datagrams are lost; and all go on when they may.
    let mut stands = connect(&world.b, VIP, PATIENCE).unwrap();
    assert_eq!(ask_on(&mut stands).unwrap().0, "a");
    let datagrams = udp(&world.b, VIP);
    assert_eq!(ask_udp(&datagrams, PATIENCE).unwrap().0, "a");
    policy.deny(&[(B, C), (B, A)]);
    let silent = |stream: &mut std::net::TcpStream| {
        stream.set_read_timeout(Some(A_WHILE)).unwrap();
        stream
            .read(&mut [0])
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    until("datagrams are lost", || ask_udp(&datagrams, A_WHILE).is_err());
    let mut begins = connect(&world.b, VIP, PATIENCE).unwrap();
    for stream in [&mut stands, &mut begins] {
        stream.write_all(b"?").unwrap();
        assert!(silent(stream));
    }
    assert_eq!(
        ask(&world.a, VIP).unwrap().1.split('.').count(),
        4,
        "others are served"
    );
    policy.deny(&[(B, C)]);
    for stream in [&mut stands, &mut begins] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"a "), "{:?}", &answer[..length]);
    }
    until("datagrams arrive", || ask_udp(&datagrams, A_WHILE).is_ok());
    // The address stays while a connection needs it, and goes with the mode.
    policy.deny(&[]);
    world.slice(slice("web", &[C]));
    let mut far = connect(&world.b, VIP, PATIENCE).unwrap();
    assert_eq!(ask_on(&mut far).unwrap().0, "c");
    let nftables = || -> Box<dyn svcnet_proxy::Backend> {
        Box::new(
            svcnet_proxy::Nftables::open(&world::pod_networks(), &world::settings().service_cidrs).unwrap(),
        )
    };
    let nftables = world.node.run(nftables).unwrap();
    world.switch(nftables);
    // Not one word more: without another table that translates, the new mode takes the connection for one of its own.
    assert_eq!(sources(&world).len(), 1);
    drop(far);
    until("the address is taken back", || sources(&world).is_empty());
}
