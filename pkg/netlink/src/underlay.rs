//! Which of this node's links carries the traffic between nodes, with which address.

use std::fmt;
use std::net::IpAddr;

use crate::addr::Address;
use crate::link::Link;
use crate::route::RouteFilter;
use crate::rt::{Error, Rtnl};

/// The link between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Index of the link.
    pub link: u32,
    /// Name of the link.
    pub name: String,
    /// This node's address there.
    pub address: IpAddr,
    /// The largest packet there.
    pub mtu: u32,
}

impl Underlay {
    /// The largest packet of a pod: what was asked for, else what fits in here when encapsulated as VXLAN.
    pub fn pod_mtu(&self, wanted: Option<u32>) -> u32 {
        // The outer IP header (20 or 40), UDP 8, VXLAN 8, the inner Ethernet header 14.
        let overhead = if self.address.is_ipv4() { 50 } else { 70 };
        wanted.unwrap_or(self.mtu.saturating_sub(overhead))
    }
}

/// What the operator says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The node's address (`--node-ip`).
    pub address: Option<IpAddr>,
    /// The link's name (`--iface`).
    pub interface: Option<String>,
}

/// Why there is none (yet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoUnderlay {
    /// No link has the address that was asked for.
    AddressNotHere(IpAddr),
    /// There is no link of the name that was asked for.
    NoSuchLink(String),
    /// The link has no address that others could reach.
    NoAddress(String),
    /// Nothing was asked for, there is no default route, and not exactly one link with an address.
    Ambiguous(Vec<String>),
}

impl fmt::Display for NoUnderlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressNotHere(address) => write!(f, "no link has the node's address {address}"),
            Self::NoSuchLink(name) => write!(f, "there is no link {name}"),
            Self::NoAddress(name) => write!(f, "link {name} has no address"),
            Self::Ambiguous(names) if names.is_empty() => f.write_str("no link has an address"),
            Self::Ambiguous(names) => {
                write!(
                    f,
                    "there is no default route to choose among {}: give the node's address",
                    names.join(", ")
                )
            }
        }
    }
}

/// Finds the underlay: the address asked for, else an address of the link asked for, else that of the default route,
/// else the only one there is. Links named in `ours` never count.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn find(rt: &mut Rtnl, choice: &Choice, ours: &[&str]) -> Result<Result<Underlay, NoUnderlay>, Error> {
    let mut links = rt.links()?;
    links.retain(|l| !ours.contains(&l.name.as_str()));
    let addresses = rt.addresses(None)?;
    let default_link = match choice {
        Choice {
            address: None,
            interface: None,
        } => {
            let mut routes = rt.routes(RouteFilter::default())?;
            routes.retain(|r| r.destination.prefix_len() == 0 && links.iter().any(|l| l.index == r.link));
            routes
                .iter()
                .min_by_key(|r| (r.destination.addr().is_ipv6(), r.metric))
                .map(|r| r.link)
        }
        _ => None,
    };
    Ok(choose(choice, &links, &addresses, default_link))
}

fn choose(
    choice: &Choice,
    links: &[Link],
    addresses: &[Address],
    default_link: Option<u32>,
) -> Result<Underlay, NoUnderlay> {
    let on = |link: &Link, address: IpAddr| Underlay {
        link: link.index,
        name: link.name.clone(),
        address,
        mtu: link.mtu,
    };
    let first_of = |link: &Link| {
        let usable = addresses
            .iter()
            .filter(|a| a.link == link.index && is_reachable(a.net.addr()));
        usable.map(|a| a.net.addr()).min_by_key(IpAddr::is_ipv6)
    };
    if let Some(wanted) = choice.address {
        let holder = addresses.iter().find(|a| a.net.addr() == wanted);
        let link = holder.and_then(|a| links.iter().find(|l| l.index == a.link));
        return link
            .map(|l| on(l, wanted))
            .ok_or(NoUnderlay::AddressNotHere(wanted));
    }
    let named = match &choice.interface {
        Some(name) => {
            let link = links.iter().find(|l| l.name == *name);
            Some(link.ok_or_else(|| NoUnderlay::NoSuchLink(name.clone()))?)
        }
        None => default_link.and_then(|index| links.iter().find(|l| l.index == index)),
    };
    if let Some(link) = named {
        return first_of(link)
            .map(|a| on(link, a))
            .ok_or_else(|| NoUnderlay::NoAddress(link.name.clone()));
    }
    let candidates: Vec<_> = links
        .iter()
        .filter(|l| l.up && !l.loopback)
        .filter_map(|l| first_of(l).map(|a| on(l, a)))
        .collect();
    match <[Underlay; 1]>::try_from(candidates) {
        Ok([only]) => Ok(only),
        Err(several) => Err(NoUnderlay::Ambiguous(
            several.into_iter().map(|u| u.name).collect(),
        )),
    }
}

/// Whether other nodes could send to the address.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Kind;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            lower_up: true,
            loopback: index == 1,
            no_arp: false,
            master: None,
            lower: None,
            peer_netns: None,
            kind: Kind::Device,
            port: None,
        }
    }

    #[test]
    fn asked_for_then_default_route_then_the_only_one() {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1")];
        let address = |link, net: &str| Address {
            link,
            net: net.parse().unwrap(),
        };
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "fe80::1/64"),
            address(2, "fd00::2/64"),
            address(2, "172.30.0.11/24"),
            address(3, "192.168.1.5/24"),
        ];
        let pick = |choice: &Choice, default| {
            choose(choice, &links, &addresses, default).map(|u| (u.link, u.address.to_string()))
        };
        let by_address = Choice {
            address: Some("192.168.1.5".parse().unwrap()),
            ..Choice::default()
        };
        assert_eq!(pick(&by_address, Some(2)), Ok((3, "192.168.1.5".into())));
        let by_name = Choice {
            interface: Some("eth0".into()),
            ..Choice::default()
        };
        assert_eq!(pick(&by_name, None), Ok((2, "172.30.0.11".into())));
        assert_eq!(pick(&Choice::default(), Some(3)), Ok((3, "192.168.1.5".into())));
        let both = vec!["eth0".to_string(), "eth1".to_string()];
        assert_eq!(pick(&Choice::default(), None), Err(NoUnderlay::Ambiguous(both)));
        let only = choose(&Choice::default(), &links[..2], &addresses, None).unwrap();
        assert_eq!(only.name, "eth0");
        let absent = Choice {
            address: Some("10.0.0.1".parse().unwrap()),
            ..Choice::default()
        };
        assert!(matches!(pick(&absent, None), Err(NoUnderlay::AddressNotHere(_))));
    }
}
