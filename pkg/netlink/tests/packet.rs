//! Packet sockets on a pair of links: which frames get in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use svcnet_netlink::Rtnl;
use svcnet_netlink::link::{Change, VethEnd};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::packet::arp::{Arp, Operation};
use svcnet_netlink::packet::ndp::Ndp;
use svcnet_netlink::packet::{LinkSocket, Mac, Protocol};

const NEAR: Mac = [2, 0, 0, 0, 0, 1];
const FAR: Mac = [2, 0, 0, 0, 0, 2];

/// Two links that are each other's far end, both in one namespace.
fn pair() -> (OwnedNetNs, u32, u32) {
    let ns = OwnedNetNs::unique("svcnet-pkt").unwrap();
    let mut rtnl = Rtnl::open_in(&ns).unwrap();
    let end = |name, mac| VethEnd {
        name,
        mac: Some(mac),
        master: None,
        netns: None,
    };
    rtnl.add_veth(end("near", NEAR), end("far", FAR), None).unwrap();
    let near = rtnl.link("near").unwrap().unwrap().index;
    let far = rtnl.link("far").unwrap().unwrap().index;
    rtnl.change_link(far, &Change::up()).unwrap();
    (ns, near, far)
}

/// What a socket on the near link receives of frames that are sent from the far one, until the last one arrives.
fn receive(protocol: Protocol, frames: &[Vec<u8>], last: &[u8]) -> Vec<Vec<u8>> {
    let (ns, near, far) = pair();
    ns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let receiver = LinkSocket::open(near, protocol).unwrap();
            let sender = LinkSocket::open(far, protocol).unwrap();
            for frame in frames {
                sender.send(frame).unwrap();
            }
            sender.send(last).unwrap();
            let mut received = Vec::new();
            let mut buffer = [0; 256];
            loop {
                let length = tokio::time::timeout(Duration::from_secs(30), receiver.receive(&mut buffer))
                    .await
                    .expect("the last frame")
                    .unwrap();
                if &buffer[..length] == last {
                    return received;
                }
                received.push(buffer[..length].to_vec());
            }
        })
    })
    .unwrap()
}

#[test]
fn arp_to_all_or_to_this_host_gets_in_and_nothing_else() {
    let address = Ipv4Addr::new(10, 0, 0, 7);
    let probe = Arp::probe(address, FAR);
    let to = |destination| Arp { destination, ..probe }.encode().to_vec();
    let mut other_protocol = to(NEAR);
    other_protocol[13] = 0x00;
    let mut not_ipv4 = to(NEAR);
    not_ipv4[16] = 0x86;
    let frames = [
        to([0xff; 6]),
        to(NEAR),
        to([2, 0, 0, 0, 0, 9]),
        to([1, 0, 0x5e, 0, 0, 1]),
        other_protocol,
        not_ipv4,
        Ndp::probe(Ipv6Addr::LOCALHOST, FAR).encode(),
    ];
    let last = Arp::gratuitous(Operation::Reply, address, FAR).encode();
    let received = receive(Protocol::Arp, &frames, &last);
    assert_eq!(received, frames[..2]);
    assert_eq!(Arp::parse(&received[0]), Some(probe));
}

#[test]
fn neighbour_discovery_gets_in_and_no_other_icmp() {
    let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let probe = Ndp::probe(address, FAR);
    let mut echo = probe.encode();
    echo[54] = 128;
    let mut udp = probe.encode();
    udp[20] = 17;
    let foreign = Ndp {
        destination_mac: [2, 0, 0, 0, 0, 9],
        ..probe
    };
    let frames = [
        probe.encode(),
        probe.answer(FAR).encode(),
        echo,
        udp,
        foreign.encode(),
    ];
    let last = Ndp::unsolicited(address, FAR).encode();
    // The answer to a probe equals the announcement that ends the test; so only the probe comes before it.
    let received = receive(Protocol::Ndp, &frames[..1], &last);
    assert_eq!(received, frames[..1]);
    let last = Ndp::unsolicited(Ipv6Addr::LOCALHOST, FAR).encode();
    let received = receive(Protocol::Ndp, &frames, &last);
    let mine: Vec<&Vec<u8>> = received
        .iter()
        .filter(|f| Ndp::parse(f).is_some_and(|n| n.target == address))
        .collect();
    assert_eq!(mine, frames[..2].iter().collect::<Vec<_>>());
}

#[test]
fn a_socket_survives_its_link_going_down() {
    let (ns, near, far) = pair();
    let arp = Arp::probe(Ipv4Addr::new(10, 0, 0, 7), FAR);
    ns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let receiver = LinkSocket::open(near, Protocol::Arp).unwrap();
            let sender = LinkSocket::open(far, Protocol::Arp).unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            rtnl.change_link(near, &Change::down()).unwrap();
            rtnl.change_link(near, &Change::up()).unwrap();
            let mut buffer = [0; 256];
            // The other end sees the carrier a moment later, and loses frames until then.
            let mut attempts = 0..3000;
            let length = loop {
                assert!(attempts.next().is_some(), "nothing arrives any more");
                _ = sender.send(&arp.encode());
                let received = receiver.receive(&mut buffer);
                if let Ok(received) = tokio::time::timeout(Duration::from_millis(10), received).await {
                    break received.unwrap();
                }
            };
            assert_eq!(Arp::parse(&buffer[..length]), Some(arp));
        });
    })
    .unwrap();
}
