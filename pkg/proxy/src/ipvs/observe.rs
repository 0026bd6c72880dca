//! Reading back what the kernel holds: IPVS, our link, our tables, the node's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use svcnet_netlink::ipvs::{self as kernel, Identity, Virtual};
use svcnet_netlink::nft::{self, Family, ObservedElement, Socket};
use svcnet_netlink::{Rtnl, rt};

use super::LINK;
use super::layout::{self, Networks};
use super::loopback;
use super::plan::{Balancer, Held, Tables};
use super::slot::{self, BOUND, HAIRPIN, List, SOURCES, Slot};

/// The node's addresses and our link's.
pub(super) struct Addresses {
    /// Index of our link, if it is there.
    pub(super) link: Option<u32>,
    /// The addresses on it.
    pub(super) bound: BTreeSet<IpAddr>,
    /// All addresses of other links, but for link-local ones.
    pub(super) others: BTreeSet<IpAddr>,
}

/// Reads all addresses.
pub(super) fn addresses(rt: &mut Rtnl) -> Result<Addresses, rt::Error> {
    let link = rt.link(LINK)?.map(|link| link.index);
    let mut addresses = Addresses {
        link,
        bound: BTreeSet::new(),
        others: BTreeSet::new(),
    };
    for address in rt.addresses(None)? {
        let ip = address.net.addr();
        if is_link_local(ip) {
            continue;
        }
        if Some(address.link) == link {
            addresses.bound.insert(ip);
        } else {
            addresses.others.insert(ip);
        }
    }
    Ok(addresses)
}

/// Whether it is one of those that every IPv6 link has, each pod's too: they are nobody's business here.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The addresses that node ports answer on; `only` are the networks of those, where they are not all.
pub(super) fn node_ports_on(
    addresses: &Addresses,
    only: Option<&[IpNet]>,
    networks: &Networks,
) -> BTreeSet<IpAddr> {
    let answers = |ip: &IpAddr| {
        let of_a_service = networks.services.iter().any(|net| net.contains(ip));
        loopback::can_answer(*ip)
            && !of_a_service
            && only.is_none_or(|networks| networks.iter().any(|net| net.contains(ip)))
    };
    addresses.others.iter().copied().filter(answers).collect()
}

/// What IPVS holds, and our link.
pub(super) fn balancer(
    socket: &mut kernel::Socket,
    addresses: &Addresses,
) -> Result<Balancer, kernel::Error> {
    let mut services = BTreeMap::new();
    for service in socket.services()? {
        let Identity::Address(at) = service.identity else {
            continue;
        };
        let destinations = socket.destinations(service.identity)?;
        let destinations = destinations
            .into_iter()
            .map(|(destination, connections)| (destination.at, (destination, Some(connections))))
            .collect();
        services.insert(
            at,
            Held {
                service,
                destinations,
            },
        );
    }
    Ok(Balancer {
        link: addresses.link.is_some(),
        bound: addresses.bound.clone(),
        services,
    })
}

/// What our tables hold. A table that is not as declared counts as not there, but for what it says of whose services are
/// whose.
pub(super) fn tables(
    socket: &mut Socket,
    families: &[Family],
    networks: &Networks,
) -> Result<Tables, nft::Error> {
    let mut tables = Tables::default();
    for family in families.iter().copied() {
        tables.listed.extend(listed(socket, family)?);
        if !layout::ruleset(family, networks).holds(socket, |_| false)? {
            tables.rebuild.insert(family);
            continue;
        }
        for list in List::ALL {
            let parse = |element: &ObservedElement<'_>| slot::read_frontend(list, family, element);
            read(socket, family, list.set(), &mut tables, parse)?;
        }
        read(socket, family, HAIRPIN, &mut tables, |e| {
            slot::read_hairpin(family, e)
        })?;
        read(socket, family, BOUND, &mut tables, |e| {
            slot::read_bound(family, e)
        })?;
        read(socket, family, SOURCES, &mut tables, |e| {
            slot::read_source(family, e)
        })?;
    }
    Ok(tables)
}

/// The virtual services that a table lists, if there is such a table.
pub(super) fn listed(socket: &mut Socket, family: Family) -> Result<BTreeSet<Virtual>, nft::Error> {
    let mut found = BTreeSet::new();
    let list = List::Frontends;
    let result = socket.elements(
        &layout::table(family),
        list.set(),
        || {},
        |element| {
            if let Some(Slot::Frontend(_, at)) = slot::read_frontend(list, family, &element) {
                found.insert(at);
            }
        },
    );
    match result {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EAFNOSUPPORT)) => Ok(found),
        result => result.map(|()| found),
    }
}

/// Reads the elements of one set. What can not be read is not ours and stays out of sight: the key belongs to no
/// frontend, so it does no harm.
fn read(
    socket: &mut Socket,
    family: Family,
    set: &str,
    tables: &mut Tables,
    parse: impl Fn(&ObservedElement<'_>) -> Option<Slot>,
) -> Result<(), nft::Error> {
    // Elements seen twice, when a dump begins again, are the same elements.
    socket.elements(
        &layout::table(family),
        set,
        || {},
        |element| {
            if let Some(slot) = parse(&element) {
                tables.elements.insert(slot, element.comment.map(Into::into));
            }
        },
    )
}
