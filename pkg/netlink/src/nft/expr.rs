//! Expressions: what rules are made of. Numbers as in include/uapi/linux/netfilter/nf_tables.h.
//!
//! Registers are numbered in words of four bytes. A concatenation is nothing but neighbouring registers, each field
//! padded to a word: [`Reg::W0`] on, as `nft` lays it out, so that `nft list ruleset` recognises it.

use super::attr::Writer;
use super::object::{Family, Verdict};

/// A data register of four bytes; an IPv6 address fills four of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(u8);

impl Reg {
    /// The first word: where matches and concatenations begin.
    pub const W0: Self = Self(0);

    /// The word at this distance, counted in words.
    pub const fn plus(self, words: u8) -> Self {
        Self(self.0 + words)
    }

    /// `NFT_REG32_00` is 8.
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// The Ethernet header.
    Link,
    /// The IP header, or ARP's.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// `NFT_META_…`: what is known about a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetaKey {
    /// Traffic class, `skb->priority`.
    Priority = 2,
    /// Firewall mark.
    Mark = 3,
    /// Index of the incoming link.
    Iif = 4,
    /// Name of the incoming link.
    IifName = 6,
    /// Name of the outgoing link.
    OifName = 7,
    /// Protocol above IP.
    L4Proto = 16,
}

/// `NFT_CT_…`: what conntrack knows about a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CtKey {
    /// New, established, …: a bit set.
    State = 0,
    /// Translated, confirmed, …: a bit set.
    Status = 2,
    /// Protocol above IP.
    Protocol = 10,
    /// Port that the connection came from.
    ProtoSrc = 11,
    /// Port that the connection went to.
    ProtoDst = 12,
    /// IPv4 source.
    SrcIp = 19,
    /// IPv4 destination.
    DstIp = 20,
    /// IPv6 source.
    SrcIp6 = 21,
    /// IPv6 destination.
    DstIp6 = 22,
}

/// Bit of `ct state new` (`NF_CT_STATE_BIT(IP_CT_NEW)` as nf_tables counts it).
pub const CT_STATE_NEW: u32 = 8;
/// Bits of `ct state invalid,untracked`: packets without a connection.
pub const CT_STATE_NONE: u32 = 1 | 64;
/// Bit of `ct status dnat` (`IPS_DST_NAT`).
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// Result of `fib … type` for an address of this host (`RTN_LOCAL`).
pub const RTN_LOCAL: u32 = 2;
/// `fully-random` port choice (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
pub const NAT_FULLY_RANDOM: u32 = 1 << 4;

/// How values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CmpOp {
    /// `==`
    Eq = 0,
    /// `!=`
    Ne = 1,
    /// `<=`, of bytes in network order.
    Le = 3,
    /// `>=`, of bytes in network order.
    Ge = 5,
}

/// How a number is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Numgen {
    /// One after the other.
    Incremental = 0,
    /// At random.
    Random = 1,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// TCP reset.
    TcpReset,
    /// ICMP or ICMPv6 port unreachable, by the family of the table.
    PortUnreachable(Family),
}

/// What a dynamic set is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DynsetOp {
    /// Adds an element; one that is there stays as it is.
    Add = 0,
    /// Adds an element, or begins the timeout of the one that is there anew (its data stays).
    Update = 1,
    /// Removes an element.
    Delete = 2,
}

/// What `fib` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FibOf {
    /// The kind of the source address.
    Source,
    /// The kind of the destination address.
    Destination,
}

/// One expression. A rule's expressions run in order; the first that does not match ends the rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Where the offset counts from.
        header: Header,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Destination.
        reg: Reg,
    },
    /// Writes an address into the IP header; the checksums follow, the one above and that of IPv4's header.
    PayloadSet {
        /// Of the address.
        family: Family,
        /// First byte.
        offset: u32,
        /// Source.
        reg: Reg,
    },
    /// Loads a meta value.
    Meta {
        /// Which.
        key: MetaKey,
        /// Destination.
        reg: Reg,
    },
    /// Sets a meta value.
    MetaSet {
        /// Which.
        key: MetaKey,
        /// Source.
        reg: Reg,
    },
    /// Loads a value of the connection.
    Ct {
        /// Which.
        key: CtKey,
        /// Whether it is that of the original direction (addresses and ports have one, states have none).
        original: bool,
        /// Destination.
        reg: Reg,
    },
    /// Loads a value of the connection in the direction of answers: whoever it goes to, after translation, is the source.
    CtReply {
        /// Which.
        key: CtKey,
        /// Destination.
        reg: Reg,
    },
    /// Compares a register with bytes.
    Cmp {
        /// The register.
        reg: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        data: Vec<u8>,
    },
    /// Keeps the masked bits of a register.
    Mask {
        /// The register, in place.
        reg: Reg,
        /// What stays.
        mask: Vec<u8>,
    },
    /// Looks a key up: without a destination a test, with one a map whose value it holds afterwards.
    Lookup {
        /// The set.
        set: String,
        /// The key.
        key: Reg,
        /// Where a data map's value goes.
        value: Option<Reg>,
        /// Whether a miss is what matches.
        invert: bool,
    },
    /// Looks a verdict up and follows it.
    Vmap {
        /// The map.
        set: String,
        /// The key.
        key: Reg,
    },
    /// Loads a constant.
    Immediate {
        /// Destination.
        reg: Reg,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Chooses one of `modulus` numbers.
    Numgen {
        /// How.
        kind: Numgen,
        /// Bound.
        modulus: u32,
        /// Added to it.
        offset: u32,
        /// Destination, in host byte order.
        reg: Reg,
    },
    /// Jenkins hash of registers below `modulus`.
    Hash {
        /// First register of what is hashed.
        source: Reg,
        /// Bytes of it.
        len: u32,
        /// Bound.
        modulus: u32,
        /// Seed: the same on each host for the same choice.
        seed: u32,
        /// Added to it.
        offset: u32,
        /// Destination.
        reg: Reg,
    },
    /// Translates the destination.
    Dnat {
        /// Family of the address.
        family: Family,
        /// Register of the new address.
        addr: Reg,
        /// Register of the new port.
        port: Reg,
    },
    /// Translates the source to the address of the outgoing link.
    Masquerade {
        /// `NF_NAT_RANGE_…`, or 0.
        flags: u32,
    },
    /// Translates the destination to this host, by an address of the link that the packet came in by.
    Redirect,
    /// Refuses the packet so that the sender knows.
    Reject(Reject),
    /// Loads the kind of an address (`RTN_…`).
    Fib {
        /// Of which address.
        of: FibOf,
        /// Destination.
        reg: Reg,
    },
    /// Writes to a dynamic set.
    Dynset {
        /// The set.
        set: String,
        /// What to do.
        op: DynsetOp,
        /// The key.
        key: Reg,
        /// The value, for maps.
        data: Option<Reg>,
        /// How long the element stays.
        timeout_ms: Option<u64>,
    },
    /// Counts packets and bytes.
    Counter,
    /// Loads the largest TCP segment that both ways of the connection carry (`rt mtu` after a match on TCP), of two bytes in
    /// host byte order.
    RouteMss {
        /// Destination.
        reg: Reg,
    },
    /// Lowers the option of a TCP header that says the largest segment; it never raises it.
    LowerMss {
        /// Source, of two bytes in network byte order.
        reg: Reg,
    },
    /// Swaps the bytes of numbers of two bytes between host and network order.
    Swap16 {
        /// The register, in place.
        reg: Reg,
    },
}

impl Expr {
    /// Writes the expression as one element of a rule's list.
    pub(crate) fn encode(&self, list: &mut Writer<'_>) {
        const LIST_ELEM: u16 = 1;
        const EXPR_NAME: u16 = 1;
        const EXPR_DATA: u16 = 2;
        list.nest(LIST_ELEM, |w| {
            w.text(EXPR_NAME, self.name()).nest(EXPR_DATA, |w| self.body(w));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } | Self::PayloadSet { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } | Self::CtReply { .. } => "ct",
            Self::Cmp { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Lookup { .. } | Self::Vmap { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Numgen { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Dnat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Redirect => "redir",
            Self::Reject(_) => "reject",
            Self::Fib { .. } => "fib",
            Self::Dynset { .. } => "dynset",
            Self::Counter => "counter",
            Self::RouteMss { .. } => "rt",
            Self::LowerMss { .. } => "exthdr",
            Self::Swap16 { .. } => "byteorder",
        }
    }

    fn body(&self, w: &mut Writer<'_>) {
        match self {
            Self::Payload {
                header,
                offset,
                len,
                reg,
            } => {
                let base = match header {
                    Header::Link => 0,
                    Header::Network => 1,
                    Header::Transport => 2,
                };
                w.be32(1, reg.number())
                    .be32(2, base)
                    .be32(3, *offset)
                    .be32(4, *len);
            }
            Self::PayloadSet { family, offset, reg } => {
                // NFT_PAYLOAD_CSUM_INET at its offset, or NFT_PAYLOAD_CSUM_NONE
                let (len, [checksum, at]) = match family {
                    Family::Ip => (4, [1, 10]),
                    Family::Ip6 => (16, [0, 0]),
                };
                // NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_L4CSUM_PSEUDOHDR
                w.be32(2, 1).be32(3, *offset).be32(4, len);
                w.be32(5, reg.number()).be32(6, checksum).be32(7, at).be32(8, 1);
            }
            Self::Meta { key, reg } => {
                w.be32(1, reg.number()).be32(2, *key as u32);
            }
            Self::MetaSet { key, reg } => {
                w.be32(2, *key as u32).be32(3, reg.number());
            }
            Self::Ct { key, original, reg } => {
                w.be32(1, reg.number()).be32(2, *key as u32);
                if *original {
                    // IP_CT_DIR_ORIGINAL; the one number of an expression that is a single byte.
                    w.raw(3, &[0]);
                }
            }
            // IP_CT_DIR_REPLY
            Self::CtReply { key, reg } => {
                w.be32(1, reg.number()).be32(2, *key as u32).raw(3, &[1]);
            }
            Self::Cmp { reg, op, data } => {
                w.be32(1, reg.number())
                    .be32(2, *op as u32)
                    .nest(3, |w| value(w, data));
            }
            Self::Mask { reg, mask } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                w.be32(1, reg.number()).be32(2, reg.number()).be32(3, len);
                w.nest(4, |w| value(w, mask))
                    .nest(5, |w| value(w, &vec![0; mask.len()]));
            }
            Self::Lookup { .. } | Self::Vmap { .. } | Self::Dynset { .. } => self.set_body(w),
            _ => self.value_body(w),
        }
    }

    /// What makes values, and what is done with a packet.
    fn value_body(&self, w: &mut Writer<'_>) {
        match self {
            Self::Immediate { reg, data } => {
                w.be32(1, reg.number()).nest(2, |w| value(w, data));
            }
            Self::Verdict(verdict) => {
                w.be32(1, VERDICT_REGISTER).nest(2, |w| verdict.encode(w));
            }
            Self::Numgen {
                kind,
                modulus,
                offset,
                reg,
            } => {
                w.be32(1, reg.number())
                    .be32(2, *modulus)
                    .be32(3, *kind as u32)
                    .be32(4, *offset);
            }
            Self::Hash {
                source,
                len,
                modulus,
                seed,
                offset,
                reg,
            } => {
                w.be32(1, source.number())
                    .be32(2, reg.number())
                    .be32(3, *len)
                    .be32(4, *modulus);
                w.be32(5, *seed).be32(6, *offset).be32(7, 0);
            }
            Self::Dnat { family, addr, port } => {
                w.be32(1, 1).be32(2, u32::from(family.number()));
                w.be32(3, addr.number()).be32(5, port.number());
            }
            Self::Masquerade { flags } if *flags != 0 => {
                w.be32(1, *flags);
            }
            Self::Reject(reject) => {
                let (kind, code) = match reject {
                    Reject::TcpReset => (1, 0),
                    Reject::PortUnreachable(Family::Ip6) => (0, 4),
                    Reject::PortUnreachable(Family::Ip) => (0, 3),
                };
                w.be32(1, kind).raw(2, &[code]);
            }
            Self::Fib { of, reg } => {
                let flags = match of {
                    FibOf::Source => 1,
                    FibOf::Destination => 2,
                };
                // NFT_FIB_RESULT_ADDRTYPE
                w.be32(1, reg.number()).be32(2, 3).be32(3, flags);
            }
            Self::Counter => {
                w.be64(1, 0).be64(2, 0);
            }
            _ => self.segment_body(w),
        }
    }

    /// What works on the size of TCP segments.
    fn segment_body(&self, w: &mut Writer<'_>) {
        match self {
            // NFT_RT_TCPMSS
            Self::RouteMss { reg } => {
                w.be32(1, reg.number()).be32(2, 3);
            }
            // TCPOPT_MAXSEG, its two bytes behind kind and length, NFT_EXTHDR_OP_TCPOPT
            Self::LowerMss { reg } => {
                w.raw(2, &[2])
                    .be32(3, 2)
                    .be32(4, 2)
                    .be32(6, 1)
                    .be32(7, reg.number());
            }
            // NFT_BYTEORDER_HTON
            Self::Swap16 { reg } => {
                w.be32(1, reg.number()).be32(2, reg.number()).be32(3, 1);
                w.be32(4, 2).be32(5, 2);
            }
            _ => {}
        }
    }

    /// What works on sets.
    fn set_body(&self, w: &mut Writer<'_>) {
        match self {
            Self::Lookup {
                set,
                key,
                value,
                invert,
            } => {
                w.text(1, set).be32(2, key.number());
                if let Some(value) = value {
                    w.be32(3, value.number());
                }
                w.be32(5, u32::from(*invert));
            }
            Self::Vmap { set, key } => {
                w.text(1, set)
                    .be32(2, key.number())
                    .be32(3, VERDICT_REGISTER)
                    .be32(5, 0);
            }
            Self::Dynset {
                set,
                op,
                key,
                data,
                timeout_ms,
            } => {
                w.text(1, set).be32(3, *op as u32).be32(4, key.number());
                if let Some(data) = data {
                    w.be32(5, data.number());
                }
                if let Some(timeout) = timeout_ms {
                    w.be64(6, *timeout);
                }
            }
            _ => {}
        }
    }
}

/// `NFT_REG_VERDICT`
const VERDICT_REGISTER: u32 = 0;

/// `NFTA_DATA_VALUE`
fn value(w: &mut Writer<'_>, data: &[u8]) {
    w.raw(1, data);
}
