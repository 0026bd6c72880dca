//! The addresses of a pod network as a ring.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use svcnet_api::types::PodCidr;

/// The first and the last host address, the gateway's being the first: how host-local writes a range.
pub(super) fn ends(cidr: PodCidr) -> (IpAddr, IpAddr) {
    let (_, last) = bounds(cidr);
    (cidr.gateway(), address(cidr, last))
}

/// The first address after `after` that is not taken, going round: never the network's own (the VXLAN link's), the
/// gateway's, or an IPv4 network's last (broadcast). Looks at one address more than are taken.
pub(super) fn next_free(
    cidr: PodCidr,
    after: Option<IpAddr>,
    taken: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let (first, last) = bounds(cidr);
    if first > last {
        return None;
    }
    let start = match after.map(number) {
        Some(n) if (first..last).contains(&n) => n + 1,
        _ => first,
    };
    (start..=last)
        .chain(first..start)
        .map(|n| address(cidr, n))
        .find(|a| !taken(*a))
}

/// The numbers that pods may have, both included.
fn bounds(cidr: PodCidr) -> (u128, u128) {
    let first = number(cidr.gateway()).saturating_add(1);
    let last = match cidr.net() {
        IpNet::V4(net) => number(net.broadcast().into()).saturating_sub(1),
        IpNet::V6(net) => number(net.broadcast().into()),
    };
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
    use super::*;

    fn next(cidr: &str, after: Option<&str>, taken: &[&str]) -> Option<String> {
        let taken: Vec<IpAddr> = taken.iter().map(|t| t.parse().unwrap()).collect();
        let after = after.map(|a| a.parse().unwrap());
        next_free(cidr.parse().unwrap(), after, |a| taken.contains(&a)).map(|a| a.to_string())
    }

    #[test]
    fn the_ring_leaves_out_network_gateway_and_broadcast() {
        let v4 = "10.244.1.0/29";
        assert_eq!(next(v4, None, &[]).as_deref(), Some("10.244.1.2"));
        assert_eq!(next(v4, Some("10.244.1.5"), &[]).as_deref(), Some("10.244.1.6"));
        assert_eq!(next(v4, Some("10.244.1.6"), &[]).as_deref(), Some("10.244.1.2"));
        assert_eq!(
            next(v4, Some("10.244.1.6"), &["10.244.1.2"]).as_deref(),
            Some("10.244.1.3")
        );
        let all = [
            "10.244.1.2",
            "10.244.1.3",
            "10.244.1.4",
            "10.244.1.5",
            "10.244.1.6",
        ];
        assert_eq!(next(v4, Some("10.244.1.4"), &all), None);
        assert_eq!(
            next(v4, Some("10.244.1.4"), &all[..4]).as_deref(),
            Some("10.244.1.6")
        );
        assert_eq!(next("10.244.1.0/31", None, &[]), None);
        assert_eq!(next("10.244.1.0/32", None, &[]), None);
        let v6 = "fd00:10:244:1::/64";
        assert_eq!(
            next(v6, Some("fd00:10:244:1::ff"), &[]).as_deref(),
            Some("fd00:10:244:1::100")
        );
        assert_eq!(
            next(v6, Some("fd00:10:244:1:ffff:ffff:ffff:ffff"), &[]).as_deref(),
            Some("fd00:10:244:1::2")
        );
    }
}
