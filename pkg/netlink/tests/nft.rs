//! nf_tables against the kernel, in namespaces of their own, read back by ourselves and by `nft`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::nft::{
    Batch, Chain, ChainKind, Concat, Data, DataType, Element, Event, Expr, Family, Field, Fields, Hook,
    MapOf, PRIORITY_DSTNAT, PRIORITY_SRCNAT, Rule, Ruleset, Set, Socket, Table, TypeOf, Verdict, Watch,
};

const KEY: [Field; 3] = [Field::Daddr, Field::L4Proto, Field::Dport];

fn nft(ns: &OwnedNetNs, arguments: &[&str]) -> Output {
    ns.run(|| Command::new("nft").args(arguments).output().unwrap())
        .unwrap()
}

/// What `nft list ruleset` prints; it must print all of it.
fn listing(ns: &OwnedNetNs) -> String {
    let json = nft(ns, &["-j", "list", "ruleset"]);
    assert!(
        json.status.success(),
        "nft -j: {}",
        String::from_utf8_lossy(&json.stderr)
    );
    let text = nft(ns, &["list", "ruleset"]);
    assert!(
        text.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&text.stderr)
    );
    String::from_utf8(text.stdout).unwrap()
}

#[expect(clippy::too_many_lines, reason = "one declaration, best read in one piece")]
fn balancer(family: Family) -> Ruleset {
    const V4: [DataType; 3] = [DataType::Ipv4, DataType::Proto, DataType::Port];
    const V6: [DataType; 3] = [DataType::Ipv6, DataType::Proto, DataType::Port];
    const ENDPOINT_KEY_V4: [DataType; 4] =
        [DataType::Ipv4, DataType::Proto, DataType::Port, DataType::Integer];
    const ENDPOINT_KEY_V6: [DataType; 4] =
        [DataType::Ipv6, DataType::Proto, DataType::Port, DataType::Integer];
    let v6 = family == Family::Ip6;
    let endpoint = if v6 {
        Set::map(
            "ep",
            &ENDPOINT_KEY_V6,
            MapOf::Data(&[DataType::Ipv6, DataType::Port]),
        )
        .type_of(
            &[
                TypeOf::Ip6Daddr,
                TypeOf::L4Proto,
                TypeOf::ThDport,
                TypeOf::NumgenRandom(65536),
            ],
            &[TypeOf::Ip6Daddr, TypeOf::ThDport],
        )
    } else {
        Set::map(
            "ep",
            &ENDPOINT_KEY_V4,
            MapOf::Data(&[DataType::Ipv4, DataType::Port]),
        )
        .type_of(
            &[
                TypeOf::IpDaddr,
                TypeOf::L4Proto,
                TypeOf::ThDport,
                TypeOf::NumgenRandom(65536),
            ],
            &[TypeOf::IpDaddr, TypeOf::ThDport],
        )
    };
    Ruleset::new(
        Table {
            bridge: false,
            family,
            name: "t".into(),
        },
        "a test",
    )
    .set(
        Set::map(
            "svc",
            if v6 { &V6 } else { &V4 },
            MapOf::Data(&[DataType::ClassId]),
        )
        .comment("how many"),
    )
    .set(endpoint)
    .set(Set::map("dispatch", &[DataType::ClassId], MapOf::Verdict))
    .set(Set::of("none", if v6 { &V6 } else { &V4 }))
    .chain(Chain::regular("services"))
    .chain(Chain::regular("n2"))
    .chain(Chain::base(
        "pre",
        ChainKind::Nat,
        Hook::Prerouting,
        PRIORITY_DSTNAT,
    ))
    .chain(Chain::base(
        "post",
        ChainKind::Nat,
        Hook::Postrouting,
        PRIORITY_SRCNAT,
    ))
    .chain(Chain::base(
        "filter",
        ChainKind::Filter,
        Hook::Prerouting,
        PRIORITY_DSTNAT + 10,
    ))
    .rule(Rule::new("services").priority_from_map(family, &KEY, "svc"))
    .rule(Rule::new("services").priority_vmap("dispatch"))
    .rule(Rule::new("services").to_this_host().goto("n2"))
    .rule(
        Rule::new("n2")
            .clear_priority()
            .dnat_map(family, &[&KEY[..], &[Field::RandomBelow(2)]].concat(), "ep")
            .comment("one of two"),
    )
    .rule(Rule::new("pre").jump("services"))
    .rule(Rule::new("post").ct_not_dnat().accept())
    .rule(
        Rule::new("post")
            .l4proto(6)
            .load(family, &[Field::OriginalDaddr])
            .expr(Expr::Counter)
            .masquerade()
            .comment("masquerade"),
    )
    .rule(
        Rule::new("filter")
            .in_link_not("lo")
            .ct_new()
            .in_set(family, &KEY, "none")
            .l4proto(6)
            .reject_tcp(),
    )
    .rule(
        Rule::new("filter")
            .ct_new()
            .in_set(family, &KEY, "none")
            .reject(family),
    )
}

#[test]
fn a_ruleset_is_made_once_and_prints() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    for family in [Family::Ip, Family::Ip6] {
        let ruleset = balancer(family);
        let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
        assert!(socket.ensure(&ruleset).unwrap(), "the table is made");
        assert!(!socket.ensure(&ruleset).unwrap(), "the table is there");
        let handle = socket.table(ruleset.table()).unwrap().unwrap().handle;

        let text = listing(&ns);
        let daddr = format!("{family} daddr . meta l4proto . th dport");
        for line in [
            format!("meta priority set {daddr} map @svc"),
            "meta priority vmap @dispatch".to_string(),
            format!(
                "meta priority set none dnat {family} to {daddr} . numgen random mod 2 map @ep comment \"one of two\""
            ),
            format!("ct state new {daddr} @none reject with tcp reset"),
            "comment \"how many\"".to_string(),
        ] {
            assert!(text.contains(&line), "{line:?} is not in\n{text}");
        }

        let flushed = nft(&ns, &["flush", "chain", &family.to_string(), "t", "services"]);
        assert!(flushed.status.success());
        assert!(socket.ensure(&ruleset).unwrap(), "what was removed comes back");
        assert_ne!(socket.table(ruleset.table()).unwrap().unwrap().handle, handle);
        assert!(socket.remove(ruleset.table()).unwrap());
        assert!(!socket.remove(ruleset.table()).unwrap());
    }
}

#[test]
fn a_listing_loads_again() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    for family in [Family::Ip, Family::Ip6] {
        socket.ensure(&balancer(family)).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        listing(&ns).replace("counter packets 0 bytes 0 ", ""),
    )
    .unwrap();
    assert!(nft(&ns, &["flush", "ruleset"]).status.success());
    let loaded = nft(&ns, &["-f", file.path().to_str().unwrap()]);
    assert!(
        loaded.status.success(),
        "{}",
        String::from_utf8_lossy(&loaded.stderr)
    );
}

#[test]
fn elements_are_replaced_in_one_batch_and_read_back() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    let ruleset = balancer(Family::Ip);
    let table = ruleset.table().clone();
    socket.ensure(&ruleset).unwrap();

    let key = Concat::new().ip("10.96.0.1".parse().unwrap()).proto(6).port(443);
    let mut batch = Batch::new();
    let goto = Verdict::Goto("n2".into());
    batch.add_element(
        &table,
        "svc",
        &Element::value(key.as_bytes(), &2u32.to_ne_bytes()).comment("default/k:https"),
    );
    batch.add_element(
        &table,
        "dispatch",
        &Element {
            data: Data::Verdict(&goto),
            ..Element::key(&2u32.to_ne_bytes())
        },
    );
    socket.commit(batch).unwrap();

    let mut batch = Batch::new();
    batch.delete_element(&table, "svc", key.as_bytes(), None);
    batch.add_element(
        &table,
        "svc",
        &Element::value(key.as_bytes(), &3u32.to_ne_bytes()).comment("default/k:new"),
    );
    socket.commit(batch).unwrap();

    let mut seen = Vec::new();
    socket
        .elements(
            &table,
            "svc",
            || {},
            |e| {
                let mut fields = Fields(e.key);
                seen.push((
                    fields.ip(false).unwrap().to_string(),
                    fields.proto().unwrap(),
                    fields.port().unwrap(),
                    Fields(e.value.unwrap()).number().unwrap(),
                    e.comment.map(str::to_string),
                ));
            },
        )
        .unwrap();
    assert_eq!(
        seen,
        [(
            "10.96.0.1".to_string(),
            6,
            443,
            3,
            Some("default/k:new".to_string())
        )]
    );
    let mut verdicts = Vec::new();
    socket
        .elements(&table, "dispatch", || {}, |e| verdicts.push(e.verdict()))
        .unwrap();
    assert_eq!(verdicts, [Some(goto)]);
    assert!(listing(&ns).contains("10.96.0.1 . tcp . 443 comment \"default/k:new\" : 0:3"));
}

#[test]
fn a_refused_batch_changes_nothing_and_says_what_was_wrong() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    let ruleset = balancer(Family::Ip);
    let table = ruleset.table().clone();
    socket.ensure(&ruleset).unwrap();
    let key = Concat::new().ip("10.96.0.1".parse().unwrap()).proto(6).port(443);
    for _ in 0..3 {
        let mut batch = Batch::new();
        batch.add_element(
            &table,
            "svc",
            &Element::value(key.as_bytes(), &2u32.to_ne_bytes()),
        );
        batch.delete_element(&table, "none", key.as_bytes(), None);
        let error = socket.commit(batch).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT));
        assert!(
            error.to_string().contains("delete elements of ip t none"),
            "{error}"
        );
    }
    let mut count = 0;
    socket.elements(&table, "svc", || {}, |_| count += 1).unwrap();
    assert_eq!(count, 0);
}

#[test]
fn a_rule_that_writes_a_map_prints() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    const V4: [DataType; 4] = [DataType::Ipv4, DataType::Ipv4, DataType::Proto, DataType::Port];
    const V6: [DataType; 4] = [DataType::Ipv6, DataType::Ipv6, DataType::Proto, DataType::Port];
    let key = [
        Field::Saddr,
        Field::OriginalDaddr,
        Field::L4Proto,
        Field::OriginalDport,
    ];
    for family in [Family::Ip, Family::Ip6] {
        let set = match family {
            Family::Ip => Set::map("affinity", &V4, MapOf::Data(&[DataType::Ipv4, DataType::Port])),
            Family::Ip6 => Set::map("affinity", &V6, MapOf::Data(&[DataType::Ipv6, DataType::Port])),
        };
        let ruleset = balancer(family)
            .set(set.dynamic(1024))
            .rule(Rule::new("post").l4proto(17).update(
                family,
                "affinity",
                &key,
                10_800_000,
                &[Field::Daddr, Field::Dport],
            ));
        socket.ensure(&ruleset).unwrap();
        let text = listing(&ns);
        let line = format!(
            "update @affinity {{ {family} saddr . ct original {family} daddr . meta l4proto . ct original proto-dst \
             timeout 3h : {family} daddr . "
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn foreign_changes_are_told_apart_from_our_own() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let (mut socket, mut watch) = ns
        .run(|| (Socket::open().unwrap(), Watch::open().unwrap()))
        .unwrap();
    let ruleset = balancer(Family::Ip);
    socket.ensure(&ruleset).unwrap();
    let mut events = Vec::new();
    watch.drain(|event| events.push(event)).unwrap();
    assert!(
        events
            .iter()
            .all(|e| matches!(e, Event::Changed { port, .. } if *port == socket.port())),
        "{events:?}"
    );
    assert!(!events.is_empty());

    assert!(nft(&ns, &["flush", "ruleset"]).status.success());
    events.clear();
    watch.drain(|event| events.push(event)).unwrap();
    let foreign = |e: &Event| matches!(e, Event::Changed { table, port } if table == ruleset.table() && *port != socket.port());
    assert!(events.iter().any(foreign), "{events:?}");
}

#[test]
fn a_hundred_thousand_elements_go_in_one_batch() {
    let ns = OwnedNetNs::unique("svcnet-nft").unwrap();
    let mut socket = ns.run(|| Socket::open().unwrap()).unwrap();
    let ruleset = balancer(Family::Ip);
    let table = ruleset.table().clone();
    socket.ensure(&ruleset).unwrap();
    let mut batch = Batch::new();
    for number in 0..100_000u32 {
        let address = std::net::Ipv4Addr::from(0x0a60_0000 + number);
        let key = Concat::new().ip(address.into()).proto(6).port(80);
        batch.add_element(
            &table,
            "svc",
            &Element::value(key.as_bytes(), &number.to_ne_bytes()).comment("default/s:http"),
        );
    }
    socket.commit(batch).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut seen = BTreeSet::new();
        // What came before a restart is seen again.
        socket
            .elements(
                &table,
                "svc",
                || {},
                |e| {
                    seen.insert(Fields(e.value.unwrap()).number().unwrap());
                },
            )
            .unwrap();
        if seen.len() == 100_000 {
            break;
        }
        // The kernel grows the hash table behind our back, and a listing meanwhile misses some.
        assert!(Instant::now() < deadline, "{} elements", seen.len());
        std::thread::sleep(Duration::from_millis(100));
    }
}
