//! A node with a daemon, containers, and an API server of a few lines.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::client::Body;
use serde_json::{Value, json};
use svcnet_cni::isolation::Isolation;
use svcnet_cni::{CniDaemon, Config, client, plugin, socket_path};
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::VethEnd;
use svcnet_netlink::netns::{NetNs, OwnedNetNs};
use svcnet_runtime::{Change, Context, Health, Informers};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < give_up, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn output(ns: &NetNs, words: &str) -> (bool, String) {
    let mut parts = words.split(' ');
    let output = ns
        .run(|| Command::new(parts.next().unwrap()).args(parts).output().unwrap())
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// Pods by namespace and name, and whether anybody answers.
#[derive(Clone, Default)]
pub(crate) struct Api {
    pods: Arc<Mutex<BTreeMap<(String, String), Value>>>,
    away: Arc<AtomicBool>,
}

impl Api {
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn put_pod(&self, namespace: &str, name: &str, mut pod: Value) {
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(namespace);
        self.pods
            .lock()
            .unwrap()
            .insert((namespace.into(), name.into()), pod);
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.pods
            .lock()
            .unwrap()
            .get(&(namespace.to_string(), name.to_string()))
            .cloned()
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                if api.away.load(Ordering::SeqCst) {
                    return Err(std::io::Error::other("away"));
                }
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, answer) = api.answer(&parts.method, parts.uri.path(), body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok(Response::builder().status(status).body(answer).unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut pods = self.pods.lock().unwrap();
        let parts: Vec<&str> = path.trim_start_matches("/api/v1/").split('/').collect();
        let missing = json!({ "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": path });
        match parts.as_slice() {
            ["pods"] => {
                let items: Vec<Value> = pods
                    .values()
                    .filter(|p| p["metadata"]["labels"]["svcnet.io/created-by"] == "cni")
                    .cloned()
                    .collect();
                (
                    StatusCode::OK,
                    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }),
                )
            }
            ["namespaces", namespace, "pods"] if *method == Method::POST => {
                let mut pod = body;
                pod["metadata"]["uid"] = json!("made");
                let name = pod["metadata"]["name"].as_str().unwrap().to_string();
                pods.insert(((*namespace).to_string(), name), pod.clone());
                (StatusCode::CREATED, pod)
            }
            ["namespaces", namespace, "pods", name, rest @ ..] => {
                let key = ((*namespace).to_string(), (*name).to_string());
                if *method == Method::DELETE {
                    return pods
                        .remove(&key)
                        .map_or((StatusCode::NOT_FOUND, missing), |p| (StatusCode::OK, p));
                }
                let Some(pod) = pods.get_mut(&key) else {
                    return (StatusCode::NOT_FOUND, missing);
                };
                if *method == Method::PATCH {
                    // Addresses go into the status; labels and annotations of a pod that the daemon made are the rest.
                    let part = if rest.is_empty() { "metadata" } else { "status" };
                    assert!(rest.is_empty() || rest == ["status"], "{rest:?}");
                    for (field, value) in body[part].as_object().unwrap() {
                        pod[part][field] = value.clone();
                    }
                }
                (StatusCode::OK, pod.clone())
            }
            _ => (StatusCode::NOT_FOUND, missing),
        }
    }
}

/// A container to be: a namespace, and what the runtime says of it.
pub(crate) struct Container {
    name: String,
    /// That of its pod, where the runtime tells it.
    uid: Option<&'static str>,
    path: String,
    netns: Option<OwnedNetNs>,
}

impl Container {
    pub(crate) fn new(name: &str) -> Self {
        let netns = OwnedNetNs::unique("svcnet-cni-c").unwrap();
        Self {
            name: name.into(),
            uid: None,
            path: netns.path().display().to_string(),
            netns: Some(netns),
        }
    }

    pub(crate) fn at(name: &str, path: &str) -> Self {
        Self {
            name: name.into(),
            uid: None,
            path: path.into(),
            netns: None,
        }
    }

    pub(crate) fn without_netns(name: &str) -> Self {
        Self::at(name, "")
    }

    pub(crate) fn of_pod(self, uid: &'static str) -> Self {
        Self {
            uid: Some(uid),
            ..self
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn ns(&self) -> &NetNs {
        self.netns.as_ref().unwrap()
    }

    pub(crate) fn run(&self, words: &str) -> (bool, String) {
        output(self.netns.as_ref().unwrap(), words)
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.run(words).1).unwrap()
    }
}

/// A node in a namespace of its own, with the daemon on a thread there.
pub(crate) struct Node {
    ns: OwnedNetNs,
    dir: TempDir,
    api: Api,
    pod_cidrs: &'static [&'static str],
    isolation: Option<Arc<dyn Isolation>>,
    daemon: Option<Daemon>,
}

struct Daemon {
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Node {
    pub(crate) fn start(api: Api) -> Self {
        Self::start_with(api, &["10.244.1.0/24"])
    }

    pub(crate) fn start_with(api: Api, pod_cidrs: &'static [&'static str]) -> Self {
        Self::make(api, pod_cidrs, None)
    }

    pub(crate) fn start_isolating(api: Api, isolation: Arc<dyn Isolation>) -> Self {
        Self::make(api, &["10.244.1.0/24"], Some(isolation))
    }

    fn make(api: Api, pod_cidrs: &'static [&'static str], isolation: Option<Arc<dyn Isolation>>) -> Self {
        let ns = OwnedNetNs::unique("svcnet-cni-n").unwrap();
        let mut rt = Rtnl::open_in(&ns).unwrap();
        rt.set_loopback_up().unwrap();
        let end = |name| VethEnd {
            name,
            mac: None,
            master: None,
            netns: None,
        };
        rt.add_veth(end("eth0"), end("cable"), None).unwrap();
        let link = rt.link("eth0").unwrap().unwrap().index;
        rt.replace_address(Address {
            link,
            net: "172.30.0.11/24".parse().unwrap(),
        })
        .unwrap();
        // What the overlay sees to on a node: it forwards, and tells no pod to talk to another one directly.
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ] {
            ns.run(|| svcnet_netlink::sysctl::set(name, value).unwrap())
                .unwrap();
        }
        let quiet = "nft add table ip6 quiet ; add chain ip6 quiet output { type filter hook output priority 0 ; } ; \
                     add rule ip6 quiet output icmpv6 type nd-redirect drop";
        assert!(output(&ns, quiet).0);
        let mut node = Self {
            ns,
            dir: TempDir::new().unwrap(),
            api,
            pod_cidrs,
            isolation,
            daemon: None,
        };
        node.start_daemon();
        node
    }

    pub(crate) fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// A host beside the node, at the other end of its cable: 172.30.0.100 and fd01::100; the node has fd01::11.
    pub(crate) fn neighbour(&self) -> OwnedNetNs {
        let outside = OwnedNetNs::unique("svcnet-cni-o").unwrap();
        let mut rt = Rtnl::open_in(&self.ns).unwrap();
        let cable = rt.link("cable").unwrap().unwrap().index;
        rt.move_link(cable, &outside).unwrap();
        for words in [
            "ip link set lo up",
            "ip link set cable up",
            "ip address add 172.30.0.100/24 dev cable",
            "ip address add fd01::100/64 dev cable nodad",
        ] {
            assert!(output(&outside, words).0, "{words}");
        }
        assert!(self.run("ip link set eth0 up").0);
        assert!(self.run("ip address add fd01::11/64 dev eth0 nodad").0);
        outside
    }

    pub(crate) fn stop(&mut self) {
        self.daemon = None;
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start_daemon();
    }

    fn start_daemon(&mut self) {
        let (shutdown, health) = (CancellationToken::new(), Health::default());
        let ns = NetNs::open_path(self.ns.path()).unwrap();
        let dir = self.dir.path().to_path_buf();
        let pod_cidrs = self.pod_cidrs;
        let isolation = self.isolation.clone();
        let (api, its_shutdown, its_health) = (self.api.clone(), shutdown.clone(), health.clone());
        let thread = thread::spawn(move || {
            ns.enter_this_thread().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let client = api.client();
                let context = Context {
                    node_name: "n1".into(),
                    informers: Informers::new(client.clone(), None, its_shutdown.clone()),
                    client,
                    health: its_health,
                    shutdown: its_shutdown,
                    data_dir: dir.join("data"),
                    run_dir: dir.join("run"),
                };
                let config = Config {
                    underlay: svcnet_netlink::underlay::Choice {
                        address: Some("172.30.0.11".parse().unwrap()),
                        ..Default::default()
                    },
                    cluster_dns: vec!["10.96.0.10".parse().unwrap()],
                    cluster_domain: "cluster.local".into(),
                    cni_conf_dir: Some(dir.join("net.d")),
                    cni_bin_dir: Some(dir.join("bin")),
                    cri_socket: Some(dir.join("no-runtime.sock")),
                    isolation,
                    ..Config::default()
                };
                let (nodes, receiver) = mpsc::channel(1);
                nodes
                    .send(Change::Reset(vec![own_node(pod_cidrs)]))
                    .await
                    .unwrap();
                CniDaemon::fed(config, &context, receiver)
                    .unwrap()
                    .run()
                    .await
                    .unwrap();
            });
        });
        self.daemon = Some(Daemon {
            shutdown,
            thread: Some(thread),
        });
        eventually("the daemon is ready", || health.report().1.contains("[+]cni ok"));
    }

    pub(crate) fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "svcnet",
            "type": "svcnet-cni",
            "socket": socket_path(&self.dir.path().join("run")),
            "dataDir": self.dir.path().join("data"),
        })
    }

    /// Calls the plugin as a runtime does, but within this process: on a thread in the node's namespace.
    pub(crate) fn plugin(
        &self,
        command: &str,
        container: &Container,
        config: &Value,
    ) -> Result<Value, Value> {
        let uid = container.uid.map(|uid| format!(";K8S_POD_UID={uid}"));
        let environment: BTreeMap<&str, String> = [
            ("CNI_COMMAND", command.to_string()),
            ("CNI_CONTAINERID", container.name.clone()),
            ("CNI_NETNS", container.path.clone()),
            ("CNI_IFNAME", "eth0".to_string()),
            (
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}{}",
                    container.name,
                    uid.unwrap_or_default()
                ),
            ),
        ]
        .into();
        let stdin = config.to_string();
        let call = || plugin::run(|name| environment.get(name).cloned(), stdin.as_bytes());
        let version = config["cniVersion"].as_str().unwrap_or_default();
        self.ns.run(call).unwrap().map_err(|error| error.render(version))
    }

    pub(crate) fn client(&self) -> client::Client {
        client::Client::new(socket_path(&self.dir.path().join("run")))
    }

    pub(crate) fn leases(&self) -> usize {
        let files = fs::read_dir(self.dir.path().join("data/cni/leases")).unwrap();
        files
            .filter(|f| f.as_ref().unwrap().file_name() != "last")
            .count()
    }

    pub(crate) fn lose_leases(&self) {
        fs::remove_dir_all(self.dir.path().join("data/cni")).unwrap();
    }

    pub(crate) fn run(&self, words: &str) -> (bool, String) {
        output(&self.ns, words)
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.run(words).1).unwrap()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.dir.path().join(path).exists()
    }
}

fn own_node(pod_cidrs: &[&str]) -> Arc<ApiNode> {
    let node = json!({
        "metadata": { "name": "n1" },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.11" }] },
    });
    Arc::new(serde_json::from_value(node).unwrap())
}
