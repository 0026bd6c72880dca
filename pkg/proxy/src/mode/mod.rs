//! Which backend there is, and how another takes over.
//!
//! What is asked for comes from `--proxy-mode`, and from the ConfigMap `kube-proxy` in `kube-system` while the proxy runs
//! (`wish.rs` reads it, `source.rs` follows it). What the kernel can not do falls back, ipvs to nftables and nftables to
//! userspace; which, and why, is told by `tell.rs`.
//!
//! A switch leaves no moment without service (`switch.rs`):
//! 1. the new backend is opened and given everything, while the former one serves;
//! 2. what the former one made is removed. In between both are there, and each connection takes the way of the one that
//!    sees it first: rules of nf_tables translate a packet before it could reach a socket.
//! 3. sockets go on for a second with connections that were on their way to them.
//!
//! Connections that are open go on. Those that the kernel translates live in conntrack, not in our tables; they need no more
//! than that a rule of any table still translates something (the overlay has one): with the last of these the kernel ends
//! connection tracking. Those that are relayed
//! go on in this process, and their addresses stay local until they end. Datagrams have no connection: where the kernel sent
//! those of a client is forgotten, and the next one goes the new way.
//!
//! On start, what another mode has left is removed once this one is in force.

mod source;
mod switch;
mod tell;
mod wish;

use std::fmt;

use crate::backend::Mode;

pub(crate) use source::Source;
pub use switch::cleanup;
pub(crate) use switch::{Modes, Openers};
pub use tell::CONDITION;
pub(crate) use tell::{Condition, Notice, Teller};
pub use wish::CONFIG_MAP;
pub(crate) use wish::Wish;

/// The modes to try in turn.
pub(crate) const fn in_turn(asked: Mode) -> &'static [Mode] {
    match asked {
        Mode::Ipvs => &[Mode::Ipvs, Mode::Nftables, Mode::Userspace],
        Mode::Nftables => &[Mode::Nftables, Mode::Userspace],
        Mode::Userspace => &[Mode::Userspace],
    }
}

/// The mode that was asked for, and the one that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) asked: Mode,
    pub(crate) used: Mode,
    /// What was tried before, and why it can not be.
    pub(crate) refused: Vec<(Mode, String)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.asked == self.used {
            return write!(f, "services are implemented by {}", self.used);
        }
        write!(f, "asked for {}, using {}", self.asked, self.used)?;
        for (index, (mode, why)) in self.refused.iter().enumerate() {
            write!(f, "{} no {mode}: {why}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_says_what_was_asked_and_why_it_is_not() {
        let choice = Choice {
            asked: Mode::Ipvs,
            used: Mode::Userspace,
            refused: vec![
                (Mode::Ipvs, "not here".into()),
                (Mode::Nftables, "nor this".into()),
            ],
        };
        assert_eq!(
            choice.to_string(),
            "asked for ipvs, using userspace: no ipvs: not here; no nftables: nor this"
        );
        for mode in Mode::ALL {
            assert_eq!(in_turn(mode).first(), Some(&mode));
            assert_eq!(
                in_turn(mode).last(),
                Some(&Mode::Userspace),
                "which is always possible"
            );
        }
    }
}
