use proptest::prelude::*;
use svcnet_netlink::underlay::{Choice, Underlay};

use super::*;
use crate::Mode;
use crate::desired::{Over, Unreachable, Waiting, desired};

fn config() -> Config {
    Config {
        mode: Mode::Vxlan,
        underlay: Choice::default(),
        vni: svcnet_api::types::Vni::new(1).unwrap(),
        port: 8472,
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        mtu: None,
        verify_every: crate::VERIFY_EVERY,
    }
}

fn facts(with_bridge: bool) -> Facts {
    Facts {
        underlay: Underlay {
            link: 2,
            name: "eth0".into(),
            address: "172.30.0.11".parse().unwrap(),
            mtu: 1500,
        },
        on_link: vec!["172.30.0.0/24".parse().unwrap()],
        corrupts: false,
        gateways: if with_bridge {
            vec!["10.244.1.1".parse().unwrap()]
        } else {
            Vec::new()
        },
    }
}

fn net(address: &str, cidrs: &[&str]) -> NodeNet {
    NodeNet {
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    }
}

fn view(peers: &[(&str, NodeNet)]) -> View {
    let mut view = View::new("n1");
    view.set("n1", Some(net("172.30.0.11", &["10.244.1.0/24"])));
    for (name, net) in peers {
        view.set(name, Some(net.clone()));
    }
    view
}

/// A kernel without refusals: what a plan makes of what was observed.
fn applied(plan: &Plan, observed: &Observed) -> Observed {
    let mut next = observed.clone();
    for op in &plan.ops {
        match op {
            Op::DeleteLink => {
                next.link = None;
                next.entries.retain(|e| !e.is_over_vxlan());
            }
            Op::AddLink(link) => {
                assert!(next.link.is_none(), "the name is free");
                next.link = Some(ObservedLink {
                    vxlan: Some(link.vxlan.clone()),
                    mac: Some(link.mac),
                    mtu: link.mtu,
                    up: true,
                    checksums_before: false,
                });
            }
            Op::ChangeLink { mac, mtu } => {
                let link = next.link.as_mut().unwrap();
                (link.mac, link.mtu, link.up) = (Some(*mac), *mtu, true);
            }
            Op::ChecksumsBefore => next.link.as_mut().unwrap().checksums_before = true,
            Op::DeleteStray(route) => next.strays.retain(|r| r.route != *route),
            Op::Delete(entry) => assert!(next.entries.remove(entry), "{entry} is there"),
            Op::Set(entry) => {
                assert!(
                    next.link.is_some() || !entry.is_over_vxlan(),
                    "{entry} needs its link"
                );
                let same: Vec<Entry> = next
                    .entries
                    .iter()
                    .filter(|e| e.key() == entry.key())
                    .copied()
                    .collect();
                assert!(same.len() < 2, "one entry is replaced, not several");
                for former in same {
                    next.entries.remove(&former);
                }
                next.entries.insert(*entry);
            }
            Op::Sysctl { name, value } => _ = next.sysctls.insert(name.clone(), (*value).to_string()),
            Op::Masquerade(masquerade) => next.masquerade = Some(masquerade.clone()),
        }
    }
    next
}

#[test]
fn a_node_among_two_from_nothing() {
    let view = view(&[("n2", net("172.30.0.12", &["10.244.2.0/24"]))]);
    let desired = desired(&config(), &view, &facts(true)).unwrap();
    let plan = plan(&desired, &Observed::default());
    assert_eq!(
        plan.to_string(),
        "add link svcnet.1 vxlan id 1 port 8472 local 172.30.0.11 mac 66:6b:8b:b8:4c:e7 mtu 1450\n\
         set address 10.244.1.0/32 dev svcnet.1\n\
         set fdb 06:80:a9:3d:2e:9b dst 172.30.0.12 dev svcnet.1\n\
         set neigh 10.244.2.0 lladdr 06:80:a9:3d:2e:9b dev svcnet.1\n\
         set route 10.96.0.0/12 dev svcnet0 src 10.244.1.1\n\
         set route 10.244.2.0/24 via 10.244.2.0 onlink dev svcnet.1\n\
         sysctl net/ipv4/conf/all/send_redirects = 0\n\
         sysctl net/ipv4/conf/svcnet.1/send_redirects = 0\n\
         sysctl net/ipv4/conf/svcnet0/send_redirects = 0\n\
         sysctl net/ipv4/ip_forward = 1\n\
         masquerade 10.244.1.0/24 except to 10.244.0.0/16 10.96.0.0/12\n"
    );
    let after = applied(&plan, &Observed::default());
    assert!(super::plan(&desired, &after).is_empty());
}

#[test]
fn a_peers_new_address_and_its_end_touch_nothing_else() {
    let mut view = view(&[
        ("n2", net("172.30.0.12", &["10.244.2.0/24"])),
        ("n3", net("172.30.0.13", &["10.244.3.0/24"])),
    ]);
    let facts = facts(true);
    let mut desired = desired(&config(), &view, &facts).unwrap();
    let moved = desired.take(
        &config(),
        &mut view,
        &facts,
        "n2",
        Some(net("172.30.0.22", &["10.244.2.0/24"])),
    );
    assert_eq!(
        moved.to_string(),
        "set fdb 06:80:a9:3d:2e:9b dst 172.30.0.22 dev svcnet.1\n"
    );
    let gone = desired.take(&config(), &mut view, &facts, "n2", None);
    assert_eq!(
        gone.to_string(),
        "delete route 10.244.2.0/24 via 10.244.2.0 onlink dev svcnet.1\n\
         delete neigh 10.244.2.0 lladdr 06:80:a9:3d:2e:9b dev svcnet.1\n\
         delete fdb 06:80:a9:3d:2e:9b dst 172.30.0.22 dev svcnet.1\n"
    );
}

fn in_mode(mode: Mode) -> Config {
    Config { mode, ..config() }
}

#[test]
fn nodes_on_the_link_are_reached_directly_and_the_others_as_the_mode_says() {
    let view = view(&[
        ("n2", net("172.30.0.12", &["10.244.2.0/24"])),
        ("n3", net("172.31.0.13", &["10.244.3.0/24"])),
    ]);
    let routes = |mode| {
        let desired = desired(&in_mode(mode), &view, &facts(false)).unwrap();
        let routes = desired
            .entries
            .values()
            .filter(|e| matches!(e, Entry::Route { .. }));
        routes.map(Entry::to_string).collect::<Vec<_>>()
    };
    let direct = "route 10.244.2.0/24 via 172.30.0.12 onlink dev the nodes' link";
    let encapsulated = "route 10.244.3.0/24 via 10.244.3.0 onlink dev svcnet.1";
    assert_eq!(routes(Mode::Auto), [direct, encapsulated]);
    assert_eq!(routes(Mode::Direct), [direct]);
    let far = peer(
        &in_mode(Mode::Direct),
        &view,
        &facts(false),
        "n3",
        view.node("n3").unwrap(),
    );
    let reason = Unreachable::NotOnLink("10.244.3.0/24".parse().unwrap());
    assert_eq!(far.unreachable, Some(reason));
}

#[test]
fn another_mode_takes_the_routes_over_before_it_leaves_the_link() {
    let view = view(&[("n2", net("172.30.0.12", &["10.244.2.0/24"]))]);
    let [vxlan, direct] =
        [Mode::Vxlan, Mode::Direct].map(|mode| desired(&in_mode(mode), &view, &facts(false)).unwrap());
    let fresh = |desired: &Desired| applied(&plan(desired, &Observed::default()), &Observed::default());
    assert_eq!(
        plan(&direct, &fresh(&vxlan)).to_string(),
        "set route 10.244.2.0/24 via 172.30.0.12 onlink dev the nodes' link\ndelete link svcnet.1\n"
    );
    let back = plan(&vxlan, &fresh(&direct)).to_string();
    let (first, last) = (
        back.find("add link").unwrap(),
        back.find("set route 10.244.2.0/24 via 10.244.2.0").unwrap(),
    );
    assert!(first < last && !back.contains("delete route"), "{back}");
}

#[test]
fn a_smaller_path_is_said_by_the_route_and_to_tcp() {
    let mut view = view(&[("n2", net("172.30.0.12", &["10.244.2.0/24"]))]);
    let facts = facts(false);
    let mut vxlan = desired(&config(), &view, &facts).unwrap();
    let smaller = vxlan.take_path(&config(), &mut view, &facts, "n2", Some(1400));
    assert_eq!(
        smaller.to_string(),
        "set route 10.244.2.0/24 via 10.244.2.0 onlink dev svcnet.1 mtu 1350\n\
         masquerade 10.244.1.0/24 except to 10.244.0.0/16 10.96.0.0/12, clamp segments\n"
    );
    let whole = vxlan.take_path(&config(), &mut view, &facts, "n2", None);
    assert!(
        whole.to_string().contains("onlink dev svcnet.1\nmasquerade") && !whole.to_string().contains("clamp")
    );
    let mut direct = desired(&in_mode(Mode::Direct), &view, &facts).unwrap();
    let smaller = direct.take_path(&in_mode(Mode::Direct), &mut view, &facts, "n2", Some(1400));
    assert!(
        smaller.to_string().contains("dev the nodes' link mtu 1400\n"),
        "{smaller}"
    );
    // A path that carries what pods send anyway changes nothing.
    let small_pods = Config {
        mtu: Some(1200),
        ..config()
    };
    let mut vxlan = desired(&small_pods, &view, &facts).unwrap();
    assert!(
        vxlan
            .take_path(&small_pods, &mut view, &facts, "n2", Some(1400))
            .is_empty()
    );
}

#[test]
fn checksums_are_computed_before_where_they_arrive_wrong() {
    let view = view(&[]);
    let wrong = Facts {
        corrupts: true,
        ..facts(false)
    };
    let desired = desired(&config(), &view, &wrong).unwrap();
    let plan_text = plan(&desired, &Observed::default()).to_string();
    assert!(
        plan_text.contains("change link svcnet.1 tx-checksumming off"),
        "{plan_text}"
    );
    let after = applied(&plan(&desired, &Observed::default()), &Observed::default());
    assert!(plan(&desired, &after).is_empty());
    // Switched on again by somebody.
    let mut on = after;
    on.link.as_mut().unwrap().checksums_before = false;
    assert_eq!(
        plan(&desired, &on).to_string(),
        "change link svcnet.1 tx-checksumming off\n"
    );
}

#[test]
fn a_link_of_another_kind_is_replaced_and_what_is_set_twice_is_cleaned() {
    let view = view(&[("n2", net("172.30.0.12", &["10.244.2.0/24"]))]);
    let desired = desired(&config(), &view, &facts(false)).unwrap();
    let right = applied(&plan(&desired, &Observed::default()), &Observed::default());
    let mut other_port = right.clone();
    other_port.link.as_mut().unwrap().vxlan.as_mut().unwrap().port = 4789;
    let text = plan(&desired, &other_port).to_string();
    assert!(
        text.starts_with("delete link svcnet.1\nadd link svcnet.1"),
        "{text}"
    );
    assert!(!text.contains("delete route"), "goes with its link: {text}");

    let mut twice = right.clone();
    let mac = crate::desired::vxlan_mac("n2");
    twice.entries.insert(Entry::Fdb {
        mac,
        destination: "172.30.0.99".parse().unwrap(),
    });
    assert_eq!(
        plan(&desired, &twice).to_string(),
        format!("delete fdb {mac} dst 172.30.0.99 dev svcnet.1\n")
    );
    let mut moved = right;
    moved.entries.remove(&Entry::Fdb {
        mac,
        destination: "172.30.0.12".parse().unwrap(),
    });
    moved.entries.insert(Entry::Fdb {
        mac,
        destination: "172.30.0.99".parse().unwrap(),
    });
    assert_eq!(
        plan(&desired, &moved).to_string(),
        format!("set fdb {mac} dst 172.30.0.12 dev svcnet.1\n")
    );
}

#[test]
fn waits_for_the_own_node_and_its_pod_cidr() {
    let mut view = View::new("n1");
    assert_eq!(desired(&config(), &view, &facts(false)), Err(Waiting::Node));
    view.set("n1", Some(net("172.30.0.11", &[])));
    assert_eq!(desired(&config(), &view, &facts(false)), Err(Waiting::PodCidr));
}

fn any_net() -> impl Strategy<Value = NodeNet> {
    let address = prop::option::of(11..16u8);
    // Few networks for several nodes: they must quarrel.
    let cidrs = prop::collection::btree_set(1..5u8, 0..3);
    (address, cidrs).prop_map(|(address, cidrs)| NodeNet {
        addresses: address
            .iter()
            // Every other one is behind a router.
            .map(|a| std::net::Ipv4Addr::new(172, 30, a % 2, *a).into())
            .collect(),
        pod_cidrs: cidrs
            .iter()
            .map(|c| format!("10.244.{c}.0/24").parse().unwrap())
            .collect(),
    })
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Vxlan), Just(Mode::Direct), Just(Mode::Auto)]
}

#[derive(Debug, Clone)]
enum Happening {
    Node(Option<NodeNet>),
    Path(Option<u32>),
}

fn any_change() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => prop::option::weighted(0.8, any_net()).prop_map(Happening::Node),
        1 => prop::option::of(1300..1500u32).prop_map(Happening::Path),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let node = (2..6u8).prop_map(|n| crate::desired::vxlan_mac(&format!("n{n}")));
    let address = |a: u8, b: u8| std::net::IpAddr::from([172, 30, a, b]);
    prop_oneof![
        (node.clone(), 11..16u8).prop_map(move |(mac, b)| Entry::Fdb {
            mac,
            destination: address(0, b)
        }),
        (node, 1..6u8).prop_map(|(mac, c)| Entry::Neighbour {
            address: [10, 244, c, 0].into(),
            mac
        }),
        (1..6u8, 1..6u8).prop_map(|(c, g)| Entry::Route {
            destination: format!("10.244.{c}.0/24").parse().unwrap(),
            over: Over::Vxlan,
            gateway: Some([10, 244, g, 0].into()),
            source: None,
            mtu: (g == 3).then_some(1300),
        }),
        (1..6u8, 1..6u8).prop_map(move |(c, g)| Entry::Route {
            destination: format!("10.244.{c}.0/24").parse().unwrap(),
            over: Over::Underlay,
            gateway: Some(address(0, g)),
            source: None,
            mtu: None,
        }),
        (0..4u8).prop_map(|c| Entry::Address(format!("10.244.{c}.0/32").parse().unwrap())),
    ]
}

/// The pod networks of peers that packets come to, and arrive.
fn reached(kernel: &Observed) -> BTreeSet<ipnet::IpNet> {
    let arrives = |gateway: &std::net::IpAddr| {
        kernel.entries.iter().any(|n| {
            let Entry::Neighbour { address, mac } = n else {
                return false;
            };
            let sent = |f: &Entry| matches!(f, Entry::Fdb { mac: of, .. } if of == mac);
            address == gateway && kernel.link.is_some() && kernel.entries.iter().any(sent)
        })
    };
    let routes = kernel.entries.iter().filter_map(|entry| match entry {
        Entry::Route {
            destination,
            over,
            gateway: Some(gateway),
            ..
        } if *over == Over::Underlay || arrives(gateway) => Some(*destination),
        _ => None,
    });
    routes.collect()
}

/// Carries a plan out step by step: what is reached before and after is reached all the time.
fn applied_without_a_gap(plan: &Plan, before: &Observed) -> Observed {
    let after = applied(plan, before);
    let stay: BTreeSet<_> = reached(before).intersection(&reached(&after)).copied().collect();
    let mut kernel = before.clone();
    for op in &plan.ops {
        kernel = applied(
            &Plan {
                ops: vec![op.clone()],
            },
            &kernel,
        );
        let now = reached(&kernel);
        assert!(stay.is_subset(&now), "{op} leaves {now:?} of {stay:?}:\n{plan}");
    }
    after
}

proptest! {
    /// What changes of single nodes add up to is what the final state gives from scratch, and the kernel that
    /// followed the changes holds just that.
    #[test]
    fn changes_add_up_to_the_answer_from_scratch(
        mode in any_mode(),
        changes in prop::collection::vec((2..7u8, any_change()), 1..40),
    ) {
        let facts = facts(true);
        let config = Config { mode, ..config() };
        let mut view = view(&[]);
        let mut current = desired(&config, &view, &facts).unwrap();
        let mut kernel = applied(&plan(&current, &Observed::default()), &Observed::default());
        for (n, next) in changes {
            let name = format!("n{n}");
            let change = match next {
                Happening::Node(next) => current.take(&config, &mut view, &facts, &name, next),
                Happening::Path(_) if view.node(&name).is_none() => continue,
                Happening::Path(path) => current.take_path(&config, &mut view, &facts, &name, path),
            };
            kernel = applied_without_a_gap(&change, &kernel);
            let scratch = desired(&config, &view, &facts).unwrap();
            prop_assert_eq!(&current, &scratch);
            prop_assert!(plan(&scratch, &kernel).is_empty());
        }
    }

    /// Whichever the modes: who is reached in both of them is reached between them.
    #[test]
    fn another_mode_leaves_no_gap(
        modes in (any_mode(), any_mode()),
        nets in prop::collection::vec(any_net(), 0..5),
    ) {
        let mut view = view(&[]);
        for (n, net) in nets.into_iter().enumerate() {
            view.set(&format!("n{}", n + 2), Some(net));
        }
        let [from, to] = [modes.0, modes.1].map(|mode| desired(&in_mode(mode), &view, &facts(true)).unwrap());
        let kernel = applied(&plan(&from, &Observed::default()), &Observed::default());
        let after = applied_without_a_gap(&plan(&to, &kernel), &kernel);
        prop_assert!(plan(&to, &after).is_empty());
    }

    /// Whatever the kernel holds: after one plan there is nothing left to do.
    #[test]
    fn one_plan_is_enough(
        mode in any_mode(),
        nets in prop::collection::vec(any_net(), 0..5),
        entries in prop::collection::btree_set(any_entry(), 0..12),
        link in prop::option::of((any::<bool>(), any::<bool>())),
    ) {
        let mut view = view(&[]);
        for (n, net) in nets.into_iter().enumerate() {
            view.set(&format!("n{}", n + 2), Some(net));
        }
        let config = Config { mode, ..config() };
        let right = crate::desired::desired(&self::config(), &view, &facts(false)).unwrap().link.unwrap();
        let desired = desired(&config, &view, &facts(false)).unwrap();
        let observed = Observed {
            link: link.map(|(is_right, up)| ObservedLink {
                vxlan: is_right.then(|| right.vxlan.clone()),
                mac: None,
                mtu: 1500,
                up,
                checksums_before: false,
            }),
            entries: entries.into_iter().filter(|e| link.is_some() || !e.is_over_vxlan()).collect(),
            ..Observed::default()
        };
        let next = applied(&plan(&desired, &observed), &observed);
        let again = plan(&desired, &next);
        prop_assert!(again.is_empty(), "{}", again);
    }
}
