//! What the kernel should hold, from the nodes that are known and this node's own links.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use svcnet_api::types::{MacAddr, PodCidr};
use svcnet_netlink::link::Vxlan;
use svcnet_netlink::underlay::Underlay;

use crate::view::{NodeNet, View};
use crate::{Config, LINK_NAMES};

/// What this node has of its own that the overlay builds upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The link towards the peers.
    pub underlay: Underlay,
    /// The addresses of the pods' bridge; none while there is no bridge.
    pub gateways: Vec<IpAddr>,
}

/// The VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanLink {
    /// What can not be changed once it exists.
    pub vxlan: Vxlan,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its largest packet.
    pub mtu: u32,
}

/// The link that a route goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Over {
    /// To the other nodes.
    Vxlan,
    /// To the pods of this node.
    Bridge,
}

/// One thing that the kernel should hold. They are put in the order of the variants and taken away in the reverse:
/// a route leads somewhere as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// An address of the VXLAN link.
    Address(IpNet),
    /// A forwarding entry of the VXLAN link.
    Fdb {
        /// The peer's VXLAN link.
        mac: MacAddr,
        /// The node's address.
        destination: IpAddr,
    },
    /// A permanent neighbour on the VXLAN link.
    Neighbour {
        /// The address of the peer's VXLAN link.
        address: IpAddr,
        /// Its Ethernet address.
        mac: MacAddr,
    },
    /// A route of svcnet's.
    Route {
        /// Where to.
        destination: IpNet,
        /// Over which link.
        over: Over,
        /// The next hop, on the link whatever its address.
        gateway: Option<IpAddr>,
        /// The preferred source address.
        source: Option<IpAddr>,
    },
}

/// What of an entry tells it from others: the kernel holds one entry of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An address.
    Address(IpNet),
    /// A forwarding entry.
    Fdb(MacAddr),
    /// A neighbour.
    Neighbour(IpAddr),
    /// A route.
    Route(IpNet),
}

impl Entry {
    /// What tells it from others.
    pub fn key(&self) -> Key {
        match *self {
            Self::Address(net) => Key::Address(net),
            Self::Fdb { mac, .. } => Key::Fdb(mac),
            Self::Neighbour { address, .. } => Key::Neighbour(address),
            Self::Route { destination, .. } => Key::Route(destination),
        }
    }
}

impl Entry {
    /// Whether it goes when the VXLAN link goes.
    pub fn is_over_vxlan(&self) -> bool {
        !matches!(
            self,
            Self::Route {
                over: Over::Bridge,
                ..
            }
        )
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(net) => write!(f, "address {net} dev {}", LINK_NAMES.vxlan),
            Self::Fdb { mac, destination } => {
                write!(f, "fdb {mac} dst {destination} dev {}", LINK_NAMES.vxlan)
            }
            Self::Neighbour { address, mac } => {
                write!(f, "neigh {address} lladdr {mac} dev {}", LINK_NAMES.vxlan)
            }
            Self::Route {
                destination,
                over,
                gateway,
                source,
            } => {
                write!(f, "route {destination}")?;
                if let Some(gateway) = gateway {
                    write!(f, " via {gateway} onlink")?;
                }
                let dev = if *over == Over::Vxlan {
                    LINK_NAMES.vxlan
                } else {
                    LINK_NAMES.bridge
                };
                write!(f, " dev {dev}")?;
                source.map_or(Ok(()), |source| write!(f, " src {source}"))
            }
        }
    }
}

/// Pod traffic that leaves the cluster takes the node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Traffic from here, …
    pub sources: Vec<IpNet>,
    /// … unless it goes to one of these.
    pub inside: Vec<IpNet>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The VXLAN link.
    pub link: VxlanLink,
    /// What is on it, and the routes.
    pub entries: BTreeMap<Key, Entry>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, &'static str>,
    /// The nftables table.
    pub masquerade: Masquerade,
}

/// Why nothing can be set up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The Node object of this node is not there.
    Node,
    /// It has no pod network yet: a controller gives it one.
    PodCidr,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "waiting for the Node object of this node",
            Self::PodCidr => "waiting for a pod CIDR for this node",
        })
    }
}

/// Why a node is not reachable over the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreachable {
    /// It has no InternalIP of the family that this node sends with.
    NoAddress,
    /// It has no pod network.
    NoPodCidr,
    /// All its pod networks belong to other nodes.
    Claimed(Vec<PodCidr>),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("its Node has no InternalIP of this node's address family"),
            Self::NoPodCidr => f.write_str("its Node has no pod CIDR"),
            Self::Claimed(cidrs) => {
                let cidrs: Vec<String> = cidrs.iter().map(PodCidr::to_string).collect();
                write!(f, "its pod CIDR {} belongs to another Node", cidrs.join(", "))
            }
        }
    }
}

/// The Ethernet address of a node's VXLAN link: everybody computes it from the node's name.
pub fn vxlan_mac(node: &str) -> MacAddr {
    let digest = Sha256::digest(node.as_bytes());
    let mut first = [0; 6];
    first.copy_from_slice(digest.get(..6).unwrap_or(&[0; 6]));
    MacAddr::local_from(&first)
}

/// The address of a VXLAN link: the first of the node's pod network, which no pod has.
fn vxlan_address(cidr: PodCidr) -> IpAddr {
    cidr.net().network()
}

/// What leads to a peer.
///
/// # Errors
/// Why nothing does.
pub fn peer_entries(
    view: &View,
    facts: &Facts,
    name: &str,
    node: &NodeNet,
) -> Result<Vec<Entry>, Unreachable> {
    let same_family = |a: &&IpAddr| a.is_ipv4() == facts.underlay.address.is_ipv4();
    let destination = *node
        .addresses
        .iter()
        .find(same_family)
        .ok_or(Unreachable::NoAddress)?;
    if node.pod_cidrs.is_empty() {
        return Err(Unreachable::NoPodCidr);
    }
    let own: Vec<PodCidr> = node
        .pod_cidrs
        .iter()
        .copied()
        .filter(|c| view.owner(*c) == Some(name))
        .collect();
    if own.is_empty() {
        return Err(Unreachable::Claimed(node.pod_cidrs.clone()));
    }
    let mac = vxlan_mac(name);
    let mut entries = vec![Entry::Fdb { mac, destination }];
    for cidr in own {
        let address = vxlan_address(cidr);
        entries.push(Entry::Neighbour { address, mac });
        entries.push(Entry::Route {
            destination: cidr.net(),
            over: Over::Vxlan,
            gateway: Some(address),
            source: None,
        });
    }
    Ok(entries)
}

/// Everything, from scratch.
///
/// # Errors
/// Why nothing can be set up yet.
pub fn desired(config: &Config, view: &View, facts: &Facts) -> Result<Desired, Waiting> {
    let own = view.own().ok_or(Waiting::Node)?;
    if own.pod_cidrs.is_empty() {
        return Err(Waiting::PodCidr);
    }
    let services: BTreeSet<IpNet> = config.service_cidr.iter().chain(view.service_nets()).collect();
    let mut entries = BTreeMap::new();
    let mut put = |entry: Entry| entries.insert(entry.key(), entry);
    for cidr in &own.pod_cidrs {
        let address = vxlan_address(*cidr);
        put(Entry::Address(IpNet::from(address)));
        put_service_routes(&services, facts, *cidr, &mut put);
    }
    for name in view.peers() {
        let found = view.node(name).map(|node| peer_entries(view, facts, name, node));
        for entry in found.and_then(Result::ok).into_iter().flatten() {
            put(entry);
        }
    }
    let link = VxlanLink {
        vxlan: Vxlan {
            vni: config.vni.get(),
            port: config.port,
            local: Some(facts.underlay.address),
            device: Some(facts.underlay.link),
            learning: false,
        },
        mac: vxlan_mac(view.own_name()),
        mtu: facts.underlay.pod_mtu(config.mtu),
    };
    let inside = config.cluster_cidr.iter().chain(services).collect();
    let masquerade = Masquerade {
        sources: own.pod_cidrs.iter().map(|c| c.net()).collect(),
        inside,
    };
    Ok(Desired {
        link,
        entries,
        sysctls: sysctls(own, facts),
        masquerade,
    })
}

/// Routes to the services whose source peers know the way back to, for nodes that have no default route or whose
/// default route would choose another address. It waits for the bridge.
fn put_service_routes(
    services: &BTreeSet<IpNet>,
    facts: &Facts,
    cidr: PodCidr,
    put: &mut impl FnMut(Entry) -> Option<Entry>,
) {
    let source = cidr.gateway();
    if !facts.gateways.contains(&source) {
        return;
    }
    let of_family = services
        .iter()
        .filter(|net| net.addr().is_ipv6() == source.is_ipv6());
    for destination in of_family.copied() {
        put(Entry::Route {
            destination,
            over: Over::Bridge,
            gateway: None,
            source: Some(source),
        });
    }
}

/// Forwarding on, and no redirects: pods of one node talk through it although they share a link with it, and a
/// redirect would tell them to talk directly. The kernel sends them when either of `all` and the link says so.
fn sysctls(own: &NodeNet, facts: &Facts) -> BTreeMap<String, &'static str> {
    let mut sysctls = BTreeMap::new();
    if own.pod_cidrs.iter().any(|c| c.gateway().is_ipv4()) {
        sysctls.insert("net/ipv4/ip_forward".to_string(), "1");
        sysctls.insert("net/ipv4/conf/all/send_redirects".to_string(), "0");
        sysctls.insert(format!("net/ipv4/conf/{}/send_redirects", LINK_NAMES.vxlan), "0");
        if !facts.gateways.is_empty() {
            sysctls.insert(format!("net/ipv4/conf/{}/send_redirects", LINK_NAMES.bridge), "0");
        }
    }
    if own.pod_cidrs.iter().any(|c| c.gateway().is_ipv6()) {
        sysctls.insert("net/ipv6/conf/all/forwarding".to_string(), "1");
        if !facts.gateways.is_empty() {
            // The bridge asks for pods from its own address: the first pod's first packet waits while that is in doubt.
            sysctls.insert(format!("net/ipv6/conf/{}/accept_dad", LINK_NAMES.bridge), "0");
        }
    }
    sysctls
}
