//! Endpoints come, drain and go: no connection fails, and none goes to one that is gone.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::NetNs;

use crate::api::{Api, SERVICES, SLICES};
use crate::count;
use crate::load::{Client, Endpoint};

/// Nodes that balance connections of the test's clients.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The first port of an endpoint that comes and goes; each has one that no other had.
const FIRST_PORT: u16 = 10_000;
const NODE_PORT: u16 = 30_777;

/// An endpoint that no new connection is to come to, and how many connections each client had ended by then.
struct Leaving {
    _endpoint: Endpoint,
    ended: Vec<usize>,
}

impl Leaving {
    fn new(endpoint: Endpoint, clients: &[Client]) -> Self {
        Self {
            _endpoint: endpoint,
            ended: clients.iter().map(Client::connections).collect(),
        }
    }

    /// Whether every client has ended the connection that was on its way then: those since must find another endpoint. How
    /// long a packet may be on its way on a busy machine, nobody can say.
    fn may_go(&self, clients: &[Client]) -> bool {
        let mut both = clients.iter().zip(&self.ended);
        both.all(|(client, ended)| client.connections() > *ended)
    }
}

struct Stage {
    lab: Lab,
    api: Api,
}

/// How an endpoint of a slice is.
#[derive(Clone, Copy)]
enum State {
    Ready,
    Draining,
}

impl Stage {
    fn up() -> Self {
        let lab = Lab::up(&["--dual-stack"]);
        for (pod, node) in [("web2", "n2"), ("web3", "n3"), ("near", "n2")] {
            lab.pod_with(pod, node, "app=none", &[]);
        }
        let api = Api::of(&lab);
        Self { lab, api }
    }

    fn netns(&self, member: &str) -> NetNs {
        NetNs::open(&self.lab.namespace(member)).unwrap()
    }

    fn address(&self, pod: &str, v6: bool) -> IpAddr {
        let text = self
            .lab
            .value(&format!("pod/{pod}"), "{.status.podIPs[*].ip}")
            .unwrap();
        let mut addresses = text.split(' ').map(|ip| ip.parse::<IpAddr>().unwrap());
        addresses.find(|ip| ip.is_ipv6() == v6).unwrap()
    }

    /// Makes a slice hold one endpoint, or none.
    fn slice(&self, name: &str, v6: bool, endpoint: Option<(SocketAddr, State)>) {
        let port = endpoint.map_or(1, |(at, _)| at.port());
        let endpoints: Vec<Value> = endpoint
            .iter()
            .map(|(at, state)| {
                let ready = matches!(state, State::Ready);
                json!({
                    "addresses": [at.ip()],
                    "conditions": { "ready": ready, "serving": true, "terminating": !ready },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "ports": [{ "name": "", "port": port, "protocol": "TCP" }],
            "endpoints": endpoints,
        });
        self.api.put(SLICES, &slice);
    }

    /// Waits until every node's kernel sends connections to an endpoint, or none does.
    fn in_force(&self, at: SocketAddr, wanted: bool) {
        let family = if at.is_ipv6() { "ip6" } else { "ip" };
        let shown = format!(": {} . {}", at.ip(), at.port());
        for node in NODES {
            let netns = self.netns(node);
            until(
                &format!("{node} {} {at}", if wanted { "knows" } else { "forgets" }),
                || {
                    let list = || {
                        Command::new("nft")
                            .args(["list", "table", family, "svcnet"])
                            .output()
                    };
                    let listed = netns.run(list).unwrap().unwrap();
                    // A set that goes between two of its questions is an error to nft.
                    if !listed.status.success() {
                        eprintln!("asking again: {listed:?}");
                        return None;
                    }
                    let text = String::from_utf8_lossy(&listed.stdout);
                    let known = text.lines().any(|line| {
                        let mut elements = line.split(',').map(str::trim_end);
                        elements.any(|element| element.trim_end_matches('}').trim_end().ends_with(&shown))
                    });
                    (known == wanted).then_some(())
                },
            );
        }
    }

    /// What connection tracking of each node knows about connections from a port.
    fn tracked(&self, port: u16) -> String {
        let of_port = format!("sport={port} ");
        let list = |node: &str| self.lab.exec(node, &["conntrack", "-L", "-p", "tcp"]).out;
        let lines = NODES.iter().flat_map(|node| {
            let lines: Vec<String> = list(node)
                .lines()
                .map(|line| format!("{node}: {line}\n"))
                .collect();
            lines
        });
        lines.filter(|line| line.contains(&of_port)).collect()
    }

    /// One after the other: each comes, drains, goes, and refuses connections from then on.
    fn cycle(&self, worker: usize, ports: std::ops::Range<u16>, clients: &[Client]) -> usize {
        let v6 = worker % 2 == 1;
        let pod = if worker < 2 { "web2" } else { "web3" };
        let (name, ip) = (format!("web-{worker}"), self.address(pod, v6));
        let failed = || clients.iter().any(Client::has_failed);
        let (mut cycles, mut leaving) = (0, VecDeque::<Leaving>::new());
        for port in ports {
            if failed() {
                break;
            }
            let at = SocketAddr::new(ip, port);
            let endpoint = Endpoint::open(self.netns(pod), at);
            self.slice(&name, v6, Some((at, State::Ready)));
            self.in_force(at, true);
            self.slice(&name, v6, Some((at, State::Draining)));
            self.in_force(at, false);
            leaving.push_back(Leaving::new(endpoint, clients));
            self.slice(&name, v6, None);
            while leaving.front().is_some_and(|first| first.may_go(clients)) {
                leaving.pop_front();
            }
            cycles += 1;
        }
        // Those that are left refuse connections too while others' cycles go on.
        until("the clients' connections end", || {
            let may_go = leaving.iter().all(|last| last.may_go(clients));
            (may_go || failed()).then_some(())
        });
        cycles
    }
}

#[test]
fn no_connection_fails_while_endpoints_come_drain_and_go() {
    const WORKERS: u16 = 4;
    let cycles = u16::try_from(count("SVCNET_CHURN_ENDPOINTS", 100)).unwrap();
    let stage = Stage::up();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
            "ports": [{ "port": 80, "protocol": "TCP", "nodePort": NODE_PORT }],
        },
    });
    stage.api.put(SERVICES, &service);
    // One of each family is always there.
    let mut always = Vec::new();
    for v6 in [false, true] {
        let at = SocketAddr::new(stage.address("web3", v6), 9000);
        always.push(Endpoint::open(stage.netns("web3"), at));
        stage.slice(
            &format!("always-{}", if v6 { 6 } else { 4 }),
            v6,
            Some((at, State::Ready)),
        );
        stage.in_force(at, true);
    }
    let made = stage.api.get(&format!("{SERVICES}/web"));
    let vips = made["spec"]["clusterIPs"].as_array().unwrap();
    let vips: Vec<IpAddr> = vips
        .iter()
        .map(|ip| ip.as_str().unwrap().parse().unwrap())
        .collect();
    let nodes: [IpAddr; 2] = ["172.30.0.11", "fd00:172:30::11"].map(|ip| ip.parse().unwrap());
    let mut clients = Vec::new();
    for member in ["near", "n1", "client"] {
        let netns = stage.netns(member);
        for (vip, node) in vips.iter().zip(nodes) {
            let to = match member {
                "client" => SocketAddr::new(node, NODE_PORT),
                _ => SocketAddr::new(*vip, 80),
            };
            clients.push(Client::start(member, &netns, to));
        }
    }
    let share = cycles.div_ceil(WORKERS);
    let done: usize = std::thread::scope(|scope| {
        let (stage, clients) = (&stage, &clients[..]);
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let first = FIRST_PORT + worker * share;
                scope.spawn(move || stage.cycle(worker.into(), first..first + share, clients))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let connections: usize = clients.iter().map(Client::connections).sum();
    let mut slowest = Duration::ZERO;
    for client in clients {
        let slow = client.end().unwrap_or_else(|failure| {
            let tracked = stage.tracked(failure.port);
            panic!("after {done} endpoints: {}\n{tracked}", failure.why)
        });
        slowest = slowest.max(slow);
    }
    assert!(done >= usize::from(cycles));
    println!(
        "{done} endpoints came, drained and went under {connections} connections, the slowest took {slowest:?}"
    );
}
