//! Looking from beside the proxy: the tables without `nft`, what differs, who is connected.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "shared by several tests")]
mod world;

use std::collections::BTreeSet;
use std::net::TcpStream;

use serde_json::{Value, json};
use svcnet_proxy::inspect::Kernel;
use svcnet_proxy::{Frontend, FrontendKey, Mode, inspect, nftables};
use world::{A, B, C, World, annotated, node_ports, run, service, slice};

/// A service of every kind.
fn assortment() -> (Vec<Value>, Vec<Value>) {
    let sticky = json!({ "sessionAffinity": "ClientIP" });
    let local = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                        "loadBalancerSourceRanges": ["192.0.2.0/25", "203.0.113.7/32"] });
    let mut local = service("local", "10.96.1.3", node_ports(local));
    local["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}});
    let services = vec![
        service("web", "10.96.1.1", json!({})),
        service("sticky", "10.96.1.2", sticky.clone()),
        local,
        service("empty", "10.96.1.4", json!({})),
        service("six", "fd00:96::1", sticky),
        chosen("turns", "10.96.1.5", "rr"),
        chosen("six-turns", "fd00:96::2", "rr"),
        chosen("hashed", "10.96.1.6", "sh"),
        chosen("six-hashed", "fd00:96::3", "sh"),
        chosen("maglev", "10.96.1.8", "mh"),
    ];
    let slices = vec![
        slice("web", &[A, B, C]),
        slice("sticky", &[A, C]),
        slice("local", &[B, C]),
        slice("six", &["fd00:244:1::5"]),
        slice("turns", &[A, B, C]),
        slice("six-turns", &["fd00:244:1::5", "fd00:244:1::6"]),
        slice("hashed", &[A, B, C]),
        slice("six-hashed", &["fd00:244:1::5", "fd00:244:1::6"]),
        slice("maglev", &[A, C]),
    ];
    (services, slices)
}

fn chosen(name: &str, address: &str, scheduler: &str) -> Value {
    annotated(
        service(name, address, json!({})),
        json!({ "svcnet.io/scheduler": scheduler }),
    )
}

fn inside<T: Send>(world: &World, body: impl FnOnce() -> T + Send) -> T {
    world.node.run(body).unwrap()
}

/// Without what our form has and nft's has not, and with what has no order in order.
fn comparable(object: &Value) -> Option<String> {
    let mut object = object.clone();
    let (_, inner) = object.as_object_mut()?.iter_mut().next()?;
    let inner = inner.as_object_mut()?;
    for extra in ["comment", "typeof"] {
        if extra == "typeof" || inner.get("name").is_some_and(|name| name == "svcnet") {
            inner.remove(extra);
        }
    }
    if let Some(Value::Array(elements)) = inner.get_mut("elem") {
        elements.sort_by_cached_key(Value::to_string);
    }
    // nft 1.0.6 leaves `dynamic` out.
    if let Some(Value::Array(flags)) = inner.get_mut("flags") {
        flags.retain(|flag| flag != "dynamic");
    }
    // It has no JSON for a map that is written by a rule, and leaves out the match that a reset implies.
    let expr = inner.get("expr").map(Value::to_string).unwrap_or_default();
    let unlike = expr.contains("tcp reset")
        || inner
            .get("chain")
            .is_some_and(|c| c.to_string().contains("stay-"));
    (!unlike).then(|| object.to_string())
}

#[test]
fn the_tables_read_as_nft_reads_them() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    let listings = inside(&world, || nftables::listings().unwrap());
    assert_eq!(listings.len(), 2);
    for (listing, family) in listings.iter().zip(["ip", "ip6"]) {
        let theirs = run(&world.node, "nft", &["-j", "list", "table", family, "svcnet"]);
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        let theirs = theirs["nftables"].as_array().unwrap();
        let theirs: BTreeSet<String> = theirs
            .iter()
            .filter(|object| object.get("metainfo").is_none())
            .filter_map(comparable)
            .collect();
        let ours: BTreeSet<String> = listing
            .objects()
            .filter_map(|object| comparable(&object))
            .collect();
        let missing: Vec<&String> = theirs.difference(&ours).collect();
        let extra: Vec<&String> = ours.difference(&theirs).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{family}:\nnft alone:\n{missing:#?}\nours alone:\n{extra:#?}"
        );
    }
}

/// What a text says, without its layout and without what nft 1.0.6 writes in another way: priorities by name, times in
/// hours, the protocol that a reset or a written key implies.
fn said(text: &str) -> BTreeSet<String> {
    let words = text.split([',', '\n']).map(|line| {
        let line = line.replace("elements = {", "").replace('}', "");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    let unlike = |line: &String| {
        ["hook", "update @", "tcp reset", "flags", "dynamic", "timeout"]
            .iter()
            .any(|part| line.contains(part))
    };
    words.filter(|line| !line.is_empty() && !unlike(line)).collect()
}

#[test]
fn the_text_is_nfts() {
    let mut world = World::new();
    let (services, slices) = assortment();
    world.apply_all(services, slices);
    for listing in inside(&world, || nftables::listings().unwrap()) {
        let ours = said(&listing.to_string());
        let header = listing.to_string();
        let family = header.split(' ').nth(1).unwrap();
        let theirs = said(&run(&world.node, "nft", &["list", "table", family, "svcnet"]));
        let missing: Vec<&String> = theirs.difference(&ours).collect();
        let extra: Vec<&String> = ours.difference(&theirs).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{family}:\nnft alone:\n{missing:#?}\nours alone:\n{extra:#?}"
        );
    }
}

fn config() -> svcnet_proxy::Config {
    svcnet_proxy::Config {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
        service_cidrs: world::settings().service_cidrs,
        ..svcnet_proxy::Config::default()
    }
}

fn on_node(config: &svcnet_proxy::Config) -> inspect::OnNode<'_> {
    inspect::OnNode {
        name: "n1",
        config,
        node: None,
    }
}

fn frontends(services: &[Value], slices: &[Value]) -> Vec<Frontend> {
    let services = services.iter().cloned().map(world::object).collect();
    let slices = slices.iter().cloned().map(world::object).collect();
    inspect::frontends(on_node(&config()), services, slices)
}

#[test]
fn what_differs_is_told_and_nothing_is_changed() {
    let mut world = World::new();
    let (services, slices) = assortment();
    let desired = frontends(&services, &slices);
    world.apply_all(services, slices);
    let kernel = || Kernel::open(on_node(&config()), Mode::Nftables).unwrap();
    let mut tables = inside(&world, kernel);
    let plan = tables.diff(desired.clone()).unwrap();
    assert!(plan.is_empty(), "{plan}");

    let (web, sticky) = (
        key(&desired, "default/web:http"),
        key(&desired, "default/sticky:http"),
    );
    let damage = "delete element ip svcnet services { 10.96.1.1 . tcp . 80 }";
    run(&world.node, "nft", &damage.split(' ').collect::<Vec<_>>());
    for _ in 0..2 {
        let plan = tables.diff(desired.clone()).unwrap();
        assert_eq!(plan.len(), 1, "{plan}");
        assert!(plan.concerns(web) && !plan.concerns(sticky), "{plan}");
    }
    run(&world.node, "nft", &["flush", "ruleset"]);
    let plan = tables.diff(desired.clone()).unwrap();
    assert!(plan.missing(web).is_some() && plan.concerns(sticky), "{plan}");
}

fn key(desired: &[Frontend], name: &str) -> FrontendKey {
    desired.iter().find(|f| &*f.name == name).unwrap().key
}

#[test]
fn relays_are_seen_by_their_addresses_and_sockets() {
    let mut world = World::userspace();
    let (mut services, mut slices) = assortment();
    let mut sctp = service("sctp", "10.96.1.9", json!({}));
    sctp["spec"]["ports"] = json!([{ "name": "s", "port": 80, "protocol": "SCTP" }]);
    services.push(sctp);
    slices.push(slice("sctp", &[A]));
    let desired = frontends(&services, &slices);
    world.apply_all(services.clone(), slices.clone());
    let look = |desired: &[Frontend]| {
        let body = || {
            let mut kernel = Kernel::open(on_node(&config()), Mode::Userspace).unwrap();
            kernel.diff(desired.iter().cloned()).unwrap()
        };
        inside(&world, body)
    };
    let all = look(&desired);
    assert!(all.is_empty(), "{all}");
    assert_eq!(all.impossible().len(), 1, "SCTP is not relayed");
    let (web, empty) = (
        key(&desired, "default/web:http"),
        key(&desired, "default/empty:http"),
    );
    assert!(!all.concerns(web) && !all.concerns(empty));
    let node_ports = desired
        .iter()
        .filter(|f| matches!(f.key, FrontendKey::NodePort { .. }));
    assert_eq!(node_ports.count(), 2, "node ports are looked at, too");

    let ruleset = inside(&world, || inspect::Ruleset::read().unwrap());
    let text = ruleset.to_string();
    assert!(text.contains("listening: 10.96.1.1:80 tcp\n"), "{text}");
    let relays = &ruleset.json("0")["relays"]["addresses"];
    assert!(
        relays.as_array().unwrap().contains(&json!("10.96.1.1")),
        "{relays}"
    );

    // One that is to be there, and one that is to be gone.
    let mut more = services.clone();
    more.push(service("late", "10.96.1.10", json!({})));
    slices.push(slice("late", &[A]));
    let late = frontends(&more, &slices);
    let missing = look(&late);
    let late_key = key(&late, "default/late:http");
    assert_eq!(
        missing.to_string(),
        "place 10.96.1.10\nopen 10.96.1.10:80 tcp\nopen 10.96.1.10:80 udp\n"
    );
    assert_eq!(
        missing.of(late_key),
        ["place 10.96.1.10", "open 10.96.1.10:80 tcp"]
    );
    assert!(missing.concerns(late_key) && !missing.concerns(web));
    let without: Vec<Frontend> = desired
        .iter()
        .filter(|f| !f.name.starts_with("default/web:"))
        .cloned()
        .collect();
    let needless = look(&without);
    assert_eq!(
        needless.to_string(),
        "close 10.96.1.1:80 tcp\nclose 10.96.1.1:80 udp\nrelease 10.96.1.1\n"
    );
}

#[test]
fn live_connections_are_counted_and_closed_ones_are_not() {
    let mut world = World::new();
    let (services, slices) = assortment();
    let desired = frontends(&services, &slices);
    world.apply_all(services, slices);
    let web = desired
        .iter()
        .find(|f| &*f.name == "default/web:http")
        .unwrap()
        .clone();
    let open: Vec<TcpStream> = (0..6)
        .map(|_| {
            world
                .a
                .run(|| TcpStream::connect("10.96.1.1:80").unwrap())
                .unwrap()
        })
        .collect();
    let counted = |world: &World| -> usize {
        let connections = inside(world, || inspect::count(&desired).unwrap());
        web.endpoints().map(|e| connections.to(web.key, e.at)).sum()
    };
    assert_eq!(counted(&world), open.len());
    drop(open);
    let deadline = std::time::Instant::now() + world::PATIENCE;
    while counted(&world) > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "closed connections still count"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
