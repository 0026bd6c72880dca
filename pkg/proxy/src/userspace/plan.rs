//! What to do so that sockets do what they should. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::desired::{Desired, Rules, Wanted};
use super::door::Door;
use crate::model::FrontendKey;

/// What sockets do, and the addresses that were made local for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) sockets: BTreeMap<FrontendKey, (Door, Arc<Rules>)>,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Make an address local.
    Place(IpAddr),
    /// Give an address up, once the last connection through it has ended.
    Release(IpAddr),
    /// Open a socket.
    Open(FrontendKey, Door, Arc<Rules>),
    /// Change who is let in.
    Guard(FrontendKey, Door),
    /// Change where new connections go.
    Direct(FrontendKey, Arc<Rules>),
    /// Close a socket; its connections stay.
    Close(FrontendKey),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(ip) => write!(f, "place {ip}"),
            Self::Release(ip) => write!(f, "release {ip}"),
            Self::Open(key, door, rules) => {
                write!(f, "open {key} {door} to {} endpoints", rules.inside.len())
            }
            Self::Guard(key, door) => write!(f, "guard {key} {door}"),
            Self::Direct(key, rules) => write!(f, "direct {key} to {} endpoints", rules.inside.len()),
            Self::Close(key) => write!(f, "close {key}"),
        }
    }
}

/// What to do, in this order: an address is there before its sockets, and goes after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan(pub(crate) Vec<Operation>);

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

/// The plan for everything.
pub(crate) fn all(desired: &Desired, observed: &Observed) -> Plan {
    let keys: BTreeSet<FrontendKey> = desired
        .wanted
        .keys()
        .chain(observed.sockets.keys())
        .copied()
        .collect();
    let addresses = desired.addresses.keys().chain(&observed.addresses).copied();
    plan(desired, observed, keys, addresses.collect())
}

/// The plan for some frontends.
pub(crate) fn some(desired: &Desired, observed: &Observed, keys: BTreeSet<FrontendKey>) -> Plan {
    let addresses = keys.iter().filter_map(|key| match key {
        FrontendKey::Address { ip, .. } => Some(*ip),
        FrontendKey::NodePort { .. } => None,
    });
    let addresses = addresses.collect();
    plan(desired, observed, keys, addresses)
}

fn plan(
    desired: &Desired,
    observed: &Observed,
    keys: BTreeSet<FrontendKey>,
    addresses: BTreeSet<IpAddr>,
) -> Plan {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for ip in addresses {
        match (
            desired.addresses.contains_key(&ip),
            observed.addresses.contains(&ip),
        ) {
            (true, false) => first.push(Operation::Place(ip)),
            (false, true) => last.push(Operation::Release(ip)),
            _ => {}
        }
    }
    for key in keys {
        let is = observed.sockets.get(&key);
        let wanted = match desired.wanted.get(&key) {
            Some(Wanted::Relay { door, rules }) => Some((door, rules)),
            Some(Wanted::Nobody | Wanted::Impossible(_)) | None => None,
        };
        match (wanted, is) {
            (Some((door, rules)), None) => first.push(Operation::Open(key, door.clone(), rules.clone())),
            (None, Some(_)) => first.push(Operation::Close(key)),
            (Some((door, rules)), Some((is_door, _))) if door.at != is_door.at => {
                // Connections stay, as with each socket that is closed.
                first.push(Operation::Close(key));
                first.push(Operation::Open(key, door.clone(), rules.clone()));
            }
            (Some((door, rules)), Some((is_door, is_rules))) => {
                // Who is let in goes before: nobody is sent where only others may go.
                if door != is_door {
                    first.push(Operation::Guard(key, door.clone()));
                }
                if rules != is_rules {
                    first.push(Operation::Direct(key, rules.clone()));
                }
            }
            (None, None) => {}
        }
    }
    first.append(&mut last);
    Plan(first)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
