//! Rules spelled as in `nft`: each method is a match or a statement, in the order that `nft` itself would compile them
//! to, so that `nft list ruleset` turns them back into the same words.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::{CT_STATE_NEW, CT_STATUS_DNAT};
use super::expr::{
    CmpOp, CtKey, DynsetOp, Expr, FibOf, Header, MetaKey, NAT_FULLY_RANDOM, RTN_LOCAL, Reg, Reject,
};
use super::field::Field;
use super::object::{Family, Rule, Verdict};

/// Bytes of a link's name in the kernel (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

impl Rule {
    /// Loads a concatenation into registers from [`Reg::W0`] on.
    #[must_use]
    pub fn load(mut self, family: Family, fields: &[Field]) -> Self {
        self.load_at(family, fields, Reg::W0);
        self
    }

    /// Says which register comes behind.
    fn load_at(&mut self, family: Family, fields: &[Field], mut reg: Reg) -> Reg {
        for field in fields {
            self.exprs.extend(field.hashed(family, reg));
            let (expr, words) = field.load(family, reg);
            self.exprs.push(expr);
            reg = reg.plus(words);
        }
        reg
    }

    /// `update @MAP { KEY timeout T : DATA }`: adds an element, or begins the time of the one that is there anew.
    #[must_use]
    pub fn update(
        mut self,
        family: Family,
        map: &str,
        key: &[Field],
        timeout_ms: u64,
        data: &[Field],
    ) -> Self {
        let behind = self.load_at(family, key, Reg::W0);
        self.load_at(family, data, behind);
        self.expr(Expr::Dynset {
            set: map.to_string(),
            op: DynsetOp::Update,
            key: Reg::W0,
            data: Some(behind),
            timeout_ms: Some(timeout_ms),
        })
    }

    /// `KEY @SET`: goes on when the set holds the key.
    #[must_use]
    pub fn in_set(self, family: Family, key: &[Field], set: &str) -> Self {
        self.lookup(family, key, set, None, false)
    }

    /// `KEY != @SET`
    #[must_use]
    pub fn not_in_set(self, family: Family, key: &[Field], set: &str) -> Self {
        self.lookup(family, key, set, None, true)
    }

    /// `KEY map @MAP`: the value lies in registers from [`Reg::W0`] on; a miss ends the rule.
    #[must_use]
    pub fn map(self, family: Family, key: &[Field], map: &str) -> Self {
        self.lookup(family, key, map, Some(Reg::W0), false)
    }

    fn lookup(self, family: Family, key: &[Field], set: &str, value: Option<Reg>, invert: bool) -> Self {
        self.load(family, key).expr(Expr::Lookup {
            set: set.to_string(),
            key: Reg::W0,
            value,
            invert,
        })
    }

    /// `dnat ip to KEY map @MAP`, where the map holds address and port.
    #[must_use]
    pub fn dnat_map(self, family: Family, key: &[Field], map: &str) -> Self {
        let port = match family {
            Family::Ip => Reg::W0.plus(1),
            Family::Ip6 => Reg::W0.plus(4),
        };
        self.map(family, key, map).expr(Expr::Dnat {
            family,
            addr: Reg::W0,
            port,
        })
    }

    /// `ip saddr NET`
    #[must_use]
    pub fn saddr(self, net: IpNet) -> Self {
        self.address(Field::Saddr, net, CmpOp::Eq)
    }

    /// `ip saddr != NET`
    #[must_use]
    pub fn saddr_not(self, net: IpNet) -> Self {
        self.address(Field::Saddr, net, CmpOp::Ne)
    }

    /// `ip daddr NET`
    #[must_use]
    pub fn daddr(self, net: IpNet) -> Self {
        self.address(Field::Daddr, net, CmpOp::Eq)
    }

    /// `ip daddr != NET`
    #[must_use]
    pub fn daddr_not(self, net: IpNet) -> Self {
        self.address(Field::Daddr, net, CmpOp::Ne)
    }

    /// `ct original ip daddr NET`
    #[must_use]
    pub fn original_daddr(self, net: IpNet) -> Self {
        self.address(Field::OriginalDaddr, net, CmpOp::Eq)
    }

    fn address(self, field: Field, net: IpNet, op: CmpOp) -> Self {
        let (family, data, mask) = match net {
            IpNet::V4(net) => (
                Family::Ip,
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
            IpNet::V6(net) => (
                Family::Ip6,
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
        };
        let mut rule = self.load(family, &[field]);
        if mask.iter().any(|byte| *byte != 0xff) {
            rule = rule.expr(Expr::Mask { reg: Reg::W0, mask });
        }
        rule.expr(Expr::Cmp {
            reg: Reg::W0,
            op,
            data,
        })
    }

    /// `ip saddr set ADDRESS`, or `ip6`
    #[must_use]
    pub fn set_saddr(self, address: impl Into<IpAddr>) -> Self {
        self.set_address([12, 8], address.into())
    }

    /// `ip daddr set ADDRESS`, or `ip6`
    #[must_use]
    pub fn set_daddr(self, address: impl Into<IpAddr>) -> Self {
        self.set_address([16, 24], address.into())
    }

    /// Writes it into the header, where it lies at the first offset in IPv4 and at the second in IPv6.
    fn set_address(self, offsets: [u32; 2], address: IpAddr) -> Self {
        let (data, family) = match address {
            IpAddr::V4(ip) => (ip.octets().to_vec(), Family::Ip),
            IpAddr::V6(ip) => (ip.octets().to_vec(), Family::Ip6),
        };
        self.expr(Expr::Immediate { reg: Reg::W0, data })
            .expr(Expr::PayloadSet {
                family,
                offset: offsets[usize::from(family == Family::Ip6)],
                reg: Reg::W0,
            })
    }

    /// `iifname NAME`
    #[must_use]
    pub fn in_link(self, name: &str) -> Self {
        self.link(MetaKey::IifName, CmpOp::Eq, name)
    }

    /// `iifname != NAME`
    #[must_use]
    pub fn in_link_not(self, name: &str) -> Self {
        self.link(MetaKey::IifName, CmpOp::Ne, name)
    }

    /// `oifname NAME`
    #[must_use]
    pub fn out_link(self, name: &str) -> Self {
        self.link(MetaKey::OifName, CmpOp::Eq, name)
    }

    /// `oifname != NAME`
    #[must_use]
    pub fn out_link_not(self, name: &str) -> Self {
        self.link(MetaKey::OifName, CmpOp::Ne, name)
    }

    fn link(self, key: MetaKey, op: CmpOp, name: &str) -> Self {
        let mut data = name.as_bytes().to_vec();
        data.resize(IFNAMSIZ, 0);
        self.expr(Expr::Meta { key, reg: Reg::W0 }).expr(Expr::Cmp {
            reg: Reg::W0,
            op,
            data,
        })
    }

    /// `meta l4proto PROTOCOL`
    #[must_use]
    pub fn l4proto(self, protocol: u8) -> Self {
        self.expr(Expr::Meta {
            key: MetaKey::L4Proto,
            reg: Reg::W0,
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op: CmpOp::Eq,
            data: vec![protocol],
        })
    }

    /// `ct state new`
    #[must_use]
    pub fn ct_new(self) -> Self {
        self.ct_bit(CtKey::State, CT_STATE_NEW, CmpOp::Ne)
    }

    /// `ct status dnat`: the destination of the connection was translated, by us or another.
    #[must_use]
    pub fn ct_dnat(self) -> Self {
        self.ct_bit(CtKey::Status, CT_STATUS_DNAT, CmpOp::Ne)
    }

    /// `ct status ! dnat`
    #[must_use]
    pub fn ct_not_dnat(self) -> Self {
        self.ct_bit(CtKey::Status, CT_STATUS_DNAT, CmpOp::Eq)
    }

    /// One of the bits is set when what is left of them differs from zero, which is how `nft` asks.
    pub(super) fn ct_bit(self, key: CtKey, bits: u32, op: CmpOp) -> Self {
        self.expr(Expr::Ct {
            key,
            original: false,
            reg: Reg::W0,
        })
        .expr(Expr::Mask {
            reg: Reg::W0,
            mask: bits.to_ne_bytes().to_vec(),
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op,
            data: vec![0; 4],
        })
    }

    /// `fib saddr type local`: sent by this host.
    #[must_use]
    pub fn from_this_host(self) -> Self {
        self.local(FibOf::Source, CmpOp::Eq)
    }

    /// `fib daddr type local`: to this host.
    #[must_use]
    pub fn to_this_host(self) -> Self {
        self.local(FibOf::Destination, CmpOp::Eq)
    }

    /// `fib daddr type != local`
    #[must_use]
    pub fn not_to_this_host(self) -> Self {
        self.local(FibOf::Destination, CmpOp::Ne)
    }

    fn local(self, of: FibOf, op: CmpOp) -> Self {
        self.expr(Expr::Fib { of, reg: Reg::W0 }).expr(Expr::Cmp {
            reg: Reg::W0,
            op,
            data: RTN_LOCAL.to_ne_bytes().to_vec(),
        })
    }

    /// Follows a verdict, which ends the rule.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expr(Expr::Verdict(verdict))
    }

    /// `accept`
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// `drop`
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// `jump CHAIN`
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump(chain.to_string()))
    }

    /// `goto CHAIN`
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto(chain.to_string()))
    }

    /// Whether it jumps or goes to a chain.
    pub fn leads_to(&self, chain: &str) -> bool {
        self.exprs.iter().any(|expr| match expr {
            Expr::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => to == chain,
            _ => false,
        })
    }

    /// `masquerade fully-random`: ports are chosen at random, so that nodes behind one address do not collide.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.expr(Expr::Masquerade {
            flags: NAT_FULLY_RANDOM,
        })
    }

    /// `icmp type echo-request` or `icmpv6 type echo-request`
    #[must_use]
    pub fn echo_request(self, family: Family) -> Self {
        match family {
            Family::Ip => self.icmp(1, 8),
            Family::Ip6 => self.icmp(58, 128),
        }
    }

    /// `icmpv6 type nd-redirect`
    #[must_use]
    pub fn nd_redirect(self) -> Self {
        self.icmp(58, 137)
    }

    pub(super) fn icmp(self, protocol: u8, kind: u8) -> Self {
        self.l4proto(protocol)
            .expr(Expr::Payload {
                header: Header::Transport,
                offset: 0,
                len: 1,
                reg: Reg::W0,
            })
            .expr(Expr::Cmp {
                reg: Reg::W0,
                op: CmpOp::Eq,
                data: vec![kind],
            })
    }

    /// `redirect`
    #[must_use]
    pub fn redirect(self) -> Self {
        self.expr(Expr::Redirect)
    }

    /// `reject with tcp reset`; needs a match on TCP before it.
    #[must_use]
    pub fn reject_tcp(self) -> Self {
        self.expr(Expr::Reject(Reject::TcpReset))
    }

    /// `reject`: port unreachable.
    #[must_use]
    pub fn reject(self, family: Family) -> Self {
        self.expr(Expr::Reject(Reject::PortUnreachable(family)))
    }

    /// `meta priority set none`
    #[must_use]
    pub fn clear_priority(self) -> Self {
        self.set_priority_to(0)
    }

    /// `meta priority set NUMBER`
    #[must_use]
    pub fn set_priority_to(self, number: u32) -> Self {
        self.expr(Expr::Immediate {
            reg: Reg::W0,
            data: number.to_ne_bytes().to_vec(),
        })
        .expr(Expr::MetaSet {
            key: MetaKey::Priority,
            reg: Reg::W0,
        })
    }

    /// `meta priority & MASK == NUMBER`
    #[must_use]
    pub fn priority_masked(self, mask: u32, number: u32) -> Self {
        self.expr(Expr::Meta {
            key: MetaKey::Priority,
            reg: Reg::W0,
        })
        .expr(Expr::Mask {
            reg: Reg::W0,
            mask: mask.to_ne_bytes().to_vec(),
        })
        .expr(Expr::Cmp {
            reg: Reg::W0,
            op: CmpOp::Eq,
            data: number.to_ne_bytes().to_vec(),
        })
    }

    /// `meta priority set FIELD`, of a field that is one word.
    #[must_use]
    pub fn set_priority(self, family: Family, field: Field) -> Self {
        self.load(family, &[field]).expr(Expr::MetaSet {
            key: MetaKey::Priority,
            reg: Reg::W0,
        })
    }

    /// `meta priority set KEY map @MAP`; a miss ends the rule and leaves the priority alone.
    #[must_use]
    pub fn priority_from_map(self, family: Family, key: &[Field], map: &str) -> Self {
        self.map(family, key, map).expr(Expr::MetaSet {
            key: MetaKey::Priority,
            reg: Reg::W0,
        })
    }

    /// `meta priority vmap @MAP`
    #[must_use]
    pub fn priority_vmap(self, map: &str) -> Self {
        self.expr(Expr::Meta {
            key: MetaKey::Priority,
            reg: Reg::W0,
        })
        .expr(Expr::Vmap {
            set: map.to_string(),
            key: Reg::W0,
        })
    }
}
