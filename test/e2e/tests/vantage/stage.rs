//! Where the tables are played.
//!
//! ```text
//! client ---+--- n1: pod far
//!           +--- n2: pods web2 (app=web) and near
//!           +--- n3: pod web3 (app=web)
//! ```
//! The client reaches addresses that are nobody's on the segment through a node of its choice: its routes go by the
//! firewall mark of the socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use svcnet_api::types::PodCidr;
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::NetNs;

/// The nodes; a socket of the client with the mark `i + 1` goes through the i-th.
pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The external address that Services of a test may ask for, in each family. On the segment, so that nodes have a route.
pub(crate) const EXTERNAL_IPS: [&str; 2] = ["172.30.0.230", "fd00:172:30::230"];

const POOL: &str = r#"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first, namespace: metallb-system}
spec: {addresses: [172.30.0.200-172.30.0.220, "fd00:172:30::200-fd00:172:30::220"]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: first, namespace: metallb-system}
"#;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address of this family among these.
    pub(crate) fn pick(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        addresses
            .iter()
            .copied()
            .find(|address| Self::of(*address) == self)
    }
}

/// How the nodes' proxies work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Nftables,
    Ipvs,
    Userspace,
}

impl Mode {
    pub(crate) const ALL: [(&str, Self); 3] = [
        ("nftables", Self::Nftables),
        ("ipvs", Self::Ipvs),
        ("userspace", Self::Userspace),
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(mode, _)| *mode == name);
        found.map(|(_, mode)| mode)
    }
}

/// A dual-stack lab with the pods above.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) mode: Mode,
    /// Addresses by which a member is seen by others: a pod's and the client's own, all that a node has.
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

/// Where the ports of a Service are.
pub(crate) struct Service {
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    pub(crate) external_ips: Vec<IpAddr>,
}

impl Stage {
    /// Brings the lab up, in the mode that the environment asks for; `args` are further arguments of `lab up`.
    pub(crate) fn up(args: &[&str]) -> Self {
        let asked = svcnet_e2e::proxy_mode();
        Self::up_in(asked.as_deref().unwrap_or("nftables"), args)
    }

    pub(crate) fn up_in(mode: &str, args: &[&str]) -> Self {
        let lab = Lab::up_in(mode, &[&["--dual-stack"], args].concat());
        let mode = Mode::named(mode).unwrap();
        for (pod, node) in [("web2", "n2"), ("web3", "n3")] {
            let ports = ["--container-port", "80", "--container-port", "80/udp"];
            lab.pod_with(pod, node, "app=web", &ports);
        }
        lab.pod_with("near", "n2", "app=visitor", &[]);
        lab.pod_with("far", "n1", "app=visitor", &[]);
        lab.apply(POOL);
        let mut stage = Self {
            lab,
            mode,
            addresses: BTreeMap::new(),
        };
        for pod in ["web2", "web3", "near", "far"] {
            stage.note_pod(pod);
        }
        for (index, node) in NODES.into_iter().enumerate() {
            let addresses = stage.node_addresses(node, index + 11);
            stage.addresses.insert(node.to_string(), addresses);
            stage.route_by_mark(index);
        }
        let client = ["172.30.0.100", "fd00:172:30::100"].map(|text| text.parse().unwrap());
        stage.addresses.insert("client".to_string(), client.to_vec());
        stage
    }

    /// Learns the addresses of a pod that was started since.
    pub(crate) fn note_pod(&mut self, pod: &str) {
        let addresses = until(&format!("{pod} has addresses of both families"), || {
            let text = self.lab.value(&format!("pod/{pod}"), "{.status.podIPs[*].ip}")?;
            let addresses: Vec<IpAddr> = text.split(' ').map(|ip| ip.parse().unwrap()).collect();
            (addresses.len() == 2).then_some(addresses)
        });
        self.addresses.insert(pod.to_string(), addresses);
    }

    /// On the segment, what the overlay and the pods' bridge have: the first two of its pod network, and what its relays have.
    fn node_addresses(&self, node: &str, host: usize) -> Vec<IpAddr> {
        let segment = [format!("172.30.0.{host}"), format!("fd00:172:30::{host}")];
        let mut addresses: Vec<IpAddr> = segment.iter().map(|text| text.parse().unwrap()).collect();
        let cidrs = self
            .lab
            .value(&format!("node/{node}"), "{.spec.podCIDRs[*]}")
            .unwrap();
        for cidr in cidrs.split(' ') {
            let (network, _) = cidr.split_once('/').unwrap();
            let network: IpAddr = network.parse().unwrap();
            let gateway: IpAddr = match network {
                IpAddr::V4(network) => IpAddr::V4((network.to_bits() + 1).into()),
                IpAddr::V6(network) => IpAddr::V6((network.to_bits() + 1).into()),
            };
            let relay = cidr.parse::<PodCidr>().unwrap().relay();
            addresses.extend([network, gateway]);
            addresses.extend(relay);
        }
        addresses
    }

    /// Lets the client reach Service addresses through the i-th node.
    fn route_by_mark(&self, index: usize) {
        let (mark, host) = (index + 1, index + 11);
        let table = 100 + mark;
        let mut script = String::new();
        for (family, via, ranges) in [
            (
                "-4",
                format!("172.30.0.{host}"),
                [
                    "10.96.0.0/12",
                    "172.30.0.200/29",
                    "172.30.0.208/28",
                    "172.30.0.224/28",
                ],
            ),
            (
                "-6",
                format!("fd00:172:30::{host}"),
                [
                    "fd00:10:96::/112",
                    "fd00:172:30::200/124",
                    "fd00:172:30::210/124",
                    "fd00:172:30::230/124",
                ],
            ),
        ] {
            script += &format!("ip {family} rule add fwmark {mark} lookup {table}\n");
            for range in ranges {
                script += &format!("ip {family} route add {range} via {via} table {table}\n");
            }
        }
        let ran = self.lab.exec("client", &["sh", "-ec", &script]);
        assert!(ran.ok, "{ran:?}");
    }

    /// The addresses that a member is seen by.
    #[track_caller]
    pub(crate) fn addresses(&self, member: &str) -> &[IpAddr] {
        self.addresses
            .get(member)
            .unwrap_or_else(|| panic!("nobody is called {member:?}"))
    }

    /// The addresses by which a pod may see a member whose address a rule of Services keeps. This is all that userspace mode
    /// promises less: its relays connect from their node's address, whoever asks.
    pub(crate) fn kept(&self, member: &str) -> Vec<IpAddr> {
        match self.mode {
            Mode::Nftables | Mode::Ipvs => self.addresses(member).to_vec(),
            Mode::Userspace => NODES
                .iter()
                .flat_map(|node| self.addresses(node))
                .copied()
                .collect(),
        }
    }

    /// The network namespace of a member.
    pub(crate) fn netns(&self, member: &str) -> NetNs {
        NetNs::open(&self.lab.namespace(member)).unwrap()
    }

    /// What the API says of a Service, once it has all the addresses that it is to have.
    pub(crate) fn service(&self, name: &str) -> Service {
        until(&format!("{name} has all its addresses"), || {
            let got = self.lab.kubectl(&["get", "service", name, "-o", "json"]);
            let object: serde_json::Value = serde_json::from_str(got.text()).unwrap();
            let spec = &object["spec"];
            let list = |value: &serde_json::Value| -> Vec<IpAddr> {
                let texts = value.as_array().into_iter().flatten();
                texts.map(|ip| ip.as_str().unwrap().parse().unwrap()).collect()
            };
            let ingress = object["status"]["loadBalancer"]["ingress"]
                .as_array()
                .into_iter()
                .flatten();
            let service = Service {
                port: u16::try_from(spec["ports"][0]["port"].as_u64()?).ok()?,
                node_port: spec["ports"][0]["nodePort"]
                    .as_u64()
                    .and_then(|port| u16::try_from(port).ok()),
                cluster_ips: list(&spec["clusterIPs"]),
                load_balancer_ips: ingress
                    .map(|at| at["ip"].as_str().unwrap().parse().unwrap())
                    .collect(),
                external_ips: list(&spec["externalIPs"]),
            };
            let complete = spec["type"] != "LoadBalancer" || service.load_balancer_ips.len() == 2;
            complete.then_some(service)
        })
    }

    /// Resolves a table's target, as in `vip`, `vip:81`, `n1`, `lo`, `lb@n2`, `ext:81@n1`: an address and the mark that
    /// leads there.
    pub(crate) fn target(&self, service: &Service, family: Family, text: &str) -> (SocketAddr, u32) {
        let (at, through) = match text.split_once('@') {
            Some((at, through)) => (at, Some(through)),
            None => (text, None),
        };
        let (name, port) = match at.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().unwrap())),
            None => (at, None),
        };
        let mark = through.map_or(0, |node| NODES.iter().position(|n| *n == node).unwrap() + 1);
        let pick = |addresses: &[IpAddr]| {
            family
                .pick(addresses)
                .unwrap_or_else(|| panic!("no {family:?} {name}"))
        };
        let (address, usual) = match name {
            "vip" => (pick(&service.cluster_ips), Some(service.port)),
            "lb" => (pick(&service.load_balancer_ips), Some(service.port)),
            "ext" => (pick(&service.external_ips), Some(service.port)),
            "lo" => (
                pick(&["127.0.0.1", "::1"].map(|ip| ip.parse().unwrap())),
                service.node_port,
            ),
            node => (pick(self.addresses(node)), service.node_port),
        };
        let port = port.or(usual).unwrap_or_else(|| panic!("{text}: which port?"));
        (SocketAddr::new(address, port), u32::try_from(mark).unwrap())
    }
}
