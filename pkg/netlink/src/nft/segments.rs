//! How large a segment the ends of a TCP connection send.

use super::expr::{CmpOp, Expr, Header, Reg};
use super::object::Rule;

impl Rule {
    /// `tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu`: neither end of the connection is to send segments
    /// that do not fit the routes there and back.
    #[must_use]
    pub fn clamp_mss(self) -> Self {
        const SYN: u8 = 2;
        const RST: u8 = 4;
        self.l4proto(6)
            .expr(Expr::Payload {
                header: Header::Transport,
                offset: 13,
                len: 1,
                reg: Reg::W0,
            })
            .expr(Expr::Mask {
                reg: Reg::W0,
                mask: vec![SYN | RST],
            })
            .expr(Expr::Cmp {
                reg: Reg::W0,
                op: CmpOp::Eq,
                data: vec![SYN],
            })
            .expr(Expr::RouteMss { reg: Reg::W0 })
            .expr(Expr::Swap16 { reg: Reg::W0 })
            .expr(Expr::LowerMss { reg: Reg::W0 })
    }
}
