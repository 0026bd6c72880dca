//! The connection table, in a namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::net::UdpSocket;

use svcnet_netlink::Rtnl;
use svcnet_netlink::conntrack::{self, UDP};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::nft::{Chain, ChainKind, Family, Hook, Rule, Ruleset, Socket, Table};

#[test]
fn one_entry_is_deleted_and_the_others_stay() {
    let ns = OwnedNetNs::unique("svcnet-ct").unwrap();
    Rtnl::open_in(&ns).unwrap().set_loopback_up().unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    // Connections are tracked once a rule asks for it.
    let table = Table::new(Family::Ip, "t");
    let tracking = Ruleset::new(table, "tracking")
        .chain(Chain::base("out", ChainKind::Filter, Hook::Output, 0))
        .rule(Rule::new("out").ct_new().accept().comment("track"));
    socket.ensure(&tracking).unwrap();
    ns.run(|| {
        for port in [2001u16, 2002, 2003] {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
    })
    .unwrap();

    let ports = |socket: &mut Socket| {
        let mut ports: Vec<u16> =
            conntrack::list(socket, Family::Ip, UDP, |e| e.original.destination.port() < 3000)
                .unwrap()
                .iter()
                .map(|e| e.original.destination.port())
                .collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(&mut socket), [2001, 2002, 2003]);
    let stale = conntrack::list(&mut socket, Family::Ip, UDP, |e| {
        e.original.destination.port() == 2002
    })
    .unwrap();
    assert_eq!(stale.len(), 1);
    assert!(conntrack::delete(&mut socket, &stale[0]).unwrap());
    assert!(
        !conntrack::delete(&mut socket, &stale[0]).unwrap(),
        "it is gone already"
    );
    assert_eq!(ports(&mut socket), [2001, 2003]);
}
