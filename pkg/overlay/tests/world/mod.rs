//! Nodes in namespaces, with overlays that are fed with Nodes by hand.

use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change as LinkChange, VethEnd};
use svcnet_netlink::netns::{NetNs, OwnedNetNs};
use svcnet_netlink::route::Route;
use svcnet_netlink::underlay::Choice;
use svcnet_overlay::{Config, Mode, Overlay};
use svcnet_runtime::{Change, Context, Health, Informers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn node(number: u8, address: &str, with_cidr: bool) -> Arc<Node> {
    let mut node = json!({
        "metadata": { "name": format!("n{number}") },
        "spec": {},
        "status": { "addresses": [
            { "type": "Hostname", "address": format!("n{number}") },
            { "type": "InternalIP", "address": address },
        ] },
    });
    if with_cidr {
        node["spec"] = json!({ "podCIDRs": [format!("10.244.{number}.0/24")] });
    }
    Arc::new(serde_json::from_value(node).unwrap())
}

/// An overlay that runs in a namespace, on a thread of its own.
pub(crate) struct Running {
    pub(crate) nodes: mpsc::Sender<Change<Node>>,
    pub(crate) health: Health,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
    _run_dir: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start(ns: &NetNs, number: u8) -> Self {
        Self::start_in(ns, number, Mode::Vxlan)
    }

    pub(crate) fn start_in(ns: &NetNs, number: u8, mode: Mode) -> Self {
        let (nodes, receiver) = mpsc::channel(16);
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let ns = NetNs::open_path(ns.path()).unwrap();
        let (its_health, its_shutdown) = (health.clone(), shutdown.clone());
        let run_dir = tempfile::tempdir().unwrap();
        let its_run_dir = run_dir.path().to_path_buf();
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
                    node_name: format!("n{number}"),
                    informers: Informers::new(client.clone(), None, its_shutdown.clone()),
                    client,
                    health: its_health,
                    shutdown: its_shutdown,
                    data_dir: "/nonexistent".into(),
                    run_dir: its_run_dir,
                };
                let config = Config {
                    mode,
                    underlay: Choice::default(),
                    vni: svcnet_api::types::Vni::new(1).unwrap(),
                    port: 8472,
                    cluster_cidr: "10.244.0.0/16,fd00:10:244::/48".parse().unwrap(),
                    service_cidr: "10.96.0.0/12,fd00:10:96::/112".parse().unwrap(),
                    mtu: None,
                    verify_every: Duration::from_secs(2),
                };
                Overlay::fed(config, &context, receiver)
                    .unwrap()
                    .run()
                    .await
                    .unwrap();
            });
        });
        Self {
            nodes,
            health,
            shutdown,
            thread: Some(thread),
            _run_dir: run_dir,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.health.report().1.contains("[+]overlay ok")
    }

    /// What it tells of itself, as `svcnet status` reads it.
    pub(crate) fn told(&self) -> Value {
        let status: Value = serde_json::from_str(&self.health.status()).unwrap();
        status["overlay"]["facts"].clone()
    }

    pub(crate) fn tell(&self, change: Change<Node>) {
        self.nodes.blocking_send(change).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

pub(crate) struct Machine {
    pub(crate) ns: OwnedNetNs,
    pub(crate) rt: Rtnl,
}

impl Machine {
    pub(crate) fn new(name: &str) -> Self {
        let ns = OwnedNetNs::unique(&format!("svcnet-ov-{name}")).unwrap();
        let mut rt = Rtnl::open_in(&ns).unwrap();
        rt.set_loopback_up().unwrap();
        Self { ns, rt }
    }

    pub(crate) fn address(&mut self, link: &str, net: &str) {
        let index = self.rt.link(link).unwrap().unwrap().index;
        self.rt.change_link(index, &LinkChange::up()).unwrap();
        self.rt
            .replace_address(Address {
                link: index,
                net: net.parse().unwrap(),
            })
            .unwrap();
    }

    pub(crate) fn run(&self, words: &str) -> (bool, String) {
        let mut parts = words.split(' ');
        let output = self
            .ns
            .run(|| Command::new(parts.next().unwrap()).args(parts).output().unwrap())
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        let (good, text) = self.run(words);
        assert!(good, "{words}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The bridge with a pod on it, as the CNI daemon would make them.
    pub(crate) fn with_pod(&mut self, number: u8) -> Self {
        self.rt.add_bridge("svcnet0", None, None).unwrap();
        self.address("svcnet0", &format!("10.244.{number}.1/24"));
        let mut pod = Self::new("pod");
        let bridge = self.rt.link("svcnet0").unwrap().map(|l| l.index);
        connect(self, "pod", &mut pod, "eth0", bridge, Some(1450));
        pod.address("eth0", &format!("10.244.{number}.2/32"));
        let link = pod.rt.link("eth0").unwrap().unwrap().index;
        let gateway: std::net::IpAddr = [10, 244, number, 1].into();
        pod.rt
            .replace_route(Route::via("0.0.0.0/0".parse().unwrap(), gateway, link))
            .unwrap();
        pod
    }
}

pub(crate) fn connect(
    a: &mut Machine,
    near: &str,
    b: &mut Machine,
    far: &str,
    master: Option<u32>,
    mtu: Option<u32>,
) {
    let near = VethEnd {
        name: near,
        mac: None,
        master,
        netns: None,
    };
    let far_end = VethEnd {
        name: far,
        mac: None,
        master: None,
        netns: Some(&b.ns),
    };
    a.rt.add_veth(near, far_end, mtu).unwrap();
    let index = b.rt.link(far).unwrap().unwrap().index;
    b.rt.change_link(index, &LinkChange::up()).unwrap();
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < give_up, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn pings(from: &Machine, to: &str) -> bool {
    from.run(&format!("ping -c 1 -W 1 {to}")).0
}

/// Two nodes with a pod each and running overlays that know both.
pub(crate) struct Pair {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) pod_a: Machine,
    pub(crate) pod_b: Machine,
    pub(crate) overlay_a: Running,
    pub(crate) overlay_b: Running,
}

pub(crate) fn pair() -> Pair {
    let (mut a, mut b) = (Machine::new("a"), Machine::new("b"));
    connect(&mut a, "eth0", &mut b, "eth0", None, None);
    pair_of(a, b, ["172.30.0.11/24", "172.30.0.12/24"])
}

/// The same of two machines that are connected, with these addresses there.
pub(crate) fn pair_of(mut a: Machine, mut b: Machine, underlay: [&str; 2]) -> Pair {
    a.address("eth0", underlay[0]);
    b.address("eth0", underlay[1]);
    let (overlay_a, overlay_b) = (Running::start(&a.ns, 1), Running::start(&b.ns, 2));
    let (pod_a, pod_b) = (a.with_pod(1), b.with_pod(2));
    let [of_a, of_b] = underlay.map(|net| net.split('/').next().unwrap());
    let nodes = vec![node(1, of_a, true), node(2, of_b, true)];
    overlay_a.tell(Change::Reset(nodes.clone()));
    overlay_b.tell(Change::Reset(nodes));
    let pair = Pair {
        a,
        b,
        pod_a,
        pod_b,
        overlay_a,
        overlay_b,
    };
    eventually("both overlays are ready", || {
        pair.overlay_a.is_ready() && pair.overlay_b.is_ready()
    });
    pair
}
