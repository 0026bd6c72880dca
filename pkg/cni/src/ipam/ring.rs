//! Range sets: the addresses that one of an attachment's addresses may be, as a ring.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use svcnet_api::types::PodCidr;

use crate::protocol::RangeConf;

/// A part of one of the node's pod networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    cidr: PodCidr,
    /// The numbers that pods may have, both included.
    first: u128,
    last: u128,
    /// As host-local writes the range: the first address is the gateway's where nobody said another.
    shown_first: IpAddr,
}

/// Ranges, of which an attachment gets one address in all. All are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// Why ranges of a configuration can not be used on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The subnet is not within a pod network of the node, so that nobody would find the way to its pods.
    #[error("ipam.ranges: {subnet} is not within this node's pod networks ({networks})")]
    Outside {
        /// As it is written.
        subnet: IpNet,
        /// What there is.
        networks: String,
    },
    /// An end of the range is not in its subnet, or the ends are in the wrong order.
    #[error("ipam.ranges: {first}-{last} is not a range within {subnet}")]
    Ends {
        /// Its first address.
        first: IpAddr,
        /// Its last.
        last: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// Pods have the node for their gateway.
    #[error("ipam.ranges: the gateway of {subnet} is {right} on this node, not {wrong}")]
    Gateway {
        /// The subnet.
        subnet: IpNet,
        /// The node's address there.
        right: IpAddr,
        /// As it is written.
        wrong: IpAddr,
    },
    /// A set has no range, or ranges of both families.
    #[error("ipam.ranges: range set {0} is empty, or mixes address families")]
    Mixed(usize),
}

impl RangeSet {
    /// All of a pod network.
    pub fn whole(cidr: PodCidr) -> Self {
        let (first, last) = bounds(cidr);
        Self(vec![Range {
            cidr,
            first,
            last,
            shown_first: cidr.gateway(),
        }])
    }

    /// The sets that a configuration asks for on a node with these pod networks: one for each network when it asks for
    /// none.
    ///
    /// # Errors
    /// When one of them does not fit the node.
    pub fn of(conf: &[Vec<RangeConf>], cidrs: &[PodCidr]) -> Result<Vec<Self>, RangeError> {
        if conf.is_empty() {
            return Ok(cidrs.iter().copied().map(Self::whole).collect());
        }
        let mut sets = Vec::with_capacity(conf.len());
        for (index, ranges) in conf.iter().enumerate() {
            let set: Result<Vec<Range>, RangeError> = ranges.iter().map(|r| range(r, cidrs)).collect();
            let set = set?;
            let is_v4 = |r: &Range| r.cidr.net().addr().is_ipv4();
            let mixed = set.iter().any(is_v4) && !set.iter().all(is_v4);
            if set.is_empty() || mixed {
                return Err(RangeError::Mixed(index));
            }
            sets.push(Self(set));
        }
        Ok(sets)
    }

    /// Whether an address is one that pods may have from here.
    pub fn contains(&self, address: IpAddr) -> bool {
        let n = number(address);
        self.0
            .iter()
            .any(|r| r.cidr.contains(address) && (r.first..=r.last).contains(&n))
    }

    /// The first address after `after` that is not taken, going round: never a network's own (the VXLAN link's), the
    /// gateway's, or its last (the relays', and for IPv4 broadcast). Looks at one address more than are taken.
    pub(super) fn next_free(&self, after: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let at = after.and_then(|after| {
            let n = number(after);
            let holds = |r: &Range| r.cidr.contains(after) && (r.first..=r.last).contains(&n);
            self.0.iter().position(holds).map(|index| (index, n))
        });
        let (index, start) = at.map_or((0, None), |(index, n)| (index, Some(n)));
        let spans = |range: &Range| (range.cidr, range.first..=range.last);
        let (before, from) = self.0.split_at(index.min(self.0.len()));
        let (current, behind) = from.split_first()?;
        let rest = start.map_or(current.first, |n| n.saturating_add(1));
        std::iter::once((current.cidr, rest..=current.last))
            .chain(behind.iter().map(spans))
            .chain(before.iter().map(spans))
            .chain(std::iter::once((
                current.cidr,
                current.first..=start.unwrap_or(0),
            )))
            .flat_map(|(cidr, numbers)| numbers.map(move |n| address(cidr, n)))
            .find(|a| !taken(*a))
    }
}

/// As host-local writes it.
impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(
                f,
                "{comma}{}-{}",
                range.shown_first,
                address(range.cidr, range.last)
            )?;
        }
        Ok(())
    }
}

fn range(conf: &RangeConf, cidrs: &[PodCidr]) -> Result<Range, RangeError> {
    let subnet = conf.subnet;
    let Some(cidr) = cidrs.iter().find(|c| c.net().contains(&subnet)).copied() else {
        let networks: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        return Err(RangeError::Outside {
            subnet,
            networks: networks.join(", "),
        });
    };
    if let Some(wrong) = conf.gateway.filter(|g| *g != cidr.gateway()) {
        return Err(RangeError::Gateway {
            subnet,
            right: cidr.gateway(),
            wrong,
        });
    }
    let (lowest, highest) = bounds(cidr);
    // Of a subnet that is not the whole network, all addresses may be a pod's but those that none may have.
    let first = conf
        .range_start
        .map_or(number(subnet.network()), number)
        .max(lowest);
    let last = conf
        .range_end
        .map_or(number(subnet.broadcast()), number)
        .min(highest);
    let inside = |end: Option<IpAddr>| end.is_none_or(|e| subnet.contains(&e));
    if !inside(conf.range_start) || !inside(conf.range_end) || first > last {
        return Err(RangeError::Ends {
            first: conf.range_start.unwrap_or(subnet.network()),
            last: conf.range_end.unwrap_or(subnet.broadcast()),
            subnet,
        });
    }
    let is_whole = conf.range_start.is_none() && subnet == cidr.net();
    Ok(Range {
        cidr,
        first,
        last,
        shown_first: if is_whole {
            cidr.gateway()
        } else {
            address(cidr, first)
        },
    })
}

/// The numbers that pods may have, both included: not the last, which is the relays' (and for IPv4 a broadcast address).
fn bounds(cidr: PodCidr) -> (u128, u128) {
    let first = number(cidr.gateway()).saturating_add(1);
    let last = number(cidr.net().broadcast()).saturating_sub(1);
    (first, last)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn address(cidr: PodCidr, number: u128) -> IpAddr {
    match cidr.net() {
        // Within the network, hence within 32 bits.
        IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn next(set: &RangeSet, after: Option<&str>, taken: &[&str]) -> Option<String> {
        let taken: Vec<IpAddr> = taken.iter().map(|t| t.parse().unwrap()).collect();
        let after = after.map(|a| a.parse().unwrap());
        set.next_free(after, |a| taken.contains(&a))
            .map(|a| a.to_string())
    }

    fn whole(cidr: &str) -> RangeSet {
        RangeSet::whole(cidr.parse().unwrap())
    }

    #[test]
    fn the_ring_leaves_out_network_gateway_and_broadcast() {
        let v4 = whole("10.244.1.0/29");
        assert_eq!(next(&v4, None, &[]).as_deref(), Some("10.244.1.2"));
        assert_eq!(next(&v4, Some("10.244.1.5"), &[]).as_deref(), Some("10.244.1.6"));
        assert_eq!(next(&v4, Some("10.244.1.6"), &[]).as_deref(), Some("10.244.1.2"));
        assert_eq!(
            next(&v4, Some("10.244.1.6"), &["10.244.1.2"]).as_deref(),
            Some("10.244.1.3")
        );
        let all = [
            "10.244.1.2",
            "10.244.1.3",
            "10.244.1.4",
            "10.244.1.5",
            "10.244.1.6",
        ];
        assert_eq!(next(&v4, Some("10.244.1.4"), &all), None);
        assert_eq!(
            next(&v4, Some("10.244.1.4"), &all[..4]).as_deref(),
            Some("10.244.1.6")
        );
        assert_eq!(next(&whole("10.244.1.0/31"), None, &[]), None);
        assert_eq!(next(&whole("10.244.1.0/32"), None, &[]), None);
        let v6 = whole("fd00:10:244:1::/64");
        assert_eq!(
            next(&v6, Some("fd00:10:244:1::ff"), &[]).as_deref(),
            Some("fd00:10:244:1::100")
        );
        assert_eq!(
            next(&v6, Some("fd00:10:244:1:ffff:ffff:ffff:ffff"), &[]).as_deref(),
            Some("fd00:10:244:1::2")
        );
    }

    fn sets(ranges: serde_json::Value) -> Result<Vec<RangeSet>, RangeError> {
        let conf: Vec<Vec<RangeConf>> = serde_json::from_value(ranges).unwrap();
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|c| c.parse().unwrap());
        RangeSet::of(&conf, &cidrs)
    }

    #[test]
    fn a_set_of_several_ranges_is_one_ring() {
        let sets = sets(json!([[
            { "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10", "rangeEnd": "10.244.1.11" },
            { "subnet": "10.244.1.32/31" },
        ]]))
        .unwrap();
        assert_eq!(
            sets[0].to_string(),
            "10.244.1.10-10.244.1.11,10.244.1.32-10.244.1.33"
        );
        let mut seen = Vec::new();
        let mut after = None;
        for _ in 0..5 {
            let got = next(&sets[0], after.as_deref(), &[]).unwrap();
            seen.push(got.clone());
            after = Some(got);
        }
        let round = [
            "10.244.1.10",
            "10.244.1.11",
            "10.244.1.32",
            "10.244.1.33",
            "10.244.1.10",
        ];
        assert_eq!(seen, round);
        assert_eq!(
            next(&sets[0], Some("10.244.1.32"), &round[1..4]).as_deref(),
            Some("10.244.1.10")
        );
        assert_eq!(next(&sets[0], None, &round), None);
        assert!(!sets[0].contains("10.244.1.12".parse().unwrap()));
    }

    #[test]
    fn ranges_must_fit_the_node() {
        for (ranges, words) in [
            (
                json!([[{ "subnet": "10.9.0.0/24" }]]),
                "ipam.ranges: 10.9.0.0/24 is not within this node's pod networks (10.244.1.0/24, fd00:10:244:1::/64)",
            ),
            (
                json!([[{ "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.3" }]]),
                "ipam.ranges: 10.244.1.9-10.244.1.3 is not a range within 10.244.1.0/24",
            ),
            (
                json!([[{ "subnet": "10.244.1.0/24", "gateway": "10.244.1.254" }]]),
                "ipam.ranges: the gateway of 10.244.1.0/24 is 10.244.1.1 on this node, not 10.244.1.254",
            ),
            (
                json!([[{ "subnet": "10.244.1.0/24" }, { "subnet": "fd00:10:244:1::/64" }]]),
                "ipam.ranges: range set 0 is empty, or mixes address families",
            ),
        ] {
            assert_eq!(sets(ranges).unwrap_err().to_string(), words);
        }
        let whole = sets(json!([[{ "subnet": "10.244.1.0/24" }]])).unwrap();
        assert_eq!(whole[0].to_string(), "10.244.1.1-10.244.1.254");
    }
}
