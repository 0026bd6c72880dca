//! The layer-2 segment: namespaces, the bridge, the cables.

use std::thread;

use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::{Change, VethEnd};
use svcnet_netlink::netns::{self, NetNs};
use svcnet_netlink::rt;

use crate::names::{LabName, Member};
use crate::plan::{BRIDGE, Cable, LabPlan, MEMBER_LINK};

/// A part of the segment could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// A link or an address.
    #[error("in network namespace {netns}")]
    Link {
        /// The namespace.
        netns: String,
        /// What the kernel said.
        source: rt::Error,
    },
    /// A link is not there.
    #[error("network namespace {netns} has no link {link}")]
    Missing {
        /// The namespace.
        netns: String,
        /// The link.
        link: String,
    },
}

/// Makes all namespaces of a lab, the bridge and the cables.
///
/// # Errors
/// When one can not be made; what was made before stays, for `down` to remove.
pub fn build(plan: &LabPlan) -> Result<(), SegmentError> {
    let lan = create_namespaces(plan)?;
    let mut rtnl = open(&plan.lan, &lan.bridge)?;
    let in_lan = |source| SegmentError::Link {
        netns: plan.lan.clone(),
        source,
    };
    rtnl.add_bridge(BRIDGE, None, None).map_err(in_lan)?;
    let bridge = find(&mut rtnl, &plan.lan, BRIDGE)?;
    for (cable, netns) in plan.cables.iter().zip(&lan.members) {
        let port = cable.member.to_string();
        let near = VethEnd {
            name: &port,
            mac: None,
            master: Some(bridge),
            netns: None,
        };
        let far = VethEnd {
            name: MEMBER_LINK,
            mac: None,
            master: None,
            netns: Some(netns),
        };
        rtnl.add_veth(near, far, None).map_err(in_lan)?;
        connect(cable, netns)?;
    }
    Ok(())
}

struct Namespaces {
    bridge: NetNs,
    /// In the order of the cables.
    members: Vec<NetNs>,
}

/// All at once: the kernel spends most of the time waiting, for grace periods of its own.
fn create_namespaces(plan: &LabPlan) -> Result<Namespaces, SegmentError> {
    thread::scope(|scope| {
        let bridge = scope.spawn(|| NetNs::create(&plan.lan));
        let members: Vec<_> = plan
            .cables
            .iter()
            .map(|cable| scope.spawn(|| NetNs::create(&cable.netns)))
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Result<NetNs, netns::Error>>| {
            handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let members: Result<Vec<NetNs>, _> = members.into_iter().map(join).collect();
        Ok(Namespaces {
            bridge: join(bridge)?,
            members: members?,
        })
    })
}

/// The member's end of a cable: loopback and link up, address on.
fn connect(cable: &Cable, netns: &NetNs) -> Result<(), SegmentError> {
    let failed = |source| SegmentError::Link {
        netns: cable.netns.clone(),
        source,
    };
    let mut rtnl = open(&cable.netns, netns)?;
    raise(&mut rtnl, "lo").map_err(failed)?;
    let link = find(&mut rtnl, &cable.netns, MEMBER_LINK)?;
    rtnl.change_link(link, &Change::up()).map_err(failed)?;
    let addresses = cable.addresses.iter();
    addresses
        .map(|net| Address { link, net: *net })
        .try_for_each(|address| rtnl.replace_address(address))
        .map_err(failed)
}

/// Takes a member's cable down (`up` false) or up, at the bridge's end: the member sees that it has no carrier.
///
/// # Errors
/// When the lab is not there, or the kernel refuses.
pub fn set_cable(lab: &LabName, member: &Member, up: bool) -> Result<(), SegmentError> {
    let netns = lab.netns(&Member::Lan);
    let mut rtnl = open(&netns, &NetNs::open(&netns)?)?;
    let port = find(&mut rtnl, &netns, &member.to_string())?;
    let change = if up { Change::up() } else { Change::down() };
    rtnl.change_link(port, &change)
        .map_err(|source| SegmentError::Link { netns, source })
}

/// The members whose cable is cut; none when the lab is not there.
pub fn cut_cables(lab: &LabName) -> Vec<String> {
    let netns = lab.netns(&Member::Lan);
    let links = NetNs::open(&netns)
        .map_err(SegmentError::from)
        .and_then(|lan| open(&netns, &lan))
        .ok()
        .and_then(|mut rtnl| rtnl.links().ok());
    let ports = links.into_iter().flatten().filter(|link| link.master.is_some());
    ports.filter(|port| !port.up).map(|port| port.name).collect()
}

/// Brings up the loopback link of a new namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_loopback(netns: &NetNs) -> Result<(), rt::Error> {
    raise(&mut Rtnl::open_in(netns)?, "lo")
}

fn raise(rtnl: &mut Rtnl, link: &str) -> Result<(), rt::Error> {
    match rtnl.link(link)? {
        Some(found) => rtnl.change_link(found.index, &Change::up()),
        None => Ok(()),
    }
}

fn open(name: &str, netns: &NetNs) -> Result<Rtnl, SegmentError> {
    Rtnl::open_in(netns).map_err(|source| SegmentError::Link {
        netns: name.to_string(),
        source,
    })
}

fn find(rtnl: &mut Rtnl, netns: &str, link: &str) -> Result<u32, SegmentError> {
    let found = rtnl.link(link).map_err(|source| SegmentError::Link {
        netns: netns.to_string(),
        source,
    })?;
    found.map(|link| link.index).ok_or_else(|| SegmentError::Missing {
        netns: netns.to_string(),
        link: link.to_string(),
    })
}
