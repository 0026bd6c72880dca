//! Matches for who a packet is from and to: the ends of its connection, whatever the direction of the packet and the
//! translations on its way, and the ends that its frame claims.

use super::expr::{CT_STATE_NONE, CmpOp, CtKey, Expr, Header, MetaKey, Reg};
use super::field::Field;
use super::object::{Family, Rule};

/// Bytes of a link's name, as registers hold it (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;
/// `ETH_P_ARP`, `ETH_P_IP`, `ETH_P_IPV6`
const ETHER_TYPES: [(EtherType, u16); 3] = [
    (EtherType::Arp, 0x0806),
    (EtherType::Ip, 0x0800),
    (EtherType::Ip6, 0x86dd),
];

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EtherType {
    /// ARP.
    Arp,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Field {
    /// The fields of this file, loaded: the expression, and how many words it fills.
    pub(super) fn load_end(self, family: Family, reg: Reg) -> (Expr, u8) {
        let words = match family {
            Family::Ip => 1,
            Family::Ip6 => 4,
        };
        let source = match family {
            Family::Ip => CtKey::SrcIp,
            Family::Ip6 => CtKey::SrcIp6,
        };
        let bytes = |header, offset, len| Expr::Payload {
            header,
            offset,
            len,
            reg,
        };
        match self {
            Self::OriginalSaddr => {
                let (key, original) = (source, true);
                (Expr::Ct { key, original, reg }, words)
            }
            Self::ReplySaddr => (Expr::CtReply { key: source, reg }, words),
            Self::ReplySport => {
                let key = CtKey::ProtoSrc;
                (Expr::CtReply { key, reg }, 1)
            }
            Self::EtherSaddr => (bytes(Header::Link, 6, 6), 2),
            Self::ArpSaddrEther => (bytes(Header::Network, 8, 6), 2),
            Self::ArpSaddrIp => (bytes(Header::Network, 14, 4), 1),
            Self::NdTarget => (bytes(Header::Transport, 8, 16), 4),
            Self::Priority => {
                let key = MetaKey::Priority;
                (Expr::Meta { key, reg }, 1)
            }
            // What is left of the enumeration is loaded where it is declared.
            _ => {
                let key = MetaKey::IifName;
                (Expr::Meta { key, reg }, 4)
            }
        }
    }
}

impl Rule {
    /// `ct protocol PROTOCOL`: that of the connection, for an ICMP error too that belongs to it.
    #[must_use]
    pub fn ct_protocol(self, protocol: u8) -> Self {
        self.expr(Expr::Ct {
            key: CtKey::Protocol,
            original: false,
            reg: Reg::W0,
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op: CmpOp::Eq,
            data: vec![protocol],
        })
    }

    /// `ct reply proto-src FIRST-LAST`: the port that the connection goes to, after translation.
    #[must_use]
    pub fn reply_sport(self, first: u16, last: u16) -> Self {
        let compare = |op, port: u16| Expr::Cmp {
            reg: Reg::W0,
            op,
            data: port.to_be_bytes().to_vec(),
        };
        let rule = self.load(Family::Ip, &[Field::ReplySport]);
        if first == last {
            return rule.expr(compare(CmpOp::Eq, first));
        }
        rule.expr(compare(CmpOp::Ge, first))
            .expr(compare(CmpOp::Le, last))
    }

    /// `ct state invalid,untracked`: a packet that belongs to no connection.
    #[must_use]
    pub fn ct_none(self) -> Self {
        self.ct_bit(CtKey::State, CT_STATE_NONE, CmpOp::Ne)
    }

    /// `ether type TYPE`
    #[must_use]
    pub fn ether_type(self, type_: EtherType) -> Self {
        let number = ETHER_TYPES
            .iter()
            .find(|(t, _)| *t == type_)
            .map_or(0, |(_, n)| *n);
        self.expr(Expr::Payload {
            header: Header::Link,
            offset: 12,
            len: 2,
            reg: Reg::W0,
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op: CmpOp::Eq,
            data: number.to_be_bytes().to_vec(),
        })
    }

    /// `ip6 saddr ::`: who has no address yet.
    #[must_use]
    pub fn from_nobody(self) -> Self {
        self.expr(Expr::Payload {
            header: Header::Network,
            offset: 8,
            len: 16,
            reg: Reg::W0,
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op: CmpOp::Eq,
            data: vec![0; 16],
        })
    }

    /// `icmpv6 type TYPE`
    #[must_use]
    pub fn icmpv6(self, type_: u8) -> Self {
        self.icmp(58, type_)
    }

    /// `counter`
    #[must_use]
    pub fn counter(self) -> Self {
        self.expr(Expr::Counter)
    }

    /// `KEY vmap @MAP`: follows what the map holds; a miss ends the rule.
    #[must_use]
    pub fn vmap(self, family: Family, key: &[Field], map: &str) -> Self {
        self.load(family, key).expr(Expr::Vmap {
            set: map.to_string(),
            key: Reg::W0,
        })
    }
}

/// The name of a link as registers hold it.
pub(super) fn link_name(name: &str) -> [u8; IFNAMSIZ] {
    let mut bytes = [0; IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}
