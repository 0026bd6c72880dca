//! Random clusters against a small model of who may reach which endpoints, written from what Kubernetes promises and
//! sharing nothing with the proxy's own way to the answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use svcnet_proxy::{
    Backend, BackendError, Engine, Fate, Frontend, FrontendKey, Protocol, Report, Settings, Update,
};
use svcnet_runtime::Change;

/// Does nothing: what should be is asked of the engine.
struct Nowhere;

impl Backend for Nowhere {
    fn name(&self) -> &'static str {
        "nowhere"
    }

    fn converge(&mut self, _: &mut dyn Iterator<Item = Frontend>, _: bool) -> Result<Report, BackendError> {
        Ok(Report::default())
    }

    fn change(&mut self, _: Vec<(FrontendKey, Option<Frontend>)>) -> Result<Report, BackendError> {
        Ok(Report::default())
    }

    fn touched(&mut self) -> Result<bool, BackendError> {
        Ok(false)
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[derive(Debug, Clone)]
struct Pod {
    node: u8,
    /// Ready, going away but serving, going away and not serving, not ready.
    condition: u8,
    zones: BTreeSet<u8>,
    nodes: BTreeSet<u8>,
    takes_none: bool,
}

#[derive(Debug, Clone)]
struct World {
    pods: Vec<Pod>,
    /// This node's zone, if it has one.
    zone: Option<u8>,
    internal_local: bool,
    external_local: bool,
    range: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Pod,
    Node,
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    ClusterIp,
    NodePort,
    Balancer,
    External,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Reaches(BTreeSet<IpAddr>),
    Refused,
    Dropped,
}

const THIS_NODE: u8 = 0;
const RANGES: [&str; 3] = ["172.30.0.100/32", "10.244.0.0/16", "172.30.0.0/24"];

fn address(index: usize) -> IpAddr {
    format!("10.244.0.{}", index + 1).parse().unwrap()
}

/// What Kubernetes promises.
fn promised(world: &World, client: Client, target: Target) -> Outcome {
    let all: Vec<(usize, &Pod)> = world
        .pods
        .iter()
        .enumerate()
        .filter(|(_, pod)| !pod.takes_none)
        .collect();
    let with = |condition: u8| -> Vec<(usize, &Pod)> {
        all.iter()
            .copied()
            .filter(|(_, pod)| pod.condition == condition)
            .collect()
    };
    let (ready, going) = (with(0), with(1));
    let here = |pods: &[(usize, &Pod)]| -> Vec<usize> {
        pods.iter()
            .filter(|(_, pod)| pod.node == THIS_NODE)
            .map(|(index, _)| *index)
            .collect()
    };
    let everywhere =
        |pods: &[(usize, &Pod)]| -> Vec<usize> { pods.iter().map(|(index, _)| *index).collect() };
    let cluster = if ready.is_empty() {
        everywhere(&going)
    } else {
        let for_node: Vec<_> = ready
            .iter()
            .copied()
            .filter(|(_, p)| p.nodes.contains(&THIS_NODE))
            .collect();
        let for_zone: Vec<_> = ready
            .iter()
            .copied()
            .filter(|(_, p)| world.zone.is_some_and(|zone| p.zones.contains(&zone)))
            .collect();
        if !for_node.is_empty() && ready.iter().all(|(_, p)| !p.nodes.is_empty()) {
            everywhere(&for_node)
        } else if !for_zone.is_empty() && ready.iter().all(|(_, p)| !p.zones.is_empty()) {
            everywhere(&for_zone)
        } else {
            everywhere(&ready)
        }
    };
    let bound = match target {
        Target::ClusterIp => world.internal_local,
        _ => world.external_local && client == Client::Outside,
    };
    let local = if here(&ready).is_empty() {
        here(&going)
    } else {
        here(&ready)
    };
    let chosen = if bound { &local } else { &cluster };
    if !chosen.is_empty() {
        Outcome::Reaches(chosen.iter().map(|index| address(*index)).collect())
    } else if cluster.is_empty() {
        Outcome::Refused
    } else {
        Outcome::Dropped
    }
}

fn let_in(world: &World, client: Client, target: Target) -> bool {
    let from_range = match client {
        Client::Outside => [0, 2].as_slice(),
        Client::Pod => &[1],
        Client::Node => &[2],
    };
    let range = world.range.filter(|_| target == Target::Balancer);
    range.is_none_or(|range| from_range.contains(&range))
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// The same cluster as the API tells it, with the endpoints in two slices.
fn told(world: &World) -> Engine {
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let weights: Vec<String> = (0..world.pods.len())
        .filter(|n| world.pods[*n].takes_none)
        .map(|n| format!("pod-{n}=0"))
        .collect();
    let service = json!({
        "metadata": { "namespace": "ns", "name": "s", "annotations": { "svcnet.io/weights": weights.join(",") } },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
            "externalIPs": ["203.0.113.1", "198.51.100.1"],
            "internalTrafficPolicy": policy(world.internal_local), "externalTrafficPolicy": policy(world.external_local),
            "loadBalancerSourceRanges": world.range.map(|range| vec![RANGES[usize::from(range)]]),
            "ports": [{ "port": 80, "nodePort": 30080 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.9" }] } },
    });
    let names = |prefix: &str, numbers: &BTreeSet<u8>| -> Vec<Value> {
        numbers
            .iter()
            .map(|n| json!({ "name": format!("{prefix}{n}") }))
            .collect()
    };
    let endpoint = |(index, pod): (usize, &Pod)| {
        let conditions = match pod.condition {
            0 => json!({ "ready": true, "serving": true, "terminating": false }),
            1 => json!({ "ready": false, "serving": true, "terminating": true }),
            2 => json!({ "ready": false, "serving": false, "terminating": true }),
            _ => json!({ "ready": false, "serving": false, "terminating": false }),
        };
        json!({
            "addresses": [address(index)], "nodeName": format!("n{}", pod.node), "conditions": conditions,
            "targetRef": { "kind": "Pod", "name": format!("pod-{index}") },
            "hints": { "forZones": names("z", &pod.zones), "forNodes": names("n", &pod.nodes) },
        })
    };
    let all: Vec<Value> = world.pods.iter().enumerate().map(endpoint).collect();
    let (first, second) = all.split_at(all.len() / 2);
    let slice = |part: u8, endpoints: &[Value]| {
        object(json!({
            "metadata": {
                "namespace": "ns", "name": format!("s-{part}"), "labels": { "kubernetes.io/service-name": "s" },
            },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": endpoints,
        }))
    };
    let labels = world
        .zone
        .map(|zone| json!({ "topology.kubernetes.io/zone": format!("z{zone}") }));
    let node = json!({ "metadata": { "name": format!("n{THIS_NODE}"), "labels": labels } });
    let settings = Settings {
        external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Settings::default()
    };
    let mut engine = Engine::new(&format!("n{THIS_NODE}"), settings, Box::new(Nowhere));
    engine.apply_change(Update::Services(Change::Reset(vec![object(service)])));
    engine.apply_change(Update::Slices(Change::Reset(vec![
        slice(1, first),
        slice(2, second),
    ])));
    engine.sync().unwrap();
    // The zone comes last: all that depends on it must follow.
    engine.apply_change(Update::Node(Change::Apply(object(node))));
    engine.sync().unwrap();
    engine
}

fn key(target: Target) -> FrontendKey {
    let protocol = Protocol::Tcp;
    let (ip, port) = match target {
        Target::ClusterIp => ("10.96.0.1", 80),
        Target::Balancer => ("203.0.113.9", 80),
        Target::External => ("203.0.113.1", 80),
        Target::NodePort => {
            return FrontendKey::NodePort {
                family: svcnet_netlink::nft::Family::Ip,
                protocol,
                port: 30080,
            };
        }
    };
    let ip = ip.parse().unwrap();
    FrontendKey::Address { ip, protocol, port }
}

fn outcome(frontend: &Frontend, client: Client) -> Outcome {
    let fate = match (&frontend.outside, client) {
        (Some(outside), Client::Outside) => outside,
        _ => &frontend.fate,
    };
    match fate {
        Fate::Balance(endpoints) => {
            Outcome::Reaches(endpoints.iter().map(|e| SocketAddr::ip(&e.at)).collect())
        }
        Fate::NoEndpoints => Outcome::Refused,
        Fate::OnlyElsewhere => Outcome::Dropped,
    }
}

fn pod() -> impl Strategy<Value = Pod> {
    let some = || proptest::collection::btree_set(0u8..3, 0..3);
    // Mostly with hints, or they would hardly ever count.
    let hints = prop_oneof![
        2 => Just((BTreeSet::new(), BTreeSet::new())),
        3 => (some(), Just(BTreeSet::new())),
        3 => (some(), some()),
    ];
    (
        0u8..3,
        prop_oneof![3 => Just(0u8), 3 => 1u8..4],
        hints,
        prop::bool::weighted(0.15),
    )
        .prop_map(|(node, condition, (zones, nodes), takes_none)| Pod {
            node,
            condition,
            zones,
            nodes,
            takes_none,
        })
}

fn world() -> impl Strategy<Value = World> {
    let pods = proptest::collection::vec(pod(), 0..6);
    let zone = proptest::option::weighted(0.8, 0u8..3);
    let range = proptest::option::of(0u8..3);
    (pods, zone, any::<bool>(), any::<bool>(), range).prop_map(
        |(pods, zone, internal_local, external_local, range)| World {
            pods,
            zone,
            internal_local,
            external_local,
            range,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everybody_reaches_what_is_promised(world in world()) {
        let engine = told(&world);
        let frontends: BTreeMap<FrontendKey, Frontend> = engine.desired().map(|f| (f.key, f)).collect();
        prop_assert_eq!(frontends.len(), 4, "and none at the address that no range accepts");
        for target in [Target::ClusterIp, Target::NodePort, Target::Balancer, Target::External] {
            let frontend = &frontends[&key(target)];
            for (client, at) in [
                (Client::Pod, "10.244.9.9"), (Client::Node, "172.30.0.11"), (Client::Outside, "172.30.0.100"),
            ] {
                let wanted = promised(&world, client, target);
                prop_assert_eq!(outcome(frontend, client), wanted, "{:?} to {:?}", client, target);
                let at: IpAddr = at.parse().unwrap();
                let sources = frontend.sources.as_ref();
                let is_in = sources.is_none_or(|sources| sources.iter().any(|net| net.contains(&at)));
                prop_assert_eq!(is_in, let_in(&world, client, target), "{:?} let in to {:?}", client, target);
            }
        }
    }
}
