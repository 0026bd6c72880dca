//! The table in the kernel. Each packet meets it when it has been routed and its destination translated, and before its
//! source is. It is judged by its connection: who began it, and whom it reaches after translation. So answers pass as
//! what they answer does, an ICMP error as what it is about, and a connection that stands follows a change of policies
//! with its next packet; nothing is remembered that would have to be forgotten.
//!
//! ```text
//! chain egress   ct original ip saddr @egress-pods goto egress-pods     # not isolated: two lookups that miss, and no more
//!                ct state invalid,untracked ip saddr @egress-pods goto egress-pods
//! chain egress-pods
//!                ct original ip saddr vmap @egress                      # address : jump chain of its policies
//!                ct original ip saddr @relays accept                    # ingress alone: relays of other nodes, which judge themselves
//!                fib saddr type local accept                            # the node itself: kubelet's probes
//!                ct original ip saddr . ct reply ip saddr @egress-selves accept  # a pod reaches itself
//!                drop
//! chain out/default/web
//!                ct reply ip saddr @pods-1f… ct protocol tcp ct reply proto-src 80 accept
//! ```
//!
//! The sets `egress-pods` and `ingress-pods` are what isolates: an address that is in one and in no map is allowed
//! nothing. `accept` ends the one base chain; the other one, later in the same hook, judges the other end.
//!
//! No verdict is remembered, because deleting conntrack entries when policies change would race with answers on the
//! way, which make an entry the other way round. That costs a few lookups for each packet of isolated pods, two misses
//! for all others.
//!
//! The hook is postrouting: what the node forwards and what a load balancer inside it makes (IPVS) comes by, with the
//! client's address. All pod traffic is routed, so that no bridge hook is needed for it.
//!
//! Isolation is a set and permission a map, so a packet that sees half a change is dropped, not let through; and a pod
//! that is not known yet is isolated by one element. Names follow from what is in a set or chain (`pods-HASH` of a
//! selector, `in/NAMESPACE/POLICY`), so that a restart finds them right, and policies with the same selector share a
//! set. A pod elsewhere is one element for each selector in use that means it. A change of chains makes the kernel walk
//! the verdict map, which is as long as this node has isolated pods.
//!
//! Every packet of the host passes the base chains, so each is there only while it isolates a pod: it comes in the
//! transaction that isolates the first, and goes in the one that sets the last free. The chains that they lead to stay:
//! by them the kernel tracks connections from the beginning, and knows who began one that a policy finds standing.

use std::net::IpAddr;

use svcnet_netlink::nft::{
    Batch, Chain, ChainKind, Concat, Data, DataType, Element as NftElement, Family, Field, Hook, MapOf,
    PRIORITY_FILTER, Rule, Ruleset, Set, Table, Verdict,
};

use crate::desired::{ChainSpec, Content, Element, PeerMatch, PortsMatch, RuleSpec, SetSpec};
use crate::model::Direction;
use crate::ranges;

/// The name of our tables.
pub const TABLE: &str = "svcnet-policy";

/// The set of addresses that relays of other nodes connect from (see [`crate::judge`]).
pub(crate) const RELAYS: &str = "relays";

/// The table of a family.
pub fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

/// The set of addresses that are isolated in a direction; also the chain that they are judged in.
pub(crate) fn pods(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress-pods",
        Direction::Egress => "egress-pods",
    }
}

/// The set of isolated addresses with themselves: a pod reaches itself.
pub(crate) fn selves(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress-selves",
        Direction::Egress => "egress-selves",
    }
}

/// The map from an isolated address to its chain; also the base chain.
pub(crate) fn map(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Where the address of the isolated end stands.
fn own(direction: Direction) -> Field {
    match direction {
        Direction::Ingress => Field::ReplySaddr,
        Direction::Egress => Field::OriginalSaddr,
    }
}

/// Where the address of the other end stands.
fn other(direction: Direction) -> Field {
    match direction {
        Direction::Ingress => Field::OriginalSaddr,
        Direction::Egress => Field::ReplySaddr,
    }
}

fn address_type(family: Family) -> DataType {
    match family {
        Family::Ip => DataType::Ipv4,
        Family::Ip6 => DataType::Ipv6,
    }
}

fn address(family: Family) -> &'static [DataType] {
    match address_type(family) {
        DataType::Ipv4 => &[DataType::Ipv4],
        _ => &[DataType::Ipv6],
    }
}

fn addresses(family: Family) -> &'static [DataType] {
    match address_type(family) {
        DataType::Ipv4 => &[DataType::Ipv4, DataType::Ipv4],
        _ => &[DataType::Ipv6, DataType::Ipv6],
    }
}

fn address_and_port(family: Family) -> &'static [DataType] {
    match address_type(family) {
        DataType::Ipv4 => &[DataType::Ipv4, DataType::Port],
        _ => &[DataType::Ipv6, DataType::Port],
    }
}

/// The chain by which packets come to be judged.
pub(crate) fn base(direction: Direction) -> Chain {
    // The way out of one pod is judged before the way into the other.
    let priority = PRIORITY_FILTER + i32::from(direction == Direction::Ingress);
    Chain::base(map(direction), ChainKind::Filter, Hook::Postrouting, priority)
}

/// Its rules.
pub(crate) fn base_rules(family: Family, direction: Direction) -> [Rule; 2] {
    let (pods, map) = (pods(direction), map(direction));
    let payload = match direction {
        Direction::Ingress => Field::Daddr,
        Direction::Egress => Field::Saddr,
    };
    [
        Rule::new(map)
            .in_set(family, &[own(direction)], pods)
            .goto(pods)
            .comment("pods that a policy isolates"),
        Rule::new(map)
            .ct_none()
            .in_set(family, &[payload], pods)
            .goto(pods)
            .comment("what belongs to no connection"),
    ]
}

/// What of the table is the same whatever the policies are.
pub fn ruleset(family: Family) -> Ruleset {
    let mut ruleset = Ruleset::new(table(family), "svcnet NetworkPolicy")
        .set(Set::of(RELAYS, address(family)).comment("relays of other nodes, which judge themselves"));
    for direction in [Direction::Egress, Direction::Ingress] {
        let (pods, map, own) = (pods(direction), map(direction), own(direction));
        let selves = selves(direction);
        ruleset = ruleset
            .set(Set::of(pods, address(family)).comment("isolated pods of this node"))
            .set(Set::of(selves, addresses(family)).comment("isolated pods, which reach themselves"))
            .set(
                Set::map(map, address(family), MapOf::Verdict)
                    .comment("isolated pod : what its policies allow"),
            )
            .chain(Chain::regular(pods))
            .rule(
                Rule::new(pods)
                    .vmap(family, &[own], map)
                    .comment("what their policies allow"),
            );
        if direction == Direction::Ingress {
            ruleset = ruleset.rule(
                Rule::new(pods)
                    .in_set(family, &[other(direction)], RELAYS)
                    .accept()
                    .comment("what relays of other nodes have judged"),
            );
        }
        ruleset = ruleset
            .rule(
                Rule::new(pods)
                    .from_this_host()
                    .accept()
                    .comment("their own node"),
            )
            .rule(
                Rule::new(pods)
                    .in_set(family, &[Field::OriginalSaddr, Field::ReplySaddr], selves)
                    .accept()
                    .comment("themselves"),
            )
            .rule(Rule::new(pods).counter().drop().comment("all else"));
    }
    ruleset
}

/// Appends the making of a set.
pub(crate) fn add_set(batch: &mut Batch, family: Family, spec: &SetSpec) {
    let table = table(family);
    let set = match &spec.content {
        Content::Pods => Set::of("", address(family)),
        Content::NamedPorts => Set::of("", address_and_port(family)),
        Content::Blocks(..) => Set::of("", address(family)).interval(),
        Content::Ports(_) => Set::of("", &[DataType::Port]).interval(),
    };
    let set = Set {
        name: spec.name.to_string().into(),
        ..set
    };
    batch.add_set(&table, &set);
    match &spec.content {
        Content::Pods | Content::NamedPorts => {}
        Content::Blocks(v4, v6) => {
            let ranges = if family == Family::Ip { v4 } else { v6 };
            let key = |number| Concat::new().ip(ranges::address(family, number));
            let keys: Vec<_> = ranges
                .iter()
                .map(|(first, last)| (key(*first), key(*last)))
                .collect();
            let bytes = keys
                .iter()
                .map(|(first, last)| (first.as_bytes(), last.as_bytes()));
            batch.add_ranges(&table, &spec.name, bytes);
        }
        Content::Ports(ports) => {
            let bytes: Vec<_> = ports
                .iter()
                .map(|(a, b)| (a.to_be_bytes(), b.to_be_bytes()))
                .collect();
            let bytes = bytes.iter().map(|(first, last)| (&first[..], &last[..]));
            batch.add_ranges(&table, &spec.name, bytes);
        }
    }
}

/// An element as the kernel's sets hold it.
pub(crate) fn element_key(element: Element) -> Concat {
    let key = Concat::new().ip(element.address);
    element.port.map_or(key, |port| key.port(port))
}

/// An isolated address with itself.
pub(crate) fn self_key(address: IpAddr) -> Concat {
    Concat::new().ip(address).ip(address)
}

/// Appends that an address is judged by a chain.
pub(crate) fn judge(batch: &mut Batch, direction: Direction, address: IpAddr, chain: &str) {
    let key = Concat::new().ip(address);
    let verdict = Verdict::Jump(chain.to_string());
    let element = NftElement {
        data: Data::Verdict(&verdict),
        ..NftElement::key(key.as_bytes())
    };
    batch.add_element(&table(Family::of(address)), map(direction), &element);
}

/// The rules of a chain in the kernel's words.
pub(crate) fn rules(family: Family, chain: &ChainSpec) -> impl Iterator<Item = Rule> + '_ {
    chain
        .rules
        .iter()
        .map(move |spec| rule(family, &chain.name, spec))
}

fn rule(family: Family, chain: &str, spec: &RuleSpec) -> Rule {
    let rule = Rule::new(chain.to_string());
    let (direction, peer, port, words) = match spec {
        RuleSpec::Jump(to) => return rule.jump(to),
        RuleSpec::Accept {
            direction,
            peer,
            port,
            words,
        } => (*direction, peer, port, words),
    };
    let rule = match peer {
        PeerMatch::Any => rule,
        PeerMatch::In(set) => rule.in_set(family, &[other(direction)], set),
    };
    let rule = match port {
        PortsMatch::Any => rule,
        PortsMatch::Protocol(protocol) => rule.ct_protocol(protocol.number()),
        PortsMatch::Range(protocol, first, last) => {
            rule.ct_protocol(protocol.number()).reply_sport(*first, *last)
        }
        PortsMatch::In(protocol, set) => {
            rule.ct_protocol(protocol.number())
                .in_set(family, &[Field::ReplySport], set)
        }
        PortsMatch::Named(protocol, set) => {
            rule.ct_protocol(protocol.number())
                .in_set(family, &[Field::ReplySaddr, Field::ReplySport], set)
        }
    };
    rule.accept().comment(words.clone())
}
