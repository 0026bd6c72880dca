//! The tables `ip svcnet-ipvs` and `ip6 svcnet-ipvs`: what IPVS does not do. It neither replaces sources, nor refuses, nor
//! asks where clients come from; and the addresses that it needs on a link open the host's own ports to everyone.
//!
//! ```text
//! output (before conntrack), input:  loopback addresses, away and back
//! prerouting, output (before IPVS):  restrict, refuse
//! postrouting (before srcnat):       hairpins, this node's own, what comes back only through this node: masquerade
//! ```
//!
//! IPVS tells conntrack where it sends a connection (`net.ipv4.vs.conntrack`), so `ct original` holds the frontend in
//! postrouting, as it does after a translation by nf_tables.

use ipnet::IpNet;
use svcnet_netlink::nft::{
    Chain, ChainKind, DataType, Family, Field, Hook, PRIORITY_DSTNAT, PRIORITY_SRCNAT, Rule, Ruleset, Set,
    Table, Verdict,
};

use super::loopback;
use super::slot::{BOUND, HAIRPIN, List, SOURCES};
use crate::model::Protocol;

/// Name of our tables.
pub(crate) const TABLE: &str = "svcnet-ipvs";
/// IPVS takes what this host sends at -98 (`NF_IP_PRI_NAT_DST + 2`), and it must not see what is refused.
const BEFORE_IPVS: i32 = PRIORITY_DSTNAT - 10;
/// Where nftables mode has translated what it does, and refused what it refuses.
const AFTER_OTHERS: i32 = PRIORITY_DSTNAT + 20;
/// Chain that answers in the way of each protocol that there is nothing here.
const TURN_AWAY: &str = "turn-away";
/// Fields of a frontend.
pub(super) const KEY: &[Field] = &[Field::Daddr, Field::L4Proto, Field::Dport];
/// The same, of the connection's first packet as its sender made it.
const ORIGINAL_KEY: &[Field] = &[Field::OriginalDaddr, Field::L4Proto, Field::OriginalDport];

/// What the tables depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    /// Networks of pods: their source addresses are kept.
    pub(crate) pods: Vec<IpNet>,
    /// Networks of ClusterIPs.
    pub(crate) services: Vec<IpNet>,
}

fn of_family(nets: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    nets.iter()
        .copied()
        .filter(move |net| Family::of(net.addr()) == family)
}

/// Our table of a family.
pub(crate) const fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

/// The declaration of our table of a family.
pub(crate) fn ruleset(family: Family, networks: &Networks) -> Ruleset {
    let base = |name, kind, hook, priority| Chain::base(name, kind, hook, priority);
    let ruleset = Ruleset::new(table(family), "svcnet proxy, beside IPVS")
        .chain(base(
            "prerouting",
            ChainKind::Filter,
            Hook::Prerouting,
            BEFORE_IPVS,
        ))
        .chain(base("output", ChainKind::Filter, Hook::Output, BEFORE_IPVS))
        // Before other tables' masquerading: the first that translates a connection is the last to see it.
        .chain(base(
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            PRIORITY_SRCNAT - 1,
        ))
        .chain(Chain::regular("restrict"))
        .chain(Chain::regular("refuse"))
        .chain(Chain::regular("outside"))
        .chain(Chain::regular(TURN_AWAY));
    let ruleset = loopback::guard(loopback::rules(sets(ruleset, family), family), family);
    let ruleset = judge(ruleset, family, networks);
    masquerade(turn_away(ruleset, family), family, networks)
}

/// Our table of a family while connections of a former ipvs mode go on beside nftables mode: new ones to addresses on our
/// link that nobody has translated come to the host's own ports, so they are refused.
pub(crate) fn leaving(family: Family) -> Ruleset {
    let address: &[_] = match family {
        Family::Ip => &[DataType::Ipv4],
        Family::Ip6 => &[DataType::Ipv6],
    };
    let mut ruleset = Ruleset::new(table(family), "svcnet proxy, connections of IPVS that go on")
        .chain(Chain::base(
            "prerouting",
            ChainKind::Filter,
            Hook::Prerouting,
            AFTER_OTHERS,
        ))
        .chain(Chain::base(
            "output",
            ChainKind::Filter,
            Hook::Output,
            AFTER_OTHERS,
        ))
        .chain(Chain::regular(TURN_AWAY))
        .set(Set::of(List::Frontends.set(), frontend(family)).comment("virtual services that are left"))
        .set(Set::of(BOUND, address).comment("other ports of these are refused"));
    for chain in ["prerouting", "output"] {
        let rule = Rule::new(chain).ct_new().in_set(family, &[Field::Daddr], BOUND);
        ruleset = ruleset.rule(
            rule.goto(TURN_AWAY)
                .comment("no service, whatever the host listens on"),
        );
    }
    turn_away(ruleset, family)
}

fn frontend(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4, DataType::Proto, DataType::Port],
        Family::Ip6 => &[DataType::Ipv6, DataType::Proto, DataType::Port],
    }
}

fn sets(mut ruleset: Ruleset, family: Family) -> Ruleset {
    let frontend = frontend(family);
    let (address, pair, source): (&[_], &[_], &[_]) = match family {
        Family::Ip => (
            &[DataType::Ipv4],
            &[DataType::Ipv4, DataType::Ipv4],
            &[DataType::Ipv4, DataType::Proto, DataType::Port, DataType::Ipv4],
        ),
        Family::Ip6 => (
            &[DataType::Ipv6],
            &[DataType::Ipv6, DataType::Ipv6],
            &[DataType::Ipv6, DataType::Proto, DataType::Port, DataType::Ipv6],
        ),
    };
    for list in List::ALL {
        let comment = match list {
            List::Frontends => "all virtual services of svcnet",
            List::Refused => "frontends without endpoints",
            List::Dropped => "frontends with endpoints only elsewhere",
            List::DroppedOutside => "the same, for clients from outside",
            List::Masquerade => "frontends for all sources but pods",
            List::Restricted => "frontends with source ranges",
        };
        ruleset = ruleset.set(Set::of(list.set(), frontend).comment(comment));
    }
    ruleset
        .set(Set::of(HAIRPIN, pair).comment("local endpoints, each with itself"))
        .set(Set::of(BOUND, address).comment("other ports of these are refused"))
        .set(
            Set::of(SOURCES, source)
                .interval()
                .comment("frontend . who is let in"),
        )
}

/// What becomes of new connections before IPVS sees them.
fn judge(mut ruleset: Ruleset, family: Family, networks: &Networks) -> Ruleset {
    let listed = |rule: Rule, list: List| rule.in_set(family, KEY, list.set());
    let with_source = [KEY, &[Field::Saddr]].concat();
    for chain in ["prerouting", "output"] {
        let rule = listed(Rule::new(chain).ct_new(), List::Restricted).jump("restrict");
        ruleset = ruleset.rule(rule.comment("LoadBalancer addresses with source ranges"));
    }
    ruleset = ruleset
        .rule(
            Rule::new("restrict")
                .in_set(family, &with_source, SOURCES)
                .verdict(Verdict::Return)
                .comment("let in"),
        )
        .rule(Rule::new("restrict").drop().comment("not let in"));
    for chain in ["prerouting", "output"] {
        let rule = Rule::new(chain).ct_new().jump("refuse");
        ruleset = ruleset.rule(rule.comment("new connections to nobody"));
    }
    let refuse = || Rule::new("refuse");
    ruleset = ruleset
        .rule(
            listed(refuse(), List::Refused)
                .goto(TURN_AWAY)
                .comment("no endpoints"),
        )
        .rule(
            listed(refuse(), List::Dropped)
                .drop()
                .comment("endpoints only elsewhere"),
        )
        .rule(
            listed(refuse(), List::DroppedOutside)
                .jump("outside")
                .comment("policy Local"),
        )
        .rule(
            refuse()
                .in_set(family, &[Field::Daddr], BOUND)
                .not_in_set(family, KEY, List::Frontends.set())
                .goto(TURN_AWAY)
                .comment("no such port, whatever the host listens on"),
        );
    for net in of_family(&networks.pods, family) {
        let rule = Rule::new("outside").saddr(net).verdict(Verdict::Return);
        ruleset = ruleset.rule(rule.comment("pods go elsewhere"));
    }
    ruleset
        .rule(
            Rule::new("outside")
                .from_this_host()
                .verdict(Verdict::Return)
                .comment("so does this node"),
        )
        .rule(Rule::new("outside").drop().comment("endpoints only elsewhere"))
}

fn turn_away(mut ruleset: Ruleset, family: Family) -> Ruleset {
    for protocol in Protocol::ALL {
        let rule = Rule::new(TURN_AWAY).l4proto(protocol.number());
        let rule = match protocol {
            Protocol::Tcp => rule.reject_tcp(),
            Protocol::Udp | Protocol::Sctp => rule.reject(family),
        };
        ruleset = ruleset.rule(rule.comment("refused at once"));
    }
    ruleset
}

fn masquerade(mut ruleset: Ruleset, family: Family, networks: &Networks) -> Ruleset {
    let rule = || Rule::new("postrouting");
    let originally = |rule: Rule, protocol: Protocol, list: List| {
        rule.l4proto(protocol.number())
            .in_set(family, ORIGINAL_KEY, list.set())
            .masquerade()
    };
    for net in of_family(&networks.services, family) {
        // The node's own DNS server answers on such an address.
        ruleset = ruleset.rule(rule().daddr(net).accept().comment("not sent on by IPVS"));
    }
    ruleset = ruleset.rule(
        rule()
            .in_set(family, &[Field::Saddr, Field::Daddr], HAIRPIN)
            .masquerade()
            .comment("a pod that reached itself"),
    );
    for protocol in Protocol::ALL {
        let rule = originally(rule().from_this_host(), protocol, List::Frontends);
        ruleset = ruleset.rule(rule.comment("this node's own: they come from the service's address"));
    }
    for net in of_family(&networks.pods, family) {
        let rule = rule().saddr(net).accept();
        ruleset = ruleset.rule(rule.comment("answers find pods by themselves"));
    }
    if of_family(&networks.pods, family).next().is_some() {
        for net in of_family(&networks.services, family) {
            let rule = rule().original_daddr(net).masquerade();
            ruleset = ruleset.rule(rule.comment("to a cluster address, not from a pod"));
        }
    }
    for protocol in Protocol::ALL {
        let rule = originally(rule(), protocol, List::Masquerade);
        ruleset = ruleset.rule(rule.comment("answers must come back through this node"));
    }
    ruleset
}
