//! The difference between what the sets should hold and what they do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use svcnet_netlink::nft::Family;

use super::{Desired, Elements, Frontend, Target};
use crate::protocol::Protocol;

/// What the kernel holds: nothing of a family whose table is not there or not as it should be.
pub type Observed = BTreeMap<Family, Option<Elements>>;

/// What becomes of a table without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// It stays: making it takes longer than all else that ADD does, and the next port is often near.
    Stays,
    /// It goes.
    Goes,
}

/// One operation on a family's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make the table anew.
    MakeTable,
    /// Remove it: there is no port any more.
    RemoveTable,
    /// A port leads nowhere any more.
    DeletePort(Frontend),
    /// A port leads to a container.
    AddPort(Frontend, Target),
    /// A container does not reach itself through the host any more.
    DeleteHairpin(IpAddr),
    /// A container may reach itself through the host.
    AddHairpin(IpAddr),
    /// A port is not on `::1` any more.
    DeleteLoopback(Protocol, u16),
    /// A port is on `::1`.
    AddLoopback(Protocol, u16),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeTable => f.write_str("make table"),
            Self::RemoveTable => f.write_str("remove table"),
            Self::DeletePort(port) => write!(f, "- port {port}"),
            Self::AddPort(port, to) => write!(f, "+ port {port} : {to}"),
            Self::DeleteHairpin(address) => write!(f, "- hairpin {address}"),
            Self::AddHairpin(address) => write!(f, "+ hairpin {address}"),
            Self::DeleteLoopback(protocol, port) => write!(f, "- loopback {port}/{protocol}"),
            Self::AddLoopback(protocol, port) => write!(f, "+ loopback {port}/{protocol}"),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => f.write_str("*:")?,
        }
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// What is to be done, in this order; one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan(pub Vec<(Family, Op)>);

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(family, op)| writeln!(f, "{family} {op}"))
    }
}

/// The difference. It is as large as the change.
pub fn plan(desired: &Desired, observed: &Observed, empty: Empty) -> Plan {
    let mut ops = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        let nothing = Elements::default();
        let wanted = desired.get(&family).filter(|e| !e.ports.is_empty());
        let held = observed.get(&family);
        let (wanted, held) = match (wanted, held) {
            (None, None) => continue,
            (None, Some(held)) => {
                // Each port on its own too: it says which flows are to be forgotten.
                let gone = held.iter().flat_map(|held| difference(&nothing, held));
                ops.extend(gone.map(|op| (family, op)));
                ops.extend((empty == Empty::Goes).then_some((family, Op::RemoveTable)));
                continue;
            }
            (Some(wanted), Some(Some(held))) => (wanted, held),
            (Some(wanted), _) => {
                ops.push((family, Op::MakeTable));
                (wanted, &nothing)
            }
        };
        ops.extend(difference(wanted, held).into_iter().map(|op| (family, op)));
    }
    Plan(ops)
}

/// What the kernel holds once a plan is carried out.
pub(super) fn carried_out(plan: &Plan, desired: &Desired, observed: &Observed) -> Observed {
    let removed = |family| plan.0.contains(&(family, Op::RemoveTable));
    let held = |family| match desired.get(&family).filter(|e| !e.ports.is_empty()) {
        Some(elements) => Some(Some(elements.clone())),
        None => observed
            .get(&family)
            .map(|held| held.as_ref().map(|_| Elements::default())),
    };
    let families = [Family::Ip, Family::Ip6].into_iter().filter(|f| !removed(*f));
    families
        .filter_map(|family| Some((family, held(family)?)))
        .collect()
}

/// What goes comes first: a port that leads elsewhere now is deleted and added.
fn difference(wanted: &Elements, held: &Elements) -> Vec<Op> {
    let stays = |port: &Frontend, to: &Target| wanted.ports.get(port) == Some(to);
    let has = |port: &Frontend, to: &Target| held.ports.get(port) == Some(to);
    let gone_ports = held.ports.iter().filter(|(p, t)| !stays(p, t));
    let new_ports = wanted.ports.iter().filter(|(p, t)| !has(p, t));
    let mut ops: Vec<Op> = gone_ports.map(|(port, _)| Op::DeletePort(*port)).collect();
    ops.extend(
        held.hairpin
            .difference(&wanted.hairpin)
            .copied()
            .map(Op::DeleteHairpin),
    );
    let gone = held.loopback.difference(&wanted.loopback);
    ops.extend(gone.map(|(protocol, port)| Op::DeleteLoopback(*protocol, *port)));
    ops.extend(new_ports.map(|(port, to)| Op::AddPort(*port, *to)));
    ops.extend(
        wanted
            .hairpin
            .difference(&held.hairpin)
            .copied()
            .map(Op::AddHairpin),
    );
    let new = wanted.loopback.difference(&held.loopback);
    ops.extend(new.map(|(protocol, port)| Op::AddLoopback(*protocol, *port)));
    ops
}
