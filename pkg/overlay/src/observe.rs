//! Reads from the kernel what the overlay owns and what it builds upon.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_api::types::MacAddr;
use svcnet_netlink::link::{Kind, Link};
use svcnet_netlink::route::{PROTOCOL_SVCNET, Route, RouteFilter};
use svcnet_netlink::underlay::{self, Choice, NoUnderlay};
use svcnet_netlink::{Rtnl, nft, rt, sysctl};

use crate::desired::{Desired, Entry, Facts, Over};
use crate::plan::{Observed, ObservedLink};
use crate::{Config, Kernel, KernelError, LINK_NAMES, masquerade};

/// Reads what the overlay builds upon.
///
/// # Errors
/// When the kernel does not answer; within, when there is no link towards the peers.
pub fn facts(config: &Config, rt: &mut Rtnl) -> Result<Result<Facts, NoUnderlay>, rt::Error> {
    let choice = Choice {
        address: config.node_ip,
        interface: config.interface.as_ref().map(|i| i.as_str().to_string()),
    };
    let found = underlay::find(rt, &choice, &[LINK_NAMES.vxlan, LINK_NAMES.bridge])?;
    let bridge = rt.link(LINK_NAMES.bridge)?.filter(|l| l.up);
    let gateways = match bridge {
        Some(bridge) => rt
            .addresses(Some(bridge.index))?
            .into_iter()
            .map(|a| a.net.addr())
            .collect(),
        None => Vec::new(),
    };
    Ok(found.map(|underlay| Facts { underlay, gateways }))
}

/// Reads what the overlay owns. Of the kernel parameters those that are desired.
///
/// # Errors
/// When the kernel does not answer.
pub fn observe(kernel: &mut Kernel, desired: &Desired) -> Result<Observed, KernelError> {
    let Kernel { rt, nft } = kernel;
    let mut observed = Observed::default();
    let link = rt.link(LINK_NAMES.vxlan)?;
    let bridge = rt.link(LINK_NAMES.bridge)?;
    let mut routes = rt.routes(RouteFilter {
        protocol: Some(PROTOCOL_SVCNET),
        link: None,
    })?;
    if let Some(link) = &link {
        let over = rt.routes(RouteFilter {
            protocol: None,
            link: Some(link.index),
        })?;
        routes.extend(
            over.into_iter()
                .filter(|r| r.protocol != PROTOCOL_SVCNET && !is_kernels(r)),
        );
        read_link(rt, link.index, &mut observed)?;
    }
    let index = |link: &Option<Link>| link.as_ref().map(|l| l.index);
    for route in routes {
        match as_entry(&route, index(&link), index(&bridge)) {
            Some(entry) => _ = observed.entries.insert(entry),
            None => observed.strays.push(route),
        }
    }
    observed.link = link.map(|l| ObservedLink {
        mac: l.mac.map(MacAddr::new),
        mtu: l.mtu,
        up: l.up,
        vxlan: if let Kind::Vxlan(vxlan) = l.kind {
            Some(vxlan)
        } else {
            None
        },
    });
    observed.masquerade = holds_masquerade(nft, desired)?.then(|| desired.masquerade.clone());
    observed.sysctls = read_sysctls(desired.sysctls.keys());
    Ok(observed)
}

/// Whether the nftables table is as it should be.
///
/// # Errors
/// When the kernel does not answer.
pub fn holds_masquerade(nft: &mut nft::Socket, desired: &Desired) -> Result<bool, nft::Error> {
    for ruleset in masquerade::rulesets(&desired.masquerade) {
        if !ruleset.holds(nft, |_| false)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_link(rt: &mut Rtnl, link: u32, observed: &mut Observed) -> Result<(), rt::Error> {
    let addresses = rt.addresses(Some(link))?.into_iter().map(|a| a.net);
    observed
        .entries
        .extend(addresses.filter(|net| !is_link_local(*net)).map(Entry::Address));
    let neighbours = rt.neighbours(link)?.into_iter();
    observed.entries.extend(neighbours.map(|n| Entry::Neighbour {
        address: n.address,
        mac: MacAddr::new(n.mac),
    }));
    let fdb = rt.fdb(link)?.into_iter();
    observed.entries.extend(fdb.map(|e| Entry::Fdb {
        mac: MacAddr::new(e.mac),
        destination: e.destination,
    }));
    Ok(())
}

fn read_sysctls<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    names
        .filter_map(|name| sysctl::read(name).ok().map(|value| (name.clone(), value)))
        .collect()
}

/// The kernel gives every link an IPv6 link-local address of its own.
fn is_link_local(net: IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Routes that come and go with an address (`RTPROT_KERNEL`).
fn is_kernels(route: &Route) -> bool {
    route.protocol == 2
}

/// The entry that the route is, if it has the form that [`crate::apply`] gives to entries.
fn as_entry(route: &Route, vxlan: Option<u32>, bridge: Option<u32>) -> Option<Entry> {
    let over = match Some(route.link) {
        link if link == vxlan => Over::Vxlan,
        link if link == bridge => Over::Bridge,
        _ => return None,
    };
    let Route {
        destination,
        gateway,
        source,
        ..
    } = *route;
    let entry = Entry::Route {
        destination,
        over,
        gateway,
        source,
    };
    (crate::apply::route(destination, route.link, gateway, source) == *route).then_some(entry)
}
