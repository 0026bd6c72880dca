//! Endpoints subsets in their canonical layout: addresses that serve the same ports together, in a fixed order
//! (k8s.io/kubernetes, pkg/api/v1/endpoints: RepackSubsets), and cut down to what an Endpoints object may hold.

use std::collections::BTreeMap;

use super::model::{Address, Port, Subset};

/// Addresses in one Endpoints object; more of them are only in EndpointSlices.
pub(super) const ADDRESSES_MAX: usize = 1000;

/// One address serving one port, or no port at all.
pub(super) struct Serving {
    pub(super) address: Address,
    pub(super) port: Option<Port>,
    pub(super) ready: bool,
}

type AddressId = (std::net::IpAddr, String);

/// Groups addresses by what they serve.
pub(super) fn repack(serving: impl IntoIterator<Item = Serving>) -> Vec<Subset> {
    let mut addresses: BTreeMap<AddressId, Address> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<Port>, BTreeMap<AddressId, bool>> = BTreeMap::new();
    for Serving { address, port, ready } in serving {
        let id = (
            address.ip,
            address
                .target
                .as_ref()
                .map(|target| target.uid.clone())
                .unwrap_or_default(),
        );
        // Ready once is ready.
        *by_port.entry(port).or_default().entry(id.clone()).or_default() |= ready;
        addresses.entry(id).or_insert(address);
    }
    let mut by_addresses: BTreeMap<BTreeMap<AddressId, bool>, Vec<Port>> = BTreeMap::new();
    for (port, ids) in by_port {
        by_addresses.entry(ids).or_default().extend(port);
    }
    let subset = |(ids, ports): (BTreeMap<AddressId, bool>, Vec<Port>)| {
        let pick = |wanted: bool| {
            let picked = ids.iter().filter(|(_, ready)| **ready == wanted);
            picked
                .filter_map(|(id, _)| addresses.get(id).cloned())
                .collect::<Vec<Address>>()
        };
        Subset {
            ready: pick(true),
            not_ready: pick(false),
            ports,
        }
    };
    let mut subsets: Vec<Subset> = by_addresses.into_iter().map(subset).collect();
    subsets.sort_by(|a, b| a.ports.cmp(&b.ports));
    subsets
}

/// Leaves at most [`ADDRESSES_MAX`] addresses, ready ones first, each subset in proportion. Whether there were more.
pub(super) fn truncate(subsets: &mut Vec<Subset>) -> bool {
    let ready: usize = subsets.iter().map(|subset| subset.ready.len()).sum();
    let not_ready: usize = subsets.iter().map(|subset| subset.not_ready.len()).sum();
    if ready + not_ready <= ADDRESSES_MAX {
        return false;
    }
    shorten(
        subsets.iter_mut().map(|subset| &mut subset.ready),
        ready,
        ADDRESSES_MAX,
    );
    let room = ADDRESSES_MAX.saturating_sub(ready);
    shorten(
        subsets.iter_mut().map(|subset| &mut subset.not_ready),
        not_ready,
        room,
    );
    subsets.retain(|subset| !subset.ready.is_empty() || !subset.not_ready.is_empty());
    true
}

fn shorten<'a>(lists: impl Iterator<Item = &'a mut Vec<Address>>, total: usize, room: usize) {
    if total <= room {
        return;
    }
    let (mut seen, mut kept) = (0, 0);
    for list in lists {
        // What the lists up to here may hold together, less what those before this one hold: rounding evens out.
        seen += list.len();
        let share = seen * room / total - kept;
        list.truncate(share);
        kept += list.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port(number: i32) -> Port {
        Port {
            name: format!("p{number}"),
            number,
            protocol: "TCP".to_string(),
            app_protocol: None,
        }
    }

    fn serving(last: u16, number: i32, ready: bool) -> Serving {
        let [high, low] = last.to_be_bytes();
        let ip = std::net::IpAddr::from([10, 0, high, low]);
        Serving {
            address: Address {
                ip,
                hostname: None,
                node: None,
                target: None,
            },
            port: Some(port(number)),
            ready,
        }
    }

    fn layout(subsets: &[Subset]) -> Vec<String> {
        let ips = |list: &[Address]| {
            list.iter()
                .map(|a| a.ip.to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        let numbers = |s: &Subset| {
            s.ports
                .iter()
                .map(|p| p.number.to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        subsets
            .iter()
            .map(|s| format!("{}|{} -> {}", ips(&s.ready), ips(&s.not_ready), numbers(s)))
            .collect()
    }

    #[test]
    fn addresses_that_serve_the_same_stand_together() {
        let subsets = repack([
            serving(2, 80, true),
            serving(1, 80, true),
            serving(1, 443, true),
            serving(2, 443, true),
            serving(3, 80, false),
            serving(3, 443, false),
            serving(3, 9000, false),
        ]);
        assert_eq!(
            layout(&subsets),
            ["10.0.0.1,10.0.0.2|10.0.0.3 -> 443,80", "|10.0.0.3 -> 9000"]
        );
    }

    #[test]
    fn endpoints_without_ports_are_kept() {
        let mut one = serving(1, 0, true);
        one.port = None;
        assert_eq!(layout(&repack([one])), ["10.0.0.1| -> "]);
    }

    #[test]
    fn ready_addresses_have_the_room() {
        let all = (0..800)
            .map(|n| serving(n, 80, true))
            .chain((800..1200).map(|n| serving(n, 80, false)));
        let mut subsets = repack(all);
        assert!(truncate(&mut subsets));
        assert_eq!((subsets[0].ready.len(), subsets[0].not_ready.len()), (800, 200));
        let mut few = repack((0..1000).map(|n| serving(n, 80, true)));
        assert!(!truncate(&mut few));
    }

    proptest! {
        #[test]
        fn truncation_fills_the_room_exactly(sizes in prop::collection::vec((0u16..700, 0u16..700), 1..5)) {
            let mut all = Vec::new();
            for (n, (ready, not_ready)) in sizes.iter().enumerate() {
                let base = u16::try_from(n).unwrap() * 2000;
                all.extend((0..*ready).map(|i| serving(base + i, 80 + i32::try_from(n).unwrap(), true)));
                all.extend((0..*not_ready).map(|i| serving(base + 1000 + i, 80 + i32::try_from(n).unwrap(), false)));
            }
            let (total, ready): (usize, usize) = (all.len(), all.iter().filter(|s| s.ready).count());
            let mut subsets = repack(all);
            prop_assert_eq!(truncate(&mut subsets), total > ADDRESSES_MAX);
            let left: usize = subsets.iter().map(|s| s.ready.len() + s.not_ready.len()).sum();
            let left_ready: usize = subsets.iter().map(|s| s.ready.len()).sum();
            prop_assert_eq!(left, total.min(ADDRESSES_MAX));
            prop_assert_eq!(left_ready, ready.min(ADDRESSES_MAX));
        }
    }
}
