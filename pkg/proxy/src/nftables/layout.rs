//! The tables `ip svcnet` and `ip6 svcnet`: what is in them whatever the services are.
//!
//! ```text
//! prerouting, output -> services:   meta priority set KEY map @services;  meta priority vmap @dispatch
//!                                   (to an address of this node) -> node-ports, the same with @ports
//! n3 (shape: three endpoints):      meta priority set numgen random mod 3 -> endpoint
//! endpoint:                         dnat to KEY . meta priority map @endpoints
//! postrouting (before srcnat):      hairpins, and what comes back only through this node: masquerade
//! refuse (nat chains after dnat):   frontends without endpoints
//! ```
//!
//! The packet's priority carries the shape from the first lookup to the second and the index of the endpoint to the third, and
//! is cleared behind them (`refuse-…` for what is not translated; `postrouting` and `input` for what is, since a chain that
//! translates is the last of its hook): `meta mark` belongs to the operator. All chains are of type nat, so that only the first packet
//! of a connection passes any: those that refuse too, for nf_tables lets a nat chain drop and reject, and what comes by behind the
//! translation has not been translated.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use svcnet_netlink::nft::{
    Chain, ChainKind, DataType, Family, Field, Hook, MapOf, PRIORITY_DSTNAT, PRIORITY_SRCNAT, Rule, Ruleset,
    Set, Table,
};

use super::loopback;
use super::shape::{AFFINITY_MAP, Place, Pool, STICKY, clear, policy_gone, stay_with, to_endpoint};
use crate::model::Protocol;

/// Name of our tables.
pub(crate) const TABLE: &str = "svcnet";
/// Pairs of one local endpoint's address with itself.
pub(crate) const HAIRPIN: &str = "hairpin";
/// ClusterIPs, whatever their ports.
pub(crate) const CLUSTER_IPS: &str = "cluster-ips";
/// Frontends that let only some networks in.
pub(crate) const RESTRICTED: &str = "restricted";
/// Chain of the connections that no frontend was found for.
const REFUSE: &str = "refuse";
/// Chain that answers in the way of each protocol that there is nothing here.
const TURN_AWAY: &str = "turn-away";
/// The networks that they let in.
pub(crate) const SOURCES: &str = "sources";
/// Chain whose rules record which client stays with which endpoint.
pub(crate) const RECORD: &str = "record";
/// How many clients can stay with an endpoint; beyond that they are balanced anew each time.
const AFFINITY_CLIENTS_MAX: u32 = 131_072;

/// What the static part depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    /// Networks of pods: their source addresses are kept.
    pub(crate) pods: Vec<IpNet>,
    /// Networks of ClusterIPs.
    pub(crate) services: Vec<IpNet>,
    /// Networks of the node's addresses that node ports answer on, if it is not just all.
    pub(crate) node_ports: Option<Vec<IpNet>>,
}

impl Networks {
    /// Whether node ports answer on `::1`.
    pub(crate) fn answers_on_loopback6(&self) -> bool {
        let nets = self.node_ports.as_ref();
        nets.is_none_or(|nets| {
            nets.iter()
                .any(|net| net.contains(&IpAddr::from(Ipv6Addr::LOCALHOST)))
        })
    }

    /// What tells whether a packet goes to an address that node ports answer on: one match for each network, each for a
    /// rule of its own.
    fn answering(&self, family: Family) -> Vec<Box<dyn Fn(Rule) -> Rule>> {
        let Some(nets) = &self.node_ports else {
            return vec![Box::new(Rule::to_this_host)];
        };
        Self::of(nets, family)
            .map(|net| -> Box<dyn Fn(Rule) -> Rule> { Box::new(move |rule| rule.to_this_host().daddr(net)) })
            .collect()
    }

    fn of<'a>(nets: &'a [IpNet], family: Family) -> impl Iterator<Item = IpNet> + use<'a> {
        nets.iter()
            .copied()
            .filter(move |net| Family::of(net.addr()) == family)
    }
}

/// Our table of a family.
pub(crate) const fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

/// Where our table listens.
const BASE_CHAINS: [(&str, ChainKind, Hook, i32); 6] = [
    ("prerouting", ChainKind::Nat, Hook::Prerouting, PRIORITY_DSTNAT),
    ("output", ChainKind::Nat, Hook::Output, PRIORITY_DSTNAT),
    // Before other tables' masquerading: the first that translates a connection is the last to see it.
    (
        "postrouting",
        ChainKind::Nat,
        Hook::Postrouting,
        PRIORITY_SRCNAT - 1,
    ),
    ("input", ChainKind::Nat, Hook::Input, PRIORITY_SRCNAT),
    (
        "refuse-prerouting",
        ChainKind::Nat,
        Hook::Prerouting,
        PRIORITY_DSTNAT + 10,
    ),
    (
        "refuse-output",
        ChainKind::Nat,
        Hook::Output,
        PRIORITY_DSTNAT + 10,
    ),
];

/// Whether a rule may come into force only after those that translate. Rules of one transaction are in force at once, but
/// not for a packet that is on its way: it has passed the chains that translate when they were empty, and would be
/// refused by those that refuse.
pub(crate) fn is_refusal(rule: &Rule) -> bool {
    rule.leads_to(REFUSE)
}

/// The declaration of our table of a family.
pub(crate) fn ruleset(family: Family, networks: &Networks) -> Ruleset {
    let mut ruleset = Ruleset::new(table(family), "svcnet proxy");
    for (name, kind, hook, priority) in BASE_CHAINS {
        ruleset = ruleset.chain(Chain::base(name, kind, hook, priority));
    }
    ruleset = ruleset
        .chain(Chain::regular(TURN_AWAY))
        .chain(Chain::regular(REFUSE))
        .chain(Chain::regular("services"))
        .chain(Chain::regular("node-ports"))
        .chain(Chain::regular(STICKY))
        .open_chain(Chain::regular(RECORD));
    for place in Place::ALL {
        ruleset = sets(ruleset, family, place).chain(Chain::regular(place.outside_chain()));
        for pool in Pool::ALL {
            ruleset = ruleset.chain(Chain::regular(place.endpoint_chain(pool)));
        }
    }
    ruleset = ruleset.set(Set::of(HAIRPIN, pair(family)).comment("local endpoints, each with itself"));
    ruleset = ruleset.set(
        Set::map(AFFINITY_MAP, affinity_key(family), MapOf::Data(endpoint(family)))
            .dynamic(AFFINITY_CLIENTS_MAX)
            .comment("client . frontend : endpoint"),
    );
    ruleset = ruleset
        .set(Set::of(CLUSTER_IPS, address(family)).comment("other ports of these are refused"))
        .set(
            Set::of(RESTRICTED, frontend_key(family, Place::Address)).comment("frontends with source ranges"),
        )
        .set(
            Set::of(SOURCES, source_key(family))
                .interval()
                .comment("frontend . who is let in"),
        );
    let ruleset = translate(restrict(ruleset, family), family, networks);
    let ruleset = refuse(masquerade(ruleset, family, networks), family, networks);
    if family == Family::Ip6 && networks.answers_on_loopback6() {
        loopback::rules(ruleset)
    } else {
        ruleset
    }
}

/// Before the translation: afterwards nobody knows where a packet was to go. In the chains that translate, since those see the
/// first packet of a connection alone: what is let in passes no rule for it any more.
fn restrict(mut ruleset: Ruleset, family: Family) -> Ruleset {
    let key = Place::Address.key();
    let with_source = [key, &[Field::Saddr]].concat();
    for chain in ["prerouting", "output"] {
        ruleset = ruleset.rule(
            Rule::new(chain)
                .in_set(family, key, RESTRICTED)
                .not_in_set(family, &with_source, SOURCES)
                .drop()
                .comment("LoadBalancer addresses with source ranges"),
        );
    }
    ruleset
}

fn translate(mut ruleset: Ruleset, family: Family, networks: &Networks) -> Ruleset {
    for (chain, place) in [("services", Place::Address), ("node-ports", Place::NodePort)] {
        ruleset = ruleset
            .rule(
                Rule::new(chain)
                    .priority_from_map(family, place.key(), place.services())
                    .comment("the shape of the frontend"),
            )
            .rule(
                Rule::new(chain)
                    .priority_vmap(place.dispatch())
                    .comment("the chain of the shape"),
            )
            .rule(
                Rule::new(place.outside_chain())
                    .priority_from_map(family, place.key(), place.external())
                    .comment("policy Local, from outside"),
            )
            .rule(
                Rule::new(place.outside_chain())
                    .priority_vmap(place.external_dispatch())
                    .comment("the chain of the shape"),
            )
            .rule(policy_gone(place, family));
        for rule in Pool::ALL
            .into_iter()
            .flat_map(|pool| to_endpoint(place, family, pool))
        {
            ruleset = ruleset.rule(rule);
        }
    }
    ruleset = ruleset.rule(stay_with(family).comment("clients that stay"));
    for answering in networks.answering(family) {
        let rule = answering(Rule::new("services")).goto("node-ports");
        ruleset = ruleset.rule(rule.comment("addresses of this node"));
    }
    ruleset
        .rule(
            Rule::new("prerouting")
                .jump("services")
                .comment("from pods and from outside"),
        )
        .rule(Rule::new("output").jump("services").comment("from this node"))
}

fn masquerade(mut ruleset: Ruleset, family: Family, networks: &Networks) -> Ruleset {
    let rule = || Rule::new("postrouting");
    ruleset = ruleset
        .rule(rule().ct_not_dnat().accept().comment("not to a service"))
        .rule(clear(rule()))
        .rule(rule().jump(RECORD).comment("clients that stay"))
        .rule(
            rule()
                .in_set(family, &[Field::Saddr, Field::Daddr], HAIRPIN)
                .masquerade()
                .comment("a pod that reached itself"),
        )
        .rule(clear(Rule::new("input")))
        .rule(
            Rule::new("input")
                .ct_dnat()
                .jump(RECORD)
                .comment("clients that stay"),
        );
    for net in Networks::of(&networks.pods, family) {
        ruleset = ruleset.rule(
            rule()
                .saddr(net)
                .accept()
                .comment("answers find pods by themselves"),
        );
    }
    if Networks::of(&networks.pods, family).next().is_some() {
        for net in Networks::of(&networks.services, family) {
            let rule = rule().original_daddr(net).masquerade();
            ruleset = ruleset.rule(rule.comment("to a cluster address, not from a pod"));
        }
    }
    for place in Place::ALL {
        for protocol in Protocol::ALL {
            let rule = rule()
                .l4proto(protocol.number())
                .in_set(family, place.original_key(), place.masquerade())
                .masquerade();
            ruleset = ruleset.rule(rule.comment("answers must come back through this node"));
        }
    }
    for place in Place::ALL {
        for protocol in Protocol::ALL {
            let rule = rule()
                .from_this_host()
                .l4proto(protocol.number())
                .in_set(family, place.original_key(), place.masquerade_own())
                .masquerade();
            ruleset = ruleset.rule(rule.comment("this node's own, policy Local"));
        }
    }
    ruleset
}

fn refuse(mut ruleset: Ruleset, family: Family, networks: &Networks) -> Ruleset {
    if family == Family::Ip {
        let loopback = IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
        let rule = Rule::new("refuse-prerouting")
            .daddr(loopback)
            .in_link_not("lo")
            .drop();
        // Node ports answer on 127.0.0.1, which takes route_localnet; that must not open loopback to the neighbours.
        ruleset = ruleset.rule(rule.comment("loopback is not for others"));
    }
    // What this node sends to itself has been judged on its way out, and comes by no second time. But what refuses a connection
    // does come by: it belongs to that connection, which nobody has translated, and goes to its source, which is the refused
    // address itself where this node has that.
    for chain in ["refuse-prerouting", "refuse-output"] {
        let rule = Rule::new(chain).ct_new().jump(REFUSE);
        ruleset = ruleset
            .rule(clear(Rule::new(chain)))
            .rule(rule.comment("nothing was found for them"));
    }
    let refuse = || Rule::new(REFUSE);
    let turn_away = || Rule::new(TURN_AWAY);
    let (address, port) = (Place::Address, Place::NodePort);
    ruleset = ruleset
        .rule(
            refuse()
                .in_set(family, address.key(), address.refused())
                .goto(TURN_AWAY)
                .comment("no endpoints"),
        )
        .rule(
            refuse()
                .in_set(family, &[Field::Daddr], CLUSTER_IPS)
                .goto(TURN_AWAY)
                .comment("no such port"),
        );
    for answering in networks.answering(family) {
        let rule = refuse().in_set(family, port.key(), port.refused());
        ruleset = ruleset.rule(answering(rule).goto(TURN_AWAY).comment("no endpoints"));
    }
    for net in Networks::of(&networks.services, family) {
        // But for those that this node answers itself.
        let rule = refuse().daddr(net).not_to_this_host().drop();
        ruleset = ruleset.rule(rule.comment("no service has that address"));
    }
    ruleset
        .rule(
            turn_away()
                .l4proto(Protocol::Tcp.number())
                .reject_tcp()
                .comment("refused at once"),
        )
        .rule(
            turn_away()
                .l4proto(Protocol::Udp.number())
                .reject(family)
                .comment("refused at once"),
        )
        .rule(
            turn_away()
                .l4proto(Protocol::Sctp.number())
                .reject(family)
                .comment("refused at once"),
        )
}

/// The sets of a place. What they are keyed by: [`Place::key`].
fn sets(ruleset: Ruleset, family: Family, place: Place) -> Ruleset {
    let key = frontend_key(family, place);
    let endpoints = Set::map(
        place.endpoints(),
        endpoint_key(family, place),
        MapOf::Data(endpoint(family)),
    );
    let shape = MapOf::Data(&[DataType::ClassId]);
    ruleset
        .set(Set::map(place.services(), key, shape).comment("frontend : shape"))
        .set(endpoints.comment("frontend . index : endpoint"))
        .set(Set::map(place.external(), key, shape).comment("frontend : shape from outside"))
        .set(Set::of(place.refused(), key).comment("frontends without endpoints"))
        .set(Set::of(place.masquerade(), key).comment("frontends for all sources but pods"))
        .set(Set::of(place.masquerade_own(), key).comment("frontends that keep the source"))
        .set(Set::map(place.dispatch(), &[DataType::ClassId], MapOf::Verdict).comment("shape : chain"))
        .set(
            Set::map(place.external_dispatch(), &[DataType::ClassId], MapOf::Verdict)
                .comment("shape : chain"),
        )
}

/// The chain, the sets and the rules for clients that stay so many seconds.
pub(crate) struct Stay {
    pub(crate) chain: String,
    pub(crate) sets: [(Place, String); 2],
}

impl Stay {
    pub(crate) fn new(seconds: u32) -> Self {
        let chain = format!("stay-{seconds}");
        let set = |place: Place| (place, stay_set(place, seconds));
        Self {
            sets: Place::ALL.map(set),
            chain,
        }
    }

    /// The seconds in the name of a chain or of an address set.
    pub(crate) fn seconds_of(name: &str) -> Option<u32> {
        name.strip_prefix("stay-")?.parse().ok()
    }

    pub(crate) fn sets(&self, family: Family) -> impl Iterator<Item = Set> + '_ {
        self.sets.iter().map(move |(place, name)| {
            let mut set = Set::of("", frontend_key(family, *place));
            set.name = name.clone().into();
            set.comment("frontends whose clients stay")
        })
    }

    /// What records a client, in its own chain.
    pub(crate) fn rules(&self, family: Family, seconds: u32) -> impl Iterator<Item = Rule> + '_ {
        let key = [
            Field::Saddr,
            Field::OriginalDaddr,
            Field::L4Proto,
            Field::OriginalDport,
        ];
        Protocol::ALL.into_iter().map(move |protocol| {
            Rule::new(self.chain.clone()).l4proto(protocol.number()).update(
                family,
                AFFINITY_MAP,
                &key,
                u64::from(seconds) * 1000,
                &[Field::Daddr, Field::Dport],
            )
        })
    }

    /// What leads to that chain.
    pub(crate) fn record_rules(&self, family: Family) -> impl Iterator<Item = Rule> + '_ {
        self.sets.iter().flat_map(move |(place, set)| {
            Protocol::ALL.into_iter().map(move |protocol| {
                Rule::new(RECORD)
                    .l4proto(protocol.number())
                    .in_set(family, place.original_key(), set)
                    .goto(&self.chain)
            })
        })
    }

    /// How many rules [`Self::record_rules`] gives.
    pub(crate) const RECORD_RULES: usize = Place::ALL.len() * Protocol::ALL.len();
}

/// The set of frontends whose clients stay so long.
pub(crate) fn stay_set(place: Place, seconds: u32) -> String {
    match place {
        Place::Address => format!("stay-{seconds}"),
        Place::NodePort => format!("port-stay-{seconds}"),
    }
}

fn frontend_key(family: Family, place: Place) -> &'static [DataType] {
    match (place, family) {
        (Place::Address, Family::Ip) => &[DataType::Ipv4, DataType::Proto, DataType::Port],
        (Place::Address, Family::Ip6) => &[DataType::Ipv6, DataType::Proto, DataType::Port],
        (Place::NodePort, _) => &[DataType::Proto, DataType::Port],
    }
}

/// The index is of the type that a packet's priority has.
fn endpoint_key(family: Family, place: Place) -> &'static [DataType] {
    match (place, family) {
        (Place::Address, Family::Ip) => &[DataType::Ipv4, DataType::Proto, DataType::Port, DataType::ClassId],
        (Place::Address, Family::Ip6) => {
            &[DataType::Ipv6, DataType::Proto, DataType::Port, DataType::ClassId]
        }
        (Place::NodePort, _) => &[DataType::Proto, DataType::Port, DataType::ClassId],
    }
}

fn endpoint(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4, DataType::Port],
        Family::Ip6 => &[DataType::Ipv6, DataType::Port],
    }
}

fn pair(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4, DataType::Ipv4],
        Family::Ip6 => &[DataType::Ipv6, DataType::Ipv6],
    }
}

fn address(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4],
        Family::Ip6 => &[DataType::Ipv6],
    }
}

fn source_key(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4, DataType::Proto, DataType::Port, DataType::Ipv4],
        Family::Ip6 => &[DataType::Ipv6, DataType::Proto, DataType::Port, DataType::Ipv6],
    }
}

fn affinity_key(family: Family) -> &'static [DataType] {
    match family {
        Family::Ip => &[DataType::Ipv4, DataType::Ipv4, DataType::Proto, DataType::Port],
        Family::Ip6 => &[DataType::Ipv6, DataType::Ipv6, DataType::Proto, DataType::Port],
    }
}
