//! Nftables mode takes over from IPVS, and open connections go on.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use svcnet_proxy::ipvs::{self, LINK, Left};
use svcnet_proxy::{FrontendKey, Nftables};

use crate::world::{self, A, B, C, PATIENCE, World, ask, ask_on, ask_udp, connect, node_ports, service, udp};
use crate::{NODE_PORT, VIP, backend, listing, names, web, weights};

/// A world with a Service on a node port too, and open connections to it from each place.
struct Handover {
    world: World,
    open: Vec<(TcpStream, String)>,
}

impl Handover {
    fn new() -> Self {
        let mut world = web(&[A, B, C]);
        world.service(service(
            "web",
            "10.96.1.1",
            node_ports(json!({ "type": "NodePort" })),
        ));
        let from = [
            (&world.client, VIP),
            (&world.client, NODE_PORT),
            (&world.a, VIP),
            (&world.node, VIP),
        ];
        let open = from.map(|(from, to)| {
            let mut stream = connect(from, to, PATIENCE).unwrap();
            let (name, _) = ask_on(&mut stream).unwrap();
            (stream, name)
        });
        Self {
            world,
            open: open.into(),
        }
    }

    fn take_over(&mut self) {
        let services = world::settings().service_cidrs;
        let open = || Nftables::open(&world::pod_networks(), &services).unwrap();
        let backend = self.world.node.run(open).unwrap();
        self.world.switch(Box::new(backend));
    }

    fn leave(&self) -> Left {
        self.world.node.run(|| ipvs::leave().unwrap()).unwrap().left
    }

    fn all_go_on(&mut self) {
        for (stream, name) in &mut self.open {
            assert_eq!(ask_on(stream).unwrap().0, *name, "it goes on");
        }
    }
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn nftables_takes_over_and_open_connections_go_on() {
    let mut handover = Handover::new();
    let listen = || TcpListener::bind("0.0.0.0:2222").unwrap();
    let listener = handover.world.node.run(listen).unwrap();
    let datagrams = udp(&handover.world.client, VIP);
    ask_udp(&datagrams, PATIENCE).unwrap();
    handover.take_over();
    for _ in 0..2 {
        assert_eq!(handover.leave(), Left::Waits(2), "{}", listing(&handover.world));
        handover.all_go_on();
    }
    let keys: Vec<FrontendKey> = handover.world.engine().desired().map(|f| f.key).collect();
    let world = &handover.world;
    let forget = || svcnet_proxy::nftables::forget(keys.iter().copied()).unwrap();
    world.node.run(forget).unwrap();
    assert!(weights(world, VIP, 6).iter().all(|(_, weight)| *weight == 0));
    assert!(
        weights(world, VIP, 17).is_empty(),
        "UDP has no connections to keep"
    );
    ask_udp(&datagrams, PATIENCE).unwrap();
    for from in [&world.client, &world.a, &world.node] {
        ask(from, VIP).unwrap();
        ask(from, NODE_PORT).unwrap();
        let error = connect(from, "10.96.1.1:2222", PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "a port of the host");
    }
    drop(listener);
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn what_nftables_took_over_goes_back_or_ends() {
    let mut handover = Handover::new();
    handover.take_over();
    assert_eq!(handover.leave(), Left::Waits(2));
    let former = handover.world.node.run(backend).unwrap();
    handover.world.switch(former);
    let clean = || svcnet_proxy::nftables::cleanup().unwrap();
    assert!(handover.world.node.run(clean).unwrap());
    assert!(
        weights(&handover.world, VIP, 6)
            .iter()
            .all(|(_, weight)| *weight == 1)
    );
    handover.all_go_on();
    assert_eq!(names(&handover.world.client, VIP), ["a", "b", "c"]);

    handover.take_over();
    assert_eq!(handover.leave(), Left::Waits(2));
    // They end by resets, which the kernel forgets soon.
    for (stream, _) in handover.open.drain(..) {
        let linger = socket2::SockRef::from(&stream);
        linger.set_linger(Some(Duration::ZERO)).unwrap();
    }
    let deadline = Instant::now() + 4 * PATIENCE;
    while handover.leave() != Left::Gone {
        assert!(Instant::now() < deadline, "{}", listing(&handover.world));
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(handover.leave(), Left::Nothing);
    let world = &handover.world;
    let links = world::run(&world.node, "ip", &["-br", "link"]);
    assert!(!links.contains(LINK), "{links}");
    let tables = world::run(&world.node, "nft", &["list", "tables"]);
    assert!(!tables.contains("svcnet-ipvs"), "{tables}");
    ask(&world.client, VIP).unwrap();
}
