//! What runtimes ask for beside an address, chains of plugins, GC, STATUS, and what containers leave behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test fails by panicking, and uses a part of what the modules have"
)]

mod node;
mod talk;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use node::{Api, Container, Node, eventually};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use svcnet_cni::isolation::{Isolation, Subject};
use svcnet_cni::protocol::PodRef;
use svcnet_netlink::netns::NetNs;

fn config(node: &Node, version: &str, runtime: Value) -> Value {
    let mut config = node.config(version);
    config["runtimeConfig"] = runtime;
    config
}

fn add(node: &Node, container: &Container, runtime: Value) -> Result<Value, Value> {
    node.plugin("ADD", container, &config(node, "1.0.0", runtime))
}

fn failure(answer: Result<Value, Value>) -> (u64, String) {
    let error = answer.unwrap_err();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_string();
    let (msg, details) = (text("msg"), text("details"));
    let colon = if details.is_empty() { "" } else { ": " };
    (error["code"].as_u64().unwrap(), format!("{msg}{colon}{details}"))
}

#[test]
fn address_mac_and_resolver_are_those_asked_for() {
    let node = Node::start_with(Api::default(), &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let container = Container::new("static");
    let wanted = json!({
        "ips": ["10.244.1.50/24", "fd00:10:244:1::50"],
        "mac": "02:11:22:33:44:55",
        "dns": { "servers": ["9.9.9.9"], "searches": ["example.org"], "options": ["ndots:2"] },
    });
    let result = add(&node, &container, wanted.clone()).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.1.50/32");
    assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::50/128");
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["9.9.9.9"], "search": ["example.org"], "options": ["ndots:2"] })
    );
    assert_eq!(
        container.json("ip -j link show eth0")[0]["address"],
        "02:11:22:33:44:55"
    );
    assert!(container.run("ping -c 1 -W 5 10.244.1.1").0);
    let mut checked = config(&node, "1.0.0", wanted);
    checked["prevResult"] = result;
    assert_eq!(node.plugin("CHECK", &container, &checked), Ok(Value::Null));
    // As the reference plugin `tuning` leaves it, which says so in its result.
    assert!(container.run("ip link set eth0 address 02:11:22:33:44:66").0);
    assert_eq!(
        node.plugin("CHECK", &container, &checked).unwrap_err()["code"],
        103
    );
    checked["prevResult"]["interfaces"][2]["mac"] = json!("02:11:22:33:44:66");
    assert_eq!(node.plugin("CHECK", &container, &checked), Ok(Value::Null));

    let other = Container::new("other");
    for (runtime, code, words) in [
        (
            json!({ "ips": ["10.244.1.50"] }),
            104,
            "failed to allocate for range 0: requested IP address 10.244.1.50 is not available in range set \
             10.244.1.1-10.244.1.254: eth0 of container static has it",
        ),
        (
            json!({ "ips": ["192.0.2.1"] }),
            104,
            "failed to allocate all requested IPs: 192.0.2.1",
        ),
        (
            json!({ "mac": "nonsense" }),
            7,
            "invalid runtimeConfig.mac: \"nonsense\" is not an Ethernet address of one host, like 02:00:00:00:00:01",
        ),
    ] {
        assert_eq!(failure(add(&node, &other, runtime)), (code, words.to_string()));
    }
    assert_eq!(node.leases(), 1);
}

#[test]
fn ranges_of_a_network_are_kept_to() {
    let node = Node::start(Api::default());
    let mut config = node.config("1.1.0");
    config["ipam"] = json!({ "ranges": [[
        { "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.100", "rangeEnd": "10.244.1.101" },
    ]] });
    let containers = ["r1", "r2", "r3"].map(Container::new);
    for (container, wanted) in containers.iter().zip(["10.244.1.100/32", "10.244.1.101/32"]) {
        let result = node.plugin("ADD", container, &config).unwrap();
        assert_eq!(result["ips"][0]["address"], wanted);
    }
    let full =
        "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.100-10.244.1.101";
    assert_eq!(
        failure(node.plugin("ADD", &containers[2], &config)),
        (101, full.into())
    );
    let nobody = Container::at("", "");
    assert_eq!(
        failure(node.plugin("STATUS", &nobody, &config)),
        (50, full.into())
    );
    assert_eq!(
        node.plugin("STATUS", &nobody, &node.config("1.1.0")),
        Ok(Value::Null)
    );
    config["ipam"] = json!({ "ranges": [[{ "subnet": "10.9.0.0/24" }]] });
    let outside = "invalid network configuration: ipam.ranges: 10.9.0.0/24 is not within this node's pod networks \
                   (10.244.1.0/24)";
    assert_eq!(
        failure(node.plugin("ADD", &containers[2], &config)),
        (7, outside.into())
    );
}

#[test]
fn behind_another_plugin_its_result_goes_before_ours() {
    let node = Node::start(Api::default());
    let container = Container::new("chained");
    let mut config = node.config("1.1.0");
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": container.path(), "socketPath": "/x" }],
        "ips": [{ "interface": 0, "address": "127.0.0.1/8" }],
        "routes": [{ "dst": "192.0.2.0/24", "priority": 7 }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let result = node.plugin("ADD", &container, &config).unwrap();
    let names: Vec<&Value> = result["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["name"])
        .collect();
    assert_eq!(
        (names[0], names[1], names[3]),
        (&json!("lo"), &json!("svcnet0"), &json!("eth0"))
    );
    assert_eq!(
        result["interfaces"][0]["socketPath"], "/x",
        "what we do not know is kept"
    );
    assert_eq!(
        result["ips"],
        json!([
            { "interface": 0, "address": "127.0.0.1/8" },
            { "interface": 3, "address": "10.244.1.2/32", "gateway": "10.244.1.1" },
        ])
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "192.0.2.0/24", "priority": 7 }, { "dst": "0.0.0.0/0", "gw": "10.244.1.1" }])
    );
    assert_eq!(result["dns"]["nameservers"], json!(["10.96.0.10"]));
    config["prevResult"] = result;
    assert_eq!(node.plugin("CHECK", &container, &config), Ok(Value::Null));
}

#[test]
fn gc_frees_what_is_of_its_own_network_alone() {
    let node = Node::start(Api::default());
    let (kept, stale, foreign) = (
        Container::new("kept"),
        Container::new("stale"),
        Container::new("foreign"),
    );
    let mut config = node.config("1.1.0");
    node.plugin("ADD", &kept, &config).unwrap();
    node.plugin("ADD", &stale, &config).unwrap();
    node.client()
        .add("foreign", std::path::Path::new(foreign.path()), None)
        .unwrap();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    assert_eq!(
        node.plugin("GC", &Container::at("", ""), &config),
        Ok(Value::Null)
    );
    let has = |c: &Container| c.run("ip link show eth0").0;
    assert_eq!((has(&kept), has(&stale), has(&foreign)), (true, false, true));
    assert_eq!(node.leases(), 2);
}

#[test]
fn what_containers_left_behind_is_found() {
    let mut node = Node::start_with(Api::default(), &["10.244.1.0/30"]);
    let limit = json!({ "bandwidth": { "egressRate": 80_000_000, "egressBurst": 8_000_000 } });
    let first = Container::new("first");
    add(&node, &first, limit.clone()).unwrap();
    let links = |node: &Node| node.run("ip -br link").1;
    assert!(links(&node).contains("ifb"), "{}", links(&node));
    // The only address is of a container whose runtime forgot it: an ADD looks for such before it gives up.
    drop(first);
    eventually("its link is gone", || !links(&node).contains("veth"));
    let second = Container::new("second");
    let result = add(&node, &second, json!({})).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert!(!links(&node).contains("ifb"), "{}", links(&node));
    assert_eq!(node.leases(), 1);
    // Links without a lease go at the next start, others' stay.
    for words in [
        "ip link add veth0123456789 type veth peer name x0",
        "ip link set veth0123456789 master svcnet0",
        "ip link add vethabc type veth peer name x1",
        "ip link set vethabc master svcnet0",
        "ip link add ifb0123456789 type ifb",
    ] {
        assert!(node.run(words).0, "{words}");
    }
    node.restart();
    let left = links(&node);
    assert!(!left.contains("0123456789") && left.contains("vethabc"), "{left}");
    assert!(second.run("ping -c 1 -W 5 10.244.1.1").0);
    // Leases that were lost leave their containers alone.
    node.stop();
    node.lose_leases();
    node.restart();
    assert!(second.run("ping -c 1 -W 5 10.244.1.1").0);
}

#[test]
fn status_tells_whether_pods_may_be_cut_off() {
    let node = Node::start(Api::default());
    let config = node.config("1.1.0");
    let nobody = Container::at("", "");
    assert_eq!(node.plugin("STATUS", &nobody, &config), Ok(Value::Null));
    let code = |node: &Node| {
        node.plugin("STATUS", &nobody, &config)
            .err()
            .map(|e| e["code"].clone())
    };
    let container = Container::new("c");
    node.plugin("ADD", &container, &config).unwrap();
    assert!(node.run("ip address flush dev eth0").0);
    eventually("attached pods may be cut off", || code(&node) == Some(json!(51)));
    node.plugin("DEL", &container, &config).unwrap();
    eventually("nobody is", || code(&node) == Some(json!(50)));
    assert!(node.run("ip address add 172.30.0.11/24 dev eth0").0);
    eventually("all is well", || code(&node).is_none());
}

/// Megabits per second that come through in about three seconds, from the first byte on: what waits in buffers, and how
/// busy the machine is, can only make it less.
fn rate(from: &NetNs, to: &NetNs, at: Ipv4Addr) -> f64 {
    let stream = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let listener = to.run(|| {
        let listener = stream();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())
            .unwrap();
        listener.listen(1).unwrap();
        listener
    });
    let listener = listener.unwrap();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let mut sender = from
        .run(|| {
            let sender = stream();
            sender.connect(&SocketAddr::from((at, port)).into()).unwrap();
            sender
        })
        .unwrap();
    let begun = Instant::now();
    sender
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let sending = thread::spawn(move || {
        let begun = Instant::now();
        let bytes = vec![0u8; 1 << 16];
        while begun.elapsed() < Duration::from_secs(3) {
            let _ = sender.write(&bytes);
        }
    });
    let mut buffer = vec![0u8; 1 << 16];
    let mut received = 0;
    // A gigabyte is enough to know that nothing slows it down.
    while begun.elapsed() < Duration::from_millis(2800) && received < 1 << 30 {
        received += receiver.read(&mut buffer).unwrap();
    }
    let rate = f64::from(u32::try_from(received).unwrap()) * 8e-6 / begun.elapsed().as_secs_f64();
    drop(receiver);
    sending.join().unwrap();
    rate
}

#[test]
fn limits_hold_in_each_direction() {
    let node = Node::start(Api::default());
    let (slow, free) = (Container::new("slow"), Container::new("free"));
    let limits = json!({ "bandwidth": {
        "ingressRate": 40_000_000, "ingressBurst": 2_000_000, "egressRate": 20_000_000, "egressBurst": 2_000_000,
    } });
    let result = add(&node, &slow, limits.clone()).unwrap();
    add(&node, &free, json!({})).unwrap();
    let mut checked = config(&node, "1.0.0", limits);
    checked["prevResult"] = result;
    assert_eq!(node.plugin("CHECK", &slow, &checked), Ok(Value::Null));
    let addresses = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 1, 3)];
    let egress = rate(slow.ns(), free.ns(), addresses[1]);
    let ingress = rate(free.ns(), slow.ns(), addresses[0]);
    let free_rate = rate(free.ns(), node.ns(), Ipv4Addr::new(10, 244, 1, 1));
    println!("to it {ingress:.1}, from it {egress:.1}, without a limit {free_rate:.0} Mbit/s");
    // The rate, and the burst of 2 Mbit that is let by at once; a free one shows that the machine could do more.
    assert!(ingress > 0.0 && ingress < 41.0, "{ingress}");
    assert!(egress > 0.0 && egress < 21.0, "{egress}");
    assert!(free_rate > 45.0, "{free_rate}");
    let ifb = node.run("ip -br link show type ifb").1;
    let ifb = ifb.split_whitespace().next().unwrap();
    assert!(node.run(&format!("tc qdisc del dev {ifb} root")).0);
    let error = node.plugin("CHECK", &slow, &checked).unwrap_err();
    let words =
        format!("what goes from the container is not limited to 20000000 bits a second on link {ifb}");
    assert_eq!(error["details"], words);
    node.plugin("DEL", &slow, &node.config("1.0.0")).unwrap();
    assert_eq!(node.run("ip -br link show type ifb").1, "");
}

/// What it was asked, and what it refuses.
#[derive(Debug, Default)]
struct Policies {
    /// Uids of pods that it has heard of.
    known: Mutex<BTreeSet<String>>,
    enforced: Mutex<Vec<String>>,
    released: Mutex<BTreeSet<String>>,
    restored: Mutex<Vec<String>>,
}

impl Isolation for Policies {
    fn knows(&self, pod: &PodRef) -> bool {
        let known = self.known.lock().unwrap();
        pod.uid.as_ref().is_some_and(|uid| known.contains(uid))
    }

    fn enforce(&self, subject: Subject<'_>) -> Result<(), String> {
        let container = subject.attachment.container().to_string();
        if container == "refused" {
            return Err("no policy table".into());
        }
        self.enforced.lock().unwrap().push(format!(
            "{container} {:?}{}",
            subject.addresses,
            if subject.late { " late" } else { "" }
        ));
        Ok(())
    }

    fn release(&self, subject: Subject<'_>) {
        let container = subject.attachment.container().to_string();
        self.released.lock().unwrap().insert(container);
    }

    fn restore(&self, all: &[Subject<'_>]) {
        let of = |subject: &Subject<'_>| {
            let mac = subject.mac.unwrap();
            format!(
                "{} {:?} {} {mac}",
                subject.attachment.container(),
                subject.addresses,
                subject.link()
            )
        };
        self.restored.lock().unwrap().extend(all.iter().map(of));
    }
}

#[test]
fn isolation_comes_before_the_link_and_is_told_at_start_who_is_there() {
    let policies = Arc::new(Policies::default());
    let mut node = Node::start_isolating(Api::default(), Arc::clone(&policies) as Arc<dyn Isolation>);
    let (pod, refused) = (Container::new("pod"), Container::new("refused"));
    add(&node, &pod, json!({})).unwrap();
    let why = "failed to isolate the container: no policy table";
    assert_eq!(failure(add(&node, &refused, json!({}))), (106, why.into()));
    assert!(!refused.run("ip link show eth0").0);
    assert_eq!(node.leases(), 1);
    assert_eq!(*policies.enforced.lock().unwrap(), ["pod [10.244.1.2]"]);
    let links = node.json("ip -j link show master svcnet0");
    let link = links[0]["ifname"].as_str().unwrap().to_string();
    let mac = pod.json("ip -j link show eth0")[0]["address"]
        .as_str()
        .unwrap()
        .to_string();
    policies.restored.lock().unwrap().clear();
    node.restart();
    eventually("it is told who is there", || {
        *policies.restored.lock().unwrap() == [format!("pod [10.244.1.2] {link} {mac}")]
    });
    node.plugin("DEL", &pod, &node.config("1.0.0")).unwrap();
    let released = policies.released.lock().unwrap();
    assert_eq!(released.iter().collect::<Vec<_>>(), ["pod", "refused"]);
}

#[test]
fn the_api_is_asked_for_a_pod_only_where_nobody_has_heard_of_it() {
    let policies = Arc::new(Policies::default());
    let api = Api::default();
    api.put_pod(
        "shop",
        "told",
        json!({ "metadata": { "uid": "uid-told" }, "status": {} }),
    );
    let node = Node::start_isolating(api, Arc::clone(&policies) as Arc<dyn Isolation>);
    // The API here knows nothing of this one: who asks it is told so.
    policies.known.lock().unwrap().insert("uid-heard-of".into());
    for (name, uid) in [
        ("heard-of", "uid-heard-of"),
        ("told", "uid-told"),
        ("untold", "uid-untold"),
    ] {
        add(&node, &Container::new(name).of_pod(uid), json!({})).unwrap();
    }
    let enforced = policies.enforced.lock().unwrap();
    assert_eq!(
        *enforced,
        [
            "heard-of [10.244.1.2]",
            "told [10.244.1.3]",
            "untold [10.244.1.4] late"
        ]
    );
}

#[test]
fn a_pod_object_that_the_daemon_makes_says_what_the_runtime_told() {
    let api = Api::default();
    let node = Node::start(api.clone());
    let container = Container::new("web-1");
    let runtime = json!({
        "io.kubernetes.cri.pod-annotations": { "svcnet.io/labels": "app=web" },
        "aliases": { "svcnet": ["db", "store"] },
    });
    add(&node, &container, runtime).unwrap();
    eventually("it is made", || {
        api.pod("shop", "web-1")
            .is_some_and(|p| !p["status"]["podIP"].is_null())
    });
    let pod = api.pod("shop", "web-1").unwrap();
    assert_eq!(
        pod["metadata"]["labels"],
        json!({ "app": "web", "svcnet.io/created-by": "cni" })
    );
    assert_eq!(pod["metadata"]["annotations"]["svcnet.io/aliases"], "db,store");
}
