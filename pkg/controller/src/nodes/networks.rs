//! The cluster's pod network cut into one network for each node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use svcnet_api::types::CidrList;

use crate::alloc::slots::Slots;

/// Prefix length of a node's IPv4 network.
const PREFIX_V4: u8 = 24;
/// Prefix length of a node's IPv6 network.
const PREFIX_V6: u8 = 64;

/// A cluster network that is not even enough for one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cluster CIDR {0} is too small: a node gets a /{PREFIX_V4} (IPv4) or a /{PREFIX_V6} (IPv6) of it")]
pub struct NetworkTooSmall(IpNet);

/// All nodes have theirs, and there is none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

/// Which node networks are in use, of each address family.
#[derive(Debug, Clone)]
pub(super) struct NodeNetworks {
    families: Vec<FamilyNetworks>,
}

#[derive(Debug, Clone)]
struct FamilyNetworks {
    net: IpNet,
    count: u64,
    slots: Slots,
    /// After the last one given: a network that was freed is used again as late as possible, when caches that still
    /// hold its routes have forgotten them.
    next: u64,
}

impl NodeNetworks {
    pub(super) fn new(cluster: &CidrList) -> Result<Self, NetworkTooSmall> {
        let families = cluster
            .iter()
            .map(FamilyNetworks::new)
            .collect::<Result<_, _>>()?;
        Ok(Self { families })
    }

    /// One network of each family, or none at all.
    pub(super) fn take(&mut self) -> Result<Vec<IpNet>, Exhausted> {
        let mut taken = Vec::new();
        for index in 0..self.families.len() {
            match self.families.get_mut(index).and_then(FamilyNetworks::take) {
                Some(net) => taken.push(net),
                None => {
                    taken.iter().for_each(|net| self.free(*net));
                    return Err(Exhausted);
                }
            }
        }
        Ok(taken)
    }

    /// Takes in that a network is in use. Whether none was known to use it; a network that is not of the cluster's
    /// does not matter here.
    pub(super) fn occupy(&mut self, net: IpNet) -> bool {
        let mut free = true;
        for family in &mut self.families {
            for slot in family.slots_of(net) {
                free &= family.slots.insert(slot);
            }
        }
        free
    }

    pub(super) fn free(&mut self, net: IpNet) {
        for family in &mut self.families {
            for slot in family.slots_of(net) {
                family.slots.remove(slot);
            }
        }
    }
}

impl FamilyNetworks {
    fn new(net: IpNet) -> Result<Self, NetworkTooSmall> {
        let prefix = match net {
            IpNet::V4(_) => PREFIX_V4,
            IpNet::V6(_) => PREFIX_V6,
        };
        let bits = prefix.checked_sub(net.prefix_len()).ok_or(NetworkTooSmall(net))?;
        let count = 1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX);
        Ok(Self {
            net,
            count,
            slots: Slots::new(count),
            next: 0,
        })
    }

    fn take(&mut self) -> Option<IpNet> {
        let slot = self.slots.free_from(&(0..self.count), self.next)?;
        self.slots.insert(slot);
        self.next = (slot + 1) % self.count;
        self.network(slot)
    }

    fn network(&self, slot: u64) -> Option<IpNet> {
        match self.net.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(slot).ok()? << (32 - PREFIX_V4);
                let net = Ipv4Net::new(Ipv4Addr::from_bits(base.to_bits() + offset), PREFIX_V4);
                net.ok().map(IpNet::V4)
            }
            IpAddr::V6(base) => {
                let offset = u128::from(slot) << (128 - PREFIX_V6);
                let net = Ipv6Net::new(Ipv6Addr::from_bits(base.to_bits() + offset), PREFIX_V6);
                net.ok().map(IpNet::V6)
            }
        }
    }

    /// The slots that a network touches: one if it was given here, more if it was given by hand and is larger.
    fn slots_of(&self, net: IpNet) -> std::ops::Range<u64> {
        let slot = |address: IpAddr| match (address, self.net.network()) {
            (IpAddr::V4(address), IpAddr::V4(base)) => Some(u64::from(
                address.to_bits().saturating_sub(base.to_bits()) >> (32 - PREFIX_V4),
            )),
            (IpAddr::V6(address), IpAddr::V6(base)) => {
                u64::try_from(address.to_bits().saturating_sub(base.to_bits()) >> (128 - PREFIX_V6)).ok()
            }
            _ => None,
        };
        let overlaps = self.net.contains(&net) || net.contains(&self.net);
        match (slot(net.network()), slot(net.broadcast())) {
            (Some(first), Some(last)) if overlaps => first..last.saturating_add(1).min(self.count),
            _ => 0..0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(cluster: &str) -> NodeNetworks {
        NodeNetworks::new(&cluster.parse().unwrap()).unwrap()
    }

    fn texts(nets: Result<Vec<IpNet>, Exhausted>) -> Vec<String> {
        nets.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nodes_get_networks_of_each_family() {
        let mut all = networks("10.244.0.0/16,fd00:244::/48");
        assert_eq!(texts(all.take()), ["10.244.0.0/24", "fd00:244::/64"]);
        assert_eq!(texts(all.take()), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
    }

    #[test]
    fn a_freed_network_comes_back_last_and_none_is_given_when_all_are_used() {
        let mut all = networks("10.244.0.0/22");
        let given: Vec<IpNet> = (0..4).flat_map(|_| all.take().unwrap()).collect();
        assert_eq!(all.take(), Err(Exhausted));
        all.free(given[2]);
        assert_eq!(all.take().unwrap(), [given[2]]);
    }

    #[test]
    fn a_family_that_is_exhausted_leaves_the_other_whole() {
        let mut all = networks("10.244.0.0/16,fd00::/64");
        all.take().unwrap();
        assert_eq!(all.take(), Err(Exhausted));
        all.free("fd00::/64".parse().unwrap());
        assert_eq!(texts(all.take()), ["10.244.2.0/24", "fd00::/64"]);
    }

    #[test]
    fn networks_given_by_hand_are_respected() {
        let mut all = networks("10.244.0.0/16");
        assert!(all.occupy("10.244.0.0/23".parse().unwrap()));
        assert!(!all.occupy("10.244.1.0/25".parse().unwrap()), "overlaps");
        assert!(
            all.occupy("192.168.0.0/24".parse().unwrap()),
            "not of the cluster"
        );
        assert_eq!(texts(all.take()), ["10.244.2.0/24"]);
        let net: IpNet = "10.244.0.0/25".parse().unwrap();
        assert_eq!(
            NodeNetworks::new(&"10.244.0.0/25".parse().unwrap()).err(),
            Some(NetworkTooSmall(net))
        );
    }

    proptest! {
        #[test]
        fn no_network_is_given_twice(steps in prop::collection::vec(any::<(bool, prop::sample::Index)>(), 0..100)) {
            let mut all = networks("10.244.0.0/20");
            let mut held: Vec<IpNet> = Vec::new();
            for (give, which) in steps {
                if give || held.is_empty() {
                    match all.take() {
                        Ok(nets) => {
                            prop_assert!(!held.contains(&nets[0]));
                            held.extend(nets);
                        }
                        Err(Exhausted) => prop_assert_eq!(held.len(), 16),
                    }
                } else {
                    all.free(held.swap_remove(which.index(held.len())));
                }
            }
        }
    }
}
