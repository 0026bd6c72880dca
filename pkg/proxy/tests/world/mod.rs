//! A node with pods, a pod on another node and a client outside, each a network namespace; and a proxy on the node.
//!
//! ```text
//! client 172.30.0.100 --- 172.30.0.11 node 172.31.0.1 --- 172.31.0.2 other node, also pod c 10.244.2.5
//!                                      |  svcnet0 10.244.1.1
//!                              pods a 10.244.1.5 and b 10.244.1.6
//! ```
//! The other node routes pods' addresses back, and knows nothing of the client's network: what comes from there
//! without being masqueraded is never answered.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::userspace::Relays;
use svcnet_proxy::{Admission, Backend, Engine, Nftables, Report, Settings, Sysctls, Update, Userspace};
use svcnet_runtime::Change;

/// Longest wait for something that happens: generous, machines can be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) node: OwnedNetNs,
    pub(crate) client: OwnedNetNs,
    pub(crate) a: OwnedNetNs,
    pub(crate) b: OwnedNetNs,
    pub(crate) c: OwnedNetNs,
    open: fn() -> Box<dyn Backend>,
    engine: Option<Engine>,
    relays: Option<Arc<Relays>>,
    #[allow(dead_code, reason = "removed with it")]
    run_dir: tempfile::TempDir,
}

pub(crate) const A: &str = "10.244.1.5";
pub(crate) const B: &str = "10.244.1.6";
pub(crate) const C: &str = "10.244.2.5";
pub(crate) const NODE: &str = "172.30.0.11";
pub(crate) const CLIENT: &str = "172.30.0.100";

pub(crate) fn ip(ns: &OwnedNetNs, arguments: &str) {
    run(ns, "ip", &arguments.split(' ').collect::<Vec<_>>());
}

/// Many at once, one in a line: starting a program is slow in an emulated machine.
fn ip_all(ns: &OwnedNetNs, lines: &str) {
    let start = || {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = ns.run(start).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip -batch: {errors}\n{lines}");
}

pub(crate) fn run(ns: &OwnedNetNs, program: &str, arguments: &[&str]) -> String {
    let output = ns
        .run(|| Command::new(program).args(arguments).output().unwrap())
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn sysctl(ns: &OwnedNetNs, name: &str, value: &str) {
    ns.run(|| svcnet_netlink::sysctl::set(name, value).unwrap())
        .unwrap();
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(nftables)
    }

    /// With a proxy that relays on sockets.
    pub(crate) fn userspace() -> Self {
        Self::relaying(None)
    }

    /// The same; its relays ask who may reach whom, if there is somebody to ask.
    pub(crate) fn relaying(admission: Option<Arc<dyn Admission>>) -> Self {
        let mut world = Self::bare(nftables);
        let sysctls = Sysctls::new(world.run_dir.path());
        let pods = ["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()];
        let start = || Relays::start(&pods, sysctls, admission).unwrap();
        world.relays = Some(world.node.run(start).unwrap());
        world.with_engine()
    }

    /// With another backend, opened in the node's namespace.
    pub(crate) fn with(open: fn() -> Box<dyn Backend>) -> Self {
        Self::bare(open).with_engine()
    }

    fn bare(open: fn() -> Box<dyn Backend>) -> Self {
        let ns = || OwnedNetNs::unique("svcnet-px").unwrap();
        let world = Self {
            node: ns(),
            client: ns(),
            a: ns(),
            b: ns(),
            c: ns(),
            open,
            engine: None,
            relays: None,
            run_dir: tempfile::tempdir().unwrap(),
        };
        let node = &world.node;
        prepare(node);
        let (client, c) = (world.client.name(), world.c.name());
        let links = format!(
            "link set lo up
             link add svcnet0 type bridge
             addr add 10.244.1.1/24 dev svcnet0
             addr add fd00:244:1::1/64 dev svcnet0 nodad
             link set svcnet0 up
             route add 10.96.0.0/12 dev svcnet0 src 10.244.1.1
             link add lan type veth peer name eth0 netns {client}
             addr add {NODE}/24 dev lan
             link set lan up
             route add 203.0.113.0/24 dev lan
             link add far type veth peer name eth0 netns {c}
             addr add 172.31.0.1/24 dev far
             link set far up
             route add 10.244.2.0/24 via 172.31.0.2"
        );
        ip_all(node, &links);
        for (pod, address) in [(&world.a, A), (&world.b, B)] {
            ip(pod, "link set lo up");
            plug(node, pod, address);
        }
        let outside = format!(
            "link set lo up
             addr add {CLIENT}/24 dev eth0
             link set eth0 up
             route add 203.0.113.0/24 via {NODE}"
        );
        ip_all(&world.client, &outside);
        let elsewhere = format!(
            "link set lo up
             addr add 172.31.0.2/24 dev eth0
             addr add {C}/32 dev lo
             link set eth0 up
             route add 10.244.1.0/24 via 172.31.0.1"
        );
        ip_all(&world.c, &elsewhere);
        serve(&world.a, "a", A);
        serve(&world.b, "b", B);
        serve(&world.c, "c", C);
        world
    }

    fn with_engine(mut self) -> Self {
        self.restart();
        self.apply_all(Vec::new(), Vec::new());
        self
    }

    /// Another proxy over what the kernel holds, as after a restart of the agent.
    pub(crate) fn restart(&mut self) {
        self.restart_with_node_ports_on("all");
    }

    /// The same with `--nodeport-addresses`.
    pub(crate) fn restart_with_node_ports_on(&mut self, addresses: &str) {
        let relays = self.relays.clone();
        let open = || match relays {
            Some(relays) => Box::new(Userspace::open(&relays).unwrap()),
            None => (self.open)(),
        };
        let backend = self.node.run(open).unwrap();
        let mut engine = Engine::new("n1", settings(), backend);
        engine.set_node_ports(addresses.parse().unwrap());
        self.engine = Some(engine);
    }

    pub(crate) fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    /// Another mode takes over; what the former one made stays.
    pub(crate) fn switch(&mut self, backend: Box<dyn Backend>) {
        let engine = self.engine.as_mut().unwrap();
        let former = self.node.run(|| engine.switch(backend)).unwrap();
        drop(former.unwrap_or_else(|error| panic!("{error}")));
    }

    /// The first lists.
    pub(crate) fn apply_all(&mut self, services: Vec<Value>, slices: Vec<Value>) -> Report {
        let services = services.into_iter().map(object).collect();
        let slices = slices.into_iter().map(object).collect();
        self.engine()
            .apply_change(Update::Services(Change::Reset(services)));
        self.engine().apply_change(Update::Slices(Change::Reset(slices)));
        self.sync()
    }

    /// Clears away what changes left, as the proxy does when a second or two have gone by.
    pub(crate) fn tidy(&mut self) {
        for _ in 0..2 {
            let engine = self.engine.as_mut().unwrap();
            let tidied = self.node.run(|| engine.tidy()).unwrap();
            tidied.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    pub(crate) fn service(&mut self, service: Value) -> Report {
        self.engine()
            .apply_change(Update::Services(Change::Apply(object(service))));
        self.sync()
    }

    pub(crate) fn slice(&mut self, slice: Value) -> Report {
        self.engine()
            .apply_change(Update::Slices(Change::Apply(object(slice))));
        self.sync()
    }

    /// This node's Node: its zone and main address.
    pub(crate) fn node_object(&mut self, zone: &str, address: &str) -> Report {
        let node = json!({
            "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        });
        self.engine()
            .apply_change(Update::Node(Change::Apply(object(node))));
        self.sync()
    }

    pub(crate) fn sync(&mut self) -> Report {
        let engine = self.engine.as_mut().unwrap();
        let synced = self.node.run(|| engine.sync()).unwrap();
        synced.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What `nft list ruleset` prints on the node: all of it, as text and as JSON.
    pub(crate) fn listing(&self) -> String {
        run(&self.node, "nft", &["-j", "list", "ruleset"]);
        run(&self.node, "nft", &["list", "ruleset"])
    }
}

pub(crate) fn pod_networks() -> [IpNet; 2] {
    ["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()]
}

fn nftables() -> Box<dyn Backend> {
    Box::new(Nftables::open(&pod_networks(), &settings().service_cidrs).unwrap())
}

/// What the overlay and CNI roles make of a node.
fn prepare(node: &OwnedNetNs) {
    sysctl(node, "net/ipv4/ip_forward", "1");
    // As the overlay role does it. A redirect also uses up what ICMP errors a host may be sent.
    sysctl(node, "net/ipv4/conf/all/send_redirects", "0");
    sysctl(node, "net/ipv4/conf/default/send_redirects", "0");
    sysctl(node, "net/ipv4/conf/all/route_localnet", "1");
    sysctl(node, "net/ipv6/conf/all/forwarding", "1");
    // As the CNI role does it: all packets of pods are routed.
    for filter in [
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
    ] {
        let _ = node.run(|| svcnet_netlink::sysctl::set(filter, "0"));
    }
}

/// A pod as the CNI role sets it up.
pub(crate) fn plug(node: &OwnedNetNs, pod: &OwnedNetNs, address: &str) {
    let last = address.rsplit('.').next().unwrap();
    let at_node = format!(
        "link add pod{last} type veth peer name eth0 netns {}
         link set pod{last} master svcnet0 up
         link set dev pod{last} type bridge_slave isolated on
         route add fd00:244:1::{last}/128 dev svcnet0",
        pod.name()
    );
    ip_all(node, &at_node);
    // As the overlay role does it, by a rule against ICMPv6 redirects: one that tells a pod to talk to its neighbour directly
    // has it talk to nobody, for ports are isolated.
    sysctl(pod, "net/ipv6/conf/eth0/accept_redirects", "0");
    let inside = format!(
        "addr add {address}/32 dev eth0
         addr add fd00:244:1::{last}/128 dev eth0 nodad
         link set eth0 up
         route add 10.244.1.1 dev eth0 scope link
         route add default via 10.244.1.1
         route add fd00:244:1::1 dev eth0
         route add default via fd00:244:1::1 dev eth0"
    );
    ip_all(pod, &inside);
}

pub(crate) fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()],
        external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Settings::default()
    }
}

pub(crate) fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// `default/NAME` with what `spec` says; port 80 over TCP and UDP.
pub(crate) fn service(name: &str, cluster_ip: &str, spec: Value) -> Value {
    let mut whole = json!({
        "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "type": "ClusterIP",
        "ports": [
            { "name": "http", "port": 80, "protocol": "TCP" },
            { "name": "udp", "port": 80, "protocol": "UDP" },
        ],
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let status = match whole["type"].as_str() {
        Some("LoadBalancer") => json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } }),
        _ => json!({}),
    };
    json!({ "metadata": { "namespace": "default", "name": name }, "spec": whole, "status": status })
}

/// A Service with annotations.
pub(crate) fn annotated(mut service: Value, annotations: Value) -> Value {
    service["metadata"]["annotations"] = annotations;
    service
}

/// Node ports 30080 for TCP and UDP.
pub(crate) fn node_ports(mut spec: Value) -> Value {
    spec["ports"] = json!([
        { "name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080 },
        { "name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080 },
    ]);
    spec
}

/// The slice of a Service with these endpoints ready.
pub(crate) fn slice(service: &str, endpoints: &[&str]) -> Value {
    let v6 = endpoints.iter().any(|e| e.contains(':'));
    let node = |ip: &str| if ip == C { "n2" } else { "n1" };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| json!({ "addresses": [ip], "nodeName": node(ip), "conditions": {} }))
        .collect();
    json!({
        "metadata": {
            "namespace": "default", "name": format!("{service}-{}", if v6 { 6 } else { 4 }),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": [
            { "name": "http", "port": 8080, "protocol": "TCP" },
            { "name": "udp", "port": 8080, "protocol": "UDP" },
        ],
        "endpoints": endpoints,
    })
}

/// Answers on port 8080 over TCP and UDP with `NAME PEER`. A TCP peer can go on: each line is answered.
pub(crate) fn serve(ns: &OwnedNetNs, name: &'static str, address: &str) {
    serve_at(ns, name, (address.parse::<IpAddr>().unwrap(), 8080).into());
}

pub(crate) fn serve_at(ns: &OwnedNetNs, name: &'static str, at: SocketAddr) {
    let bind = || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let (tcp, udp) = ns.run(bind).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    if stream
                        .write_all(format!("{name} {}\n", peer.ip()).as_bytes())
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Who answers over TCP, and from where they say we came.
pub(crate) fn ask(ns: &OwnedNetNs, to: &str) -> std::io::Result<(String, String)> {
    let mut stream = connect(ns, to, PATIENCE)?;
    ask_on(&mut stream)
}

pub(crate) fn connect(ns: &OwnedNetNs, to: &str, patience: Duration) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    ns.run(|| TcpStream::connect_timeout(&to, patience)).unwrap()
}

pub(crate) fn ask_on(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut line = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(char::from(byte[0]));
    }
    Ok(words(&line))
}

fn words(line: &str) -> (String, String) {
    let (name, peer) = line.split_once(' ').unwrap_or_else(|| panic!("answer {line:?}"));
    (name.to_string(), peer.to_string())
}

/// A UDP socket that asks the same place again and again.
pub(crate) fn udp(ns: &OwnedNetNs, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    ns.run(|| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket
    })
    .unwrap()
}

pub(crate) fn ask_udp(socket: &UdpSocket, patience: Duration) -> std::io::Result<(String, String)> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"?")?;
    let length = socket.recv(&mut buffer)?;
    Ok(words(std::str::from_utf8(&buffer[..length]).unwrap()))
}

/// The names of all who answer over many connections.
pub(crate) fn names(ns: &OwnedNetNs, to: &str) -> Vec<String> {
    let names: std::collections::BTreeSet<String> = (0..40).map(|_| ask(ns, to).unwrap().0).collect();
    names.into_iter().collect()
}
