//! From what is known of a Service to what the zone holds of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::ServiceEntry;
use super::facts::{Endpoint, Key, Kind, ServiceFacts, SliceFacts};

/// The zone's entry for a Service and its EndpointSlices.
pub(super) fn service(
    key: Key,
    facts: Arc<ServiceFacts>,
    slices: impl Iterator<Item = Arc<SliceFacts>>,
) -> ServiceEntry {
    let slices: Box<[Arc<SliceFacts>]> = match facts.kind {
        Kind::ClusterIp(_) | Kind::Headless => slices.collect(),
        // Endpoints of an alias have no names.
        Kind::ExternalName(_) | Kind::Unusable => [].into(),
    };
    let (v4, v6) = match &facts.kind {
        Kind::ClusterIp(addresses) => split(addresses.iter().copied(), false),
        Kind::Headless => {
            let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter());
            let published = endpoints.filter(|e| e.ready || facts.publish_not_ready);
            split(published.map(|e| e.address), true)
        }
        Kind::ExternalName(_) | Kind::Unusable => (Vec::new(), Vec::new()),
    };
    ServiceEntry {
        key,
        v4: v4.into(),
        v6: v6.into(),
        facts,
        slices,
    }
}

/// The zone's entry for a further name of pods: as a headless Service of theirs would be, and ready or not, for who gave
/// them the name wants them to find each other.
pub(super) fn alias(key: Key, addresses: impl Iterator<Item = IpAddr>) -> ServiceEntry {
    let endpoints = addresses.map(|address| Endpoint {
        address,
        hostname: None,
        ready: true,
    });
    let facts = ServiceFacts {
        kind: Kind::Headless,
        ports: [].into(),
        publish_not_ready: true,
    };
    let slice = SliceFacts {
        endpoints: endpoints.collect(),
        ports: [].into(),
    };
    service(key, Arc::new(facts), std::iter::once(Arc::new(slice)))
}

/// By family; sorted and without doubles (an endpoint may stand in two slices while it moves), if asked for.
fn split(addresses: impl Iterator<Item = IpAddr>, sorted: bool) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    if sorted {
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
    }
    (v4, v6)
}
