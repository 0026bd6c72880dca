//! Random sequences of changes against the kernel: what it holds after each is what a proxy that starts from nothing
//! makes it hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::nftables::Slot;
use svcnet_proxy::{Backend, Engine, FrontendKey, Nftables, Settings, Update};
use svcnet_runtime::Change;

#[derive(Debug, Clone)]
enum Step {
    Service {
        name: u8,
        kind: u8,
        external: u8,
        choice: u8,
    },
    NoService {
        name: u8,
    },
    Slice {
        name: u8,
        part: u8,
        endpoints: BTreeSet<u8>,
        conditions: u8,
        hints: u8,
    },
    Node {
        zone: u8,
        address: u8,
    },
    NoSlice {
        name: u8,
        part: u8,
    },
    Restart,
    Flush(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = proptest::collection::btree_set(0u8..10, 0..6);
    prop_oneof![
        4 => (0u8..5, 0u8..6, 0u8..3, 0u8..12)
            .prop_map(|(name, kind, external, choice)| Step::Service { name, kind, external, choice }),
        1 => (0u8..5).prop_map(|name| Step::NoService { name }),
        6 => (0u8..5, 0u8..2, endpoints, 0u8..3, 0u8..4).prop_map(|(name, part, endpoints, conditions, hints)| {
            Step::Slice { name, part, endpoints, conditions, hints }
        }),
        1 => (0u8..3, 0u8..2).prop_map(|(zone, address)| Step::Node { zone, address }),
        1 => (0u8..5, 0u8..2).prop_map(|(name, part)| Step::NoSlice { name, part }),
        1 => Just(Step::Restart),
        1 => (0u8..3).prop_map(Step::Flush),
    ]
}

fn service(name: u8, kind: u8, external: u8, choice: u8) -> Value {
    let mut spec = json!({
        "type": "ClusterIP", "clusterIP": format!("10.96.0.{name}"),
        "clusterIPs": [format!("10.96.0.{name}"), format!("fd00:96::{name}")],
        "ports": [
            { "name": "a", "port": 80, "nodePort": 30_000 + u32::from(name) },
            { "name": "b", "port": 53, "protocol": "UDP", "nodePort": 31_000 + u32::from(name) },
            { "name": "c", "port": 53, "protocol": "SCTP", "nodePort": 31_000 + u32::from(name) },
        ],
    });
    match kind {
        1 => spec["sessionAffinity"] = json!("ClientIP"),
        2 => spec["externalTrafficPolicy"] = json!("Local"),
        3 => spec["internalTrafficPolicy"] = json!("Local"),
        4 => spec["loadBalancerSourceRanges"] = json!(["172.30.0.0/24", "fd00:30::/64"]),
        5 => spec["clusterIP"] = json!("None"),
        _ => {}
    }
    if external > 0 {
        // The same address for all: they are rivals. The other is in no accepted range.
        let address = ["203.0.113.1", "198.51.100.1"][usize::from(external - 1)];
        spec["externalIPs"] = json!([address]);
        spec["type"] = json!("LoadBalancer");
    }
    let ingress = json!({ "loadBalancer": { "ingress": [{ "ip": format!("203.0.113.{}", 100 + name) }] } });
    let annotations = match choice {
        1 => json!({ "svcnet.io/scheduler": "rr" }),
        2 => json!({ "svcnet.io/scheduler": "sh" }),
        3 => json!({ "svcnet.io/scheduler": "wrr", "svcnet.io/weights": "pod-1=3, node/n0=2" }),
        4 => json!({ "svcnet.io/weights": "zone/z1=0, pod-2=5" }),
        // Its tables are long: one Service is enough.
        5 if name == 0 => json!({ "svcnet.io/scheduler": "mh" }),
        _ => json!({}),
    };
    let metadata = json!({ "namespace": "ns", "name": format!("s{name}"), "annotations": annotations });
    json!({ "metadata": metadata, "spec": spec, "status": ingress })
}

fn node(zone: u8, address: u8) -> Value {
    json!({
        "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": format!("z{zone}") } },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.30.{address}.11") }] },
    })
}

fn slice(name: u8, part: u8, endpoints: &BTreeSet<u8>, conditions: u8, hints: u8) -> Value {
    let conditions = match conditions {
        0 => json!({ "ready": true }),
        1 => json!({ "ready": false, "serving": true, "terminating": true }),
        _ => json!({ "ready": false }),
    };
    // Part 0 is IPv4 and part 1 is IPv6.
    let address = |n: &u8| {
        if part == 0 {
            format!("10.244.{}.{n}", n % 2)
        } else {
            format!("fd00:244:{}::{n}", n % 2)
        }
    };
    let endpoint = |n: &u8| {
        let hints = match hints {
            0 => json!({}),
            1 => json!({ "forZones": [{ "name": format!("z{}", n % 3) }] }),
            2 => json!({ "forNodes": [{ "name": format!("n{}", n % 2) }] }),
            _ if n.is_multiple_of(2) => json!({}),
            _ => json!({ "forZones": [{ "name": "z1" }] }),
        };
        json!({
            "addresses": [address(n)], "nodeName": format!("n{}", n % 2), "zone": format!("z{}", n % 3),
            "targetRef": { "kind": "Pod", "name": format!("pod-{n}") }, "conditions": conditions, "hints": hints,
        })
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    json!({
        "metadata": {
            "namespace": "ns", "name": format!("s{name}-{part}"),
            "labels": { "kubernetes.io/service-name": format!("s{name}") },
        },
        "addressType": if part == 0 { "IPv4" } else { "IPv6" },
        "ports": [
            { "name": "a", "port": 8080 }, { "name": "b", "port": 5353, "protocol": "UDP" },
            { "name": "c", "port": 5353, "protocol": "SCTP" },
        ],
        "endpoints": endpoints,
    })
}

fn object<K: serde::de::DeserializeOwned>(value: &Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value.clone()).unwrap())
}

fn open(ns: &OwnedNetNs) -> Nftables {
    let networks = ["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()];
    let open = || Nftables::open(&networks, &settings().service_cidrs).unwrap();
    // These are not all: the table changes with the node's address.
    let addresses = "primary,10.244.0.0/16".parse().unwrap();
    ns.run(open).unwrap().with_node_ports_on(addresses)
}

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        node_local: vec!["10.96.0.4".parse().unwrap()],
        external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Settings::default()
    }
}

/// The whole state of a cluster.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<u8, Value>,
    slices: BTreeMap<(u8, u8), Value>,
    node: Option<Value>,
}

impl Cluster {
    /// A proxy that starts with it, and how much it had to do.
    fn start(&self, ns: &OwnedNetNs) -> (Engine, usize) {
        let mut engine = Engine::new("n1", settings(), Box::new(open(ns))).awaiting_node();
        let nodes = self.node.iter().map(object).collect();
        engine.apply_change(Update::Node(Change::Reset(nodes)));
        engine.apply_change(Update::Services(Change::Reset(
            self.services.values().map(object).collect(),
        )));
        engine.apply_change(Update::Slices(Change::Reset(
            self.slices.values().map(object).collect(),
        )));
        let operations = engine.sync().unwrap().operations;
        (engine, operations)
    }
}

/// What the kernel holds, whatever the order of endpoints within a frontend.
fn held(ns: &OwnedNetNs, node: Option<&Value>) -> BTreeSet<String> {
    let mut backend = open(ns);
    let address = node.map(|node| {
        node["status"]["addresses"][0]["address"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    });
    backend.node_addresses(address.as_slice());
    let observed = backend.observe().unwrap();
    assert!(observed.rebuild.is_empty(), "tables as declared");
    // A Maglev table has its order.
    let is_table = |key: &FrontendKey| observed.elements.contains_key(&Slot::Endpoint(*key, 1020));
    let tables: BTreeSet<FrontendKey> = observed
        .elements
        .keys()
        .filter_map(|slot| match slot {
            Slot::Endpoint(key, _) if is_table(key) => Some(*key),
            _ => None,
        })
        .collect();
    let mut held: BTreeSet<String> = observed
        .elements
        .into_iter()
        .map(|(slot, (value, comment))| match slot {
            Slot::Endpoint(key, index) if !tables.contains(&key) => {
                format!("{key} {} {value} {comment:?}", index >> 15)
            }
            slot => format!("{slot} {value} {comment:?}"),
        })
        .collect();
    held.extend(observed.shapes.iter().map(|shape| format!("{shape:?}")));
    held.extend(observed.stays.iter().map(|stay| format!("{stay:?}")));
    held
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_holds_what_a_start_from_nothing_gives(steps in proptest::collection::vec(step(), 1..25)) {
        let (ns, fresh) = (OwnedNetNs::unique("svcnet-rnd").unwrap(), OwnedNetNs::unique("svcnet-rnd").unwrap());
        let mut cluster = Cluster::default();
        let (mut engine, _) = cluster.start(&ns);
        for step in steps {
            match &step {
                Step::Service { name, kind, external, choice } => {
                    let service = service(*name, *kind, *external, *choice);
                    engine.apply_change(Update::Services(Change::Apply(object(&service))));
                    cluster.services.insert(*name, service);
                }
                Step::NoService { name } => {
                    if let Some(service) = cluster.services.remove(name) {
                        engine.apply_change(Update::Services(Change::Delete(object(&service))));
                    }
                }
                Step::Slice { name, part, endpoints, conditions, hints } => {
                    let slice = slice(*name, *part, endpoints, *conditions, *hints);
                    engine.apply_change(Update::Slices(Change::Apply(object(&slice))));
                    cluster.slices.insert((*name, *part), slice);
                }
                Step::NoSlice { name, part } => {
                    if let Some(slice) = cluster.slices.remove(&(*name, *part)) {
                        engine.apply_change(Update::Slices(Change::Delete(object(&slice))));
                    }
                }
                Step::Node { zone, address } => {
                    let node = node(*zone, *address);
                    engine.apply_change(Update::Node(Change::Apply(object(&node))));
                    cluster.node = Some(node);
                }
                Step::Restart => engine = cluster.start(&ns).0,
                Step::Flush(what) => {
                    let command = ["flush ruleset", "flush map ip svcnet services", "delete table ip6 svcnet"]
                        [usize::from(*what)];
                    let run = || std::process::Command::new("nft").args(command.split(' ')).status().unwrap();
                    prop_assert!(ns.run(run).unwrap().success());
                    engine.check().unwrap();
                }
            }
            engine.sync().unwrap();
            let (mut from_nothing, _) = cluster.start(&fresh);
            for engine in [&mut engine, &mut from_nothing] {
                // What is left for packets on their way is gone after two seconds.
                engine.tidy().unwrap();
                engine.tidy().unwrap();
            }
            prop_assert_eq!(held(&ns, cluster.node.as_ref()), held(&fresh, cluster.node.as_ref()), "after {:?}", step);
            prop_assert_eq!(cluster.start(&ns).1, 0, "a start over a right state writes nothing");
        }
    }
}
