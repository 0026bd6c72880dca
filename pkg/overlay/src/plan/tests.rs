use proptest::prelude::*;
use svcnet_netlink::underlay::Underlay;

use super::*;
use crate::Config;
use crate::desired::{Waiting, desired};

fn config() -> Config {
    Config {
        node_ip: None,
        interface: None,
        vni: svcnet_api::types::Vni::new(1).unwrap(),
        port: 8472,
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        mtu: None,
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
                });
            }
            Op::ChangeLink { mac, mtu } => {
                let link = next.link.as_mut().unwrap();
                (link.mac, link.mtu, link.up) = (Some(*mac), *mtu, true);
            }
            Op::DeleteStray(route) => next.strays.retain(|r| r != route),
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
        &mut view,
        &facts,
        "n2",
        Some(net("172.30.0.22", &["10.244.2.0/24"])),
    );
    assert_eq!(
        moved.to_string(),
        "set fdb 06:80:a9:3d:2e:9b dst 172.30.0.22 dev svcnet.1\n"
    );
    let gone = desired.take(&mut view, &facts, "n2", None);
    assert_eq!(
        gone.to_string(),
        "delete route 10.244.2.0/24 via 10.244.2.0 onlink dev svcnet.1\n\
         delete neigh 10.244.2.0 lladdr 06:80:a9:3d:2e:9b dev svcnet.1\n\
         delete fdb 06:80:a9:3d:2e:9b dst 172.30.0.22 dev svcnet.1\n"
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
            .map(|a| std::net::Ipv4Addr::new(172, 30, 0, *a).into())
            .collect(),
        pod_cidrs: cidrs
            .iter()
            .map(|c| format!("10.244.{c}.0/24").parse().unwrap())
            .collect(),
    })
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
            over: crate::desired::Over::Vxlan,
            gateway: Some([10, 244, g, 0].into()),
            source: None,
        }),
        (0..4u8).prop_map(|c| Entry::Address(format!("10.244.{c}.0/32").parse().unwrap())),
    ]
}

proptest! {
    /// What changes of single nodes add up to is what the final state gives from scratch, and the kernel that
    /// followed the changes holds just that.
    #[test]
    fn changes_add_up_to_the_answer_from_scratch(
        changes in prop::collection::vec((2..7u8, prop::option::weighted(0.8, any_net())), 1..40),
    ) {
        let facts = facts(true);
        let mut view = view(&[]);
        let mut current = desired(&config(), &view, &facts).unwrap();
        let mut kernel = applied(&plan(&current, &Observed::default()), &Observed::default());
        for (n, next) in changes {
            let change = current.take(&mut view, &facts, &format!("n{n}"), next);
            kernel = applied(&change, &kernel);
            let scratch = desired(&config(), &view, &facts).unwrap();
            prop_assert_eq!(&current, &scratch);
            prop_assert!(plan(&scratch, &kernel).is_empty());
        }
    }

    /// Whatever the kernel holds: after one plan there is nothing left to do.
    #[test]
    fn one_plan_is_enough(
        nets in prop::collection::vec(any_net(), 0..5),
        entries in prop::collection::btree_set(any_entry(), 0..12),
        link in prop::option::of((any::<bool>(), any::<bool>())),
    ) {
        let mut view = view(&[]);
        for (n, net) in nets.into_iter().enumerate() {
            view.set(&format!("n{}", n + 2), Some(net));
        }
        let desired = desired(&config(), &view, &facts(false)).unwrap();
        let observed = Observed {
            link: link.map(|(right, up)| ObservedLink {
                vxlan: right.then(|| desired.link.vxlan.clone()),
                mac: None,
                mtu: 1500,
                up,
            }),
            entries: if link.is_some() { entries } else { BTreeSet::new() },
            ..Observed::default()
        };
        let next = applied(&plan(&desired, &observed), &observed);
        let again = plan(&desired, &next);
        prop_assert!(again.is_empty(), "{}", again);
    }
}
