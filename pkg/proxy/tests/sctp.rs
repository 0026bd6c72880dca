//! SCTP, packet by packet over raw sockets: not every kernel has sockets for it, and the tables need none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_netlink::netns::OwnedNetNs;
use world::{A, B, C, CLIENT, NODE, PATIENCE, World, service, slice};

const SCTP: i32 = 132;
/// `SOCK_RAW`
const RAW: i32 = 3;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn raw(ns: &OwnedNetNs) -> Socket {
    let open = || Socket::new(Domain::IPV4, Type::from(RAW), Some(Protocol::from(SCTP))).unwrap();
    let socket = ns.run(open).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The checksum of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// A packet with one chunk of the handshake.
fn packet(kind: u8, from: u16, to: u16, tag: u32) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([kind, 0, 0, 20]);
    bytes.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn send(socket: &Socket, to: Ipv4Addr, bytes: &[u8]) {
    let to = SockAddr::from(SocketAddr::V4(SocketAddrV4::new(to, 0)));
    socket.send_to(bytes, &to).unwrap();
}

/// Source, ports and kind of the next packet with a right checksum.
fn receive(socket: &Socket, kind: u8, to_port: u16) -> (Ipv4Addr, u16) {
    let begin = Instant::now();
    loop {
        assert!(
            begin.elapsed() < PATIENCE,
            "no packet of kind {kind} for port {to_port}"
        );
        let mut bytes = [0u8; 256];
        let length = std::io::Read::read(&mut &*socket, &mut bytes).unwrap();
        let header = usize::from(bytes[0] & 0xf) * 4;
        let mut sctp = bytes[header..length].to_vec();
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        let (from, to) = (port(0), port(2));
        if sctp[12] != kind || to != to_port {
            continue;
        }
        let sum = u32::from_le_bytes(sctp[8..12].try_into().unwrap());
        sctp[8..12].fill(0);
        assert_eq!(sum, crc32c(&sctp), "the checksum follows the ports");
        return (Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]), from);
    }
}

fn sctp(spec: serde_json::Value) -> serde_json::Value {
    let mut spec = spec;
    spec["ports"] = json!([{ "name": "s", "port": 80, "protocol": "SCTP", "nodePort": 30080 }]);
    service("web", "10.96.1.1", spec)
}

fn endpoints(addresses: &[&str]) -> serde_json::Value {
    let mut slice = slice("web", addresses);
    slice["ports"] = json!([{ "name": "s", "port": 8080, "protocol": "SCTP" }]);
    slice
}

#[test]
fn sctp_is_translated_there_and_back_and_follows_its_endpoints() {
    let mut world = World::new();
    world.service(sctp(json!({ "type": "NodePort" })));
    world.slice(endpoints(&[A]));
    let (a, b, c) = (raw(&world.a), raw(&world.b), raw(&world.c));
    let client = raw(&world.client);
    let (node, pod) = (NODE.parse().unwrap(), B.parse::<Ipv4Addr>().unwrap());
    // From a pod by the ClusterIP: its address is kept.
    send(&b, "10.96.1.1".parse().unwrap(), &packet(INIT, 5000, 80, 0));
    assert_eq!(receive(&a, INIT, 8080), (pod, 5000));
    send(&a, pod, &packet(INIT_ACK, 8080, 5000, 7));
    assert_eq!(receive(&b, INIT_ACK, 5000), ("10.96.1.1".parse().unwrap(), 80));
    // From outside by the node port: masqueraded.
    send(&client, node, &packet(INIT, 5001, 30080, 0));
    let (source, port) = receive(&a, INIT, 8080);
    assert_eq!(source, "10.244.1.1".parse::<Ipv4Addr>().unwrap());
    send(&a, source, &packet(INIT_ACK, 8080, port, 7));
    assert_eq!(receive(&client, INIT_ACK, 5001), (node, 30080));
    // A client that begins anew from the same port follows.
    let report = world.slice(endpoints(&[C]));
    assert_eq!(report.cleared, 2);
    send(&client, node, &packet(INIT, 5001, 30080, 0));
    assert_eq!(
        receive(&c, INIT, 8080).0,
        "172.31.0.1".parse::<Ipv4Addr>().unwrap()
    );
    // Policy Local keeps the source.
    world.slice(endpoints(&[A, C]));
    world.service(sctp(
        json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }),
    ));
    send(&client, node, &packet(INIT, 5002, 30080, 0));
    assert_eq!(receive(&a, INIT, 8080), (CLIENT.parse().unwrap(), 5002));
}
