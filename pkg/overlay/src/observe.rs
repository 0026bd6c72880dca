//! Reads from the kernel what the overlay owns and what it builds upon.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_api::types::MacAddr;
use svcnet_netlink::link::{Kind, Link};
use svcnet_netlink::route::{PROTOCOL_SVCNET, Route, RouteFilter};
use svcnet_netlink::underlay::{self, NoUnderlay};
use svcnet_netlink::{Rtnl, nft, rt, sysctl};

use crate::desired::{Desired, Entry, Facts, Over};
use crate::plan::{Observed, ObservedLink, Stray};
use crate::{Config, Kernel, KernelError, LINK_NAMES, Mode, masquerade};

/// Reads what the overlay builds upon.
///
/// # Errors
/// When the kernel does not answer; within, when there is no link towards the peers.
pub fn facts(config: &Config, rt: &mut Rtnl) -> Result<Result<Facts, NoUnderlay>, rt::Error> {
    let underlay = match underlay::find(rt, &config.underlay, &[LINK_NAMES.vxlan, LINK_NAMES.bridge])? {
        Ok(underlay) => underlay,
        Err(none) => return Ok(Err(none)),
    };
    let bridge = rt.link(LINK_NAMES.bridge)?.filter(|l| l.up);
    let gateways = match bridge {
        Some(bridge) => rt
            .addresses(Some(bridge.index))?
            .into_iter()
            .map(|a| a.net.addr())
            .collect(),
        None => Vec::new(),
    };
    let on_link = match config.mode {
        Mode::Vxlan => Vec::new(),
        Mode::Direct | Mode::Auto => {
            let routes = rt.routes(RouteFilter {
                protocol: None,
                link: Some(underlay.link),
            })?;
            routes.iter().filter_map(on_link).collect()
        }
    };
    Ok(Ok(Facts {
        underlay,
        on_link,
        gateways,
        corrupts: false,
    }))
}

/// The network that the route says to be on its link: of an address there, or as an operator made it. A default route
/// without a router is that of a link with one host at the other end.
pub(crate) fn on_link(route: &Route) -> Option<IpNet> {
    let plain = route.gateway.is_none() && route.protocol != PROTOCOL_SVCNET;
    let net = Some(route.destination).filter(|net| plain && net.prefix_len() > 0);
    net.filter(|net| !is_link_local(*net))
}

/// The indices of the links that entries are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// The overlay's own.
    pub vxlan: Option<u32>,
    /// The link towards the peers.
    pub underlay: u32,
    /// The pods' bridge.
    pub bridge: Option<u32>,
}

impl Links {
    /// As they are now.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn read(rt: &mut Rtnl, facts: &Facts) -> Result<Self, rt::Error> {
        let mut index = |name| Ok(rt.link(name)?.map(|l: Link| l.index));
        Ok(Self {
            vxlan: index(LINK_NAMES.vxlan)?,
            underlay: facts.underlay.link,
            bridge: index(LINK_NAMES.bridge)?,
        })
    }

    fn over(&self, link: u32) -> Option<Over> {
        match Some(link) {
            link if link == self.vxlan => Some(Over::Vxlan),
            link if link == self.bridge => Some(Over::Bridge),
            link if link == Some(self.underlay) => Some(Over::Underlay),
            _ => None,
        }
    }

    /// The entry that the route is, if it has the form that [`crate::apply`] gives to entries.
    pub fn entry(&self, route: &Route) -> Option<Entry> {
        let entry = Entry::Route {
            destination: route.destination,
            over: self.over(route.link)?,
            gateway: route.gateway,
            source: route.source,
            mtu: route.mtu,
        };
        (crate::apply::route(&entry, route.link) == Some(*route)).then_some(entry)
    }
}

/// Reads what the overlay owns. Of the kernel parameters those that are desired.
///
/// # Errors
/// When the kernel does not answer.
pub fn observe(
    kernel: &mut Kernel,
    facts: &Facts,
    desired: &Desired,
) -> Result<(Observed, Links), KernelError> {
    let Kernel { rt, nft, ethtool } = kernel;
    let mut observed = Observed::default();
    let link = rt.link(LINK_NAMES.vxlan)?;
    let links = Links {
        vxlan: link.as_ref().map(|l| l.index),
        underlay: facts.underlay.link,
        bridge: rt.link(LINK_NAMES.bridge)?.map(|l| l.index),
    };
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
    for route in routes {
        match links.entry(&route) {
            Some(entry) => _ = observed.entries.insert(entry),
            None => observed.strays.push(Stray {
                route,
                over_vxlan: Some(route.link) == links.vxlan,
            }),
        }
    }
    observed.link = link.map(|l| ObservedLink {
        mac: l.mac.map(MacAddr::new),
        mtu: l.mtu,
        up: l.up,
        // Another kind of link may not tell; it is replaced in any case.
        checksums_before: ethtool
            .tx_checksum(LINK_NAMES.vxlan)
            .is_ok_and(|to_link| !to_link),
        vxlan: if let Kind::Vxlan(vxlan) = l.kind {
            Some(vxlan)
        } else {
            None
        },
    });
    observed.masquerade = holds_masquerade(nft, desired)?.then(|| desired.masquerade.clone());
    observed.sysctls = read_sysctls(desired.sysctls.keys());
    Ok((observed, links))
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
