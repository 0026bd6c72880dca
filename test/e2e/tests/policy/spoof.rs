//! Pods that claim to be others.

use std::net::{Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::NetNs;

/// The packets that a rule of the node's has dropped, by its comment.
fn dropped(lab: &Lab, comment: &str) -> u64 {
    let rules = lab.exec(
        "n1",
        &["nft", "-j", "list", "chain", "bridge", "svcnet-policy", "pod"],
    );
    let rules: serde_json::Value = serde_json::from_str(rules.text()).unwrap();
    let rules = rules["nftables"].as_array().unwrap();
    let of = rules.iter().filter(|item| item["rule"]["comment"] == comment);
    let counters = of.flat_map(|item| item["rule"]["expr"].as_array().unwrap());
    counters
        .filter_map(|expr| expr["counter"]["packets"].as_u64())
        .sum()
}

/// Does something in a pod until one more packet is dropped for that reason.
fn caught(lab: &Lab, what: &str, comment: &str, mut attempt: impl FnMut()) {
    let before = dropped(lab, comment);
    until(&format!("{what} is caught"), || {
        attempt();
        (dropped(lab, comment) > before).then_some(())
    });
}

/// Sends an ICMPv6 message to all nodes of the link eth0; the kernel makes its checksum.
fn icmpv6_to_all(message: &[u8]) {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    let links = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let link = links.lines().find(|line| line.ends_with("eth0")).unwrap();
    let index = u32::from_str_radix(link.split_whitespace().nth(1).unwrap(), 16).unwrap();
    socket.set_multicast_if_v6(index).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    socket.send_to(message, &SockAddr::from(all_nodes)).unwrap();
}

#[test]
fn a_pod_is_heard_under_its_own_addresses_only() {
    let lab = Lab::up(&["--dual-stack"]);
    lab.pod("evil", "n1", "app=evil");
    lab.pod("victim", "n1", "app=victim");
    let victim = lab.pod_ip("victim");
    let victim6 = lab.value("pod/victim", "{.status.podIPs[1].ip}").unwrap();
    let gateway = format!("{}.1", victim.rsplit_once('.').unwrap().0);
    let evil = |line: &str| lab.exec("evil", &["sh", "-c", line]);
    let node_knows = || {
        lab.exec("n1", &["ip", "neigh", "show", "dev", "svcnet0"])
            .text()
            .to_string()
    };
    assert!(
        evil(&format!("ping -c 1 -W 5 {gateway}")).ok,
        "honest packets pass"
    );
    assert!(lab.exec("n1", &["ping", "-c", "1", "-W", "5", &victim]).ok);
    assert!(lab.exec("n1", &["ping", "-c", "1", "-W", "5", &victim6]).ok);

    caught(&lab, "a claim to an address by ARP", "all else", || {
        _ = evil(&format!("arping -c 1 -w 1 -i eth0 -U -S {victim} {victim}"));
    });
    caught(&lab, "another's IPv4 address", "all else", || {
        _ = evil(&format!(
            "ip address replace {victim}/32 dev eth0; ping -c 1 -W 1 -I {victim} {gateway}"
        ));
    });
    caught(&lab, "another's IPv6 address", "all else", || {
        _ = evil(&format!(
            "ip -6 address replace {victim6}/128 dev eth0 nodad; ping -c 1 -W 1 -I {victim6} ff02::1%eth0"
        ));
    });
    let ns = NetNs::open(&lab.namespace("evil")).unwrap();
    let send = |message: &[u8]| ns.run(|| icmpv6_to_all(message)).unwrap();
    // Type, code, checksum (the kernel's affair), hop limit, flags, lifetimes.
    let router = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    caught(&lab, "a router advertisement", "pods are no routers", || {
        send(&router)
    });
    let mut neighbour = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    neighbour.extend(victim6.parse::<Ipv6Addr>().unwrap().octets());
    caught(
        &lab,
        "a claim to an address by neighbour discovery",
        "another's address",
        || send(&neighbour),
    );

    let (known, mac) = (node_knows(), mac_of(&lab, "evil"));
    assert!(!mac.is_empty());
    for address in [&victim, &victim6] {
        let line = known
            .lines()
            .find(|line| line.starts_with(&format!("{address} ")));
        assert!(
            line.is_none_or(|line| !line.contains(&mac)),
            "{address} is taken over: {known}"
        );
    }
    caught(
        &lab,
        "another's Ethernet address",
        "another's Ethernet address",
        || {
            _ = evil(&format!(
                "ip link set eth0 address 0a:58:0a:f4:09:09; ping -c 1 -W 1 {gateway}"
            ));
        },
    );
    assert!(
        lab.exec("n1", &["ping", "-c", "1", "-W", "5", &victim]).ok,
        "the victim is who it was"
    );
}

fn mac_of(lab: &Lab, pod: &str) -> String {
    let line = lab.exec(pod, &["ip", "-o", "link", "show", "eth0"]);
    let mut words = line.text().split_whitespace();
    words.find(|word| *word == "link/ether");
    words.next().unwrap_or_default().to_string()
}
