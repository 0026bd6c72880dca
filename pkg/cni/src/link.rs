//! A pod's link: a veth pair from the node's bridge into the pod's namespace, its addresses and its routes.
//!
//! A pod has its address alone (`/32`), and everything, its neighbours on the same node included, is behind the
//! gateway: the node routes all pod traffic, so that it passes the node's hooks in both directions, and no bridge
//! filter is needed. The ports are isolated from each other, which a pod could otherwise get around.
//!
//! A port is made closed, isolated, and then opened, without an address of its own (`Rtnl::open_port`): the bridge
//! never has one that is not isolated, and no role looks at links or addresses anew for each pod that comes.

use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use svcnet_api::types::{MacAddr, PodCidr};
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change, Link, Port, VethEnd};
use svcnet_netlink::netns::{self, NetNs};
use svcnet_netlink::route::{Route, RouteFilter};
use svcnet_netlink::{Rtnl, rt};

use crate::protocol::Attachment;

/// The route protocol of the pod's own routes (`RTPROT_BOOT`): what a host's own scripts would set.
const PROTOCOL_BOOT: u8 = 3;

/// Between looks whether a link is gone: it takes milliseconds.
const DELETION_POLL: Duration = Duration::from_micros(200);

/// What can go wrong with a pod's link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] rt::Error),
    /// The pod's namespace could not be entered.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// The pod has an interface of that name already.
    #[error("interface {0} already exists")]
    Exists(String),
    /// There is no bridge to plug into.
    #[error("the bridge {BRIDGE_NAME} is not there")]
    NoBridge,
}

/// A pod's link as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// The name of the node's end.
    pub host_name: String,
    /// The name of the pod's end.
    pub ifname: String,
    /// The Ethernet address of the pod's end.
    pub mac: MacAddr,
    /// The largest packet.
    pub mtu: u32,
    /// The pod's addresses, each with the gateway of its network.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

/// Beginning of the names of the node's ends.
const HOST_PREFIX: &str = "veth";
/// Letters of [`hash_of`].
pub(crate) const HASH_LENGTH: usize = 10;

/// The name of the node's end of an attachment's link: always the same, so that DEL needs no memory of ADD.
pub fn host_name(attachment: &Attachment) -> String {
    format!("{HOST_PREFIX}{}", hash_of(attachment))
}

/// Whether a link's name is one of [`host_name`]'s.
pub fn is_host_name(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(is_hash)
}

/// What the names of an attachment's links end with.
pub(crate) fn hash_of(attachment: &Attachment) -> String {
    let digest = Sha256::digest(format!("{}@{}", attachment.container(), attachment.ifname()));
    digest
        .iter()
        .take(HASH_LENGTH / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == HASH_LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The Ethernet address of whoever has an address: one that neighbours may keep in mind when the address gets a new
/// owner (`0a:58` and the four bytes, as the reference plugins once did).
pub fn mac_of(address: IpAddr) -> MacAddr {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            MacAddr::new([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(a) => {
            let digest = Sha256::digest(a.octets());
            let mut first = [0; 6];
            first.copy_from_slice(digest.get(..6).unwrap_or(&[0; 6]));
            MacAddr::local_from(&first)
        }
    }
}

impl PodLink {
    /// The link of an attachment with these addresses, which are of these pod networks. Its Ethernet address comes from the
    /// first of them, unless another one is asked for.
    pub fn new(
        attachment: &Attachment,
        addresses: &[IpAddr],
        mac: Option<MacAddr>,
        cidrs: &[PodCidr],
        mtu: u32,
    ) -> Self {
        let with_gateway = |address: &IpAddr| {
            let cidr = cidrs.iter().find(|c| c.contains(*address));
            cidr.map(|c| (*address, c.gateway()))
        };
        Self {
            host_name: host_name(attachment),
            ifname: attachment.ifname().to_string(),
            mac: mac
                .or_else(|| addresses.first().map(|a| mac_of(*a)))
                .unwrap_or(MacAddr::new([2, 0, 0, 0, 0, 1])),
            mtu,
            addresses: addresses.iter().filter_map(with_gateway).collect(),
        }
    }

    /// The routes in the pod: to the gateway directly, to all else through it.
    fn routes(&self, link: u32) -> Vec<Route> {
        let mut routes = Vec::new();
        for (_, gateway) in &self.addresses {
            let direct = Route {
                protocol: PROTOCOL_BOOT,
                ..Route::on_link(IpNet::from(*gateway), link)
            };
            let any = if gateway.is_ipv4() {
                IpNet::V4(Default::default())
            } else {
                IpNet::V6(Default::default())
            };
            let default = Route::via(any, *gateway, link);
            // The gateway's own route says that it is on the link.
            routes.extend([
                direct,
                Route {
                    protocol: PROTOCOL_BOOT,
                    onlink: false,
                    ..default
                },
            ]);
        }
        routes
    }
}

/// Makes the link. Whatever an unfinished ADD left of the node's end goes first; on failure nothing is left.
///
/// # Errors
/// When the pod has an interface of that name, or the kernel refuses.
pub fn add(rt: &mut Rtnl, netns: &NetNs, link: &PodLink) -> Result<Made, Error> {
    let mut pod = Rtnl::open_in(netns)?;
    let bridge = rt.link(BRIDGE_NAME)?.ok_or(Error::NoBridge)?;
    if let Err(error) = add_pair(rt, netns, link, &bridge) {
        if !error.is_exists() {
            return Err(error.into());
        }
        if pod.link(&link.ifname)?.is_some() {
            return Err(Error::Exists(link.ifname.clone()));
        }
        rt.delete_link_named(&link.host_name)?;
        add_pair(rt, netns, link, &bridge)?;
    }
    if let Err(error) = open(rt, &mut pod, netns, link) {
        // The error that counts is the first one.
        let _ = rt.delete_link_named(&link.host_name);
        return Err(error);
    }
    Ok(Made {
        bridge_mac: bridge.mac.map(MacAddr::new),
        host_mac: host_mac(&link.host_name),
    })
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The Ethernet address of the bridge.
    pub bridge_mac: Option<MacAddr>,
    /// The Ethernet address of the node's end.
    pub host_mac: MacAddr,
}

/// The Ethernet address of a node's end: known without asking the kernel.
fn host_mac(name: &str) -> MacAddr {
    let mut first = [0; 6];
    first.copy_from_slice(Sha256::digest(name).get(..6).unwrap_or(&[0; 6]));
    MacAddr::local_from(&first)
}

/// Both ends, each in its place under its name, and down. The bridge never has the node's end as a port that is not isolated.
fn add_pair(rt: &mut Rtnl, netns: &NetNs, link: &PodLink, bridge: &Link) -> Result<(), rt::Error> {
    let near = VethEnd {
        name: &link.host_name,
        mac: Some(host_mac(&link.host_name).octets()),
        master: Some(bridge.index),
        netns: None,
    };
    let far = VethEnd {
        name: &link.ifname,
        mac: Some(link.mac.octets()),
        master: None,
        netns: Some(netns),
    };
    rt.add_closed_veth(near, far, Some(link.mtu))
}

fn open(rt: &mut Rtnl, pod: &mut Rtnl, netns: &NetNs, link: &PodLink) -> Result<(), Error> {
    let isolated = Port {
        isolated: true,
        hairpin: false,
    };
    rt.open_port(&link.host_name, isolated)?;
    let index = match pod.link(&link.ifname)? {
        Some(found) => found.index,
        None => return Err(netns::Error::NotANamespace(netns.path().to_path_buf()).into()),
    };
    pod.set_loopback_up()?;
    pod.change_link(index, &Change::up())?;
    for (address, _) in &link.addresses {
        pod.replace_address(Address {
            link: index,
            net: IpNet::from(*address),
        })?;
    }
    for route in link.routes(index) {
        pod.replace_route(route)?;
    }
    Ok(())
}

/// Deletes the link; that there is none is fine. The pod's end goes with the node's.
///
/// Returns as soon as the link is gone for everybody. The kernel answers the one who deletes it only after a grace
/// period of RCU more (`netdev_run_todo`), which takes four times as long: that is for another thread to wait for.
///
/// # Errors
/// When the kernel refuses.
pub fn delete(rt: &mut Rtnl, attachment: &Attachment) -> Result<(), rt::Error> {
    let name = host_name(attachment);
    if rt.link(&name)?.is_none() {
        return Ok(());
    }
    let mut deleter = Rtnl::open()?;
    let its_name = name.clone();
    let deleting = thread::spawn(move || deleter.delete_link_named(&its_name));
    while !deleting.is_finished() {
        if rt.link(&name)?.is_none() {
            return Ok(());
        }
        thread::sleep(DELETION_POLL);
    }
    match deleting.join() {
        Ok(result) => result,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// What is not as ADD made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// The node's end is not there.
    NoHostLink(String),
    /// It is not a port of the bridge.
    NotPluggedIn(String),
    /// A link is down.
    Down(String),
    /// The pod's end is not there.
    NoPodLink(String),
    /// It has another Ethernet address.
    Mac(MacAddr),
    /// It lacks an address.
    NoAddress(IpAddr),
    /// It lacks a route.
    NoRoute(IpNet),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHostLink(name) => write!(f, "link {name} of the node is not there"),
            Self::NotPluggedIn(name) => write!(f, "link {name} is not a port of {BRIDGE_NAME}"),
            Self::Down(name) => write!(f, "link {name} is down"),
            Self::NoPodLink(name) => write!(f, "interface {name} is not there"),
            Self::Mac(wanted) => write!(f, "the interface does not have the MAC address {wanted}"),
            Self::NoAddress(address) => write!(f, "the interface does not have the address {address}"),
            Self::NoRoute(destination) => write!(f, "there is no route to {destination}"),
        }
    }
}

/// Compares the kernel's state with what the link should be.
///
/// # Errors
/// When the kernel does not answer.
pub fn check(rt: &mut Rtnl, netns: &NetNs, link: &PodLink) -> Result<Vec<Wrong>, Error> {
    let mut wrong = Vec::new();
    let bridge = rt.link(BRIDGE_NAME)?.map(|b| b.index);
    match rt.link(&link.host_name)? {
        None => wrong.push(Wrong::NoHostLink(link.host_name.clone())),
        Some(host) => {
            if bridge.is_none() || host.master != bridge {
                wrong.push(Wrong::NotPluggedIn(host.name.clone()));
            }
            if !host.up {
                wrong.push(Wrong::Down(host.name));
            }
        }
    }
    let mut pod = Rtnl::open_in(netns)?;
    let Some(end) = pod.link(&link.ifname)? else {
        wrong.push(Wrong::NoPodLink(link.ifname.clone()));
        return Ok(wrong);
    };
    if !end.up {
        wrong.push(Wrong::Down(end.name));
    }
    if end.mac != Some(link.mac.octets()) {
        wrong.push(Wrong::Mac(link.mac));
    }
    let addresses = pod.addresses(Some(end.index))?;
    let lacking = |a: &&(IpAddr, IpAddr)| !addresses.iter().any(|has| has.net.addr() == a.0);
    wrong.extend(
        link.addresses
            .iter()
            .filter(lacking)
            .map(|(address, _)| Wrong::NoAddress(*address)),
    );
    let routes = pod.routes(RouteFilter {
        link: Some(end.index),
        protocol: None,
    })?;
    for wanted in link.routes(end.index) {
        let same = |r: &Route| r.destination == wanted.destination && r.gateway == wanted.gateway;
        if !routes.iter().any(same) {
            wrong.push(Wrong::NoRoute(wanted.destination));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_addresses_make_ethernet_addresses() {
        let attachment = Attachment::new(&"a".repeat(64), "eth0").unwrap();
        let name = host_name(&attachment);
        assert!(name.parse::<svcnet_api::types::IfName>().is_ok(), "{name}");
        assert_ne!(
            name,
            host_name(&Attachment::new(&"a".repeat(64), "eth1").unwrap())
        );
        assert_eq!(
            mac_of("10.244.1.7".parse().unwrap()).to_string(),
            "0a:58:0a:f4:01:07"
        );
        assert_eq!(mac_of("fd00::7".parse().unwrap()).octets()[0] & 3, 2);
    }
}
