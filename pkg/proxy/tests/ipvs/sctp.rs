//! SCTP by real sockets, through a ClusterIP and a node port, in both modes of the kernel.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_netlink::netns::OwnedNetNs;

use crate::world::{A, B, C, CLIENT, NODE, PATIENCE, World, service, slice};
use crate::{NODE_PORT, VIP};

/// A socket of one address alone: SCTP tells its peer all that it may have, and those are not translated.
fn socket(address: &str, port: u16) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(132)))?;
    let ip: IpAddr = address.parse().unwrap();
    socket.bind(&SockAddr::from(SocketAddr::new(ip, port)))?;
    Ok(socket)
}

/// Answers on port 8080 with `NAME PEER`.
fn serve(ns: &OwnedNetNs, name: &'static str, address: &str) {
    let listener = ns.run(|| socket(address, 8080).unwrap()).unwrap();
    listener.listen(16).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            std::thread::spawn(move || {
                let peer = peer.as_socket().unwrap().ip();
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    let answer = format!("{name} {peer}");
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Who answers, and from where they say we came.
fn ask(ns: &OwnedNetNs, from: &str, to: &str) -> (String, String) {
    let mut stream = ns.run(|| socket(from, 0).unwrap()).unwrap();
    let at: SocketAddr = to.parse().unwrap();
    let connected = stream.connect_timeout(&at.into(), PATIENCE);
    connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let (name, peer) = answer.split_once(' ').unwrap();
    (name.to_string(), peer.to_string())
}

/// Asks until each of these has answered.
fn all_answer(ns: &OwnedNetNs, from: &str, to: &str, wanted: [(&str, &str); 2]) {
    let wanted: BTreeSet<(String, String)> = wanted.map(|(a, b)| (a.to_string(), b.to_string())).into();
    let (begin, mut found) = (Instant::now(), BTreeSet::new());
    while found != wanted {
        found.insert(ask(ns, from, to));
        assert!(
            found.is_subset(&wanted),
            "{from} to {to}: {found:?}, not {wanted:?}"
        );
        assert!(begin.elapsed() < 2 * PATIENCE, "{from} to {to}: only {found:?}");
    }
}

fn associations_reach_every_endpoint(mut world: World) {
    serve(&world.a, "a", A);
    serve(&world.c, "c", C);
    let ports = json!([{ "name": "s", "port": 80, "protocol": "SCTP", "nodePort": 30080 }]);
    world.service(service(
        "web",
        "10.96.1.1",
        json!({ "type": "NodePort", "ports": ports }),
    ));
    let mut endpoints = slice("web", &[A, C]);
    endpoints["ports"] = json!([{ "name": "s", "port": 8080, "protocol": "SCTP" }]);
    world.slice(endpoints.clone());
    let masqueraded = [("a", "10.244.1.1"), ("c", "172.31.0.1")];
    all_answer(&world.b, B, VIP, [("a", B), ("c", B)]);
    all_answer(&world.b, B, NODE_PORT, [("a", B), ("c", B)]);
    all_answer(&world.client, CLIENT, VIP, masqueraded);
    all_answer(&world.client, CLIENT, NODE_PORT, masqueraded);
    all_answer(&world.node, NODE, VIP, masqueraded);
    // An endpoint that goes gets no new ones.
    endpoints["endpoints"] = json!([{ "addresses": [C], "nodeName": "n2", "conditions": {} }]);
    world.slice(endpoints);
    for _ in 0..4 {
        assert_eq!(ask(&world.client, CLIENT, NODE_PORT).0, "c");
    }
}

#[test]
#[ignore = "needs SCTP sockets: test/vm/run ipvs-kernel"]
fn sctp_through_nftables() {
    let world = World::new();
    crate::reach_from_outside(&world);
    associations_reach_every_endpoint(world);
}

#[test]
#[ignore = "needs IPVS and SCTP sockets: test/vm/run ipvs-kernel"]
fn sctp_through_ipvs() {
    associations_reach_every_endpoint(crate::world());
}
