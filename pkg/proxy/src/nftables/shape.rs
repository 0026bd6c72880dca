//! Shapes: what is the same for many frontends, so that a few chains serve them all.
//!
//! A frontend's element in the map `services` (or `ports`) holds the code of its shape; the small verdict map
//! `dispatch` (or `port-dispatch`) sends a code to the chain of that shape. There is a chain for each endpoint count
//! that occurs, not for each service.

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
        let stay = |affinity: bool| {
            // The key holds the address even for node ports: one map serves both.
            let key = [Field::Saddr, Field::Daddr, Field::L4Proto, Field::Dport];
            affinity.then(|| rule().clear_priority().dnat_map(family, &key, AFFINITY_MAP))
        };
        match self {
            Self::Balance {
                count,
                affinity,
                choice,
            } => stay(affinity)
                .into_iter()
                .chain(pick(place, family, 0, (count, choice), rule))
                .collect(),
            Self::Policy {
                count,
                affinity,
                choice,
            } => {
                let mut rules: Vec<Rule> = stay(affinity).into_iter().collect();
                let of_family = |net: &&IpNet| Family::of(net.addr()) == family;
                for net in pod_networks.iter().filter(of_family) {
                    rules.extend(pick(place, family, 0, (count, choice), || rule().saddr(*net)));
                }
                rules.extend(pick(place, family, 0, (count, choice), || {
                    rule().from_this_host()
                }));
                rules.push(rule().goto(place.outside_chain()));
                rules
            }
            Self::Local { count, choice } => pick(place, family, LOCAL_POOL, (count, choice), rule).into(),
            Self::Drop | Self::LocalDrop => Vec::new(),
        }
    }
}

/// Rules that send a packet to one of `count` endpoints, whose indexes begin at `pool`.
///
/// A packet that found the shape before a change may look for its endpoint after it, when that index is gone: each lookup
/// sees the newest generation of the sets. The first index is there as long as there is any endpoint.
fn pick(
    place: Place,
    family: Family,
    pool: u32,
    (count, choice): (u16, Choice),
    rule: impl Fn() -> Rule,
) -> [Rule; 2] {
    let to = |count, choice: Choice| {
        let index = Field::Choice {
            by: choice.chosen_by(),
            modulus: count,
            offset: pool,
        };
        rule()
            .clear_priority()
            .dnat_map(family, &[place.key(), &[index]].concat(), place.endpoints())
    };
    [
        to(u32::from(count), choice),
        to(1, Choice::Random).comment("endpoints went in between the lookups"),
    ]
}

/// What a packet from outside comes to that found policy `Local` before a change and looks on after it, when the policy
/// is gone: see [`pick`].
pub(crate) fn policy_gone(place: Place, family: Family) -> Rule {
    let [_, first] = pick(place, family, 0, (1, Choice::Random), || {
        Rule::new(place.outside_chain())
    });
    first.comment("the policy went in between the lookups")
}

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
