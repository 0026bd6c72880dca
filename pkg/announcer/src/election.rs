//! Who of several candidates announces an address: the same for everyone who knows the same candidates, evenly spread,
//! and an address moves only when its owner comes or goes.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

/// The candidate that announces the address: the one with the lowest `sha256(NODE#ADDRESS)`, as in MetalLB.
pub(crate) fn elect<'a>(address: IpAddr, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().min_by_key(|node| rank(node, address))
}

fn rank(node: &str, address: IpAddr) -> [u8; 32] {
    Sha256::digest(format!("{node}#{address}")).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::*;

    const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];

    #[test]
    fn addresses_are_spread_over_the_nodes() {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for i in 0..600u32 {
            let address = IpAddr::V4(Ipv4Addr::from_bits(0xac1e_0000 + i));
            *counts.entry(elect(address, NODES).unwrap()).or_default() += 1;
        }
        assert_eq!(counts.len(), NODES.len());
        assert!(
            counts.values().all(|&count| (60..=140).contains(&count)),
            "{counts:?}"
        );
    }

    #[test]
    fn nobody_is_elected_of_nobody() {
        assert_eq!(elect(IpAddr::V4(Ipv4Addr::LOCALHOST), []), None);
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_only_the_loss_of_the_owner_moves_an_address(
            bits: u32,
            mut candidates in subsequence(NODES.to_vec(), 1..=6).prop_shuffle(),
            gone in 0usize..6,
        ) {
            let address = IpAddr::V4(Ipv4Addr::from_bits(bits));
            let owner = elect(address, candidates.iter().copied()).unwrap();
            candidates.sort_unstable();
            prop_assert_eq!(elect(address, candidates.iter().copied()), Some(owner));
            let rest = candidates.iter().copied().filter(|node| *node != NODES[gone]);
            let next = elect(address, rest);
            if owner == NODES[gone] {
                prop_assert_ne!(next, Some(owner));
            } else {
                prop_assert_eq!(next, Some(owner));
            }
        }
    }
}
