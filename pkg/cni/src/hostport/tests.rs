use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::protocol::{Attachment, PodRef, RuntimeConfig};

fn lease(serial: u64, pod: &str, addresses: &[&str], mappings: serde_json::Value) -> Lease {
    Lease {
        serial,
        attachment: Attachment::new(&format!("c{serial}"), "eth0").unwrap(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        netns: PathBuf::new(),
        pod: Some(PodRef {
            namespace: "shop".into(),
            name: pod.into(),
            uid: None,
        }),
        network: "svcnet".into(),
        runtime: serde_json::from_value::<RuntimeConfig>(json!({ "portMappings": mappings })).unwrap(),
        unpinned: false,
    }
}

fn mapping(host_port: u16, protocol: &str) -> serde_json::Value {
    json!({ "hostPort": host_port, "containerPort": 80, "protocol": protocol })
}

fn on(host_ip: &str, host_port: u16) -> serde_json::Value {
    let mut mapping = mapping(host_port, "tcp");
    mapping["hostIp"] = json!(host_ip);
    mapping
}

fn observed(desired: &Desired) -> plan::Observed {
    let there = desired.iter().filter(|(_, e)| !e.ports.is_empty());
    there.map(|(family, e)| (*family, Some(e.clone()))).collect()
}

#[test]
fn from_nothing_to_ports_and_back() {
    let dual = ["10.244.1.2", "fd00::2"];
    let leases = [
        lease(
            1,
            "web",
            &dual,
            json!([mapping(8080, "tcp"), on("172.30.0.11", 81)]),
        ),
        lease(2, "dns", &["10.244.1.3"], json!([mapping(5353, "udp")])),
    ];
    let both = desired(leases.iter());
    assert_eq!(
        plan(&both, &plan::Observed::new(), Empty::Goes).to_string(),
        "ip make table\n\
         ip + port *:8080/tcp : 10.244.1.2:80\n\
         ip + port *:5353/udp : 10.244.1.3:80\n\
         ip + port 172.30.0.11:81/tcp : 10.244.1.2:80\n\
         ip + hairpin 10.244.1.2\n\
         ip + hairpin 10.244.1.3\n\
         ip6 make table\n\
         ip6 + port *:8080/tcp : [fd00::2]:80\n\
         ip6 + hairpin fd00::2\n\
         ip6 + loopback 8080/tcp\n"
    );
    let dns = desired(leases[1..].iter());
    assert_eq!(
        plan(&dns, &observed(&both), Empty::Goes).to_string(),
        "ip - port *:8080/tcp\n\
         ip - port 172.30.0.11:81/tcp\n\
         ip - hairpin 10.244.1.2\n\
         ip6 - port *:8080/tcp\n\
         ip6 - hairpin fd00::2\n\
         ip6 - loopback 8080/tcp\n\
         ip6 remove table\n"
    );
    let nothing = desired([].iter());
    assert_eq!(
        plan(&nothing, &observed(&dns), Empty::Goes).to_string(),
        "ip - port *:5353/udp\nip - hairpin 10.244.1.3\nip remove table\n"
    );
    let foreign = plan::Observed::from([(Family::Ip, None)]);
    assert_eq!(
        plan(&nothing, &foreign, Empty::Goes).to_string(),
        "ip remove table\n"
    );
    assert_eq!(
        plan(&both, &foreign, Empty::Goes).0[0],
        (Family::Ip, Op::MakeTable)
    );
}

#[test]
fn host_addresses_choose_the_family() {
    let mappings = json!([
        on("0.0.0.0", 1),
        on("::", 2),
        on("172.30.0.11", 3),
        on("fd01::1", 4)
    ]);
    let got = desired([lease(1, "web", &["10.244.1.2", "fd00::2"], mappings)].iter());
    let ports = |family| -> Vec<String> { got[&family].ports.keys().map(ToString::to_string).collect() };
    assert_eq!(ports(Family::Ip), ["*:1/tcp", "172.30.0.11:3/tcp"]);
    assert_eq!(ports(Family::Ip6), ["*:2/tcp", "[fd01::1]:4/tcp"]);
    assert_eq!(got[&Family::Ip6].loopback, [(Protocol::Tcp, 2)].into());
}

#[test]
fn a_port_is_one_pods_but_a_pod_follows_itself() {
    let first = lease(1, "web", &["10.244.1.2"], json!([mapping(8080, "tcp")]));
    let rivals = |mappings: serde_json::Value, pod: &str| {
        let next = lease(2, pod, &["10.244.1.3"], mappings);
        let wish = Wish {
            attachment: &next.attachment,
            network: &next.network,
            netns: &next.netns,
            pod: next.pod.as_ref(),
            runtime: &next.runtime,
            unpinned: false,
        };
        let found = conflict(&wish, [&first, &next].into_iter());
        found.map(|(mapping, with)| format!("{mapping} {}", with.attachment))
    };
    let taken = Some("8080/tcp eth0 of container c1".to_string());
    assert_eq!(
        rivals(json!([mapping(81, "tcp"), mapping(8080, "tcp")]), "other"),
        taken
    );
    assert_eq!(rivals(json!([mapping(8080, "udp")]), "other"), None);
    assert_eq!(rivals(json!([on("172.30.0.11", 8080)]), "other"), None);
    assert_eq!(
        rivals(json!([on("0.0.0.0", 8080)]), "other").as_ref(),
        taken.as_ref()
    );
    assert_eq!(rivals(json!([mapping(8080, "tcp")]), "web"), None);
    let next = lease(2, "web", &["10.244.1.3"], json!([mapping(8080, "tcp")]));
    let both = desired([&next, &first].into_iter());
    let target = both[&Family::Ip].ports.values().next().unwrap();
    assert_eq!(target.to_string(), "10.244.1.3:80");
    let back = desired([&first].into_iter());
    assert_eq!(
        plan(&back, &observed(&both), Empty::Goes).to_string(),
        "ip - port *:8080/tcp\n\
         ip - hairpin 10.244.1.3\n\
         ip + port *:8080/tcp : 10.244.1.2:80\n\
         ip + hairpin 10.244.1.2\n"
    );
}

/// The sets after a plan, by its words alone.
fn carried_out(before: plan::Observed, plan: &Plan) -> plan::Observed {
    let mut after = before;
    for (family, op) in &plan.0 {
        if *op == Op::RemoveTable {
            after.remove(family);
            continue;
        }
        let held = after.entry(*family).or_default();
        let elements = held.get_or_insert_default();
        let right = match op {
            Op::MakeTable => {
                *elements = Elements::default();
                true
            }
            Op::RemoveTable => false,
            Op::AddPort(port, to) => elements.ports.insert(*port, *to).is_none(),
            Op::DeletePort(port) => elements.ports.remove(port).is_some(),
            Op::AddHairpin(ip) => elements.hairpin.insert(*ip),
            Op::DeleteHairpin(ip) => elements.hairpin.remove(ip),
            Op::AddLoopback(protocol, port) => elements.loopback.insert((*protocol, *port)),
            Op::DeleteLoopback(protocol, port) => elements.loopback.remove(&(*protocol, *port)),
        };
        assert!(right, "the kernel would refuse {op}");
    }
    after
}

fn some_leases() -> impl Strategy<Value = Vec<Lease>> {
    let one = (1..9u64, 1..6u16, any::<bool>(), 0..4usize);
    let lease = one.prop_map(|(serial, port, udp, host)| {
        let host_ips = [None, Some("172.30.0.11"), Some("::"), Some("fd01::1")];
        let mut mapping = mapping(port, if udp { "udp" } else { "tcp" });
        if let Some(ip) = host_ips[host] {
            mapping["hostIp"] = json!(ip);
        }
        let addresses = [format!("10.244.1.{serial}"), format!("fd00::{serial}")];
        lease(
            serial,
            "web",
            &addresses.each_ref().map(String::as_str),
            json!([mapping]),
        )
    });
    prop::collection::vec(lease, 0..8)
}

proptest! {
    /// Step by step or from scratch, the kernel comes to hold the same, and then nothing is left to do.
    #[test]
    fn every_way_leads_to_the_same(
        states in prop::collection::vec((some_leases(), any::<bool>()), 1..5),
    ) {
        let mut held = plan::Observed::new();
        for (leases, goes) in &states {
            let empty = if *goes { Empty::Goes } else { Empty::Stays };
            let wanted = desired(leases.iter());
            let plan = plan(&wanted, &held, empty);
            let believed = plan::carried_out(&plan, &wanted, &held);
            held = carried_out(held, &plan);
            prop_assert_eq!(&held, &believed);
            let mut filled = held.clone();
            filled.retain(|_, e| *goes || e.as_ref().is_some_and(|e| !e.ports.is_empty()));
            prop_assert_eq!(&filled, &observed(&wanted));
            let again = super::plan(&wanted, &held, empty);
            prop_assert!(again.is_empty(), "{}", again);
        }
    }
}
