//! The role in a network namespace: what the kernel holds, what nft prints of it, what becomes of it when others meddle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use svcnet_netlink::netns::{NetNs, OwnedNetNs};
use svcnet_netlink::nft::Family;
use svcnet_policy::gate::{Attachment, Gate, PodId, Refused};
use svcnet_policy::model::ObjectKey;
use svcnet_policy::{Config, PolicyRole};
use svcnet_runtime::{Change, Context, Health, Informers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

/// A role that runs in a namespace, on a thread of its own, fed by hand.
struct Running {
    namespaces: mpsc::Sender<Change<Namespace>>,
    pods: mpsc::Sender<Change<Pod>>,
    policies: mpsc::Sender<Change<NetworkPolicy>>,
    gate: Gate,
    health: Health,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(ns: &NetNs) -> Self {
        let (namespaces, from_namespaces) = mpsc::channel(64);
        let (pods, from_pods) = mpsc::channel(64);
        let (policies, from_policies) = mpsc::channel(64);
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let (its_health, its_shutdown) = (health.clone(), shutdown.clone());
        let ns = NetNs::open_path(ns.path()).unwrap();
        let (tell_gate, gate) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            ns.enter_this_thread().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
                let client = kube::Client::try_from(nowhere).unwrap();
                let context = Context {
                    node_name: "n1".to_string(),
                    informers: Informers::new(client.clone(), None, its_shutdown.clone()),
                    client,
                    health: its_health,
                    shutdown: its_shutdown,
                    data_dir: "/nonexistent".into(),
                    run_dir: "/nonexistent".into(),
                };
                let config = Config {
                    families: vec![Family::Ip, Family::Ip6],
                    relays: false,
                };
                let role =
                    PolicyRole::fed(&config, &context, from_namespaces, from_pods, from_policies).unwrap();
                tell_gate.send(role.gate()).unwrap();
                role.run().await.unwrap();
            });
        });
        Self {
            namespaces,
            pods,
            policies,
            gate: gate.recv().unwrap(),
            health,
            shutdown,
            thread: Some(thread),
        }
    }

    fn all(self, namespaces: &[Value], pods: &[Value], policies: &[Value]) -> Self {
        self.namespaces
            .blocking_send(Change::Reset(objects(namespaces)))
            .unwrap();
        self.pods.blocking_send(Change::Reset(objects(pods))).unwrap();
        self.policies
            .blocking_send(Change::Reset(objects(policies)))
            .unwrap();
        let health = self.health.clone();
        until("the role is ready", || health.report().0);
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

fn objects<K: serde::de::DeserializeOwned>(values: &[Value]) -> Vec<Arc<K>> {
    values
        .iter()
        .map(|value| Arc::new(serde_json::from_value(value.clone()).unwrap()))
        .collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn run(ns: &NetNs, command: &str) -> (bool, String) {
    ns.run(|| {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    })
    .unwrap()
}

fn pod(name: &str, labels: &Value, addresses: &[&str], node: &str) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": labels, "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn web_policy() -> Value {
    policy(
        "web",
        &json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "till"}}}], "ports": [{"port": "http"}, {"port": 80}]},
                {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
                          {"ipBlock": {"cidr": "fd00::/64"}}],
                 "ports": [{"port": 80, "endPort": 90}, {"port": 443}, {"protocol": "SCTP", "port": 5060, "endPort": 5061},
                           {"protocol": "UDP"}]},
            ],
            "egress": [{"to": [{"namespaceSelector": {}}]}, {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}],
        }),
    )
}

fn cluster() -> [Vec<Value>; 3] {
    [
        vec![json!({"metadata": {"name": "default", "labels": {"team": "a"}}})],
        vec![
            pod("web", &json!({"app": "web"}), &["10.0.0.1", "fd00::1"], "n1"),
            pod("both", &json!({"app": "web", "more": "yes"}), &["10.0.0.2"], "n1"),
            pod("till", &json!({"app": "till"}), &["10.0.1.1", "fd00::2"], "n2"),
        ],
        vec![
            web_policy(),
            policy("more", &json!({"podSelector": {"matchLabels": {"more": "yes"}}})),
        ],
    ]
}

fn namespace() -> OwnedNetNs {
    OwnedNetNs::unique("svcnet-policy").unwrap()
}

#[test]
fn nft_prints_what_the_kernel_holds() {
    let ns = namespace();
    let [namespaces, pods, policies] = cluster();
    let _running = Running::start(&ns).all(&namespaces, &pods, &policies);
    let (ok, text) = run(
        &ns,
        "nft list table ip svcnet-policy && nft -j list ruleset | jq -e .nftables > /dev/null",
    );
    assert!(ok, "{text}");
    for line in [
        "type filter hook postrouting priority filter; policy accept;",
        "type filter hook postrouting priority filter + 1; policy accept;",
        "ct reply ip saddr @ingress-pods goto ingress-pods comment \"pods that a policy isolates\"",
        "ct state invalid,untracked ip daddr @ingress-pods goto ingress-pods",
        "ct original ip saddr @relays accept comment \"what relays of other nodes have judged\"",
        "fib saddr type local accept comment \"their own node\"",
        "ct original ip saddr . ct reply ip saddr @egress-selves accept comment \"themselves\"",
        "ct original ip saddr vmap @egress comment \"what their policies allow\"",
        "10.0.0.1 : jump in/default/web",
        "ct protocol tcp ct reply proto-src 80 accept comment \"from pods app=till in default, tcp 80\"",
        "ct protocol tcp ct reply ip saddr . ct reply proto-src @named-tcp-http accept",
        "ct protocol sctp ct reply proto-src 5060-5061 accept",
        "elements = { 80-90, 443 }",
        "elements = { 192.0.2.0/25 }",
        "elements = { 0.0.0.0/0 }",
        "10.0.0.1 . 8080",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (ok, text) = run(&ns, "nft list table ip6 svcnet-policy");
    assert!(
        ok && text.contains("elements = { fd00::/64 }") && text.contains("fd00::1 : jump in/default/web"),
        "{text}"
    );
}

#[test]
fn what_others_break_is_mended_and_what_is_right_is_left_alone() {
    let ns = namespace();
    let [namespaces, pods, policies] = cluster();
    let running = Running::start(&ns).all(&namespaces, &pods, &policies);
    let handle = || run(&ns, "nft -a list table ip svcnet-policy | head -1").1;
    let listing = || run(&ns, "nft list ruleset").1;
    let (first, whole) = (handle(), listing());
    drop(running);
    assert_eq!(handle(), first, "the table stays when the role ends");
    let running = Running::start(&ns).all(&namespaces, &pods, &policies);
    assert_eq!(handle(), first, "what is right is not made anew");
    for meddling in [
        "nft flush ruleset",
        "nft flush table ip6 svcnet-policy",
        "nft delete element ip svcnet-policy ingress-pods { 10.0.0.1 }",
        "nft flush chain ip svcnet-policy in/default/web",
        "nft flush chain ip svcnet-policy ingress",
        "nft flush chain ip6 svcnet-policy egress && nft delete chain ip6 svcnet-policy egress",
        "nft add rule ip svcnet-policy in/default/more accept",
        "nft add chain ip svcnet-policy mine",
    ] {
        let (ok, text) = run(&ns, meddling);
        assert!(ok, "{meddling}: {text}");
        assert_ne!(listing(), whole, "{meddling}");
        until(meddling, || listing() == whole);
    }
    // Nobody passes chains that isolate nobody.
    let bases = |text: &str| text.matches("hook postrouting priority filter").count();
    assert_eq!(bases(&whole), 4, "each way in both families:\n{whole}");
    // A pod comes, and it is one element more in each set; a policy goes, and nothing of it stays.
    let till2 = pod("till2", &json!({"app": "till"}), &["10.0.1.2"], "n2");
    let [till2] = objects(&[till2]).try_into().ok().unwrap();
    running.pods.blocking_send(Change::Apply(till2)).unwrap();
    until("till2 is there", || listing().contains("10.0.1.2"));
    for gone in &policies {
        let [gone] = objects(std::slice::from_ref(gone)).try_into().ok().unwrap();
        running.policies.blocking_send(Change::Delete(gone)).unwrap();
    }
    until("nothing of the policies is left", || {
        let text = listing();
        !text.contains("default")
            && !text.contains("pods-")
            && !text.contains("10.0.")
            && text.contains("egress-pods")
            && bases(&text) == 0
    });
}

fn attachment(name: &str, uid: Option<&str>, address: &str) -> Attachment {
    Attachment {
        link: format!("veth-{name}"),
        mac: Some("0a:58:0a:00:00:01".parse().unwrap()),
        addresses: vec![address.parse().unwrap()],
        pod: Some(PodId {
            key: ObjectKey::new("default", name),
            uid: uid.map(str::to_string),
            late: false,
        }),
    }
}

#[test]
fn a_pod_that_the_api_hears_of_late_starts_and_is_let_nothing_until_then() {
    let ns = namespace();
    let [namespaces, _, policies] = cluster();
    let running = Running::start(&ns).all(&namespaces, &[], &policies);
    running.gate.restore(Vec::new());
    let list = |set: &str| run(&ns, &format!("nft list {set}")).1;
    let mut late = attachment("late", Some("uid-of-runtime"), "10.0.0.9");
    if let Some(pod) = &mut late.pod {
        pod.late = true;
    }
    running.gate.attach(late).unwrap();
    let held = |set: &str| list(&format!("set ip svcnet-policy {set}")).contains("10.0.0.9");
    assert!(held("ingress-pods") && held("egress-pods"));
    let knows = || {
        running
            .gate
            .knows(&ObjectKey::new("default", "late"), "uid-of-runtime")
    };
    assert!(!knows());

    // The object that CNI makes has a uid of its own, and says the runtime's once its labels are right.
    let mut made = pod("late", &json!({}), &["10.0.0.9"], "n1");
    let send = |value: &Value| {
        let [object] = objects(std::slice::from_ref(value)).try_into().ok().unwrap();
        running.pods.blocking_send(Change::Apply(object)).unwrap();
    };
    send(&made);
    made["metadata"]["labels"] = json!({"app": "web"});
    made["metadata"]["annotations"] = json!({"svcnet.io/runtime-uid": "uid-of-runtime"});
    send(&made);
    until("its policy is in force", || {
        list("map ip svcnet-policy ingress").contains("10.0.0.9 : jump in/default/web")
    });
    assert!(knows());
    made["metadata"]["labels"] = json!({"app": "free"});
    send(&made);
    until("no policy is about it", || {
        !held("ingress-pods") && !held("egress-pods")
    });
}

#[test]
fn a_pod_is_isolated_before_it_starts() {
    let ns = namespace();
    let [namespaces, _, policies] = cluster();
    let mut pending = pod("web", &json!({"app": "web"}), &[], "n1");
    let running = Running::start(&ns).all(&namespaces, &[pending.clone()], &policies);
    running.gate.restore(Vec::new());
    let list = |set: &str| run(&ns, &format!("nft list {set}")).1;

    // The API knows the pod, and not yet its address.
    let knows = |name: &str, uid: &str| running.gate.knows(&ObjectKey::new("default", name), uid);
    assert!(knows("web", "uid-web") && !knows("web", "uid-earlier") && !knows("late", "uid-late"));
    running
        .gate
        .attach(attachment("web", Some("uid-web"), "10.0.0.1"))
        .unwrap();
    let judged = list("map ip svcnet-policy ingress");
    assert!(judged.contains("10.0.0.1 : jump in/default/web"), "{judged}");
    let pinned = list("set bridge svcnet-policy addresses");
    assert!(
        pinned.contains("\"veth-web\" . 0a:58:0a:00:00:01 . 10.0.0.1"),
        "{pinned}"
    );

    // Whoever may have any Ethernet address is not pinned.
    let free = Attachment {
        mac: None,
        ..attachment("any", None, "10.0.0.8")
    };
    running.gate.attach(free).unwrap();
    assert!(!list("set bridge svcnet-policy links").contains("veth-any"));

    // It does not know the pod: nothing is allowed until it does.
    let gate = running.gate.clone();
    let waiting = thread::spawn(move || gate.attach(attachment("late", Some("uid-late"), "10.0.0.9")));
    until("the late pod is held", || {
        list("set ip svcnet-policy egress-pods").contains("10.0.0.9")
    });
    assert!(!list("map ip svcnet-policy egress").contains("10.0.0.9") && !waiting.is_finished());
    // Another one of the same name is not the one.
    let mut late = pod("late", &json!({"app": "web"}), &[], "n1");
    late["metadata"]["uid"] = json!("uid-earlier");
    let send = |value: &Value| {
        let [object] = objects(std::slice::from_ref(value)).try_into().ok().unwrap();
        running.pods.blocking_send(Change::Apply(object)).unwrap();
    };
    send(&late);
    late["metadata"]["uid"] = json!("uid-late");
    send(&late);
    assert_eq!(waiting.join().unwrap(), Ok(()));
    assert!(list("map ip svcnet-policy egress").contains("10.0.0.9 : jump out/default/web"));

    // One whom the API never hears of has no labels; the policy of nobody in particular is about it.
    running
        .gate
        .attach(attachment("podman", None, "10.0.0.20"))
        .unwrap();
    assert!(!list("set ip svcnet-policy ingress-pods").contains("10.0.0.20"));

    // The object goes before the pod has ended: it stays as isolated as it was.
    pending["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    let [object] = objects(&[pending]).try_into().ok().unwrap();
    running.pods.blocking_send(Change::Delete(object)).unwrap();
    running
        .gate
        .attach(attachment("podman", None, "10.0.0.20"))
        .unwrap();
    assert!(list("map ip svcnet-policy ingress").contains("10.0.0.1 : jump in/default/web"));
    running.gate.detach("veth-web");
    until("it is let go", || !list("ruleset").contains("10.0.0.1 "));

    // Whoever is never heard of is refused, with the reason.
    let refused = running
        .gate
        .attach(attachment("nobody", Some("uid-nobody"), "10.0.0.30"));
    assert_eq!(
        refused,
        Err(Refused::Unknown(ObjectKey::new("default", "nobody")))
    );
    until("nothing is left of it", || !list("ruleset").contains("10.0.0.30"));
}
