//! The nftables table: pod traffic that leaves the cluster takes the node's address, since nobody outside knows the
//! way back to a pod.

use ipnet::IpNet;
use svcnet_netlink::nft::{Chain, ChainKind, Family, Hook, PRIORITY_SRCNAT, Rule, Ruleset, Table};

use crate::desired::Masquerade;

const CHAIN: &str = "postrouting";

/// The table of each address family that pods have.
pub(crate) fn rulesets(masquerade: &Masquerade) -> Vec<Ruleset> {
    let families = [Family::Ip, Family::Ip6].into_iter();
    families
        .filter_map(|family| ruleset(family, masquerade))
        .collect()
}

fn ruleset(family: Family, masquerade: &Masquerade) -> Option<Ruleset> {
    let of_family = |net: &&IpNet| Family::of(net.addr()) == family;
    let mut sources = masquerade.sources.iter().filter(of_family).peekable();
    sources.peek()?;
    let chain = Chain::base(CHAIN, ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT);
    let mut ruleset = Ruleset::new(Table::new(family, "svcnet-overlay"), "svcnet overlay").chain(chain);
    for source in sources {
        for inside in masquerade.inside.iter().filter(of_family) {
            let rule = Rule::new(CHAIN).saddr(*source).daddr(*inside).accept();
            ruleset = ruleset.rule(rule.comment("within the cluster pods are seen as they are"));
        }
        let rule = Rule::new(CHAIN).saddr(*source).masquerade();
        ruleset = ruleset.rule(rule.comment("outside they are seen as their node"));
    }
    Some(ruleset)
}
