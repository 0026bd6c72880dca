//! Ports of the host that lead to containers (the capability `portMappings`), in nftables tables of our own.
//!
//! Whatever the number of ports, there are the same few rules: each port is an element of a map. They come after
//! Services in a packet's way (the proxy's chains are of an earlier priority), and leave the cluster's DNS address alone,
//! which is this host's as well. A host port answers at each address of the host, loopback included; clients are seen as
//! they are, but for those that would be answered around the host: a container that reaches itself, and loopback.

mod apply;
mod plan;
mod table;

pub use apply::{Error, HostPorts, forget, missing};
pub use plan::{Empty, Observed, Op, Plan, plan};
pub use table::{TABLE, TABLES};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use svcnet_netlink::nft::Family;

use crate::ipam::{Lease, Wish};
use crate::protocol::{HostIp, PortMapping, Protocol};

/// Where a connection to the host is for: an address of it, or all of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address; all of the table's family when there is none.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the host.
    pub port: u16,
}

/// Where it is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The container's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What the sets of one family hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// Where each port leads.
    pub ports: BTreeMap<Frontend, Target>,
    /// Containers that reach themselves through the host.
    pub hairpin: BTreeSet<IpAddr>,
    /// Ports on all addresses of the host, `::1` included; for IPv6 alone.
    pub loopback: BTreeSet<(Protocol, u16)>,
}

/// What the kernel should hold.
pub type Desired = BTreeMap<Family, Elements>;

/// What the kernel should hold for these leases. Where two have the same port, which [`conflict`] keeps from happening
/// but for one pod after itself, the younger has it.
pub fn desired<'a>(leases: impl Iterator<Item = &'a Lease>) -> Desired {
    let mut leases: Vec<&Lease> = leases.filter(|l| !l.runtime.port_mappings.is_empty()).collect();
    leases.sort_by_key(|l| l.serial);
    let mut desired = Desired::new();
    for lease in leases {
        for address in first_of_each_family(&lease.addresses) {
            let of_family = |m: &&PortMapping| frontend(m, address).is_some();
            for mapping in lease.runtime.port_mappings.iter().filter(of_family) {
                let family = Family::of(address);
                let elements = desired.entry(family).or_default();
                let Some(frontend) = frontend(mapping, address) else {
                    continue;
                };
                let port = mapping.container_port.get();
                elements.ports.insert(frontend, Target { address, port });
                if family == Family::Ip6 && frontend.address.is_none() {
                    elements.loopback.insert((frontend.protocol, frontend.port));
                }
            }
        }
    }
    for elements in desired.values_mut() {
        elements.hairpin = elements.ports.values().map(|t| t.address).collect();
    }
    desired
}

/// The frontend of a mapping in the family of this address of the container, if it has one there.
fn frontend(mapping: &PortMapping, container: IpAddr) -> Option<Frontend> {
    let address = match (mapping.host_ip, container.is_ipv4()) {
        (None, _) | (Some(HostIp::All4), true) | (Some(HostIp::All6), false) => None,
        (Some(HostIp::One(ip)), v4) if ip.is_ipv4() == v4 => Some(ip),
        (Some(_), _) => return None,
    };
    Some(Frontend {
        address,
        protocol: mapping.protocol,
        port: mapping.host_port.get(),
    })
}

fn first_of_each_family(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first = |v4: bool| addresses.iter().copied().find(move |a| a.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten()
}

/// Which of the ports that somebody wishes for is another pod's already, and whose. A pod may follow itself: its former
/// sandbox goes later.
pub fn conflict<'a>(
    wish: &Wish<'_>,
    others: impl Iterator<Item = &'a Lease>,
) -> Option<(PortMapping, &'a Lease)> {
    let same_pod = |other: &Lease| match (wish.pod, &other.pod) {
        (Some(a), Some(b)) => (&a.namespace, &a.name) == (&b.namespace, &b.name),
        _ => false,
    };
    let mut rivals = others.filter(|o| o.attachment != *wish.attachment && !same_pod(o));
    rivals.find_map(|other| {
        let theirs = &other.runtime.port_mappings;
        let wanted = &wish.runtime.port_mappings;
        let taken = wanted.iter().find(|m| theirs.iter().any(|t| overlap(m, t)))?;
        Some((*taken, other))
    })
}

/// Whether they would answer at the same address. One address goes before all of them, so that these do not overlap.
fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    let same_place = match (a.host_ip, b.host_ip) {
        (Some(HostIp::One(a)), Some(HostIp::One(b))) => a == b,
        (Some(HostIp::One(_)), _) | (_, Some(HostIp::One(_))) => false,
        (Some(HostIp::All4), Some(HostIp::All6)) | (Some(HostIp::All6), Some(HostIp::All4)) => false,
        _ => true,
    };
    same_place && (a.host_port, a.protocol) == (b.host_port, b.protocol)
}

#[cfg(test)]
mod tests;
