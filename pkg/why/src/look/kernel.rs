//! What this node's kernel holds of a connection's way.

use std::net::IpAddr;
use std::time::Duration;

use svcnet_api::wellknown::{BRIDGE_NAME, VXLAN_NAME};
use svcnet_netlink::link::{Kind, Link};
use svcnet_netlink::neigh::Resolution;
use svcnet_netlink::nft::{Family, Socket};
use svcnet_netlink::route::{Packet, Way as KernelWay};
use svcnet_netlink::{Rtnl, conntrack, rt};
use svcnet_proxy::inspect;

use super::Here;
use crate::cluster::Cluster;
use crate::explain::Endpoint;
use crate::seen::{AgentSeen, FrontendSeen, Hop, LinkSeen, LinkWanted, PathSeen, Seen, Tunnel, WaySeen};
use crate::trace::{Origin, Way};

/// A change may be on its way from the API to the kernel: what differs is looked at so many times.
const LOOKS: usize = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// Between two looks at a neighbour that is being asked for, and how many there are: the kernel asks for three seconds.
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(250);
const NEIGHBOUR_LOOKS: usize = 16;
/// Tunnels in tunnels are not followed further.
const DEPTH_MAX: usize = 2;

/// Looks at all that this node has to do with it.
pub(super) fn look(cluster: &Cluster, here: &Here, origin: Option<&Origin>, way: &Way, seen: &mut Seen) {
    seen.frontend = way.frontend.is_some().then(|| frontend(cluster, here, way));
    let mut rtnl = match Rtnl::open() {
        Ok(rtnl) => rtnl,
        Err(error) => {
            let unknown = PathSeen {
                wanted: None,
                way: WaySeen::Unknown(error.to_string()),
            };
            seen.paths = vec![unknown; way.endpoints.len()];
            return;
        }
    };
    if matches!(origin, Some(Origin::Node { name, .. }) if *name == here.node) {
        seen.own_source = match rtnl.way_of(Packet::to(way.to.ip())) {
            Ok(KernelWay::Along(route)) => route.source,
            _ => None,
        };
    }
    let mut paths = Vec::with_capacity(way.endpoints.len());
    for endpoint in &way.endpoints {
        paths.push(path(&mut rtnl, here, origin, seen, endpoint));
    }
    seen.paths = paths;
    seen.connections = connections(origin, way);
}

/// Whether the kernel holds the frontend.
fn frontend(cluster: &Cluster, here: &Here, way: &Way) -> FrontendSeen {
    let Some(frontend) = &way.frontend else {
        return FrontendSeen::Held(None);
    };
    let (services, slices) = (cluster.services.clone(), cluster.slices.clone());
    let on = cluster.proxy_on(Some(&here.node));
    let desired = inspect::frontends(on, services, slices);
    let mut kernel = match inspect::Kernel::open(on, here.mode) {
        Ok(kernel) => kernel,
        Err(error) => return FrontendSeen::Unknown(error.to_string()),
    };
    let mut found = FrontendSeen::Held(None);
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let difference = match kernel.diff(desired.iter().cloned()) {
            Ok(difference) => difference,
            Err(error) => return FrontendSeen::Unknown(error.to_string()),
        };
        if !difference.concerns(frontend.key) {
            return FrontendSeen::Held(difference.held(frontend.key));
        }
        let impossible = difference.impossible().iter();
        if let Some((_, why)) = impossible.into_iter().find(|(key, _)| *key == frontend.key) {
            return FrontendSeen::Impossible(here.mode, (*why).to_string());
        }
        found = match difference.missing(frontend.key) {
            Some(what) => FrontendSeen::Missing(what),
            None => FrontendSeen::Differs(difference.of(frontend.key)),
        };
    }
    found
}

fn path(rtnl: &mut Rtnl, here: &Here, origin: Option<&Origin>, seen: &Seen, endpoint: &Endpoint) -> PathSeen {
    let wanted = wanted(rtnl, here, seen, endpoint);
    let to = endpoint.at.ip();
    let packet = match origin {
        Some(Origin::Pod { node, .. }) if *node == here.node => {
            let source = origin.and_then(|origin| origin.address(to.is_ipv6()));
            let bridge = rtnl.link(BRIDGE_NAME).ok().flatten();
            match (source, bridge) {
                // A pod that reaches itself comes back with the node's address: its own would not be taken.
                (Some(source), Some(bridge)) if source != to => Packet::through(source, bridge.index, to),
                _ => Packet::to(to),
            }
        }
        _ => Packet::to(to),
    };
    let way = way(rtnl, packet, 0).unwrap_or_else(|error| WaySeen::Unknown(error.to_string()));
    PathSeen { wanted, way }
}

/// The link that svcnet leads to an endpoint.
fn wanted(rtnl: &mut Rtnl, here: &Here, seen: &Seen, endpoint: &Endpoint) -> Option<LinkWanted> {
    let node = endpoint.node.as_ref()?;
    // Pods on the node's own network have the node's address.
    endpoint.pod.as_ref()?;
    let (name, role) = if *node == here.node {
        (BRIDGE_NAME, "cni")
    } else {
        (VXLAN_NAME, "overlay")
    };
    let link = rtnl.link(name).ok().flatten();
    let ours = match &seen.agent {
        AgentSeen::Runs { roles, .. } => roles.iter().any(|there| there == role),
        // Without an agent to ask: where its link is, it was at work.
        AgentSeen::Silent(_) => link.is_some(),
    };
    ours.then(|| LinkWanted {
        name: name.to_string(),
        link: link.as_ref().map(link_seen),
    })
}

fn link_seen(link: &Link) -> LinkSeen {
    LinkSeen {
        name: link.name.clone(),
        up: link.up,
        carrier: link.lower_up,
    }
}

fn way(rtnl: &mut Rtnl, packet: Packet, depth: usize) -> Result<WaySeen, rt::Error> {
    let route = match rtnl.way_of(packet)? {
        KernelWay::Here => return Ok(WaySeen::Here),
        KernelWay::NoRoute => return Ok(WaySeen::NoRoute),
        KernelWay::Refused => return Ok(WaySeen::Refused),
        KernelWay::Along(route) => route,
    };
    let Some(link) = rtnl.link_at(route.link)? else {
        return Ok(WaySeen::NoRoute);
    };
    let next = route.gateway.unwrap_or(packet.destination);
    let resolution = resolution(rtnl, &link, next)?;
    let source = match (route.source, packet.in_link) {
        // For what comes in, the kernel does not say what it would send from itself.
        (None, Some(_)) => match rtnl.way_of(Packet::to(packet.destination))? {
            KernelWay::Along(own) => own.source,
            _ => None,
        },
        (source, _) => source,
    };
    let tunnel = match (&link.kind, resolution) {
        (Kind::Vxlan(_), Some(Resolution::Permanent(mac) | Resolution::Found(mac))) if depth < DEPTH_MAX => {
            let entries = rtnl.fdb(link.index)?;
            let destination = entries.iter().find(|entry| entry.mac == mac);
            let destination = destination.map(|entry| entry.destination);
            Some(Tunnel {
                destination,
                below: below(rtnl, destination, depth)?,
            })
        }
        (Kind::Vxlan(_), _) => Some(Tunnel {
            destination: None,
            below: WaySeen::NoRoute,
        }),
        _ => None,
    };
    Ok(WaySeen::Along(Box::new(Hop {
        gateway: route.gateway,
        link: link_seen(&link),
        source,
        next,
        resolution,
        tunnel,
    })))
}

fn below(rtnl: &mut Rtnl, destination: Option<IpAddr>, depth: usize) -> Result<WaySeen, rt::Error> {
    destination.map_or(Ok(WaySeen::NoRoute), |to| way(rtnl, Packet::to(to), depth + 1))
}

/// What is known about a neighbour; one that is being asked for is waited for.
fn resolution(rtnl: &mut Rtnl, link: &Link, address: IpAddr) -> Result<Option<Resolution>, rt::Error> {
    for _ in 0..NEIGHBOUR_LOOKS {
        let found = rtnl.resolution(link.index, address)?;
        if found != Some(Resolution::Asking) {
            return Ok(found);
        }
        std::thread::sleep(NEIGHBOUR_PAUSE);
    }
    Ok(Some(Resolution::Asking))
}

/// The live connections of the client to the target. Without permission, none are known.
fn connections(origin: Option<&Origin>, way: &Way) -> Vec<(std::net::SocketAddr, std::net::SocketAddr)> {
    let Ok(mut socket) = Socket::open() else {
        return Vec::new();
    };
    let family = Family::of(way.to.ip());
    let client = origin.and_then(|origin| origin.address(way.to.is_ipv6()));
    // A node's own connections may carry any of its addresses.
    let client = client.filter(|_| !matches!(origin, Some(Origin::Node { .. })));
    let entries = conntrack::list(&mut socket, family, way.protocol.number(), |entry| {
        entry.is_live()
            && entry.original.destination == way.to
            && client.is_none_or(|client| entry.original.source.ip() == client)
    });
    entries
        .unwrap_or_default()
        .iter()
        .map(|entry| (entry.original.source, entry.reply.source))
        .collect()
}
