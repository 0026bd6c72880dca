//! A layer-2 segment of namespaces: a bridge, nodes and a client on it. Everything goes when it goes out of scope.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change, VethEnd};
use svcnet_netlink::netns::{NetNs, OwnedNetNs};
use svcnet_netlink::packet::arp::{Arp, Operation};
use svcnet_netlink::packet::ndp::{Message, Ndp};
use svcnet_netlink::packet::{LinkSocket, Mac, Protocol};
use tempfile::TempDir;

use crate::api;
use crate::node::{self, Node};

/// How long answers to one question are collected: a second one would come as fast as the first.
const COLLECTING: Duration = Duration::from_millis(150);
const CLIENT: u8 = 100;
/// Of the client on the segment.
pub(crate) const CLIENT_MAC: Mac = mac(CLIENT);

pub(crate) struct Segment {
    lan: OwnedNetNs,
    members: Vec<(String, OwnedNetNs)>,
    pub(crate) objects: Value,
    directory: TempDir,
}

/// The Ethernet address of the member with this last byte of the address.
pub(crate) const fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

pub(crate) fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(172, 30, 0, last))
}

impl Segment {
    /// Nodes n1 (172.30.0.11), n2, … and a client, with one Service that has the addresses, none of them running.
    pub(crate) fn new(nodes: u8, addresses: &[IpAddr]) -> Self {
        let lan = OwnedNetNs::unique("svcnet-an-lan").unwrap();
        Rtnl::open_in(&lan)
            .unwrap()
            .add_bridge("br0", None, None)
            .unwrap();
        let directory = TempDir::new().unwrap();
        let mut segment = Self {
            lan,
            members: Vec::new(),
            objects: objects(nodes, addresses),
            directory,
        };
        for node in 1..=nodes {
            segment.add(&format!("n{node}"), 10 + node);
        }
        segment.add("client", CLIENT);
        segment.publish();
        segment
    }

    /// Plugs another host in.
    pub(crate) fn add(&mut self, name: &str, last: u8) {
        let netns = OwnedNetNs::unique("svcnet-an").unwrap();
        let mut lan = Rtnl::open_in(&self.lan).unwrap();
        let bridge = lan.link("br0").unwrap().unwrap().index;
        let near = VethEnd {
            name,
            mac: None,
            master: Some(bridge),
            netns: None,
        };
        let far = VethEnd {
            name: "eth0",
            mac: Some(mac(last)),
            master: None,
            netns: Some(&netns),
        };
        lan.add_veth(near, far, None).unwrap();
        let mut rtnl = Rtnl::open_in(&netns).unwrap();
        rtnl.set_loopback_up().unwrap();
        let link = rtnl.link("eth0").unwrap().unwrap().index;
        rtnl.change_link(link, &Change::up()).unwrap();
        let net = format!("{}/24", address(last)).parse().unwrap();
        rtnl.replace_address(Address { link, net }).unwrap();
        self.members.push((name.to_string(), netns));
    }

    pub(crate) fn netns(&self, name: &str) -> &NetNs {
        &self.members.iter().find(|(n, _)| n == name).unwrap().1
    }

    /// Runs a command on a member to its end.
    pub(crate) fn run(&self, name: &str, command: &[&str]) -> Output {
        let run = || Command::new(command[0]).args(&command[1..]).output().unwrap();
        self.netns(name).run(run).unwrap()
    }

    /// Makes the API say what `objects` holds.
    pub(crate) fn publish(&self) {
        api::write(&self.objects_file(), &self.objects);
    }

    /// The API server goes away.
    pub(crate) fn unpublish(&self) {
        std::fs::remove_file(self.objects_file()).unwrap();
    }

    pub(crate) fn start(&self, node: u8) -> Node {
        let name = format!("n{node}");
        let own = address(10 + node);
        Node::start(
            self.netns(&name),
            &name,
            own,
            &self.objects_file(),
            self.directory.path(),
        )
    }

    /// Pulls the cable of a member, or puts it back, at the switch's end.
    pub(crate) fn plug(&self, name: &str, plugged: bool) {
        let mut lan = Rtnl::open_in(&self.lan).unwrap();
        let port = lan.link(name).unwrap().unwrap().index;
        let change = if plugged { Change::up() } else { Change::down() };
        lan.change_link(port, &change).unwrap();
    }

    /// Takes a member's port out of the bridge, or puts it back: it keeps its carrier and does not notice.
    pub(crate) fn bridge(&self, name: &str, bridged: bool) {
        let mut lan = Rtnl::open_in(&self.lan).unwrap();
        let port = lan.link(name).unwrap().unwrap().index;
        let bridge = lan.link("br0").unwrap().unwrap().index;
        let change = Change {
            master: Some(if bridged { bridge } else { 0 }),
            ..Change::default()
        };
        lan.change_link(port, &change).unwrap();
    }

    /// The Events that a node has written.
    pub(crate) fn events(&self, node: u8) -> Vec<Value> {
        let file = node::events(self.directory.path(), &format!("n{node}"));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Everybody who answers the client's question for the address, once for each answer.
    pub(crate) fn who_has(&self, address: IpAddr) -> Vec<Mac> {
        self.ask(address, svcnet_netlink::packet::BROADCAST)
    }

    /// The same, with the question sent to one Ethernet address.
    pub(crate) fn ask(&self, address: IpAddr, destination: Mac) -> Vec<Mac> {
        let (protocol, question) = match address {
            IpAddr::V4(v4) => {
                let request = Arp {
                    destination,
                    sender: Ipv4Addr::new(172, 30, 0, CLIENT),
                    ..Arp::probe(v4, CLIENT_MAC)
                };
                (Protocol::Arp, request.encode().to_vec())
            }
            IpAddr::V6(v6) => {
                let solicitation = Ndp {
                    source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100),
                    link_address: Some(CLIENT_MAC),
                    ..Ndp::probe(v6, CLIENT_MAC)
                };
                (Protocol::Ndp, solicitation.encode())
            }
        };
        self.listen(
            protocol,
            COLLECTING,
            move |socket| socket.send(&question).unwrap(),
            move |frame| match protocol {
                Protocol::Arp => Arp::parse(frame)
                    .filter(|a| a.operation == Operation::Reply && IpAddr::V4(a.sender) == address)
                    .filter(|a| a.destination == CLIENT_MAC)
                    .map(|a| a.sender_mac),
                Protocol::Ndp => Ndp::parse(frame)
                    .filter(|n| n.message == Message::Advertisement { solicited: true })
                    .filter(|n| IpAddr::V6(n.target) == address)
                    .and_then(|n| n.link_address),
            },
        )
    }

    /// What arrives at the client in the time, after it has sent.
    pub(crate) fn listen<T: Send>(
        &self,
        protocol: Protocol,
        time: Duration,
        send: impl FnOnce(&LinkSocket) + Send,
        read: impl Fn(&[u8]) -> Option<T> + Send,
    ) -> Vec<T> {
        self.netns("client")
            .run(move || {
                let index = Rtnl::open().unwrap().link("eth0").unwrap().unwrap().index;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let socket = LinkSocket::open(index, protocol).unwrap();
                    send(&socket);
                    let mut found = Vec::new();
                    let end = tokio::time::Instant::now() + time;
                    let mut buffer = [0; 256];
                    while let Ok(length) = tokio::time::timeout_at(end, socket.receive(&mut buffer)).await {
                        found.extend(read(&buffer[..length.unwrap()]));
                    }
                    found
                })
            })
            .unwrap()
    }

    /// Waits until each address is answered for by exactly one of the nodes, and says by whom.
    pub(crate) fn owners(&self, addresses: &[IpAddr], nodes: &[u8]) -> Vec<u8> {
        let mut last = Vec::new();
        let one = |answers: &Vec<Mac>| match answers.as_slice() {
            [mac] => nodes.iter().copied().find(|n| *mac == self::mac(10 + n)),
            _ => None,
        };
        wait(
            || {
                last = addresses.iter().map(|a| self.who_has(*a)).collect();
                last.iter().map(one).collect::<Option<Vec<u8>>>()
            },
            || format!("one of the nodes {nodes:?} for each of {addresses:?}"),
        )
    }

    fn objects_file(&self) -> PathBuf {
        self.directory.path().join("objects.json")
    }
}

/// Tries until there is something, for as long as any machine may take.
pub(crate) fn wait<T>(mut attempt: impl FnMut() -> Option<T>, what: impl Fn() -> String) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn objects(nodes: u8, addresses: &[IpAddr]) -> Value {
    let node = |n: u8| {
        json!({
            "metadata": {"name": format!("n{n}")},
            "status": {"addresses": [{"type": "InternalIP", "address": address(10 + n)}]},
        })
    };
    let ingress: Vec<Value> = addresses.iter().map(|a| json!({"ip": a})).collect();
    json!({
        "nodes": (1..=nodes).map(node).collect::<Vec<_>>(),
        "services": [{
            "metadata": {"namespace": "default", "name": "web", "uid": "1234"},
            "spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": ingress}},
        }],
        "endpointslices": [
            slice("web-v4", "IPv4", "10.244.1.2", "n1"),
            slice("web-v6", "IPv6", "fd00:244::2", "n1"),
        ],
        "ipaddresspools": [{
            "metadata": {"namespace": "metallb-system", "name": "first"},
            "spec": {"addresses": ["172.30.0.200-172.30.0.250", "fd00:30::/64"]},
        }],
        "l2advertisements": [{
            "metadata": {"namespace": "metallb-system", "name": "first"}, "spec": {},
        }],
        "configmaps": [],
    })
}

pub(crate) fn slice(name: &str, family: &str, endpoint: &str, node: &str) -> Value {
    json!({
        "metadata": {
            "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [endpoint], "nodeName": node, "conditions": {"ready": true}}],
    })
}
