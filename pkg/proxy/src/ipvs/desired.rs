//! From frontends to virtual services. Pure.
//!
//! An address is one virtual service, a node port one for each address of the node. The destinations of a virtual
//! service are the same for all clients, so policy `Local` is done as kube-proxy does it: where there are local
//! endpoints, everyone goes to those; where there are none, pods and this node go to the others, and a rule of our table
//! drops those outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use svcnet_netlink::ipvs::{Flags, Persistence, Virtual};
use svcnet_netlink::nft::Family;

use super::schedule::{self, Lacking};
use super::slot::{List, Slot};
use crate::model::{Endpoint, Fate, Frontend, FrontendKey, Masquerade, Protocol};

/// What of the node and its kernel decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Addresses of the node that node ports answer on.
    pub node_ports_on: BTreeSet<IpAddr>,
    /// All addresses that links other than ours have: these are not put on ours.
    pub addresses: BTreeSet<IpAddr>,
    /// The node's addresses, as others know it.
    pub node: BTreeSet<IpAddr>,
    /// Schedulers that the kernel lacks.
    pub lacking: Lacking,
}

/// What is done for one virtual service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `namespace/service:port`.
    pub name: Arc<str>,
    /// The kernel's scheduler.
    pub scheduler: &'static str,
    /// What it is told.
    pub flags: Flags,
    /// How long clients stay.
    pub persistence: Option<Persistence>,
    /// The endpoints, with their weights; those of weight zero keep the connections that they have.
    pub destinations: BTreeMap<SocketAddr, u32>,
    /// Whether an endpoint that goes keeps its connections until they end. UDP has no end to wait for, and an SCTP client
    /// would begin anew with the endpoint that is gone ([`Protocol::outlives_endpoints`]).
    pub drains: bool,
    /// Whether the address is put on our link.
    pub bound: bool,
    /// What our tables hold for it.
    pub slots: BTreeSet<Slot>,
}

/// The frontend that a virtual service is for, among those that could: an address goes before a node port.
pub(crate) fn candidates(at: Virtual, host: &Host) -> impl Iterator<Item = FrontendKey> + use<> {
    let protocol = Protocol::from_number(at.protocol);
    let address = protocol.map(|protocol| FrontendKey::Address {
        ip: at.ip,
        protocol,
        port: at.port,
    });
    let node_port = protocol
        .filter(|_| host.node_ports_on.contains(&at.ip))
        .map(|protocol| FrontendKey::NodePort {
            family: Family::of(at.ip),
            protocol,
            port: at.port,
        });
    address.into_iter().chain(node_port)
}

/// The virtual services that a frontend wants.
pub(crate) fn virtuals(key: FrontendKey, host: &Host) -> Vec<Virtual> {
    let (protocol, port) = (key.protocol().number(), key.port());
    let at = |ip| Virtual { ip, protocol, port };
    match key {
        FrontendKey::Address { ip, .. } => vec![at(ip)],
        FrontendKey::NodePort { family, .. } => {
            let of_family = host.node_ports_on.iter().filter(|ip| Family::of(**ip) == family);
            of_family.map(|ip| at(*ip)).collect()
        }
    }
}

/// What is done for a virtual service of a frontend.
pub(crate) fn wanted(at: Virtual, frontend: &Frontend, host: &Host) -> Wanted {
    let endpoints = endpoints(frontend);
    let scheduler = schedule::nearest(frontend.scheduler, endpoints, &host.lacking);
    let can_drain = schedule::can_drain(scheduler);
    let draining = frontend.draining.iter().filter(|_| can_drain).map(|e| (e.at, 0));
    let taking = endpoints.iter().filter(|e| can_drain || e.weight > 0);
    // Where an endpoint is in both lists, the later entry counts.
    let destinations = draining
        .chain(taking.map(|e| (e.at, u32::from(e.weight))))
        .collect();
    let prefix = if at.ip.is_ipv4() { 32 } else { 128 };
    let bound = matches!(frontend.key, FrontendKey::Address { .. }) && !host.addresses.contains(&at.ip);
    Wanted {
        name: frontend.name.clone(),
        scheduler,
        flags: schedule::flags(scheduler),
        persistence: frontend
            .affinity_seconds
            .map(|seconds| Persistence { seconds, prefix }),
        destinations,
        drains: can_drain && !frontend.key.protocol().outlives_endpoints(),
        bound,
        slots: slots(at, frontend, endpoints, bound, host),
    }
}

/// Where connections go, whoever makes them.
fn endpoints(frontend: &Frontend) -> &[Endpoint] {
    let outside = frontend.outside.as_ref().map_or(&[][..], Fate::endpoints);
    if outside.is_empty() {
        frontend.fate.endpoints()
    } else {
        outside
    }
}

fn slots(
    at: Virtual,
    frontend: &Frontend,
    endpoints: &[Endpoint],
    bound: bool,
    host: &Host,
) -> BTreeSet<Slot> {
    let mut slots = BTreeSet::from([Slot::Frontend(List::Frontends, at)]);
    if bound {
        slots.insert(Slot::Bound(at.ip));
    }
    if let Some(sources) = &frontend.sources {
        slots.insert(Slot::Frontend(List::Restricted, at));
        slots.extend(sources.iter().map(|net| Slot::Source(at, *net)));
        // To an address on a link of its own a host comes from that address, whatever it has others.
        let lets_in = |ip: &IpAddr| sources.iter().any(|net| net.contains(ip));
        if host.node.iter().any(lets_in) && !lets_in(&at.ip) {
            slots.insert(Slot::Source(at, at.ip.into()));
        }
    }
    match (&frontend.fate, &frontend.outside) {
        (Fate::NoEndpoints, _) => drop(slots.insert(Slot::Frontend(List::Refused, at))),
        (Fate::OnlyElsewhere, _) => drop(slots.insert(Slot::Frontend(List::Dropped, at))),
        (Fate::Balance(_), Some(Fate::NoEndpoints | Fate::OnlyElsewhere)) => {
            slots.insert(Slot::Frontend(List::DroppedOutside, at));
        }
        (Fate::Balance(_), Some(Fate::Balance(_)) | None) => {}
    }
    match frontend.masquerade {
        Masquerade::AllButPods => drop(slots.insert(Slot::Frontend(List::Masquerade, at))),
        // This node's own connections are masqueraded in any case: they come from the service's address.
        Masquerade::ByServiceNetwork | Masquerade::OwnOnly => {}
    }
    let local = endpoints.iter().filter(|endpoint| endpoint.local);
    slots.extend(local.map(|endpoint| Slot::Hairpin(endpoint.at.ip())));
    slots
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
