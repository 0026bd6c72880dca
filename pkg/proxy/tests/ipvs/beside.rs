//! Looking at IPVS from beside the proxy.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use svcnet_netlink::ipvs::{Destination, Identity, Op};
use svcnet_proxy::ipvs::LINK;
use svcnet_proxy::{Mode, inspect};

use crate::world::{self, A, B, C, World, ip, node_ports, service, slice};
use crate::{VIP, at, kernel, listing, with_scheduler};

fn all_is_listed(world: &World) {
    // The same as ipvsadm's, but for the order and blanks at ends of lines.
    let ruleset = world.node.run(|| inspect::Ruleset::read().unwrap()).unwrap();
    let text = ruleset.to_string();
    let lines = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines.map(|line| line.trim_end().to_string()).collect()
    };
    assert_eq!(lines(&text), lines(&listing(world)));
    assert!(
        text.contains("\nkube-ipvs0: 10.96.1.1 10.96.1.2 fd00:96::1\n"),
        "{text}"
    );
    assert!(text.contains("table ip svcnet-ipvs {"), "{text}");
    let json = ruleset.json("0");
    assert_eq!(json["ipvs"]["services"][0]["at"], "10.96.1.1:80");
    assert_eq!(json["nftables"][1]["table"]["name"], "svcnet-ipvs");
}

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn what_differs_is_told_and_all_is_listed() {
    let mut world = crate::world();
    let affinity = json!({ "sessionAffinity": "ClientIP" });
    let services = vec![
        service("web", "10.96.1.1", node_ports(json!({ "type": "NodePort" }))),
        with_scheduler(service("hashed", "10.96.1.2", affinity), "sh"),
        with_scheduler(
            service("six", "fd00:96::1", json!({ "ipFamilies": ["IPv6"] })),
            "wlc",
        ),
    ];
    let slices = vec![
        slice("web", &[A, C]),
        slice("hashed", &[B]),
        slice("six", &["fd00:244:1::5"]),
    ];
    world.apply_all(services.clone(), slices.clone());
    let config = svcnet_proxy::Config {
        cluster_cidrs: world::pod_networks().to_vec(),
        service_cidrs: world::settings().service_cidrs,
        ..svcnet_proxy::Config::default()
    };
    let on = inspect::OnNode {
        name: "n1",
        config: &config,
        node: None,
    };
    let objects = |all: Vec<Value>| all.into_iter().map(world::object).collect::<Vec<_>>();
    let slices = slices.into_iter().map(world::object).collect();
    let desired = inspect::frontends(on, objects(services), slices);
    let look = || {
        let mut kernel = inspect::Kernel::open(on, Mode::Ipvs).unwrap();
        kernel.diff(desired.iter().cloned()).unwrap()
    };
    let diff = |world: &World| world.node.run(look).unwrap();
    let key = |name: &str| desired.iter().find(|f| &*f.name == name).unwrap().key;
    let (web, hashed) = (key("default/web:http"), key("default/hashed:http"));
    let same = diff(&world);
    assert!(same.is_empty(), "{same}");
    assert_eq!(
        same.held(web).unwrap(),
        "IPVS sends 10.96.1.1:80 tcp by rr to 10.244.1.5:8080 (weight 1), 10.244.2.5:8080 (weight 1); \
         10.96.1.1 is on kube-ipvs0"
    );

    all_is_listed(&world);

    // What somebody changes is told for what it concerns, and left so.
    let to = Destination::masquerade(format!("{A}:8080").parse().unwrap(), 7);
    let service = Identity::Address(at(VIP, 6));
    kernel(&world).apply(&[Op::SetDestination(service, to)]).unwrap();
    for _ in 0..2 {
        let weight = diff(&world);
        assert_eq!(
            weight.of(web),
            ["set destination 10.244.1.5:8080 weight 1 of 10.96.1.1:80 tcp"]
        );
        assert!(weight.concerns(web) && !weight.concerns(hashed), "{weight}");
    }
    ip(&world.node, &format!("addr del 10.96.1.2/32 dev {LINK}"));
    assert_eq!(diff(&world).of(hashed), ["put 10.96.1.2 on the link"]);
    let element = "delete element ip svcnet-ipvs bound { 10.96.1.2 }";
    world::run(&world.node, "nft", &element.split(' ').collect::<Vec<_>>());
    assert_eq!(diff(&world).of(hashed).len(), 2);
    ip(&world.node, &format!("link del {LINK}"));
    assert_eq!(diff(&world).missing(web).as_deref(), Some("the link kube-ipvs0"));
    world::run(&world.node, "nft", &["flush", "ruleset"]);
    assert_eq!(
        diff(&world).missing(web).as_deref(),
        Some("the table ip svcnet-ipvs")
    );
}
