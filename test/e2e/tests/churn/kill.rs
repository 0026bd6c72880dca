//! The agent of a node is killed at random moments while everything changes: each time, the kernel comes to hold what it
//! should, and that is what a proxy that knows nothing but the API would make of it.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::NetNs;
use svcnet_proxy::{Engine, Nftables, Settings, Update};
use svcnet_runtime::Change;

use crate::api::{Api, SERVICES, SLICES};
use crate::count;

/// Whose agent is killed.
const VICTIM: &str = "n2";
/// How many Services change all the time.
const CHANGING: u64 = 24;
/// How many change them at the same time.
const WRITERS: u64 = 4;
/// A kill comes within so long after the start of the agent: it is starting, converging or following then.
const LIFE_MS_MAX: u64 = 700;

/// Marsaglia's xorshift: which moments and which changes. A failure tells the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// One change by one of the writers, each of which has Services of its own: mostly of a slice, now and then a Service
/// goes and another of its name comes.
fn change(api: &Api, writer: u64, random: &mut Random) {
    let name = format!("s{}", random.below(CHANGING / WRITERS) * WRITERS + writer);
    if random.below(6) == 0 {
        api.delete(SERVICES, &name);
        if random.below(6) > 0 {
            api.put(SERVICES, &service(&name, random));
        }
        return;
    }
    let family = random.pick(&[4, 6]);
    let slice_name = format!("{name}-{family}");
    if random.below(12) == 0 {
        api.delete(SLICES, &slice_name);
    } else {
        api.put(SLICES, &slice(&slice_name, &name, family, random));
    }
}

fn service(name: &str, random: &mut Random) -> Value {
    let kind = random.pick(&["ClusterIP", "NodePort", "LoadBalancer"]);
    let mut spec = json!({
        "type": kind, "ipFamilyPolicy": "RequireDualStack",
        "internalTrafficPolicy": random.pick(&["Cluster", "Local"]),
        "sessionAffinity": random.pick(&["None", "None", "ClientIP"]),
        "ports": [
            { "name": "tcp", "port": 80, "protocol": "TCP" },
            { "name": "udp", "port": 53, "protocol": "UDP" },
        ],
    });
    if kind != "ClusterIP" {
        spec["externalTrafficPolicy"] = random.pick(&["Cluster", "Local"]).into();
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
}

fn slice(name: &str, service: &str, family: u8, random: &mut Random) -> Value {
    let mut endpoints = Vec::new();
    for host in 1..=12 {
        let state = random.below(8);
        if state < 4 {
            continue;
        }
        let address = if family == 4 {
            format!("10.244.77.{host}")
        } else {
            format!("fd00:10:244:77::{host}")
        };
        endpoints.push(json!({
            "addresses": [address], "nodeName": random.pick(&["n1", "n2", "n3"]),
            "conditions": { "ready": state > 5, "serving": state > 4, "terminating": state <= 5 },
        }));
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": format!("IPv{family}"),
        "ports": [
            { "name": "tcp", "port": 8080, "protocol": "TCP" },
            { "name": "udp", "port": 5353, "protocol": "UDP" },
        ],
        "endpoints": endpoints,
    })
}

/// Writes a Service and its slice, and waits until the victim's kernel holds them: it has heard of everything before.
fn wait_for_marker(lab: &Lab, api: &Api, number: usize) {
    let name = format!("marker-{number}");
    let ports = json!([{ "name": "tcp", "port": 80, "protocol": "TCP" }]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "ports": ports },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4", "ports": ports, "endpoints": [{ "addresses": ["10.244.77.200"] }],
    });
    api.put(SERVICES, &service);
    api.put(SLICES, &slice);
    until(&format!("the kernel of {VICTIM} holds {name}"), || {
        let rules = rules(lab);
        let of_marker = |line: &&str| line.contains(&format!("\"default/{name}:tcp\""));
        let balanced = rules
            .lines()
            .filter(of_marker)
            .any(|line| line.contains(": 10.244.77.200 . 80"));
        balanced.then_some(())
    });
    api.delete(SLICES, &name);
    api.delete(SERVICES, &name);
    until(&format!("the kernel of {VICTIM} forgets {name}"), || {
        (!rules(lab).contains(&format!("\"default/{name}:"))).then_some(())
    });
}

/// All rules of the victim.
fn rules(lab: &Lab) -> String {
    let victim = NetNs::open(&lab.namespace(VICTIM)).unwrap();
    let listed = victim.run(|| Command::new("nft").args(["list", "ruleset"]).output());
    let listed = listed.unwrap().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8(listed.stdout).unwrap()
}

/// What a proxy that has just been started changes: how many operations, and which lines differ.
fn what_a_fresh_proxy_changes(lab: &Lab, api: &Api) -> (usize, String) {
    fn all<K: serde::de::DeserializeOwned>(list: &Value) -> Vec<Arc<K>> {
        let items = list["items"].as_array().unwrap().iter().cloned();
        items
            .map(|item| Arc::new(serde_json::from_value(item).unwrap()))
            .collect()
    }
    let services = all(&api.get("/api/v1/services"));
    let slices = all(&api.get("/apis/discovery.k8s.io/v1/endpointslices"));
    let settings = Settings {
        service_cidrs: ["10.96.0.0/12", "fd00:10:96::/112"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        node_local: ["10.96.0.10", "fd00:10:96::a"]
            .map(|ip| ip.parse().unwrap())
            .to_vec(),
        ..Settings::default()
    };
    let pods = ["10.244.0.0/16", "fd00:10:244::/48"].map(|net| net.parse().unwrap());
    let victim = NetNs::open(&lab.namespace(VICTIM)).unwrap();
    let before = rules(lab);
    let backend = victim
        .run(|| Nftables::open(&pods, &settings.service_cidrs).unwrap())
        .unwrap();
    let mut fresh = Engine::new(VICTIM, settings, Box::new(backend));
    fresh.apply_change(Update::Services(Change::Reset(services)));
    fresh.apply_change(Update::Slices(Change::Reset(slices)));
    let report = fresh.sync().unwrap();
    let after = rules(lab);
    let missing = |of: &str, from: &str| -> Vec<String> {
        let known: HashSet<&str> = from.lines().map(str::trim).collect();
        let lines = of.lines().map(str::trim).filter(|line| !known.contains(line));
        lines.map(str::to_string).collect()
    };
    let differences = format!(
        "gone: {:#?}\nnew: {:#?}",
        missing(&before, &after),
        missing(&after, &before)
    );
    (report.operations, differences)
}

fn kill(lab: &Lab) {
    let stop = lab.lab(&["node", "stop"], &[VICTIM, "--signal", "KILL", "--keep-pods"]);
    assert!(stop.ok, "{stop:?}");
}

fn start(lab: &Lab) {
    let start = lab.lab(&["node", "start"], &[VICTIM, "--no-wait"]);
    assert!(start.ok, "{start:?}");
}

#[test]
fn a_killed_agent_leaves_nothing_wrong() {
    let kills = count("SVCNET_CHURN_KILLS", 10);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = u64::from(now.subsec_nanos()) << 32 | now.as_secs() | 1;
    let lab = Lab::up(&["--dual-stack"]);
    let api = Api::of(&lab);
    let mut random = Random(seed);
    for number in 0..CHANGING {
        api.put(SERVICES, &service(&format!("s{number}"), &mut random));
    }
    let mut changes = 0;
    for round in 0..kills {
        let (at_rest, seed) = (AtomicBool::new(false), random.0);
        changes += std::thread::scope(|scope| {
            let (api, at_rest) = (&api, &at_rest);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || keep_changing(api, at_rest, writer, seed)))
                .collect();
            std::thread::sleep(Duration::from_millis(random.below(LIFE_MS_MAX)));
            kill(&lab);
            // What changes while it is away, it learns when it is back.
            std::thread::sleep(Duration::from_millis(random.below(50)));
            start(&lab);
            std::thread::sleep(Duration::from_millis(random.below(100)));
            at_rest.store(true, Ordering::SeqCst);
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .sum::<usize>()
        });
        wait_for_marker(&lab, &api, round);
        let (operations, differences) = what_a_fresh_proxy_changes(&lab, &api);
        assert_eq!(operations, 0, "kill {round}, seed {seed}: {differences}");
    }
    println!("{kills} kills during {changes} changes");
    // A difference is seen where there is one.
    kill(&lab);
    api.put(SERVICES, &service("unheard-of", &mut random));
    let (operations, differences) = what_a_fresh_proxy_changes(&lab, &api);
    assert!(
        operations > 0 && differences.contains("default/unheard-of"),
        "{differences}"
    );
    start(&lab);
}

/// Changes something again and again; says how often.
fn keep_changing(api: &Api, at_rest: &AtomicBool, writer: u64, seed: u64) -> usize {
    let mut random = Random(seed.wrapping_add(writer) | 1 << 63);
    let mut changes = 0;
    while !at_rest.load(Ordering::SeqCst) {
        change(api, writer, &mut random);
        changes += 1;
    }
    changes
}
