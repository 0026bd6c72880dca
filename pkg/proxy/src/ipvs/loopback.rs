//! Node ports on 127.0.0.1 and `::1`.
//!
//! IPVS sends on nothing that comes from a loopback address (`crosses_local_route_boundary`). So this node's 127.0.0.1 is
//! replaced as a source before conntrack and IPVS see the packet, by an address that is this host's but on no link, and
//! put back when both are through with the answer. No packet leaves the host with it: masquerading takes its place
//! first. kube-proxy's ipvs mode does without node ports there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use svcnet_netlink::Rtnl;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::nft::{Chain, ChainKind, Family, Hook, PRIORITY_RAW, PRIORITY_SRCNAT, Rule, Ruleset};

use super::layout::KEY;
use super::slot::List;
use crate::model::Protocol;

/// The address that stands for 127.0.0.1 as a source: the dummy address of RFC 7600, which is for sources alone and is
/// nobody's.
const STAND_IN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The same for `::1`: a unique local one ("svcne" in its prefix).
const STAND_IN6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x7663, 0x6e65, 0, 0, 0, 0, 3);

/// Whether node ports can answer on that address, as far as it is a loopback one.
pub(super) fn can_answer(ip: IpAddr) -> bool {
    !ip.is_loopback() || ip == IpAddr::from(Ipv4Addr::LOCALHOST) || ip == IpAddr::from(Ipv6Addr::LOCALHOST)
}

fn addresses(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::Ip => (Ipv4Addr::LOCALHOST.into(), STAND_IN.into()),
        Family::Ip6 => (Ipv6Addr::LOCALHOST.into(), STAND_IN6.into()),
    }
}

/// Makes the stand-ins addresses of this host.
pub(super) fn prepare(links: &mut Rtnl, families: &[Family]) {
    for family in families {
        let (local, stand_in) = addresses(*family);
        if let Err(error) = links.add_local_address(LocalFor::LoopbackByIpvs, stand_in, None) {
            // A host without IPv6 on loopback has no ::1 either.
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "node ports will not answer on {local}"
            );
        }
    }
}

/// Takes them back.
pub(super) fn clean_up(links: &mut Rtnl) {
    for family in [Family::Ip, Family::Ip6] {
        let (_, stand_in) = addresses(family);
        if let Err(error) = links.delete_local_address(LocalFor::LoopbackByIpvs, stand_in) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the local route to {stand_in} stays"
            );
        }
    }
}

/// The rules that put them in the place of loopback addresses and back.
pub(super) fn rules(ruleset: Ruleset, family: Family) -> Ruleset {
    const OUTPUT: &str = "loopback-output";
    let (local, stand_in) = addresses(family);
    let own = || Rule::new(OUTPUT).saddr(local.into()).daddr(local.into());
    let mut ruleset = ruleset
        .chain(Chain::base(OUTPUT, ChainKind::Filter, Hook::Output, PRIORITY_RAW))
        .chain(Chain::base(
            "loopback-input",
            ChainKind::Filter,
            Hook::Input,
            PRIORITY_SRCNAT + 10,
        ));
    for protocol in Protocol::ALL.into_iter().filter(|p| *p != Protocol::Tcp) {
        // The ICMP error that refuses a datagram quotes its source, and would find no socket of that one.
        let rule = own().l4proto(protocol.number());
        ruleset = ruleset.rule(
            rule.in_set(family, KEY, List::Refused.set())
                .accept()
                .comment("refused"),
        );
    }
    ruleset
        .rule(
            own()
                .in_set(family, KEY, List::Frontends.set())
                .set_saddr(stand_in)
                .comment("node ports on loopback"),
        )
        .rule(
            Rule::new("loopback-input")
                .saddr(local.into())
                .daddr(stand_in.into())
                .set_daddr(local)
                .comment("their answers"),
        )
}

/// What keeps others from them, where the kernel routes loopback addresses (`route_localnet`).
pub(super) fn guard(ruleset: Ruleset, family: Family) -> Ruleset {
    let (local, _) = addresses(family);
    let rule = Rule::new("prerouting")
        .in_link_not("lo")
        .daddr(IpNet::from(local));
    ruleset.rule(
        rule.in_set(family, KEY, List::Frontends.set())
            .drop()
            .comment("loopback is not for others"),
    )
}
