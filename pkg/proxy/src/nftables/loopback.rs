//! Node ports on `::1`.
//!
//! What is sent to 127.0.0.1 can be translated and masqueraded like anything else, with the sysctl `route_localnet`. IPv6
//! has no such switch: the kernel takes a packet to `::1` only from the link `lo`, so that the answer, translated back
//! before it is routed, finds no way in (`rt6_need_strict`). So the sender's `::1` is replaced before conntrack sees the
//! packet, by an address that is this host's but on no link, and put back when conntrack is through with the answer. No
//! packet leaves the host with it: masquerading takes its place first.

use std::net::Ipv6Addr;

use svcnet_netlink::Rtnl;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::nft::{Chain, ChainKind, Family, Hook, PRIORITY_RAW, PRIORITY_SRCNAT, Rule, Ruleset};

use super::shape::Place;

/// The address that stands for `::1` as a source: a unique local one ("svcne" in its prefix).
const STAND_IN: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x7663, 0x6e65, 0, 0, 0, 0, 1);

/// Makes the stand-in an address of this host.
pub(crate) fn prepare(links: &mut Rtnl) {
    if let Err(error) = links.add_local_address(LocalFor::Loopback, STAND_IN.into(), None) {
        // A host without IPv6 on loopback has no ::1 either.
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "node ports will not answer on ::1"
        );
    }
}

/// Takes it back.
pub(crate) fn clean_up(links: &mut Rtnl) {
    if let Err(error) = links.delete_local_address(LocalFor::Loopback, STAND_IN.into()) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the local route to {STAND_IN} stays"
        );
    }
}

/// The rules that put it in the place of `::1` and back.
pub(crate) fn rules(ruleset: Ruleset) -> Ruleset {
    let (local, stand_in) = (Ipv6Addr::LOCALHOST, STAND_IN);
    let net = |ip: Ipv6Addr| std::net::IpAddr::from(ip).into();
    let place = Place::NodePort;
    ruleset
        .chain(Chain::base(
            "loopback-output",
            ChainKind::Filter,
            Hook::Output,
            PRIORITY_RAW,
        ))
        .chain(Chain::base(
            "loopback-input",
            ChainKind::Filter,
            Hook::Input,
            PRIORITY_SRCNAT + 10,
        ))
        .rule(
            Rule::new("loopback-output")
                .saddr(net(local))
                .daddr(net(local))
                .priority_from_map(Family::Ip6, place.key(), place.services())
                .set_saddr(stand_in)
                .clear_priority()
                .comment("node ports on ::1"),
        )
        .rule(
            Rule::new("loopback-input")
                .saddr(net(local))
                .daddr(net(stand_in))
                .set_daddr(local)
                .comment("their answers"),
        )
}
