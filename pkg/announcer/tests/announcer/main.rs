//! Announcers in namespaces on one segment, each in a process of its own: who answers, who takes over, what others
//! see of it. The API is simulated; frames, links and deaths are real.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod api;
mod node;
mod segment;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::packet::arp::{Arp, Operation};
use svcnet_netlink::packet::{Mac, Protocol};

use segment::{Segment, address, mac, slice, wait};

/// The process of a node that another test starts. By itself it does nothing.
#[test]
fn a_process_of_the_other_tests() {
    node::main();
}

fn service_addresses(count: u8) -> Vec<IpAddr> {
    (0..count).map(|i| address(200 + i)).collect()
}

fn reasons(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|e| e["reason"].as_str()).collect()
}

#[test]
fn exactly_one_node_answers_for_each_address_and_says_so() {
    let all = service_addresses(8);
    let segment = Segment::new(3, &all);
    let _nodes = [segment.start(1), segment.start(2), segment.start(3)];
    let owners = segment.owners(&all, &[1, 2, 3]);
    assert!(
        owners.iter().collect::<BTreeSet<_>>().len() > 1,
        "all on one node: {owners:?}"
    );

    // The same as seen by a real client.
    let arping = segment.run("client", &["arping", "-c", "3", "-i", "eth0", "172.30.0.200"]);
    let text = String::from_utf8_lossy(&arping.stdout);
    let owner = format!("02:00:00:00:00:{:02x}", 10 + owners[0]);
    let answers: Vec<&str> = text.lines().filter(|l| l.contains("bytes from")).collect();
    assert!(
        answers.len() == 3 && answers.iter().all(|l| l.contains(&owner)),
        "{text}"
    );

    // An address that nobody was given is nobody's.
    assert!(segment.who_has(address(249)).is_empty());
    // A question sent to another's Ethernet address is not for the owner.
    assert!(segment.ask(all[0], mac(99)).is_empty());
    assert_eq!(segment.ask(all[0], mac(10 + owners[0])), [mac(10 + owners[0])]);

    let events = wait(
        || Some(segment.events(owners[0])).filter(|e| !e.is_empty()),
        || "an event".to_string(),
    );
    let expected = format!("announcing from node \"n{}\" with protocol \"layer2\"", owners[0]);
    assert_eq!(reasons(&events)[0], "nodeAssigned");
    assert_eq!(events[0]["message"], json!(expected));
    assert_eq!(events[0]["involvedObject"]["name"], json!("web"));
}

#[test]
fn a_killed_owner_is_replaced_and_clients_learn_of_it_without_asking() {
    let all = service_addresses(1);
    let segment = Segment::new(3, &all);
    let mut nodes = [1, 2, 3].map(|n| Some(segment.start(n)));
    let owner = segment.owners(&all, &[1, 2, 3])[0];
    // Opened before the death, so that nothing of the takeover is missed.
    let announced = std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            segment.listen(
                Protocol::Arp,
                Duration::from_secs(4),
                |_| {},
                |frame| {
                    Arp::parse(frame)
                        .filter(|a| IpAddr::V4(a.sender) == all[0] && a.target == a.sender)
                        .map(|a| (Instant::now(), a.operation, a.sender_mac, a.destination))
                },
            )
        });
        std::thread::sleep(Duration::from_millis(300));
        let died = Instant::now();
        nodes[usize::from(owner) - 1].take().unwrap().kill();
        let announced = listener.join().unwrap();
        announced
            .into_iter()
            .filter(|(at, _, from, _)| *at > died && *from != mac(10 + owner))
            .inspect(|(at, ..)| println!("announced {:?} after the death", *at - died))
            .collect::<Vec<_>>()
    });
    let rest: Vec<u8> = [1, 2, 3].into_iter().filter(|n| *n != owner).collect();
    let next = segment.owners(&all, &rest)[0];
    let broadcast = |(_, _, from, to): &(Instant, Operation, Mac, Mac)| {
        *from == mac(10 + next) && *to == svcnet_netlink::packet::BROADCAST
    };
    assert!(announced.iter().all(broadcast), "{announced:?}");
    let operations: Vec<Operation> = announced
        .iter()
        .map(|(_, operation, ..)| *operation)
        .take(2)
        .collect();
    assert_eq!(operations, [Operation::Request, Operation::Reply]);

    // It comes back and gets its address back.
    let _again = segment.start(owner);
    wait(
        || (segment.owners(&all, &[1, 2, 3])[0] == owner).then_some(()),
        || format!("n{owner} to own {} again", all[0]),
    );
}

#[test]
fn a_client_cache_follows_the_owner() {
    let all = service_addresses(1);
    let segment = Segment::new(2, &all);
    let mut nodes = [1, 2].map(|n| Some(segment.start(n)));
    let owner = segment.owners(&all, &[1, 2])[0];
    let cached = || {
        let output = segment.run("client", &["ip", "-j", "neigh", "show", "172.30.0.200"]);
        let entries: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        entries[0]["lladdr"].as_str().map(str::to_string)
    };
    // One packet fills the cache; nothing is asked after that.
    segment
        .netns("client")
        .run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"x", "172.30.0.200:80").unwrap();
        })
        .unwrap();
    let expect = |node: u8| {
        let wanted = format!("02:00:00:00:00:{:02x}", 10 + node);
        wait(
            || (cached().as_deref() == Some(&wanted)).then_some(()),
            || format!("{wanted} in the client's cache, where {:?} is", cached()),
        );
    };
    expect(owner);
    nodes[usize::from(owner) - 1].take().unwrap().kill();
    expect(3 - owner);
}

#[test]
fn the_owner_answers_pings_by_a_rule_of_its_own() {
    let all = service_addresses(1);
    let mut segment = Segment::new(2, &all);
    let mut nodes = [1, 2].map(|n| Some(segment.start(n)));
    let owner = segment.owners(&all, &[1, 2])[0];
    let ping = |segment: &Segment| {
        let ping = ["ping", "-c", "1", "-W", "1", "172.30.0.200"];
        wait(
            || segment.run("client", &ping).status.success().then_some(()),
            || "an answer to a ping".to_string(),
        );
    };
    let ruleset = |segment: &Segment, node: u8| {
        let output = segment.run(&format!("n{node}"), &["nft", "list", "ruleset"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ping(&segment);
    let rule = "ip daddr @announced icmp type echo-request redirect";
    let text = ruleset(&segment, owner);
    assert!(
        text.contains(rule) && text.contains("172.30.0.200 comment \"default/web\""),
        "{text}"
    );
    assert_eq!(ruleset(&segment, 3 - owner), "", "the other announces nothing");

    // Whoever stops may be back soon, and what is sent there meanwhile is served.
    nodes[usize::from(owner) - 1].take().unwrap().stop();
    assert_eq!(ruleset(&segment, owner), text);
    segment.owners(&all, &[3 - owner]);
    ping(&segment);

    // Whoever starts clears what it finds, unless it is the owner.
    segment.objects["services"] = json!([]);
    segment.publish();
    let _again = segment.start(owner);
    wait(
        || {
            [1, 2]
                .iter()
                .all(|n| ruleset(&segment, *n).is_empty())
                .then_some(())
        },
        || "the rules to be gone".to_string(),
    );
}

#[test]
fn a_node_that_stops_hands_its_addresses_over() {
    let all = service_addresses(6);
    let segment = Segment::new(2, &all);
    let first = segment.start(1);
    let _second = segment.start(2);
    wait(
        || segment.owners(&all, &[1, 2]).contains(&1).then_some(()),
        || "n1 to own an address".to_string(),
    );
    first.stop();
    assert!(segment.owners(&all, &[2]).iter().all(|n| *n == 2));
}

#[test]
fn a_cut_node_is_replaced_and_takes_part_again_when_healed() {
    let all = service_addresses(6);
    let segment = Segment::new(3, &all);
    let _nodes = [1, 2, 3].map(|n| segment.start(n));
    let before = wait(
        || Some(segment.owners(&all, &[1, 2, 3])).filter(|o| o.contains(&1)),
        || "n1 to own an address".to_string(),
    );
    segment.plug("n1", false);
    segment.owners(&all, &[2, 3]);
    segment.plug("n1", true);
    wait(
        || (segment.owners(&all, &[1, 2, 3]) == before).then_some(()),
        || format!("the owners to be {before:?} again"),
    );
    // Unnoticed: a switch in between dies.
    segment.bridge("n1", false);
    segment.owners(&all, &[2, 3]);
    segment.bridge("n1", true);
    wait(
        || (segment.owners(&all, &[1, 2, 3]) == before).then_some(()),
        || format!("the owners to be {before:?} once more"),
    );
}

#[test]
fn an_address_that_a_stranger_has_is_left_alone_until_it_is_free() {
    let all = service_addresses(1);
    let mut segment = Segment::new(1, &all);
    segment.add("stranger", 66);
    let mut stranger = Rtnl::open_in(segment.netns("stranger")).unwrap();
    let link = stranger.link("eth0").unwrap().unwrap().index;
    let taken = Address {
        link,
        net: "172.30.0.200/32".parse().unwrap(),
    };
    stranger.replace_address(taken).unwrap();
    let _node = segment.start(1);
    let events = wait(
        || Some(segment.events(1)).filter(|e| !e.is_empty()),
        || "an event".to_string(),
    );
    assert_eq!(reasons(&events), ["AddressInUse"]);
    let message = "172.30.0.200 is answered by 02:00:00:00:00:42, not claimed";
    assert_eq!(
        (&events[0]["message"], &events[0]["type"]),
        (&json!(message), &json!("Warning"))
    );
    assert_eq!(segment.who_has(all[0]), [mac(66)]);
    stranger.delete_address(taken).unwrap();
    segment.owners(&all, &[1]);
}

#[test]
fn an_address_follows_its_endpoints_and_configuration() {
    let all = service_addresses(1);
    let mut segment = Segment::new(2, &all);
    let _nodes = [segment.start(1), segment.start(2)];
    segment.owners(&all, &[1, 2]);
    let nobody = |segment: &Segment| {
        wait(
            || segment.who_has(all[0]).is_empty().then_some(()),
            || "nobody to answer".to_string(),
        );
    };

    segment.objects["services"][0]["spec"]["externalTrafficPolicy"] = json!("Local");
    for node in ["n1", "n2"] {
        segment.objects["endpointslices"][0] = slice("web-v4", "IPv4", "10.244.1.2", node);
        segment.publish();
        segment.owners(&all, &[if node == "n1" { 1 } else { 2 }]);
    }
    segment.objects["endpointslices"] = json!([]);
    segment.publish();
    nobody(&segment);

    segment.objects["endpointslices"] = json!([slice("web-v4", "IPv4", "10.244.1.2", "n2")]);
    segment.objects["l2advertisements"][0]["spec"] = json!({"interfaces": ["eth1"]});
    segment.publish();
    nobody(&segment);
    segment.objects["l2advertisements"][0]["spec"] = json!({"interfaces": ["eth0"]});
    segment.publish();
    segment.owners(&all, &[2]);

    segment.objects["l2advertisements"] = json!([]);
    segment.publish();
    nobody(&segment);
    let config = "address-pools:\n- {name: old, protocol: layer2, addresses: [172.30.0.200-172.30.0.210]}\n";
    segment.objects["ipaddresspools"] = json!([]);
    segment.objects["configmaps"] = json!([{
        "metadata": {"namespace": "metallb-system", "name": "config"}, "data": {"config": config},
    }]);
    segment.publish();
    segment.owners(&all, &[2]);
}

#[test]
fn failover_and_restart_work_without_the_api() {
    let all = service_addresses(4);
    let segment = Segment::new(2, &all);
    let first = segment.start(1);
    let second = segment.start(2);
    wait(
        || Some(segment.owners(&all, &[1, 2])).filter(|o| o.contains(&1) && o.contains(&2)),
        || "both to own addresses".to_string(),
    );
    segment.unpublish();
    first.kill();
    segment.owners(&all, &[2]);
    let _first = segment.start(1);
    wait(
        || segment.owners(&all, &[1, 2]).contains(&1).then_some(()),
        || "n1 to own an address again".to_string(),
    );
    drop(second);
    segment.owners(&all, &[1]);
}

#[test]
fn ipv6_addresses_are_announced_as_well() {
    let all: Vec<IpAddr> = ["fd00:30::1", "fd00:30::2"].map(|a| a.parse().unwrap()).into();
    let segment = Segment::new(2, &all);
    let mut nodes = [1, 2].map(|n| Some(segment.start(n)));
    let owner = segment.owners(&all, &[1, 2])[0];
    nodes[usize::from(owner) - 1].take().unwrap().kill();
    assert_eq!(segment.owners(&all, &[3 - owner]), [3 - owner, 3 - owner]);
}
