//! The bridge that pods hang on: what it should be, what it is, and the difference.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_api::types::{MacAddr, PodCidr};
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change, Kind, Port};
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::{Rtnl, rt, sysctl};

use crate::link::mac_of;

/// What the bridge should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its Ethernet address: fixed, else it would follow the ports'.
    pub mac: MacAddr,
    /// Its largest packet.
    pub mtu: u32,
    /// Its addresses: the gateway of each pod network.
    pub addresses: BTreeSet<IpNet>,
    /// The node's ends of the pods' links.
    pub ports: BTreeSet<String>,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The link of its name.
    pub link: Option<ObservedLink>,
    /// Its addresses, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
    /// Those of the desired ports that exist and are plugged in, isolated and up.
    pub plugged: BTreeSet<String>,
    /// Those of the desired ports that exist.
    pub present: BTreeSet<String>,
    /// Those of [`BRIDGE_FILTERS`] that are on.
    pub filters: BTreeSet<&'static str>,
}

/// Where br_netfilter is told to show bridged packets to the IP hooks. It does so by default, before they are routed: a
/// packet to a Service whose endpoint is a pod of this node would be translated there and then *bridged* to the pod, from
/// an isolated port to another or back to its own, and dropped. All packets of pods are routed, so their hooks see all.
const BRIDGE_FILTERS: [&str; 2] = [
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
];

/// The link of the bridge's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Its Ethernet address.
    pub mac: Option<MacAddr>,
    /// Its largest packet.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Delete what has the bridge's name.
    DeleteLink,
    /// Make the bridge.
    AddLink {
        /// Its Ethernet address.
        mac: MacAddr,
    },
    /// Set its Ethernet address and largest packet, and set it up.
    ChangeLink {
        /// The Ethernet address.
        mac: MacAddr,
        /// The largest packet.
        mtu: u32,
    },
    /// Take an address away.
    DeleteAddress(IpNet),
    /// Give an address.
    SetAddress(IpNet),
    /// Plug a pod's link in, isolated and up.
    Plug(String),
    /// Keep the IP hooks from seeing packets before they are routed.
    StopFilter(&'static str),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink => write!(f, "delete link {BRIDGE_NAME}"),
            Self::AddLink { mac } => write!(f, "add bridge {BRIDGE_NAME} mac {mac}"),
            Self::ChangeLink { mac, mtu } => write!(f, "change link {BRIDGE_NAME} up mac {mac} mtu {mtu}"),
            Self::DeleteAddress(net) => write!(f, "delete address {net} dev {BRIDGE_NAME}"),
            Self::SetAddress(net) => write!(f, "set address {net} dev {BRIDGE_NAME}"),
            Self::Plug(port) => write!(f, "plug {port} into {BRIDGE_NAME}"),
            Self::StopFilter(name) => write!(f, "sysctl {name} = 0"),
        }
    }
}

/// What the bridge should be on a node with these pod networks and these pods.
pub fn desired(cidrs: &[PodCidr], mtu: u32, ports: BTreeSet<String>) -> Desired {
    let address = |cidr: &PodCidr| IpNet::new(cidr.gateway(), cidr.net().prefix_len()).ok();
    Desired {
        mac: cidrs
            .first()
            .map_or(MacAddr::new([2, 0, 0, 0, 0, 1]), |c| mac_of(c.gateway())),
        mtu,
        addresses: cidrs.iter().filter_map(address).collect(),
        ports,
    }
}

/// The difference.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops: Vec<Op> = observed.filters.iter().copied().map(Op::StopFilter).collect();
    let Desired { mac, mtu, .. } = *desired;
    let fresh = match &observed.link {
        Some(link) if link.is_bridge => {
            if (link.mac, link.mtu, link.up) != (Some(mac), mtu, true) {
                ops.push(Op::ChangeLink { mac, mtu });
            }
            false
        }
        other => {
            if other.is_some() {
                ops.push(Op::DeleteLink);
            }
            // The largest packet is set afterwards: given at birth it would follow the ports' smallest.
            ops.extend([Op::AddLink { mac }, Op::ChangeLink { mac, mtu }]);
            true
        }
    };
    let has = |net: &&IpNet| !fresh && observed.addresses.contains(net);
    if !fresh {
        ops.extend(
            observed
                .addresses
                .difference(&desired.addresses)
                .copied()
                .map(Op::DeleteAddress),
        );
    }
    ops.extend(
        desired
            .addresses
            .iter()
            .filter(|n| !has(n))
            .copied()
            .map(Op::SetAddress),
    );
    let unplugged = desired.ports.iter().filter(|p| observed.present.contains(*p));
    let unplugged = unplugged.filter(|p| fresh || !observed.plugged.contains(*p));
    ops.extend(unplugged.cloned().map(Op::Plug));
    ops
}

/// Reads what is.
///
/// # Errors
/// When the kernel does not answer.
pub fn observe(rt: &mut Rtnl, desired: &Desired) -> Result<Observed, rt::Error> {
    let is_on = |name: &&str| sysctl::read(name).is_ok_and(|value| value != "0");
    let mut observed = Observed {
        filters: BRIDGE_FILTERS.into_iter().filter(is_on).collect(),
        ..Observed::default()
    };
    let links = rt.links()?;
    let bridge = links.iter().find(|l| l.name == BRIDGE_NAME);
    for link in links.iter().filter(|l| desired.ports.contains(&l.name)) {
        observed.present.insert(link.name.clone());
        let isolated = link.port.is_some_and(|p| p.isolated);
        if link.up && isolated && link.master.is_some() && link.master == bridge.map(|b| b.index) {
            observed.plugged.insert(link.name.clone());
        }
    }
    if let Some(bridge) = bridge {
        let addresses = rt.addresses(Some(bridge.index))?.into_iter().map(|a| a.net);
        let own = |net: &IpNet| !matches!(net.addr(), IpAddr::V6(a) if a.is_unicast_link_local());
        observed.addresses = addresses.filter(own).collect();
        observed.link = Some(ObservedLink {
            is_bridge: bridge.kind == Kind::Bridge,
            mac: bridge.mac.map(MacAddr::new),
            mtu: bridge.mtu,
            up: bridge.up,
        });
    }
    Ok(observed)
}

/// Carries the operations out. What kernel parameters of the host were before is written down in `sysctls`.
///
/// # Errors
/// The first that fails.
pub fn apply(rt: &mut Rtnl, ops: &[Op], sysctls: &Sysctls) -> Result<(), rt::Error> {
    for op in ops {
        match op {
            Op::DeleteLink => rt.delete_link_named(BRIDGE_NAME)?,
            Op::AddLink { mac } => rt.add_bridge(BRIDGE_NAME, Some(mac.octets()), None)?,
            Op::ChangeLink { mac, mtu } => {
                let change = Change {
                    up: Some(true),
                    mac: Some(mac.octets()),
                    mtu: Some(*mtu),
                    ..Change::default()
                };
                with(rt, BRIDGE_NAME, |rt, link| rt.change_link(link, &change))?;
            }
            Op::DeleteAddress(net) => with(rt, BRIDGE_NAME, |rt, link| {
                rt.delete_address(Address { link, net: *net })
            })?,
            Op::SetAddress(net) => with(rt, BRIDGE_NAME, |rt, link| {
                rt.replace_address(Address { link, net: *net })
            })?,
            Op::StopFilter(name) => sysctls.set(name, "0").map_err(|error| rt::Error {
                operation: "set sysctl",
                object: (*name).to_string(),
                source: std::io::Error::other(error),
                hint: None,
            })?,
            Op::Plug(port) => {
                let bridge = rt.link(BRIDGE_NAME)?.map(|b| b.index);
                let change = Change {
                    up: Some(true),
                    master: bridge,
                    ..Change::default()
                };
                with(rt, port, |rt, link| {
                    rt.change_link(link, &change)?;
                    rt.set_port(
                        link,
                        Port {
                            isolated: true,
                            hairpin: false,
                        },
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Works on a link unless it is gone by now: then there is nothing to do.
fn with(
    rt: &mut Rtnl,
    name: &str,
    work: impl FnOnce(&mut Rtnl, u32) -> Result<(), rt::Error>,
) -> Result<(), rt::Error> {
    match rt.link(name)? {
        Some(link) => work(rt, link.index),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_from_nothing_healed_in_part_and_left_alone_when_right() {
        let cidrs = ["10.244.1.0/24".parse().unwrap()];
        let ports: BTreeSet<String> = ["v1", "v2", "gone"].map(String::from).into();
        let desired = desired(&cidrs, 1450, ports);
        let text = |observed: &Observed| {
            plan(&desired, observed)
                .iter()
                .map(|op| format!("{op}\n"))
                .collect::<String>()
        };
        let present: BTreeSet<String> = ["v1", "v2"].map(String::from).into();
        let nothing = Observed {
            present: present.clone(),
            ..Observed::default()
        };
        assert_eq!(
            text(&nothing),
            "add bridge svcnet0 mac 0a:58:0a:f4:01:01\n\
             change link svcnet0 up mac 0a:58:0a:f4:01:01 mtu 1450\n\
             set address 10.244.1.1/24 dev svcnet0\n\
             plug v1 into svcnet0\n\
             plug v2 into svcnet0\n"
        );
        let right = Observed {
            link: Some(ObservedLink {
                is_bridge: true,
                mac: Some(desired.mac),
                mtu: 1450,
                up: true,
            }),
            addresses: desired.addresses.clone(),
            plugged: present.clone(),
            present,
            filters: BTreeSet::new(),
        };
        assert_eq!(text(&right), "");
        let filtered = Observed {
            filters: BRIDGE_FILTERS[..1].iter().copied().collect(),
            ..right.clone()
        };
        assert_eq!(text(&filtered), "sysctl net/bridge/bridge-nf-call-iptables = 0\n");
        let mut partly = right;
        partly.plugged.remove("v1");
        partly.addresses = ["10.9.9.1/24".parse().unwrap()].into();
        assert_eq!(
            text(&partly),
            "delete address 10.9.9.1/24 dev svcnet0\nset address 10.244.1.1/24 dev svcnet0\nplug v1 into svcnet0\n"
        );
    }
}
