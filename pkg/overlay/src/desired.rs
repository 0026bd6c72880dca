//! What the kernel should hold, from the nodes that are known and this node's own links.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use svcnet_api::types::{MacAddr, PodCidr};
use svcnet_netlink::link::Vxlan;
use svcnet_netlink::underlay::{Underlay, vxlan_overhead};

use crate::view::{NodeNet, View};
use crate::{Config, LINK_NAMES, Mode};

/// The smallest largest packet of IPv6 (RFC 8200, section 5).
const IPV6_MTU_MIN: u32 = 1280;

/// What this node has of its own that the overlay builds upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The link towards the peers.
    pub underlay: Underlay,
    /// The networks whose hosts are reached on that link without a router.
    pub on_link: Vec<IpNet>,
    /// The addresses of the pods' bridge; none while there is no bridge.
    pub gateways: Vec<IpAddr>,
    /// Checksums that were left to the VXLAN link have been seen to arrive wrong.
    pub corrupts: bool,
}

impl Facts {
    fn is_on_link(&self, address: IpAddr) -> bool {
        self.on_link.iter().any(|net| net.contains(&address))
    }
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
    /// Checksums of what leaves by it are computed before, not left to it.
    pub checksums_before: bool,
}

/// The link that a route goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Over {
    /// To the other nodes, encapsulated.
    Vxlan,
    /// To the other nodes as they are.
    Underlay,
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
        /// The largest packet, where less passes than the link carries.
        mtu: Option<u32>,
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
        self.over() == Over::Vxlan
    }

    /// The link that it is on, or leads over.
    pub fn over(&self) -> Over {
        match self {
            Self::Route { over, .. } => *over,
            Self::Address(_) | Self::Fdb { .. } | Self::Neighbour { .. } => Over::Vxlan,
        }
    }

    fn has_mtu(&self) -> bool {
        matches!(self, Self::Route { mtu: Some(_), .. })
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => LINK_NAMES.vxlan,
            Self::Underlay => "the nodes' link",
            Self::Bridge => LINK_NAMES.bridge,
        })
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
                mtu,
            } => {
                write!(f, "route {destination}")?;
                if let Some(gateway) = gateway {
                    write!(f, " via {gateway} onlink")?;
                }
                write!(f, " dev {over}")?;
                if let Some(source) = source {
                    write!(f, " src {source}")?;
                }
                mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
        }
    }
}

/// What the nftables table does: pod traffic that leaves the cluster takes the node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Traffic from here, …
    pub sources: Vec<IpNet>,
    /// … unless it goes to one of these.
    pub inside: Vec<IpNet>,
    /// Both ends of a TCP connection of pods are told how large a segment the routes carry: less passes to some peer than
    /// its links say.
    pub clamp: bool,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The VXLAN link, unless nothing is to be encapsulated.
    pub link: Option<VxlanLink>,
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
    /// Its pod network belongs to another node.
    Claimed(PodCidr),
    /// It is to be reached directly, and no address of the pod network's family is on this node's link.
    NotOnLink(PodCidr),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("its Node has no InternalIP of this node's address family"),
            Self::NoPodCidr => f.write_str("its Node has no pod CIDR"),
            Self::Claimed(cidr) => write!(f, "its pod CIDR {cidr} belongs to another Node"),
            Self::NotOnLink(cidr) => write!(
                f,
                "--overlay direct: none of its addresses leads to its pod CIDR {cidr} without a router (--overlay auto \
                 encapsulates for such nodes)"
            ),
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
pub(crate) fn vxlan_address(cidr: PodCidr) -> IpAddr {
    cidr.net().network()
}

/// How a peer is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// What leads there.
    pub entries: Vec<Entry>,
    /// Why it, or a part of its pods, is not reached.
    pub unreachable: Option<Unreachable>,
}

/// What leads to a peer.
pub fn peer(config: &Config, view: &View, facts: &Facts, name: &str, node: &NodeNet) -> Peer {
    let mut peer = Peer::default();
    if node.pod_cidrs.is_empty() {
        peer.unreachable = Some(Unreachable::NoPodCidr);
    }
    for cidr in &node.pod_cidrs {
        let found = if view.owner(*cidr) == Some(name) {
            network_entries(config, view, facts, (name, node), *cidr)
        } else {
            Err(Unreachable::Claimed(*cidr))
        };
        match found {
            // The networks of a peer share its forwarding entry.
            Ok(entries) => peer.entries.extend(entries),
            Err(reason) => peer.unreachable = peer.unreachable.or(Some(reason)),
        }
    }
    peer
}

/// What leads to a pod network of a peer.
fn network_entries(
    config: &Config,
    view: &View,
    facts: &Facts,
    (name, node): (&str, &NodeNet),
    cidr: PodCidr,
) -> Result<Vec<Entry>, Unreachable> {
    let v6 = cidr.net().network().is_ipv6();
    let limit = |carried: u32, overhead: u32| {
        let path = view.path(name)?.saturating_sub(overhead);
        // IPv6 knows no smaller one (RFC 8200, section 5).
        let path = if v6 { path.max(IPV6_MTU_MIN) } else { path };
        Some(path).filter(|path| *path < carried)
    };
    let direct = || {
        let gateway = node
            .addresses
            .iter()
            .find(|a| a.is_ipv6() == v6 && facts.is_on_link(**a));
        gateway.map(|gateway| {
            vec![Entry::Route {
                destination: cidr.net(),
                over: Over::Underlay,
                gateway: Some(*gateway),
                source: None,
                mtu: limit(facts.underlay.mtu, 0),
            }]
        })
    };
    let encapsulated = || {
        let address = vxlan_address(cidr);
        let destination = peer_address(facts, node).ok_or(Unreachable::NoAddress)?;
        let mac = vxlan_mac(name);
        Ok(vec![
            Entry::Fdb { mac, destination },
            Entry::Neighbour { address, mac },
            Entry::Route {
                destination: cidr.net(),
                over: Over::Vxlan,
                gateway: Some(address),
                source: None,
                mtu: limit(vxlan_mtu(config, facts), vxlan_overhead(destination)),
            },
        ])
    };
    match config.mode {
        Mode::Vxlan => encapsulated(),
        Mode::Direct => direct().ok_or(Unreachable::NotOnLink(cidr)),
        Mode::Auto => direct().map_or_else(encapsulated, Ok),
    }
}

/// Where encapsulated packets for a peer are sent.
pub(crate) fn peer_address(facts: &Facts, node: &NodeNet) -> Option<IpAddr> {
    let same_family = |a: &&IpAddr| a.is_ipv4() == facts.underlay.address.is_ipv4();
    node.addresses.iter().find(same_family).copied()
}

/// The largest packet of the VXLAN link.
pub(crate) fn vxlan_mtu(config: &Config, facts: &Facts) -> u32 {
    facts.underlay.pod_mtu(config.mtu)
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
    let encapsulates = config.mode.encapsulates();
    for cidr in &own.pod_cidrs {
        if encapsulates {
            put(Entry::Address(IpNet::from(vxlan_address(*cidr))));
        }
        put_service_routes(&services, facts, *cidr, &mut put);
    }
    for name in view.peers() {
        let found = view
            .node(name)
            .map(|node| peer(config, view, facts, name, node).entries);
        for entry in found.into_iter().flatten() {
            put(entry);
        }
    }
    let link = encapsulates.then(|| VxlanLink {
        vxlan: Vxlan {
            vni: config.vni.get(),
            port: config.port,
            local: Some(facts.underlay.address),
            device: Some(facts.underlay.link),
            learning: false,
        },
        mac: vxlan_mac(view.own_name()),
        mtu: vxlan_mtu(config, facts),
        checksums_before: facts.corrupts,
    });
    let inside = config.cluster_cidr.iter().chain(services).collect();
    let masquerade = Masquerade {
        sources: own.pod_cidrs.iter().map(|c| c.net()).collect(),
        inside,
        clamp: entries.values().any(Entry::has_mtu),
    };
    Ok(Desired {
        link,
        sysctls: sysctls(own, facts, encapsulates),
        entries,
        masquerade,
    })
}

impl Desired {
    /// Whether some route carries less than its link.
    pub(crate) fn has_limits(&self) -> bool {
        self.entries.values().any(Entry::has_mtu)
    }
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
            mtu: None,
        });
    }
}

/// Forwarding on, and no redirects: pods of one node talk through it although they share a link with it, and a
/// redirect would tell them to talk directly. The kernel sends them when either of `all` and the link says so.
fn sysctls(own: &NodeNet, facts: &Facts, encapsulates: bool) -> BTreeMap<String, &'static str> {
    let mut sysctls = BTreeMap::new();
    if own.pod_cidrs.iter().any(|c| c.gateway().is_ipv4()) {
        sysctls.insert("net/ipv4/ip_forward".to_string(), "1");
        sysctls.insert("net/ipv4/conf/all/send_redirects".to_string(), "0");
        if encapsulates {
            sysctls.insert(format!("net/ipv4/conf/{}/send_redirects", LINK_NAMES.vxlan), "0");
        }
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
