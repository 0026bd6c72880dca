//! Tables, chains, sets and rules as values.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use super::attr::Writer;
use super::expr::Expr;
use super::userdata::{self, ByteOrder, TypeOf};

/// Family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// `NFPROTO_…`, which for these is `AF_…`.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Ip, Self::Ip6].into_iter().find(|f| f.number() == number)
    }

    /// The family that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv6() { Self::Ip6 } else { Self::Ip }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// A table: the unit that one owner has to itself. It outlives the process that made it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Family: of its packets, or, in a table of bridges, of nothing in particular.
    pub family: Family,
    /// Name.
    pub name: Cow<'static, str>,
    /// Whether it sees the frames of bridges instead of the packets of a family.
    pub bridge: bool,
}

impl Table {
    /// A table of that name.
    pub const fn new(family: Family, name: &'static str) -> Self {
        Self {
            family,
            name: Cow::Borrowed(name),
            bridge: false,
        }
    }

    /// A table of that name that sees the frames of bridges (`nft`'s family `bridge`).
    pub const fn bridge(name: &'static str) -> Self {
        Self {
            family: Family::Ip,
            name: Cow::Borrowed(name),
            bridge: true,
        }
    }

    /// `NFPROTO_…`
    pub(crate) fn protocol(&self) -> u8 {
        const NFPROTO_BRIDGE: u8 = 7;
        if self.bridge {
            NFPROTO_BRIDGE
        } else {
            self.family.number()
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bridge {
            return write!(f, "bridge {}", self.name);
        }
        write!(f, "{} {}", self.family, self.name)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes on to the next base chain.
    Accept,
    /// It is gone.
    Drop,
    /// Back to where the chain was called from.
    Return,
    /// Into a chain, and back at its end.
    Jump(String),
    /// Into a chain for good.
    Goto(String),
}

impl Verdict {
    /// `NFTA_DATA_VERDICT` with code and chain.
    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0i32, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        w.nest(2, |w| {
            w.raw(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                w.text(2, chain);
            }
        });
    }

    pub(crate) fn decode(code: i32, chain: Option<&str>) -> Option<Self> {
        Some(match (code, chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-3, Some(chain)) => Self::Jump(chain.to_string()),
            (-4, Some(chain)) => Self::Goto(chain.to_string()),
            (-5, _) => Self::Return,
            _ => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Accept, drop, reject: every packet comes by.
    Filter,
    /// Translate: only the first packet of a connection comes by.
    Nat,
}

/// Where in a packet's way a base chain stands (`NF_INET_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hook {
    /// Arrived, before routing.
    Prerouting = 0,
    /// Routed to this host.
    Input = 1,
    /// Routed through this host.
    Forward = 2,
    /// Made by this host.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// A chain's place in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it stands.
    pub hook: Hook,
    /// Order among the chains of the hook.
    pub priority: i32,
}

/// Priority of `raw` (`NF_IP_PRI_RAW`): before connections are tracked.
pub const PRIORITY_RAW: i32 = -300;
/// Priority of `filter` (`NF_IP_PRI_FILTER`): addresses are translated to what they go to, and not yet to where they
/// seem to come from.
pub const PRIORITY_FILTER: i32 = 0;
/// Priority of `dstnat` (`NF_IP_PRI_NAT_DST`).
pub const PRIORITY_DSTNAT: i32 = -100;
/// Priority of `srcnat` (`NF_IP_PRI_NAT_SRC`).
pub const PRIORITY_SRCNAT: i32 = 100;

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its hook; a chain without one is only jumped to. The policy is accept: what is not ours is not judged.
    pub base: Option<Base>,
}

impl Chain {
    /// A chain to jump to.
    pub fn regular(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            base: None,
        }
    }

    /// A chain in the packet's way.
    pub fn base(name: impl Into<Cow<'static, str>>, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self {
            name: name.into(),
            base: Some(Base { kind, hook, priority }),
        }
    }
}

/// Type of one field of a key or value (`enum datatypes` of nft), as it prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `ether_addr`
    Ether,
    /// `ifname`
    IfName,
    /// `inet_proto`
    Proto,
    /// `inet_service`
    Port,
    /// A number; prints only where the set has a [`TypeOf`] for it.
    Integer,
    /// `mark`
    Mark,
    /// `classid`, the type of `meta priority`: prints as `major:minor`.
    ClassId,
}

impl DataType {
    fn number(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::ClassId => 23,
            Self::IfName => 41,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::Proto => 1,
            Self::Port => 2,
            Self::Ipv4 | Self::Integer | Self::Mark | Self::ClassId => 4,
            Self::Ether => 6,
            Self::Ipv6 | Self::IfName => 16,
        }
    }

    fn byte_order(self) -> ByteOrder {
        match self {
            Self::Integer | Self::Mark | Self::ClassId | Self::IfName => ByteOrder::Host,
            Self::Proto | Self::Port | Self::Ipv4 | Self::Ipv6 | Self::Ether => ByteOrder::Big,
        }
    }
}

/// What a map holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapOf {
    /// Values of these types.
    Data(&'static [DataType]),
    /// Verdicts. Keep such maps small: adding a jump makes the kernel walk every verdict map of the table.
    Verdict,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Fields of the key.
    pub key: &'static [DataType],
    /// For maps, what the elements hold.
    pub map: Option<MapOf>,
    /// How the key prints, where its types do not say it.
    pub key_typeof: &'static [TypeOf],
    /// How the data prints; needed where the key has a `typeof`.
    pub data_typeof: &'static [TypeOf],
    /// Whether rules add elements, which then leave again: `flags dynamic,timeout`, with this many at most.
    pub dynamic: Option<u32>,
    /// Whether keys are ranges, each field with an end of its own.
    pub interval: bool,
    /// What it is for.
    pub comment: Option<&'static str>,
}

impl Set {
    /// A set of keys.
    pub const fn of(name: &'static str, key: &'static [DataType]) -> Self {
        Self {
            name: Cow::Borrowed(name),
            key,
            map: None,
            key_typeof: &[],
            data_typeof: &[],
            dynamic: None,
            interval: false,
            comment: None,
        }
    }

    /// A map from keys to values.
    pub const fn map(name: &'static str, key: &'static [DataType], map: MapOf) -> Self {
        let mut set = Self::of(name, key);
        set.map = Some(map);
        set
    }

    /// With a word on what it is for.
    #[must_use]
    pub const fn comment(mut self, comment: &'static str) -> Self {
        self.comment = Some(comment);
        self
    }

    /// With the expressions that its fields print as.
    #[must_use]
    pub const fn type_of(mut self, key: &'static [TypeOf], data: &'static [TypeOf]) -> Self {
        self.key_typeof = key;
        self.data_typeof = data;
        self
    }

    /// Written by rules, with elements that time out.
    #[must_use]
    pub const fn dynamic(mut self, size_max: u32) -> Self {
        self.dynamic = Some(size_max);
        self
    }

    /// With ranges for keys.
    #[must_use]
    pub const fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    /// `NFT_SET_…`
    fn flags(&self) -> u32 {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        const CONCAT: u32 = 0x80;
        let mut flags = 0;
        if self.map.is_some() {
            flags |= MAP;
        }
        if self.dynamic.is_some() {
            flags |= TIMEOUT | EVAL;
        }
        if self.interval {
            flags |= INTERVAL;
            if self.key.len() > 1 {
                flags |= CONCAT;
            }
        }
        flags
    }

    pub(crate) fn encode(&self, table: &str, id: u32, w: &mut Writer<'_>) {
        let (key_type, key_len) = layout(self.key);
        w.text(1, table).text(2, &self.name).be32(3, self.flags());
        w.be32(4, key_type).be32(5, key_len);
        match self.map {
            Some(MapOf::Data(fields)) => {
                let (data_type, data_len) = layout(fields);
                w.be32(6, data_type).be32(7, data_len);
            }
            // NFT_DATA_VERDICT
            Some(MapOf::Verdict) => {
                w.be32(6, 0xffff_ff00).be32(7, 16);
            }
            None => {}
        }
        w.be32(10, id);
        if self.dynamic.is_some() || self.interval {
            w.nest(9, |w| self.describe(w));
        }
        w.raw(13, &self.userdata());
    }

    /// `NFTA_SET_DESC`
    fn describe(&self, w: &mut Writer<'_>) {
        if let Some(size) = self.dynamic {
            w.be32(1, size);
        }
        if self.interval && self.key.len() > 1 {
            w.nest(2, |w| {
                for field in self.key {
                    w.nest(1, |w| {
                        w.be32(1, field.len());
                    });
                }
            });
        }
    }

    fn userdata(&self) -> Vec<u8> {
        let order = |fields: &[DataType]| match fields {
            [field] => field.byte_order(),
            _ => ByteOrder::Unspecified,
        };
        let data = match self.map {
            Some(MapOf::Data(fields)) => Some((order(fields), self.data_typeof)),
            Some(MapOf::Verdict) => Some((ByteOrder::Unspecified, self.data_typeof)),
            None => None,
        };
        userdata::set((order(self.key), self.key_typeof), data, self.comment)
    }
}

/// Type number and length of a row of fields: six bits each, and each padded to a word.
fn layout(fields: &[DataType]) -> (u32, u32) {
    if let [field] = fields {
        return (field.number(), field.len());
    }
    fields.iter().fold((0, 0), |(kind, len), f| {
        (kind << 6 | f.number(), len + f.len().next_multiple_of(4))
    })
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The chain that it is appended to.
    pub chain: Cow<'static, str>,
    /// What it does, in order.
    pub exprs: Vec<Expr>,
    /// Why; also how a rule is recognised when the ruleset is read back.
    pub comment: Option<Cow<'static, str>>,
}

impl Rule {
    /// An empty rule for a chain.
    pub fn new(chain: impl Into<Cow<'static, str>>) -> Self {
        Self {
            chain: chain.into(),
            exprs: Vec::new(),
            comment: None,
        }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<Cow<'static, str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// With one more expression.
    #[must_use]
    pub fn expr(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }
}
