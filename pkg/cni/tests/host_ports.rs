//! Ports of the host that lead to containers, with real packets: from outside, from the node and its loopback, from
//! containers; and nothing of them afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test fails by panicking, and uses a part of what the modules have"
)]

mod node;
mod talk;

use node::{Api, Container, Node, eventually};
use serde_json::{Value, json};
use svcnet_netlink::netns::NetNs;
use talk::{Responder, Transport, ask, exchange, flow, is_silent, sctp_arrives};

const DUAL: &[&str] = &["10.244.1.0/24", "fd00:10:244:1::/64"];

fn mapping(host_port: u16, container_port: u16, transport: Transport) -> Value {
    json!({ "hostPort": host_port, "containerPort": container_port, "protocol": transport.name() })
}

fn config(node: &Node, mappings: &[Value]) -> Value {
    let mut config = node.config("1.0.0");
    config["runtimeConfig"] = json!({ "portMappings": mappings });
    config
}

fn add(node: &Node, container: &Container, mappings: &[Value]) -> Value {
    node.plugin("ADD", container, &config(node, mappings))
        .expect("ADD")
}

fn del(node: &Node, container: &Container) {
    assert_eq!(
        node.plugin("DEL", container, &node.config("1.0.0")),
        Ok(Value::Null)
    );
}

/// What the kernel holds of ours.
fn tables(node: &Node) -> String {
    let all = node.run("nft list tables").1;
    let ours = all.lines().filter(|l| l.contains("svcnet-hostport"));
    ours.collect::<Vec<_>>().join("\n")
}

fn answers(ns: &NetNs, transport: Transport, to: &str, name: &str, seen: Option<&str>) {
    let (who, sees) = ask(ns, transport, to).unwrap_or_else(|e| panic!("{to}/{}: {e:?}", transport.name()));
    assert_eq!(who, name, "{to}/{}", transport.name());
    if let Some(seen) = seen {
        assert_eq!(sees.to_string(), seen, "{to}/{}", transport.name());
    }
}

#[test]
fn a_port_answers_from_everywhere_over_every_transport() {
    let node = Node::start_with(Api::default(), DUAL);
    let outside = node.neighbour();
    let (web, other) = (Container::new("web"), Container::new("other"));
    let mut mappings: Vec<Value> = Transport::ALL.iter().map(|t| mapping(8080, 80, *t)).collect();
    mappings.push(json!({ "hostPort": 8080, "containerPort": 3869, "protocol": "SCTP" }));
    add(&node, &web, &mappings);
    add(&node, &other, &[]);
    let _responders = Transport::ALL.map(|t| Responder::start(web.ns(), t, 80, "web"));
    for transport in Transport::ALL {
        answers(
            &outside,
            transport,
            "172.30.0.11:8080",
            "web",
            Some("172.30.0.100"),
        );
        answers(&outside, transport, "[fd01::11]:8080", "web", Some("fd01::100"));
        for to in [
            "172.30.0.11:8080",
            "127.0.0.1:8080",
            "127.9.9.9:8080",
            "[fd01::11]:8080",
            "[::1]:8080",
        ] {
            answers(node.ns(), transport, to, "web", None);
        }
        answers(
            other.ns(),
            transport,
            "172.30.0.11:8080",
            "web",
            Some("10.244.1.3"),
        );
        answers(
            other.ns(),
            transport,
            "[fd01::11]:8080",
            "web",
            Some("fd00:10:244:1::3"),
        );
        // Itself, as who it can not see: the answer must come back through the node.
        answers(web.ns(), transport, "172.30.0.11:8080", "web", Some("10.244.1.1"));
        answers(web.ns(), transport, "[fd01::11]:8080", "web", None);
    }
    for to in ["172.30.0.11:8080", "[fd01::11]:8080"] {
        assert_eq!(sctp_arrives(&outside, to, web.ns()), Some(3869), "{to}");
        assert_eq!(sctp_arrives(node.ns(), to, web.ns()), Some(3869), "{to}");
    }
    assert_eq!(sctp_arrives(node.ns(), "127.0.0.1:8080", web.ns()), Some(3869));
    let mut checked = config(&node, &mappings);
    assert_eq!(node.plugin("CHECK", &web, &checked), Ok(Value::Null));
    // The daemon may look at the table at any moment, and puts it back then.
    eventually("CHECK sees what is missing", || {
        node.run("nft delete element ip svcnet-hostport ports { tcp . 8080 }");
        let error = node.plugin("CHECK", &web, &checked).err();
        error.is_some_and(|e| e["details"] == "port *:8080/tcp of the host does not lead to 10.244.1.2:80")
    });
    checked["runtimeConfig"] = Value::Null;
    del(&node, &web);
    eventually("nothing is left", || tables(&node).is_empty());
    assert!(
        !node
            .run("ip -6 route show table local proto 117")
            .1
            .contains("fd73")
    );
    assert!(ask(&outside, Transport::Tcp, "172.30.0.11:8080").is_err());
}

#[test]
fn a_host_address_goes_before_all_and_is_alone() {
    let node = Node::start_with(Api::default(), DUAL);
    let outside = node.neighbour();
    assert!(node.run("ip address add 172.30.0.12/24 dev eth0").0);
    let (all, one) = (Container::new("all"), Container::new("one"));
    let mut on_one = mapping(8080, 80, Transport::Tcp);
    on_one["hostIP"] = json!("172.30.0.12");
    add(&node, &all, &[mapping(8080, 80, Transport::Tcp)]);
    add(&node, &one, &[on_one]);
    let _all = Responder::start(all.ns(), Transport::Tcp, 80, "all");
    let _one = Responder::start(one.ns(), Transport::Tcp, 80, "one");
    answers(&outside, Transport::Tcp, "172.30.0.11:8080", "all", None);
    answers(&outside, Transport::Tcp, "172.30.0.12:8080", "one", None);
    answers(node.ns(), Transport::Tcp, "127.0.0.1:8080", "all", None);
    del(&node, &all);
    assert!(ask(&outside, Transport::Tcp, "172.30.0.11:8080").is_err());
    answers(&outside, Transport::Tcp, "172.30.0.12:8080", "one", None);
}

#[test]
fn a_port_is_one_pods_and_the_refusal_takes_nothing() {
    let node = Node::start(Api::default());
    let (first, second) = (Container::new("first"), Container::new("second"));
    add(&node, &first, &[mapping(8080, 80, Transport::Tcp)]);
    let wanted = config(
        &node,
        &[mapping(81, 80, Transport::Tcp), mapping(8080, 80, Transport::Tcp)],
    );
    let error = node.plugin("ADD", &second, &wanted).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"], &error["details"]),
        (
            &json!(105),
            &json!("port 8080/tcp of the host is in use"),
            &json!("it leads to eth0 of container first (pod shop/first)")
        )
    );
    assert_eq!(node.leases(), 1);
    // Its runtime lost it: then its port is free.
    drop(first);
    eventually("the namespace is gone, and its link", || {
        !node.run("ip -br link").1.contains("veth")
    });
    assert!(node.plugin("ADD", &second, &wanted).is_ok());
    assert_eq!(node.leases(), 1);
    let listed = node.run("nft list map ip svcnet-hostport ports").1;
    assert!(
        listed.contains("tcp . 81") && listed.contains(": 10.244.1.3 . 80"),
        "{listed}"
    );
}

#[test]
fn datagrams_of_a_flow_follow_the_port() {
    let node = Node::start(Api::default());
    let outside = node.neighbour();
    let (first, second) = (Container::new("first"), Container::new("second"));
    add(&node, &first, &[mapping(5353, 53, Transport::Udp)]);
    let _first = Responder::start(first.ns(), Transport::Udp, 53, "first");
    let socket = flow(&outside, "172.30.0.11:5353");
    eventually("the first answers", || {
        exchange(&socket).is_ok_and(|(who, _)| who == "first")
    });
    del(&node, &first);
    add(&node, &second, &[mapping(5353, 53, Transport::Udp)]);
    let _second = Responder::start(second.ns(), Transport::Udp, 53, "second");
    eventually("the second answers the same flow", || {
        exchange(&socket).is_ok_and(|(who, _)| who == "second")
    });
}

#[test]
fn the_cluster_dns_and_loopback_are_out_of_reach() {
    let mut node = Node::start(Api::default());
    assert!(node.run("ip address add 10.96.0.10/32 dev lo").0);
    let dns = "10.96.0.10:53".parse().unwrap();
    let _dns = Responder::start_at(node.ns(), Transport::Udp, dns, "dns");
    let secret = "127.0.0.1:9999".parse().unwrap();
    let _secret = Responder::start_at(node.ns(), Transport::Udp, secret, "secret");
    let (pod, other) = (Container::new("pod"), Container::new("other"));
    add(&node, &pod, &[mapping(53, 53, Transport::Udp)]);
    add(&node, &other, &[]);
    let _pod = Responder::start(pod.ns(), Transport::Udp, 53, "pod");
    answers(other.ns(), Transport::Udp, "172.30.0.11:53", "pod", None);
    answers(other.ns(), Transport::Udp, "10.96.0.10:53", "dns", None);
    // A container that can do all in its namespace sends to the node's loopback.
    let set = || svcnet_netlink::sysctl::set("net/ipv4/conf/all/route_localnet", "1");
    other.ns().run(set).unwrap().unwrap();
    for words in [
        "ip address flush dev lo",
        "ip route add 127.0.0.0/8 via 10.244.1.1 dev eth0",
    ] {
        assert!(other.run(words).0, "{words}");
    }
    assert!(is_silent(other.ns(), Transport::Udp, "127.0.0.1:9999"));
    // The agent would put back what is flushed.
    node.stop();
    assert!(node.run("nft flush chain ip svcnet-hostport guard").0);
    answers(other.ns(), Transport::Udp, "127.0.0.1:9999", "secret", None);
}

#[test]
fn what_others_do_is_healed_and_del_needs_no_agent() {
    let mut node = Node::start_with(Api::default(), DUAL);
    let (one, two) = (Container::new("one"), Container::new("two"));
    add(&node, &one, &[mapping(8081, 80, Transport::Tcp)]);
    add(&node, &two, &[mapping(8082, 80, Transport::Tcp)]);
    let _one = Responder::start(one.ns(), Transport::Tcp, 80, "one");
    let ports = |node: &Node| node.run("nft list map ip svcnet-hostport ports").1;
    for harm in [
        "nft delete table ip svcnet-hostport",
        "nft flush chain ip svcnet-hostport host-ports",
        "nft delete element ip svcnet-hostport ports { tcp . 8081 }",
        "nft add element ip svcnet-hostport ports { tcp . 8083 : 10.244.1.9 . 80 }",
    ] {
        assert!(node.run(harm).0, "{harm}");
        // It is looked at when anything of the network changes, and each minute.
        assert!(node.run("ip address flush dev svcnet0").0);
        eventually(harm, || {
            let listed = ports(&node);
            let right = listed.contains("tcp . 8081") && !listed.contains("8083");
            right && ask(node.ns(), Transport::Tcp, "127.0.0.1:8081").is_ok_and(|(who, _)| who == "one")
        });
    }
    node.stop();
    del(&node, &one);
    let listed = ports(&node);
    assert!(!listed.contains("8081") && listed.contains("8082"), "{listed}");
    let listed6 = node.run("nft list table ip6 svcnet-hostport").1;
    assert!(!listed6.contains("8081") && listed6.contains("8082"), "{listed6}");
    del(&node, &two);
    assert_eq!(tables(&node), "");
}
