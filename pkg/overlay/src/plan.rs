//! The difference between what the kernel should hold and what it holds, as operations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use svcnet_api::types::MacAddr;
use svcnet_netlink::link::Vxlan;
use svcnet_netlink::route::Route;

use crate::desired::{Desired, Entry, Facts, Key, Masquerade, VxlanLink, peer};
use crate::view::{NodeNet, View};
use crate::{Config, LINK_NAMES};

/// What the kernel holds of what the overlay owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The link of the overlay's name.
    pub link: Option<ObservedLink>,
    /// What is on it, and the routes of svcnet's protocol, as far as they have the form that the overlay gives them.
    pub entries: BTreeSet<Entry>,
    /// Routes over the link or of svcnet's protocol that have another form.
    pub strays: Vec<Stray>,
    /// Kernel parameters, those that exist.
    pub sysctls: BTreeMap<String, String>,
    /// The nftables table, if it is there and as the overlay makes it.
    pub masquerade: Option<Masquerade>,
}

/// A route that the overlay never makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// The route.
    pub route: Route,
    /// Whether it goes when the VXLAN link goes.
    pub over_vxlan: bool,
}

/// The link of the overlay's name, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// What makes it a VXLAN link; none if it is of another kind.
    pub vxlan: Option<Vxlan>,
    /// Its Ethernet address.
    pub mac: Option<MacAddr>,
    /// Its largest packet.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether checksums of what leaves by it are computed before.
    pub checksums_before: bool,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Delete the link: it can not be made right.
    DeleteLink,
    /// Make the link.
    AddLink(VxlanLink),
    /// Set the link's Ethernet address and largest packet, and set it up.
    ChangeLink {
        /// The Ethernet address.
        mac: MacAddr,
        /// The largest packet.
        mtu: u32,
    },
    /// Compute checksums before packets come to the link.
    ChecksumsBefore,
    /// Delete a route that the overlay never makes.
    DeleteStray(Route),
    /// Delete an entry.
    Delete(Entry),
    /// Set an entry, in place of whatever has its key.
    Set(Entry),
    /// Set a kernel parameter.
    Sysctl {
        /// Which.
        name: String,
        /// To what.
        value: &'static str,
    },
    /// Replace the nftables table.
    Masquerade(Masquerade),
}

/// Operations in the order to carry them out; none when there is nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = LINK_NAMES.vxlan;
        match self {
            Self::DeleteLink => write!(f, "delete link {name}"),
            Self::AddLink(link) => {
                let VxlanLink { vxlan, mac, mtu, .. } = link;
                write!(f, "add link {name} vxlan id {} port {}", vxlan.vni, vxlan.port)?;
                if let Some(local) = vxlan.local {
                    write!(f, " local {local}")?;
                }
                write!(f, " mac {mac} mtu {mtu}")
            }
            Self::ChangeLink { mac, mtu } => write!(f, "change link {name} up mac {mac} mtu {mtu}"),
            Self::ChecksumsBefore => write!(f, "change link {name} tx-checksumming off"),
            Self::DeleteStray(route) => write!(f, "delete stray route {route}"),
            Self::Delete(entry) => write!(f, "delete {entry}"),
            Self::Set(entry) => write!(f, "set {entry}"),
            Self::Sysctl { name, value } => write!(f, "sysctl {name} = {value}"),
            Self::Masquerade(masquerade) => {
                let list = |nets: &[ipnet::IpNet]| {
                    nets.iter()
                        .map(ipnet::IpNet::to_string)
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                write!(
                    f,
                    "masquerade {} except to {}{}",
                    list(&masquerade.sources),
                    list(&masquerade.inside),
                    if masquerade.clamp { ", clamp segments" } else { "" }
                )
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

/// What makes the kernel hold what it should. What nothing needs any more goes after what takes its place, and the link last: packets
/// have a way at every step.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut ops = Vec::new();
    let fate = plan_link(desired.link.as_ref(), observed.link.as_ref(), &mut ops);
    // What is on a link goes with it, and so do the routes over it.
    let stays = |entry: &&Entry| fate != Fate::Replaced || !entry.is_over_vxlan();
    let there: BTreeSet<&Entry> = observed.entries.iter().filter(stays).collect();
    let mut alike: BTreeMap<Key, usize> = BTreeMap::new();
    for entry in &there {
        *alike.entry(entry.key()).or_default() += 1;
    }
    let strays = observed
        .strays
        .iter()
        .filter(|stray| fate == Fate::Stays || !stray.over_vxlan);
    ops.extend(strays.map(|stray| Op::DeleteStray(stray.route)));
    let mut gone = Vec::new();
    for entry in there.iter().rev() {
        let key = entry.key();
        match desired.entries.get(&key) {
            // Setting replaces one entry: of several with a key, the wrong ones must go before.
            Some(wanted) if *wanted == **entry || alike.get(&key) == Some(&1) => {}
            Some(_) => ops.push(Op::Delete(**entry)),
            None if fate == Fate::Goes && entry.is_over_vxlan() => {}
            None => gone.push(Op::Delete(**entry)),
        }
    }
    let missing: BTreeSet<Entry> = desired
        .entries
        .values()
        .filter(|e| !there.contains(e))
        .copied()
        .collect();
    ops.extend(missing.into_iter().map(Op::Set));
    ops.extend(gone);
    for (name, value) in &desired.sysctls {
        // A parameter of a link that is to be made does not exist yet.
        if observed.sysctls.get(name).is_none_or(|is| is != value) {
            ops.push(Op::Sysctl {
                name: name.clone(),
                value,
            });
        }
    }
    if observed.masquerade.as_ref() != Some(&desired.masquerade) {
        ops.push(Op::Masquerade(desired.masquerade.clone()));
    }
    if fate == Fate::Goes {
        ops.push(Op::DeleteLink);
    }
    Plan { ops }
}

/// What becomes of the link that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Nothing, or nothing that is of use, was there: a new one is made.
    Replaced,
    /// It is there and is not to be.
    Goes,
}

fn plan_link(desired: Option<&VxlanLink>, observed: Option<&ObservedLink>, ops: &mut Vec<Op>) -> Fate {
    let (desired, link) = match (desired, observed) {
        (None, None) => return Fate::Stays,
        (None, Some(_)) => return Fate::Goes,
        (Some(desired), None) => {
            add_link(desired, ops);
            return Fate::Replaced;
        }
        (Some(desired), Some(link)) => (desired, link),
    };
    if link.vxlan.as_ref() != Some(&desired.vxlan) {
        ops.push(Op::DeleteLink);
        add_link(desired, ops);
        return Fate::Replaced;
    }
    if link.mac != Some(desired.mac) || link.mtu != desired.mtu || !link.up {
        ops.push(Op::ChangeLink {
            mac: desired.mac,
            mtu: desired.mtu,
        });
    }
    // Off when nobody has seen harm is the operator's choice.
    if desired.checksums_before && !link.checksums_before {
        ops.push(Op::ChecksumsBefore);
    }
    // A link that is down has lost its routes: they were observed as missing.
    Fate::Stays
}

fn add_link(desired: &VxlanLink, ops: &mut Vec<Op>) {
    ops.push(Op::AddLink(desired.clone()));
    if desired.checksums_before {
        ops.push(Op::ChecksumsBefore);
    }
}

/// What a change of some entries takes, in proportion to their number.
fn plan_change(before: &BTreeMap<Key, Entry>, after: &BTreeMap<Key, Entry>) -> Plan {
    let gone: BTreeSet<Entry> = before
        .values()
        .filter(|e| !after.contains_key(&e.key()))
        .copied()
        .collect();
    let new: BTreeSet<Entry> = after
        .values()
        .filter(|e| before.get(&e.key()) != Some(e))
        .copied()
        .collect();
    Plan {
        ops: new
            .into_iter()
            .map(Op::Set)
            .chain(gone.into_iter().rev().map(Op::Delete))
            .collect(),
    }
}

impl Desired {
    /// Takes a peer's new state into the view and into what is desired, and says what of the kernel's state changes
    /// with it: in proportion to what the peer has, not to how many peers there are.
    pub fn take(
        &mut self,
        config: &Config,
        view: &mut View,
        facts: &Facts,
        name: &str,
        next: Option<NodeNet>,
    ) -> Plan {
        let affected = view.affected(name, next.as_ref());
        self.change(config, view, facts, &affected, |view| view.set(name, next))
    }

    /// The same with what was seen to pass to the peer.
    pub fn take_path(
        &mut self,
        config: &Config,
        view: &mut View,
        facts: &Facts,
        name: &str,
        path: Option<u32>,
    ) -> Plan {
        let affected = [name.to_string()].into();
        self.change(config, view, facts, &affected, |view| view.set_path(name, path))
    }

    fn change(
        &mut self,
        config: &Config,
        view: &mut View,
        facts: &Facts,
        affected: &BTreeSet<String>,
        change: impl FnOnce(&mut View),
    ) -> Plan {
        let entries = |view: &View| -> BTreeMap<Key, Entry> {
            let peers = affected.iter().filter(|n| *n != view.own_name());
            let nets = peers.filter_map(|n| view.node(n).map(|net| (n, net)));
            let found = nets.flat_map(|(n, net)| peer(config, view, facts, n, net).entries);
            found.map(|entry| (entry.key(), entry)).collect()
        };
        let before = entries(view);
        change(view);
        let after = entries(view);
        for key in before.keys() {
            self.entries.remove(key);
        }
        self.entries.extend(&after);
        let mut plan = plan_change(&before, &after);
        let clamp = self.has_limits();
        if clamp != self.masquerade.clamp {
            self.masquerade.clamp = clamp;
            plan.ops.push(Op::Masquerade(self.masquerade.clone()));
        }
        plan
    }
}

#[cfg(test)]
mod tests;
