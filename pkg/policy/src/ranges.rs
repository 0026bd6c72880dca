//! Networks with holes as ranges of addresses that lie apart, as the kernel's sets of intervals want them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use svcnet_netlink::nft::Family;

use crate::model::Block;

/// Addresses as numbers, so that both families are cut alike. First and last.
pub type Range = (u128, u128);

/// All that is in one of the blocks: in order, apart, and not even touching.
pub fn union(family: Family, blocks: &[&Block]) -> Vec<Range> {
    let mut all: Vec<Range> = blocks
        .iter()
        .filter(|block| Family::of(block.net.addr()) == family)
        .flat_map(|block| without(range(block.net), &block.except))
        .collect();
    merge(&mut all);
    all
}

/// Makes ranges that overlap or touch one.
pub fn merge(ranges: &mut Vec<Range>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let joined = next.0 <= kept.1.saturating_add(1);
        if joined {
            kept.1 = kept.1.max(next.1);
        }
        joined
    });
}

fn range(net: IpNet) -> Range {
    (number(net.network()), number(net.broadcast()))
}

fn without(whole: Range, holes: &[IpNet]) -> Vec<Range> {
    let mut holes: Vec<Range> = holes.iter().map(|net| range(*net)).collect();
    merge(&mut holes);
    let (mut left, mut rest) = (Vec::new(), Some(whole.0));
    for (first, last) in holes {
        let Some(from) = rest.filter(|from| *from <= whole.1) else {
            break;
        };
        if let Some(until) = first.checked_sub(1).filter(|until| *until >= from) {
            left.push((from, until.min(whole.1)));
        }
        rest = last.checked_add(1).map(|behind| behind.max(from));
    }
    left.extend(rest.filter(|from| *from <= whole.1).map(|from| (from, whole.1)));
    left
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number.
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::Ip => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::Ip6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that holes meet; both ends of the number space among them.
        (
            prop_oneof![Just(0u32), Just(0xffff_ff00), Just(0x0a00_0000)],
            any::<u8>(),
            24u8..=32,
        )
            .prop_map(|(base, low, len)| {
                let address = Ipv4Addr::from_bits(base | u32::from(low));
                IpNet::new(address.into(), len).unwrap().trunc()
            })
    }

    proptest! {
        #[test]
        fn ranges_hold_what_the_blocks_mean(
            blocks in prop::collection::vec((net(), prop::collection::vec(net(), 0..4)), 0..4),
            probe in (prop_oneof![Just(0u32), Just(0xffff_ff00), Just(0x0a00_0000)], any::<u8>()),
        ) {
            let blocks: Vec<Block> = blocks.into_iter().map(|(net, except)| Block { net, except }).collect();
            let ranges = union(Family::Ip, &blocks.iter().collect::<Vec<_>>());
            let address = IpAddr::V4(Ipv4Addr::from_bits(probe.0 | u32::from(probe.1)));
            let meant = blocks.iter().any(|b| {
                b.net.contains(&address) && !b.except.iter().any(|e| e.contains(&address))
            });
            let n = number(address);
            prop_assert_eq!(ranges.iter().any(|(first, last)| (*first..=*last).contains(&n)), meant);
            prop_assert!(ranges.iter().all(|(first, last)| first <= last));
            prop_assert!(ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }

    #[test]
    fn the_whole_of_a_family_is_one_range() {
        let all = Block {
            net: "::/0".parse().unwrap(),
            except: Vec::new(),
        };
        assert_eq!(union(Family::Ip6, &[&all]), [(0, u128::MAX)]);
        assert_eq!(union(Family::Ip, &[&all]), []);
        let half = Block {
            net: "::/0".parse().unwrap(),
            except: vec!["8000::/1".parse().unwrap()],
        };
        assert_eq!(union(Family::Ip6, &[&half]), [(0, u128::MAX >> 1)]);
    }
}
