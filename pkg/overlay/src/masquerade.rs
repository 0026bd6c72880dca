//! The nftables table: pod traffic that leaves the cluster takes the node's address, since nobody outside knows the
//! way back to a pod; pods of a node are not told to talk to each other directly; and where less passes to a peer than its
//! links say, connections of pods begin with segments that pass. Routers on the way that drop what is too large often do not
//! say so.

use ipnet::IpNet;
use svcnet_netlink::nft::{Chain, ChainKind, Family, Hook, PRIORITY_SRCNAT, Rule, Ruleset, Table};

use crate::LINK_NAMES;
use crate::desired::Masquerade;

/// `NF_IP_PRI_MANGLE`
const PRIORITY_MANGLE: i32 = -150;

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
    if masquerade.clamp {
        let forward = Chain::base("forward", ChainKind::Filter, Hook::Forward, PRIORITY_MANGLE);
        ruleset = ruleset.chain(forward);
        for source in masquerade.sources.iter().filter(of_family) {
            for rule in [
                Rule::new("forward").saddr(*source),
                Rule::new("forward").daddr(*source),
            ] {
                ruleset = ruleset.rule(
                    rule.clamp_mss()
                        .comment("segments are to fit the routes there and back"),
                );
            }
        }
    }
    if family == Family::Ip6 {
        // Their ports are isolated: a pod that followed a redirect would lose its neighbour. IPv4 has a kernel parameter
        // for that (`send_redirects`), IPv6 has none.
        let output = Chain::base("output", ChainKind::Filter, Hook::Output, 0);
        let rule = Rule::new("output")
            .out_link(LINK_NAMES.bridge)
            .nd_redirect()
            .drop();
        ruleset = ruleset
            .chain(output)
            .rule(rule.comment("pods of one node talk through it"));
    }
    Some(ruleset)
}
