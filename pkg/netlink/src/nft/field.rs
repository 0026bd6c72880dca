//! What rules look things up by: fields of packets, of connections and of links, and numbers that are chosen.

use super::expr::{CtKey, Expr, Header, MetaKey, Numgen, Reg};
use super::object::Family;

/// One field of a concatenation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ip saddr` or `ip6 saddr`.
    Saddr,
    /// `ip daddr` or `ip6 daddr`.
    Daddr,
    /// `meta l4proto`
    L4Proto,
    /// `th dport`
    Dport,
    /// `ct original ip daddr`
    OriginalDaddr,
    /// `ct original proto-dst`; prints only after a match on the protocol.
    OriginalDport,
    /// `ct original ip saddr`: who the connection came from, before translation.
    OriginalSaddr,
    /// `ct reply ip saddr`: whom the connection goes to, after translation.
    ReplySaddr,
    /// `ct reply proto-src`: the port that it goes to, after translation; prints only after a match on the protocol.
    ReplySport,
    /// `iifname`
    InLink,
    /// `ether saddr`
    EtherSaddr,
    /// `arp saddr ether`
    ArpSaddrEther,
    /// `arp saddr ip`
    ArpSaddrIp,
    /// Whom a neighbour advertisement speaks for, `@th,64,128`.
    NdTarget,
    /// `meta priority`
    Priority,
    /// `numgen random mod N`
    RandomBelow(u32),
    /// A number that is chosen in some way from `offset` on.
    Choice {
        /// How.
        by: ChosenBy,
        /// How many numbers there are.
        modulus: u32,
        /// The lowest of them.
        offset: u32,
    },
}

/// How a number is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChosenBy {
    /// `numgen random mod N offset M`
    Random,
    /// `numgen inc mod N offset M`: one after the other, counted for each rule.
    Turn,
    /// `jhash ip saddr mod N seed S offset M`: the same for a source on every host.
    Source,
}

/// Seed of [`ChosenBy::Source`]; any will do, if it is the same everywhere.
const SOURCE_SEED: u32 = 0x7376_6373;

impl Field {
    /// The expression that loads it, and how many words it fills.
    pub(super) fn load(self, family: Family, reg: Reg) -> (Expr, u8) {
        let address = |source: bool| {
            let (offset, len) = match (family, source) {
                (Family::Ip, true) => (12, 4),
                (Family::Ip, false) => (16, 4),
                (Family::Ip6, true) => (8, 16),
                (Family::Ip6, false) => (24, 16),
            };
            Expr::Payload {
                header: Header::Network,
                offset,
                len,
                reg,
            }
        };
        let words = match family {
            Family::Ip => 1,
            Family::Ip6 => 4,
        };
        match self {
            Self::Saddr => (address(true), words),
            Self::Daddr => (address(false), words),
            Self::L4Proto => (
                Expr::Meta {
                    key: MetaKey::L4Proto,
                    reg,
                },
                1,
            ),
            Self::Dport => (
                Expr::Payload {
                    header: Header::Transport,
                    offset: 2,
                    len: 2,
                    reg,
                },
                1,
            ),
            Self::OriginalDaddr => {
                let key = match family {
                    Family::Ip => CtKey::DstIp,
                    Family::Ip6 => CtKey::DstIp6,
                };
                (
                    Expr::Ct {
                        key,
                        original: true,
                        reg,
                    },
                    words,
                )
            }
            Self::OriginalDport => (
                Expr::Ct {
                    key: CtKey::ProtoDst,
                    original: true,
                    reg,
                },
                1,
            ),
            Self::RandomBelow(modulus) => (numbered(Numgen::Random, modulus, 0, reg), 1),
            Self::Choice { by, modulus, offset } => {
                (by.number(u32::from(words) * 4, modulus, offset, reg), 1)
            }
            _ => self.load_end(family, reg),
        }
    }

    /// What must be loaded into the register behind it before.
    pub(super) fn hashed(self, family: Family, reg: Reg) -> Option<Expr> {
        match self {
            Self::Choice {
                by: ChosenBy::Source, ..
            } => Some(Self::Saddr.load(family, reg.plus(1)).0),
            _ => None,
        }
    }
}

impl ChosenBy {
    /// The expression that makes the number; an address of `len` bytes lies in the register behind it.
    fn number(self, len: u32, modulus: u32, offset: u32, reg: Reg) -> Expr {
        match self {
            Self::Random => numbered(Numgen::Random, modulus, offset, reg),
            Self::Turn => numbered(Numgen::Incremental, modulus, offset, reg),
            Self::Source => Expr::Hash {
                source: reg.plus(1),
                len,
                modulus,
                seed: SOURCE_SEED,
                offset,
                reg,
            },
        }
    }
}

fn numbered(kind: Numgen, modulus: u32, offset: u32, reg: Reg) -> Expr {
    Expr::Numgen {
        kind,
        modulus,
        offset,
        reg,
    }
}
