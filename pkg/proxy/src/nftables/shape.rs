//! Shapes: what is the same for many frontends, so that a few chains serve them all.
//!
//! A frontend's element in the map `services` (or `ports`) holds the code of its shape; the small verdict map
//! `dispatch` (or `port-dispatch`) sends a code to the chain of that shape. There is a chain for each endpoint count
//! that occurs, not for each service.
//!
//! Such a chain chooses the index of an endpoint and looks nothing up itself: for a new rule that looks into a map, the
//! kernel walks all of the map (`nf_tables_bind_set`). With 300,000 endpoints, the first Service of a count that no other
//! had took 150 ms. So the priority carries the index on to a rule that is always there.

use std::fmt;

use ipnet::IpNet;
use svcnet_netlink::nft::{Family, Field, Rule, Verdict};

use super::choice::{Choice, LANES};

/// In front of every code: a packet's priority that somebody else has set must not look like one of ours.
const MAGIC: u32 = 0x5000_0000;
const MAGIC_MASK: u32 = 0xf000_0000;
const COUNT_MASK: u32 = 0x7fff;
const AFFINITY: u32 = 1 << 15;
const POLICY: u32 = 1 << 16;
const LOCAL: u32 = 1 << 17;
const DROP: u32 = 1 << 18;
const LOCAL_DROP: u32 = LOCAL | DROP;
const TURN: u32 = 1 << 19;
const SOURCE: u32 = 1 << 20;
const LANE_SHIFT: u32 = 21;
const _: () = assert!((LANES as u32) << LANE_SHIFT == 1 << 28);

/// Index of the first endpoint of the pool for those outside (policy `Local`); below it lies everyone's.
pub(crate) const LOCAL_POOL: u32 = 1 << 15;
/// A frontend uses no more endpoints than this.
pub(crate) const ENDPOINTS_MAX: usize = LOCAL_POOL as usize - 1;

/// Which of the endpoints of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Everyone's.
    All,
    /// Those for clients from outside, under policy `Local`.
    Local,
}

impl Pool {
    pub(crate) const ALL: [Self; 2] = [Self::All, Self::Local];

    /// Index of its first endpoint.
    fn first(self) -> u32 {
        match self {
            Self::All => 0,
            Self::Local => LOCAL_POOL,
        }
    }
}

/// Whether a frontend is an address or a port of each node; each has its own maps, since keys differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// An address.
    Address,
    /// A node port.
    NodePort,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::NodePort];

    /// The fields of a frontend's key.
    pub(crate) fn key(self) -> &'static [Field] {
        match self {
            Self::Address => &[Field::Daddr, Field::L4Proto, Field::Dport],
            Self::NodePort => &[Field::L4Proto, Field::Dport],
        }
    }

    /// The same, of the connection's first packet as its sender made it.
    pub(crate) fn original_key(self) -> &'static [Field] {
        match self {
            Self::Address => &[Field::OriginalDaddr, Field::L4Proto, Field::OriginalDport],
            Self::NodePort => &[Field::L4Proto, Field::OriginalDport],
        }
    }

    pub(crate) fn services(self) -> &'static str {
        match self {
            Self::Address => "services",
            Self::NodePort => "ports",
        }
    }

    pub(crate) fn endpoints(self) -> &'static str {
        match self {
            Self::Address => "endpoints",
            Self::NodePort => "port-endpoints",
        }
    }

    pub(crate) fn external(self) -> &'static str {
        match self {
            Self::Address => "external",
            Self::NodePort => "port-external",
        }
    }

    pub(crate) fn dispatch(self) -> &'static str {
        match self {
            Self::Address => "dispatch",
            Self::NodePort => "port-dispatch",
        }
    }

    /// The same for the shapes of `external`; apart, or the kernel would see a loop through policy chains.
    pub(crate) fn external_dispatch(self) -> &'static str {
        match self {
            Self::Address => "external-dispatch",
            Self::NodePort => "port-external-dispatch",
        }
    }

    pub(crate) fn refused(self) -> &'static str {
        match self {
            Self::Address => "refused",
            Self::NodePort => "port-refused",
        }
    }

    pub(crate) fn masquerade(self) -> &'static str {
        match self {
            Self::Address => "masquerade-all",
            Self::NodePort => "port-masquerade-all",
        }
    }

    pub(crate) fn masquerade_own(self) -> &'static str {
        match self {
            Self::Address => "masquerade-own",
            Self::NodePort => "port-masquerade-own",
        }
    }

    /// Where clients from outside are sent on to, under policy `Local`.
    pub(crate) fn outside_chain(self) -> &'static str {
        match self {
            Self::Address => "from-outside",
            Self::NodePort => "port-from-outside",
        }
    }

    /// Where it is sent to the endpoint whose index the priority holds; for `Local` of the pool for those outside.
    pub(crate) fn endpoint_chain(self, pool: Pool) -> &'static str {
        match (self, pool) {
            (Self::Address, Pool::All) => "endpoint",
            (Self::Address, Pool::Local) => "local-endpoint",
            (Self::NodePort, Pool::All) => "port-endpoint",
            (Self::NodePort, Pool::Local) => "port-local-endpoint",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Address => "",
            Self::NodePort => "port-",
        }
    }
}

/// What is done with a connection, up to which endpoints there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// To one of so many endpoints; one that stands at several indexes counts for each.
    Balance {
        /// How many.
        count: u16,
        /// Whether clients stay with theirs.
        affinity: bool,
        /// How one is chosen.
        choice: Choice,
    },
    /// The same for pods and this node; others by the map `external`.
    Policy {
        /// How many endpoints pods and this node can reach.
        count: u16,
        /// Whether clients stay with theirs.
        affinity: bool,
        /// How one is chosen.
        choice: Choice,
    },
    /// To one of so many endpoints of this node: what `external` holds.
    Local {
        /// How many.
        count: u16,
        /// How one is chosen.
        choice: Choice,
    },
    /// Nowhere.
    Drop,
    /// Nowhere, from outside: what `external` holds.
    LocalDrop,
}

impl Shape {
    /// The number that maps hold for it.
    pub(crate) fn code(self) -> u32 {
        let balanced = |count: u16, affinity: bool, choice: Choice| {
            let affinity = if affinity { AFFINITY } else { 0 };
            let choice = match choice {
                Choice::Random => 0,
                Choice::Turn { lane } => TURN | u32::from(lane) << LANE_SHIFT,
                Choice::Source => SOURCE,
            };
            u32::from(count) | affinity | choice
        };
        MAGIC
            | match self {
                Self::Balance {
                    count,
                    affinity,
                    choice,
                } => balanced(count, affinity, choice),
                Self::Policy {
                    count,
                    affinity,
                    choice,
                } => balanced(count, affinity, choice) | POLICY,
                Self::Local { count, choice } => balanced(count, false, choice) | LOCAL,
                Self::Drop => DROP,
                Self::LocalDrop => LOCAL_DROP,
            }
    }

    /// The shape of that number, if it is one.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        let count = u16::try_from(code & COUNT_MASK).ok()?;
        let affinity = code & AFFINITY != 0;
        let choice = match code & (TURN | SOURCE) {
            0 => Choice::Random,
            TURN => Choice::Turn {
                lane: u8::try_from((code & !MAGIC_MASK) >> LANE_SHIFT).ok()?,
            },
            SOURCE => Choice::Source,
            _ => return None,
        };
        let shape = match code & (POLICY | LOCAL | DROP) {
            0 => Self::Balance {
                count,
                affinity,
                choice,
            },
            POLICY => Self::Policy {
                count,
                affinity,
                choice,
            },
            LOCAL => Self::Local { count, choice },
            DROP => Self::Drop,
            LOCAL_DROP => Self::LocalDrop,
            _ => return None,
        };
        (code & MAGIC_MASK == MAGIC && shape.code() == code).then_some(shape)
    }

    /// The map that leads from its code to its chain.
    pub(crate) fn dispatch(self, place: Place) -> &'static str {
        match self {
            Self::Balance { .. } | Self::Policy { .. } | Self::Drop => place.dispatch(),
            Self::Local { .. } | Self::LocalDrop => place.external_dispatch(),
        }
    }

    /// What that map says for it.
    pub(crate) fn verdict(self, place: Place) -> Verdict {
        self.chain(place).map_or(Verdict::Drop, Verdict::Goto)
    }

    /// The chain that does it.
    pub(crate) fn chain(self, place: Place) -> Option<String> {
        (!matches!(self, Self::Drop | Self::LocalDrop)).then(|| format!("{}{self}", place.prefix()))
    }

    /// The rules of its chain.
    pub(crate) fn rules(self, place: Place, family: Family, pod_networks: &[IpNet]) -> Vec<Rule> {
        let Some(chain) = self.chain(place) else {
            return Vec::new();
        };
        let rule = || Rule::new(chain.clone());
        let stay = |affinity: bool| affinity.then(|| rule().jump(STICKY));
        let choose = |rule: Rule, pool: Pool, count: u16, choice: Choice| {
            let index = Field::Choice {
                by: choice.chosen_by(),
                modulus: u32::from(count),
                offset: index_code(pool.first()),
            };
            rule.set_priority(family, index).goto(place.endpoint_chain(pool))
        };
        match self {
            Self::Balance {
                count,
                affinity,
                choice,
            } => stay(affinity)
                .into_iter()
                .chain([choose(rule(), Pool::All, count, choice)])
                .collect(),
            Self::Policy {
                count,
                affinity,
                choice,
            } => {
                let mut rules: Vec<Rule> = stay(affinity).into_iter().collect();
                let of_family = |net: &&IpNet| Family::of(net.addr()) == family;
                let pods = pod_networks.iter().filter(of_family);
                rules.extend(pods.map(|net| choose(rule().saddr(*net), Pool::All, count, choice)));
                rules.push(choose(rule().from_this_host(), Pool::All, count, choice));
                rules.push(rule().goto(place.outside_chain()));
                rules
            }
            Self::Local { count, choice } => vec![choose(rule(), Pool::Local, count, choice)],
            Self::Drop | Self::LocalDrop => Vec::new(),
        }
    }
}

/// Rules that send a packet to the endpoint whose index was chosen.
///
/// A packet that found the shape before a change may look for its endpoint after it, when that index is gone: each lookup
/// sees the newest generation of the sets. The first index is there as long as there is any endpoint.
pub(crate) fn to_endpoint(place: Place, family: Family, pool: Pool) -> [Rule; 2] {
    let rule = || Rule::new(place.endpoint_chain(pool));
    [
        found(rule(), place, family).comment("the endpoint that was chosen"),
        to_first(rule(), place, family, pool).comment("endpoints went in between the lookups"),
    ]
}

fn to_first(rule: Rule, place: Place, family: Family, pool: Pool) -> Rule {
    found(rule.set_priority_to(index_code(pool.first())), place, family)
}

fn found(rule: Rule, place: Place, family: Family) -> Rule {
    rule.dnat_map(
        family,
        &[place.key(), &[Field::Priority]].concat(),
        place.endpoints(),
    )
}

/// The number that stands for the index of an endpoint, as the priority carries it and maps are keyed by it.
pub(crate) const fn index_code(index: u32) -> u32 {
    MAGIC | index
}

/// The index of that number.
pub(crate) const fn index_of(code: u32) -> u32 {
    code & !MAGIC_MASK
}

/// What clears the priority when everything has been looked up. Not before, for a rule that goes on to an endpoint ends
/// there; so it belongs into a chain behind.
pub(crate) fn clear(rule: Rule) -> Rule {
    let ours = rule.priority_masked(MAGIC_MASK, MAGIC);
    ours.clear_priority().comment("all is looked up")
}

/// What a packet from outside comes to that found policy `Local` before a change and looks on after it, when the policy
/// is gone: see [`to_endpoint`].
pub(crate) fn policy_gone(place: Place, family: Family) -> Rule {
    to_first(Rule::new(place.outside_chain()), place, family, Pool::All)
        .comment("the policy went in between the lookups")
}

/// The rule that sends a client to the endpoint that it stays with, if there is one.
pub(crate) fn stay_with(family: Family) -> Rule {
    // The key holds the address even for node ports: one map serves both.
    let key = [Field::Saddr, Field::Daddr, Field::L4Proto, Field::Dport];
    Rule::new(STICKY).dnat_map(family, &key, AFFINITY_MAP)
}

/// Chain of that rule.
pub(crate) const STICKY: &str = "sticky";
/// Which client stays with which endpoint.
pub(crate) const AFFINITY_MAP: &str = "affinity";

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let affinity_word = |affinity: bool| if affinity { "sticky-" } else { "" };
        match self {
            Self::Balance {
                count,
                affinity,
                choice,
            } => write!(f, "{}{choice}n{count}", affinity_word(*affinity)),
            Self::Policy {
                count,
                affinity,
                choice,
            } => write!(f, "policy-{}{choice}n{count}", affinity_word(*affinity)),
            Self::Local { count, choice } => write!(f, "local-{choice}n{count}"),
            Self::Drop => f.write_str("drop"),
            Self::LocalDrop => f.write_str("local-drop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For a rule that looks into a map the kernel walks all of it.
    #[test]
    fn chains_that_come_and_go_look_nothing_up() {
        let (count, affinity) = (3, true);
        let pods = ["10.244.0.0/16".parse().unwrap()];
        for choice in [Choice::Random, Choice::Turn { lane: 1 }, Choice::Source] {
            let shapes = [
                Shape::Balance {
                    count,
                    affinity,
                    choice,
                },
                Shape::Policy {
                    count,
                    affinity,
                    choice,
                },
                Shape::Local { count, choice },
            ];
            for shape in shapes {
                let rules = shape.rules(Place::Address, Family::Ip, &pods);
                assert!(!rules.is_empty());
                assert!(!format!("{rules:?}").contains("Lookup"), "{rules:#?}");
            }
        }
        let static_rule = to_endpoint(Place::Address, Family::Ip, Pool::All);
        assert!(format!("{static_rule:?}").contains("Lookup"), "it would be seen");
    }

    #[test]
    fn codes_come_back_and_strangers_are_not_ours() {
        let choices = [
            Choice::Random,
            Choice::Turn { lane: 0 },
            Choice::Turn { lane: LANES - 1 },
            Choice::Source,
        ];
        let mut codes = std::collections::BTreeSet::new();
        let mut shapes = vec![Shape::Drop, Shape::LocalDrop];
        for (count, choice) in [1, 3, 4095, 32767]
            .into_iter()
            .flat_map(|n| choices.map(|c| (n, c)))
        {
            for affinity in [false, true] {
                shapes.push(Shape::Balance {
                    count,
                    affinity,
                    choice,
                });
                shapes.push(Shape::Policy {
                    count,
                    affinity,
                    choice,
                });
            }
            shapes.push(Shape::Local { count, choice });
        }
        for shape in shapes {
            assert_eq!(Shape::from_code(shape.code()), Some(shape));
            assert!(codes.insert(shape.code()), "{shape} has a code of its own");
        }
        for foreign in [
            0,
            3,
            6,
            0x0001_0003,
            0x500c_0001,
            0x5018_0001,
            0x5020_0001,
            0x5002_8001,
            u32::MAX,
        ] {
            assert_eq!(Shape::from_code(foreign), None, "{foreign:#x}");
        }
    }
}
