//! The endpoints of a port of a Service, by who may use them: kube-proxy's `CategorizeEndpoints`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use svcnet_netlink::nft::Family;

use crate::model::{Endpoint, Fate};
use crate::view::{NodeFacts, NodeHint, ServicePort, Slice, SliceEndpoint};
use crate::weights::Weights;

/// The endpoints of a port.
pub(crate) struct Pools {
    /// For policy `Cluster`.
    cluster: Vec<Endpoint>,
    /// For policy `Local`.
    local: Vec<Endpoint>,
    /// All that answer, whether they take new connections or not.
    serving: Vec<Endpoint>,
}

/// An endpoint that takes new connections.
struct Candidate<'a> {
    slice: &'a SliceEndpoint,
    ready: bool,
    local: bool,
    serving_terminating: bool,
    weight: u16,
}

impl Candidate<'_> {
    fn endpoint(&self, at: SocketAddr) -> Endpoint {
        Endpoint {
            at,
            local: self.local,
            weight: self.weight,
        }
    }
}

type Candidates<'a> = BTreeMap<SocketAddr, Candidate<'a>>;

impl Pools {
    pub(crate) fn new<'a>(
        family: Family,
        port: &ServicePort,
        slices: impl Iterator<Item = &'a Slice>,
        weights: Option<&Weights>,
        node: &NodeFacts,
    ) -> Self {
        let mut all = candidates(family, port, slices);
        let serving = all.iter().map(|(at, c)| c.endpoint(*at)).collect();
        if let Some(weights) = weights {
            for candidate in all.values_mut() {
                let slice = candidate.slice;
                let (zone, node) = (slice.zone.as_deref(), slice.node.as_deref());
                candidate.weight = weights.of(slice.pod.as_deref(), &slice.ip.to_string(), node, zone);
            }
            // As if it were not there, so that others step in for it by all the rules.
            all.retain(|_, candidate| candidate.weight > 0);
        }
        let reach = Reach::by_hints(&all, node.zone.as_deref());
        Self {
            cluster: usable(&all, |_| true, |candidate| reach.holds(candidate.slice)),
            local: usable(&all, |candidate| candidate.local, |_| true),
            serving,
        }
    }

    /// What policy `Cluster` gives.
    pub(crate) fn cluster(&self) -> Fate {
        if self.cluster.is_empty() {
            Fate::NoEndpoints
        } else {
            Fate::Balance(self.cluster.clone())
        }
    }

    /// What policy `Local` gives.
    pub(crate) fn local(&self) -> Fate {
        match (self.local.is_empty(), self.cluster.is_empty()) {
            (false, _) => Fate::Balance(self.local.clone()),
            (true, false) => Fate::OnlyElsewhere,
            (true, true) => Fate::NoEndpoints,
        }
    }

    /// Those that take no new connections by these fates, but may keep the ones that they have: with `Local` for
    /// everybody, those of other nodes may not.
    pub(crate) fn draining(&self, fate: &Fate, outside: Option<&Fate>, local_alone: bool) -> Box<[Endpoint]> {
        let outside = outside.map_or(&[][..], Fate::endpoints);
        let takes = |at: SocketAddr| fate.endpoints().iter().chain(outside).any(|e| e.at == at);
        let left = self.serving.iter().copied();
        left.filter(|e| (e.local || !local_alone) && !takes(e.at))
            .collect()
    }
}

/// An endpoint that two slices hold for a moment is one endpoint, ready if either says so.
fn candidates<'a>(
    family: Family,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
) -> Candidates<'a> {
    let mut all = Candidates::new();
    for slice in slices {
        let number = slice
            .ports
            .iter()
            .find(|(n, p, _)| **n == *port.name && *p == port.protocol);
        let Some((_, _, number)) = number else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.ip) == family) {
            let new = Candidate {
                slice: endpoint,
                ready: endpoint.ready,
                local: endpoint.local,
                serving_terminating: endpoint.serving_terminating,
                weight: 1,
            };
            let known = all.entry(SocketAddr::new(endpoint.ip, *number)).or_insert(new);
            known.ready |= endpoint.ready;
            known.local |= endpoint.local;
            known.serving_terminating |= endpoint.serving_terminating;
        }
    }
    all
}

/// The ready endpoints that are near, or if there is none, those that are going away but still serve, near or not
/// (KEP-1669).
fn usable(
    all: &Candidates<'_>,
    of: impl Fn(&Candidate<'_>) -> bool,
    near: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<Endpoint> {
    let pick = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Endpoint> {
        let picked = all.iter().filter(|(_, c)| of(c) && wanted(c));
        picked.map(|(at, c)| c.endpoint(*at)).collect()
    };
    let ready = pick(&|c| c.ready && near(c));
    if ready.is_empty() {
        pick(&|c| c.serving_terminating)
    } else {
        ready
    }
}

/// How far clients of this node are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach<'a> {
    Anywhere,
    ThisNode,
    Zone(&'a str),
}

impl<'a> Reach<'a> {
    /// Hints count only where every ready endpoint has one of the kind, and one of them is for here: half of them would
    /// send everybody to the few that have one.
    fn by_hints(all: &Candidates<'_>, zone: Option<&'a str>) -> Self {
        let ready = || all.values().filter(|c| c.ready).map(|c| c.slice);
        let every_node = ready().all(|e| e.for_nodes != NodeHint::None);
        if every_node && ready().any(|e| e.for_nodes == NodeHint::Here) {
            return Self::ThisNode;
        }
        let every_zone = ready().all(|e| !e.for_zones.is_empty());
        match zone {
            Some(zone) if every_zone && ready().any(|e| Self::Zone(zone).holds(e)) => Self::Zone(zone),
            _ => Self::Anywhere,
        }
    }

    fn holds(self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::Anywhere => true,
            Self::ThisNode => endpoint.for_nodes == NodeHint::Here,
            Self::Zone(zone) => endpoint.for_zones.iter().any(|name| **name == *zone),
        }
    }
}
