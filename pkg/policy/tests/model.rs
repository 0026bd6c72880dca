//! The planner against the words of the API: whatever happens in whatever order, what the kernel would be told lets
//! through exactly what the policies allow, and is the same as from scratch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use svcnet_netlink::nft::Family;
use svcnet_policy::desired::{
    Content, Element, Entry, Name, PeerMatch, PortsMatch, RuleSpec, SetSpec, desired,
};
use svcnet_policy::engine::Engine;
use svcnet_policy::model::{Direction, ObjectKey, Policy, Protocol};
use svcnet_policy::plan::{Op, Plan};
use svcnet_policy::verdict::{End, Target, Verdict};
use svcnet_policy::view::{NamedPort, PodFacts, View};

const BOTH: [Family; 2] = [Family::Ip, Family::Ip6];

/// The tables of the kernel, as plans change them; and as packets meet them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tables {
    families: BTreeMap<Family, Table>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Table {
    sets: BTreeMap<Name, (SetSpec, BTreeSet<Element>)>,
    chains: BTreeMap<Name, Vec<RuleSpec>>,
    isolated: BTreeSet<(Direction, IpAddr)>,
    judged: BTreeMap<(Direction, IpAddr), Name>,
    /// The directions that have a base chain.
    hooked: BTreeSet<Direction>,
}

impl Tables {
    /// Carries a plan out as strictly as the kernel does.
    fn apply(&mut self, plan: &Plan) {
        for (family, op) in &plan.ops {
            self.families.entry(*family).or_default().apply(op);
        }
        // Packets pass a base chain where that isolates somebody, and nowhere else.
        for table in self.families.values() {
            let isolating: BTreeSet<_> = table.isolated.iter().map(|(direction, _)| *direction).collect();
            assert_eq!(table.hooked, isolating, "{plan}");
        }
    }
}

impl Table {
    fn is_referred(&self, name: &Name) -> bool {
        let rules = self.chains.values().flatten();
        rules.into_iter().any(|rule| match rule {
            RuleSpec::Jump(to) => to == name,
            RuleSpec::Accept { peer, port, .. } => {
                *peer == PeerMatch::In(name.clone())
                    || matches!(port, PortsMatch::In(_, set) | PortsMatch::Named(_, set) if set == name)
            }
        }) || self.judged.values().any(|chain| chain == name)
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::AddSet(set) => {
                let former = self
                    .sets
                    .insert(set.name.clone(), (set.as_ref().clone(), BTreeSet::new()));
                assert!(former.is_none(), "{op}");
            }
            Op::AddElement(set, element) => {
                assert!(self.sets.get_mut(set).unwrap().1.insert(*element), "{op}")
            }
            Op::AddChain(chain) => assert!(self.chains.insert(chain.clone(), Vec::new()).is_none(), "{op}"),
            Op::FlushChain(chain) => self.chains.get_mut(chain).unwrap().clear(),
            Op::SetRules(chain) => {
                for rule in &chain.rules {
                    match rule {
                        RuleSpec::Jump(to) => assert!(self.chains.contains_key(to), "{op}"),
                        RuleSpec::Accept { peer, port, .. } => {
                            if let PeerMatch::In(set) = peer {
                                assert!(self.sets.contains_key(set), "{op}");
                            }
                            if let PortsMatch::In(_, set) | PortsMatch::Named(_, set) = port {
                                assert!(self.sets.contains_key(set), "{op}");
                            }
                        }
                    }
                }
                let rules = self.chains.get_mut(&chain.name).unwrap();
                assert!(rules.is_empty(), "{op}");
                rules.clone_from(&chain.rules);
            }
            Op::Hook(d) => assert!(self.hooked.insert(*d), "{op}"),
            Op::Unhook(d) => assert!(self.hooked.remove(d), "{op}"),
            Op::Unjudge(d, a) => assert!(self.judged.remove(&(*d, *a)).is_some(), "{op}"),
            Op::Unisolate(d, a) => assert!(self.isolated.remove(&(*d, *a)), "{op}"),
            Op::Isolate(d, a) => assert!(self.isolated.insert((*d, *a)), "{op}"),
            Op::Judge(d, a, chain) => {
                assert!(self.chains.contains_key(chain), "{op}");
                assert!(self.judged.insert((*d, *a), chain.clone()).is_none(), "{op}");
            }
            Op::DeleteChain(chain) => {
                assert!(!self.is_referred(chain), "{op}");
                assert_eq!(self.chains.remove(chain), Some(Vec::new()), "{op}");
            }
            Op::DeleteElement(set, element) => {
                assert!(self.sets.get_mut(set).unwrap().1.remove(element), "{op}");
            }
            Op::DeleteSet(set) => {
                assert!(!self.is_referred(set), "{op}");
                self.sets.remove(set).unwrap();
            }
        }
    }

    /// As the base chains do for a packet of that connection.
    fn passes(&self, from: IpAddr, to: IpAddr, target: Target) -> bool {
        [(Direction::Egress, from), (Direction::Ingress, to)]
            .into_iter()
            .all(|place| {
                !self.hooked.contains(&place.0)
                    || !self.isolated.contains(&place)
                    || from == to
                    || self
                        .judged
                        .get(&place)
                        .is_some_and(|chain| self.accepts(chain, from, to, target))
            })
    }

    fn accepts(&self, chain: &Name, from: IpAddr, to: IpAddr, target: Target) -> bool {
        self.chains[chain].iter().any(|rule| match rule {
            RuleSpec::Jump(to_chain) => self.accepts(to_chain, from, to, target),
            RuleSpec::Accept {
                direction,
                peer,
                port,
                ..
            } => {
                let other = if *direction == Direction::Ingress {
                    from
                } else {
                    to
                };
                self.is_peer(peer, other) && self.is_port(port, to, target)
            }
        })
    }

    fn is_peer(&self, peer: &PeerMatch, address: IpAddr) -> bool {
        let PeerMatch::In(set) = peer else { return true };
        let (spec, elements) = &self.sets[set];
        match (&spec.content, address) {
            (Content::Blocks(ranges, _), IpAddr::V4(a)) => {
                let number = u128::from(a.to_bits());
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&number))
            }
            (Content::Blocks(_, ranges), IpAddr::V6(a)) => ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&a.to_bits())),
            _ => elements.contains(&Element { address, port: None }),
        }
    }

    fn is_port(&self, port: &PortsMatch, to: IpAddr, target: Target) -> bool {
        let is = |protocol: &Protocol| target.protocol == Some(*protocol);
        match port {
            PortsMatch::Any => true,
            PortsMatch::Protocol(protocol) => is(protocol),
            PortsMatch::Range(protocol, first, last) => {
                is(protocol) && (*first..=*last).contains(&target.port)
            }
            PortsMatch::In(protocol, set) => {
                let Content::Ports(ranges) = &self.sets[set].0.content else {
                    return false;
                };
                is(protocol)
                    && ranges
                        .iter()
                        .any(|(first, last)| (*first..=*last).contains(&target.port))
            }
            PortsMatch::Named(protocol, set) => {
                let element = Element {
                    address: to,
                    port: Some(target.port),
                };
                is(protocol) && self.sets[set].1.contains(&element)
            }
        }
    }
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Happens {
    Namespace(String, Option<BTreeMap<String, String>>),
    Pod(ObjectKey, Option<PodFacts>),
    Policy(ObjectKey, Option<Policy>),
    Hold(IpAddr),
    Release(IpAddr),
}

fn label() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(select(vec!["a", "b"]), select(vec!["1", "2"]), 0..3).prop_map(|map| {
        map.into_iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        label().prop_map(|labels| json!({"matchLabels": labels})),
        (select(vec!["In", "NotIn"]), select(vec!["1", "2"]))
            .prop_map(|(op, v)| json!({"matchExpressions": [{"key": "a", "operator": op, "values": [v]}]})),
        select(vec!["Exists", "DoesNotExist"])
            .prop_map(|op| json!({"matchExpressions": [{"key": "b", "operator": op}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector()).prop_map(|(p, n)| json!({"podSelector": p, "namespaceSelector": n})),
        select(vec![
            json!({"ipBlock": {"cidr": "10.0.0.0/29"}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/28", "except": ["10.0.0.2/31", "10.0.0.4/32"]}}),
            json!({"ipBlock": {"cidr": "fd00::/125", "except": ["fd00::2/128"]}}),
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}),
        ]),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = select(vec!["TCP", "UDP", "SCTP"]);
    let at = prop_oneof![
        Just(json!({})),
        select(vec![80, 81, 90]).prop_map(|port| json!({"port": port})),
        Just(json!({"port": 80, "endPort": 85})),
        select(vec!["http", "dns"]).prop_map(|name| json!({"port": name})),
    ];
    (protocol, at).prop_map(|(protocol, mut port)| {
        port["protocol"] = json!(protocol);
        port
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    )
        .prop_map(move |(list, ports)| json!({peers: list, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy(namespace: &str) -> impl Strategy<Value = Policy> + use<> {
    let namespace = namespace.to_string();
    let types = select(vec![
        json!(null),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (selector(), rules("from"), rules("to"), types).prop_map(move |(pods, ingress, egress, types)| {
        let spec = json!({"podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types});
        let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let (policy, problems) = Policy::parse(&namespace, &object).unwrap();
        assert_eq!(problems, []);
        policy
    })
}

fn pod() -> impl Strategy<Value = PodFacts> {
    let named = prop::collection::btree_map(
        select(vec![
            ("http", Protocol::TCP),
            ("dns", Protocol::UDP),
            ("http", Protocol::SCTP),
        ]),
        select(vec![80u16, 81, 53]),
        0..3,
    );
    (label(), 1..8u8, any::<bool>(), any::<bool>(), named).prop_map(|(labels, number, local, v6, named)| {
        let mut addresses = vec![IpAddr::from([10, 0, 0, number])];
        if v6 {
            addresses.push(format!("fd00::{number}").parse().unwrap());
        }
        let ports = named.into_iter().map(|((name, protocol), number)| NamedPort {
            name: name.to_string(),
            protocol,
            number,
        });
        PodFacts {
            uids: Vec::new(),
            labels,
            addresses,
            local,
            ports: ports.collect(),
        }
    })
}

fn happens() -> impl Strategy<Value = Happens> {
    let namespace = || select(vec!["x", "y"]);
    let address =
        || select(vec!["10.0.0.1", "10.0.0.2", "fd00::3"]).prop_map(|a| a.parse::<IpAddr>().unwrap());
    prop_oneof![
        1 => (namespace(), prop::option::weighted(0.8, label()))
            .prop_map(|(n, labels)| Happens::Namespace(n.to_string(), labels)),
        4 => (namespace(), select(vec!["p", "q", "r", "s"]), prop::option::weighted(0.8, pod()))
            .prop_map(|(n, name, pod)| Happens::Pod(ObjectKey::new(n, name), pod)),
        4 => (namespace(), select(vec!["one", "two", "three"])).prop_flat_map(|(n, name)| {
            prop::option::weighted(0.8, policy(n))
                .prop_map(move |policy| Happens::Policy(ObjectKey::new(n, name), policy))
        }),
        1 => address().prop_map(Happens::Hold),
        1 => address().prop_map(Happens::Release),
    ]
}

/// Whether two pods have an address: which of them a packet is of is in nobody's power to say.
fn is_shared(engine: &Engine) -> bool {
    let mut seen = BTreeSet::new();
    let view = engine.view();
    let mut addresses = view.pods.values().flat_map(|pod| &pod.addresses);
    !addresses.all(|address| seen.insert(*address))
}

fn check(engine: &Engine, tables: &Tables, held: &BTreeMap<IpAddr, usize>) -> Result<(), TestCaseError> {
    let known = engine.view();
    let view: &View = &known;
    if is_shared(engine) {
        return Ok(());
    }
    let mut addresses: Vec<IpAddr> = (1..10u8).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    addresses.extend((1..10).map(|n| format!("fd00::{n}").parse::<IpAddr>().unwrap()));
    addresses.push("192.0.2.1".parse().unwrap());
    let end = |address: IpAddr| -> End<'_> { view.end(address) };
    for from in &addresses {
        for to in addresses.iter().filter(|to| to.is_ipv6() == from.is_ipv6()) {
            for (protocol, port) in [
                (Some(Protocol::TCP), 80),
                (Some(Protocol::TCP), 84),
                (Some(Protocol::UDP), 53),
                (Some(Protocol::SCTP), 81),
                (None, 0),
            ] {
                let target = Target { protocol, port };
                // Of the pods of another node, that node judges.
                let wanted = match judged_here(view, end(*from), end(*to), target) {
                    _ if from == to => true,
                    _ if held.contains_key(from) || held.contains_key(to) => false,
                    allowed => allowed,
                };
                let empty = Table::default();
                let table = tables.families.get(&Family::of(*from)).unwrap_or(&empty);
                prop_assert_eq!(
                    table.passes(*from, *to, target),
                    wanted,
                    "{} -> {} {:?}\n{:#?}",
                    from,
                    to,
                    target,
                    table
                );
            }
        }
    }
    Ok(())
}

/// The verdict of this node alone: pods of other nodes are isolated there, and are peers here.
fn judged_here(view: &View, from: End<'_>, to: End<'_>, target: Target) -> bool {
    let is_local = |end: End<'_>| end.pod.is_some_and(|(_, pod)| pod.local);
    let Verdict::Denied(denied) = view.judge(from, to, target) else {
        return true;
    };
    match denied.direction {
        Direction::Egress if is_local(from) => false,
        Direction::Ingress => !is_local(to),
        // The way out is another node's affair; the way in may still be ours.
        Direction::Egress => {
            let mut without = view.clone();
            without
                .policies
                .values_mut()
                .for_each(|policy| policy.egress = None);
            !is_local(to) || without.judge(from, to, target).is_allowed()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_tables_mean_what_the_policies_say(all in prop::collection::vec(happens(), 1..25)) {
        let mut engine = Engine::new(&BOTH);
        let mut tables = Tables::default();
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for happens in all {
            match happens {
                Happens::Namespace(name, labels) => engine.set_namespace(&name, labels),
                Happens::Pod(key, pod) => engine.set_pod(&key, pod),
                Happens::Policy(key, policy) => engine.set_policy(&key, policy),
                Happens::Hold(address) => {
                    *held.entry(address).or_default() += 1;
                    engine.hold(address);
                }
                Happens::Release(address) => {
                    let Some(count) = held.get_mut(&address) else { continue };
                    *count -= 1;
                    if *count == 0 {
                        held.remove(&address);
                    }
                    engine.release(address);
                }
            }
            tables.apply(&engine.take_plan());
            prop_assert!(engine.take_plan().is_empty());
            check(&engine, &tables, &held)?;
        }
        if held.is_empty() && !is_shared(&engine) {
            prop_assert_eq!(engine.entries(), desired(&engine.view(), &BOTH));
        }
        // From scratch it comes to the same.
        let mut anew = Tables::default();
        anew.apply(&engine.take_all());
        for family in BOTH {
            let (one, other) = (tables.families.remove(&family), anew.families.remove(&family));
            prop_assert_eq!(one.unwrap_or_default(), other.unwrap_or_default());
        }
    }
}

fn web_policy() -> Policy {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "till"}}}], "ports": [{"port": 80}, {"port": 443}]},
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]},
        ],
    });
    let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    Policy::parse("default", &object).unwrap().0
}

#[test]
fn a_plan_reads_like_what_it_does() {
    let mut engine = Engine::new(&[Family::Ip]);
    let pod = |labels: &str, address: &str, local| PodFacts {
        labels: [("app".to_string(), labels.to_string())].into(),
        addresses: vec![address.parse().unwrap()],
        local,
        ..PodFacts::default()
    };
    engine.set_namespace("default", Some(BTreeMap::new()));
    engine.set_pod(
        &ObjectKey::new("default", "web"),
        Some(pod("web", "10.0.0.1", true)),
    );
    engine.set_pod(
        &ObjectKey::new("default", "till"),
        Some(pod("till", "10.0.0.2", false)),
    );
    assert!(
        engine.take_plan().is_empty(),
        "without a policy there is nothing to hold"
    );
    let policy = web_policy();
    let key = ObjectKey::new("default", "web");
    engine.set_policy(&key, Some(policy));
    let text = engine.take_plan().to_string();
    let hash = |text: &str| {
        text.split("pods-")
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .to_string()
    };
    let pods = hash(&text);
    assert!(
        text.contains(&format!("ip + pods-{pods} 10.0.0.2\n"))
            && text.contains("ip + chain in/default/web\n"),
        "{text}"
    );
    assert!(
        text.contains(
            "ip + rules of in/default/web; from pods app=till in default, tcp 80,443; \
             from 192.0.2.0/24 except 192.0.2.128/25\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("ip + ingress-pods 10.0.0.1\nip + ingress 10.0.0.1 : in/default/web\n"),
        "{text}"
    );
    // Another pod of the same labels is one element.
    engine.set_pod(
        &ObjectKey::new("default", "till2"),
        Some(pod("till", "10.0.0.3", false)),
    );
    assert_eq!(
        engine.take_plan().to_string(),
        format!("ip + pods-{pods} 10.0.0.3\n")
    );
    engine.set_policy(&key, None);
    let text = engine.take_plan().to_string();
    assert!(
        text.starts_with("ip - rules of in/default/web\n")
            && text.contains(&format!("ip - set pods-{pods}\n")),
        "{text}"
    );
    assert_eq!(engine.entries(), BTreeSet::<Entry>::new());
}
