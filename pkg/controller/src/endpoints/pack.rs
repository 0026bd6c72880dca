//! Distributing endpoints over slices of limited length so that a change rewrites as few slices as possible
//! (k8s.io/endpointslice, reconciler.go).
//!
//! What stands in a slice stays there. Newcomers go first into slices that are written anyway, then all together into
//! the fullest slice that has room for them, else into new slices. Slices are not merged to save space: that would
//! rewrite many for the sake of few.

use std::collections::BTreeMap;

use super::model::{Endpoint, EndpointId};

/// Endpoints in one slice.
pub(super) const SLICE_MAX: usize = 100;

/// What becomes of the slices of one port set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Packing {
    /// Slices that stay as they are.
    pub(super) keep: Vec<String>,
    /// Slices with their new endpoints.
    pub(super) update: Vec<(String, Vec<Endpoint>)>,
    /// Slices that have no endpoints any more.
    pub(super) delete: Vec<String>,
    /// Endpoints of slices to be made.
    pub(super) create: Vec<Vec<Endpoint>>,
}

/// Packs the desired endpoints into the existing slices and as many new ones as it takes.
pub(super) fn pack<'a>(
    existing: impl IntoIterator<Item = (&'a str, &'a [Endpoint])>,
    desired: impl IntoIterator<Item = Endpoint>,
) -> Packing {
    let mut left: BTreeMap<EndpointId, Endpoint> = BTreeMap::new();
    for endpoint in desired {
        left.entry(endpoint.id()).or_insert(endpoint);
    }
    let mut packing = Packing::default();
    let mut unchanged: Vec<(&str, &[Endpoint])> = Vec::new();
    for (name, endpoints) in existing {
        let staying: Vec<Endpoint> = endpoints
            .iter()
            .filter_map(|old| left.remove(&old.id()))
            .collect();
        if staying.is_empty() {
            packing.delete.push(name.to_string());
        } else if staying == endpoints && staying.len() <= SLICE_MAX {
            unchanged.push((name, endpoints));
        } else {
            packing.update.push((name.to_string(), staying));
        }
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    shed_surplus(&mut packing, &mut left);
    packing
        .update
        .sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    for (_, endpoints) in &mut packing.update {
        let room = SLICE_MAX.saturating_sub(endpoints.len()).min(left.len());
        endpoints.extend(left.drain(..room));
    }
    // A slice that has lost all of its endpoints is as good as a new one.
    while !left.is_empty()
        && let Some(name) = packing.delete.pop()
    {
        packing
            .update
            .push((name, left.drain(..left.len().min(SLICE_MAX)).collect()));
    }
    while left.len() >= SLICE_MAX {
        packing.create.push(left.drain(..SLICE_MAX).collect());
    }
    if !left.is_empty() {
        let fits = |slice: &&(&str, &[Endpoint])| slice.1.len() + left.len() <= SLICE_MAX;
        let fullest = unchanged
            .iter()
            .filter(fits)
            .max_by_key(|(_, endpoints)| endpoints.len())
            .copied();
        match fullest {
            Some((name, endpoints)) => {
                unchanged.retain(|(other, _)| *other != name);
                packing
                    .update
                    .push((name.to_string(), [endpoints, &left].concat()));
            }
            None => packing.create.push(left),
        }
    }
    packing.keep = unchanged.into_iter().map(|(name, _)| name.to_string()).collect();
    packing
}

/// Takes out what is over the limit, should a slice ever have been written longer.
fn shed_surplus(packing: &mut Packing, left: &mut Vec<Endpoint>) {
    for (_, endpoints) in &mut packing.update {
        left.extend(endpoints.drain(endpoints.len().min(SLICE_MAX)..));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;
    use crate::endpoints::model::Hints;

    fn endpoint(number: u16) -> Endpoint {
        let [high, low] = number.to_be_bytes();
        Endpoint {
            address: [10, 0, high, low].into(),
            ready: true,
            serving: Some(true),
            terminating: Some(false),
            hostname: None,
            node: None,
            zone: None,
            hints: Hints::default(),
            target: None,
        }
    }

    type Slices = HashMap<String, Vec<Endpoint>>;

    fn packed(slices: &Slices, desired: &BTreeSet<u16>) -> Packing {
        let mut existing: Vec<(&str, &[Endpoint])> =
            slices.iter().map(|(n, e)| (n.as_str(), e.as_slice())).collect();
        existing.sort_by_key(|(name, _)| *name);
        pack(existing, desired.iter().copied().map(endpoint))
    }

    fn apply(slices: &mut Slices, packing: Packing, made: &mut usize) {
        for name in packing.delete {
            slices.remove(&name);
        }
        slices.extend(packing.update);
        for endpoints in packing.create {
            *made += 1;
            slices.insert(format!("s{made}"), endpoints);
        }
    }

    fn writes(packing: &Packing) -> usize {
        packing.update.len() + packing.delete.len() + packing.create.len()
    }

    #[test]
    fn slices_are_filled_before_new_ones_are_made() {
        let (mut slices, mut made) = (Slices::new(), 0);
        let packing = packed(&slices, &(0..250).collect());
        let lengths: Vec<usize> = packing.create.iter().map(Vec::len).collect();
        assert_eq!(lengths, [100, 100, 50]);
        apply(&mut slices, packing, &mut made);
        let packing = packed(&slices, &(0..251).collect());
        assert_eq!((writes(&packing), packing.update[0].1.len()), (1, 51));
    }

    proptest! {
        #[test]
        fn each_endpoint_stands_once_and_little_is_rewritten(
            steps in prop::collection::vec(prop::collection::btree_set(0u16..600, 0..12), 1..20),
            first in prop::collection::btree_set(0u16..600, 0..500),
        ) {
            let (mut slices, mut made) = (Slices::new(), 0);
            let mut desired = first;
            for flips in steps {
                let packing = packed(&slices, &desired);
                apply(&mut slices, packing, &mut made);
                let standing: Vec<u16> = slices.values().flatten().map(|e| match e.address {
                    std::net::IpAddr::V4(a) => u16::from_be_bytes([a.octets()[2], a.octets()[3]]),
                    std::net::IpAddr::V6(_) => u16::MAX,
                }).collect();
                prop_assert_eq!(standing.len(), desired.len());
                prop_assert_eq!(standing.into_iter().collect::<BTreeSet<_>>(), desired.clone());
                prop_assert!(slices.values().all(|endpoints| (1..=SLICE_MAX).contains(&endpoints.len())));
                let again = packed(&slices, &desired);
                prop_assert_eq!(writes(&again), 0, "nothing to do at the fixed point");
                for number in &flips {
                    if !desired.remove(number) {
                        desired.insert(*number);
                    }
                }
                prop_assert!(writes(&packed(&slices, &desired)) <= flips.len());
            }
        }
    }
}
