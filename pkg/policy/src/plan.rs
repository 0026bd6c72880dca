//! The difference as operations, in the order in which one transaction can carry them out: what is referred to comes
//! before what refers to it, and goes after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use svcnet_netlink::nft::Family;

use crate::desired::{ChainSpec, Element, Entry, Name, SetSpec};
use crate::model::Direction;

/// The chain that says what is allowed to an isolated address; nothing is, where there is none.
pub type Isolation = Option<Name>;

/// The table of a family, and the direction in which it isolates addresses.
pub type Hooked = (Family, Direction);

/// What changes.
#[derive(Debug, Default)]
pub struct Delta {
    /// What is there from now on.
    pub added: Vec<Entry>,
    /// What is there no more.
    pub removed: Vec<Entry>,
    /// How addresses were isolated, and how they are now.
    pub isolation: BTreeMap<(Direction, IpAddr), (Option<Isolation>, Option<Isolation>)>,
    /// Where addresses are isolated from now on, of which there were none.
    pub hooked: Vec<Hooked>,
    /// Where none is isolated any more.
    pub unhooked: Vec<Hooked>,
}

/// One operation. The order of the variants is that of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Make a set, with what is in it if that never changes.
    AddSet(Arc<SetSpec>),
    /// Put an element into a set.
    AddElement(Name, Element),
    /// Make an empty chain.
    AddChain(Name),
    /// Empty a chain: it goes, or gets other rules.
    FlushChain(Name),
    /// Give an empty chain its rules.
    SetRules(Arc<ChainSpec>),
    /// Packets are judged in a direction: the first address is isolated.
    Hook(Direction),
    /// An address is no longer judged by a chain.
    Unjudge(Direction, IpAddr),
    /// An address is isolated no more.
    Unisolate(Direction, IpAddr),
    /// An address is isolated.
    Isolate(Direction, IpAddr),
    /// An address is judged by a chain.
    Judge(Direction, IpAddr, Name),
    /// No packet is judged in a direction any more.
    Unhook(Direction),
    /// Remove a chain.
    DeleteChain(Name),
    /// Take an element out of a set.
    DeleteElement(Name, Element),
    /// Remove a set.
    DeleteSet(Name),
}

/// What is to be done in the table of each family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations, in order.
    pub ops: Vec<(Family, Op)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// What a change takes.
    pub fn of_delta(delta: Delta, families: &[Family]) -> Self {
        // In all tables; in that of the address.
        let (mut common, mut ops) = (Vec::new(), Vec::new());
        let name_of = |entry: &Entry| match entry {
            Entry::Chain(chain) => Some(chain.name.clone()),
            _ => None,
        };
        let added: BTreeSet<Name> = delta.added.iter().filter_map(name_of).collect();
        let removed: BTreeSet<Name> = delta.removed.iter().filter_map(name_of).collect();
        for entry in delta.added {
            match entry {
                Entry::Set(set) => common.push(Op::AddSet(set)),
                Entry::Element(set, element) => {
                    ops.push((Family::of(element.address), Op::AddElement(set, element)));
                }
                Entry::Chain(chain) => {
                    if !removed.contains(&chain.name) {
                        common.push(Op::AddChain(chain.name.clone()));
                    }
                    common.push(Op::SetRules(chain));
                }
                Entry::Isolated(..) => {}
            }
        }
        for entry in delta.removed {
            match entry {
                Entry::Set(set) => common.push(Op::DeleteSet(set.name.clone())),
                Entry::Element(set, element) => {
                    ops.push((Family::of(element.address), Op::DeleteElement(set, element)));
                }
                Entry::Chain(chain) => {
                    common.push(Op::FlushChain(chain.name.clone()));
                    if !added.contains(&chain.name) {
                        common.push(Op::DeleteChain(chain.name.clone()));
                    }
                }
                Entry::Isolated(..) => {}
            }
        }
        for ((direction, address), (was, is)) in delta.isolation {
            let family = Family::of(address);
            let mut op = |op| ops.push((family, op));
            if was.is_none() && is.is_some() {
                op(Op::Isolate(direction, address));
            }
            if was.is_some() && is.is_none() {
                op(Op::Unisolate(direction, address));
            }
            let (was, is) = (was.flatten(), is.flatten());
            if was != is {
                if was.is_some() {
                    op(Op::Unjudge(direction, address));
                }
                if let Some(chain) = is {
                    op(Op::Judge(direction, address, chain));
                }
            }
        }
        let hook = |(family, direction)| (family, Op::Hook(direction));
        let unhook = |(family, direction)| (family, Op::Unhook(direction));
        ops.extend(delta.hooked.into_iter().map(hook));
        ops.extend(delta.unhooked.into_iter().map(unhook));
        for family in families {
            ops.extend(common.iter().map(|op| (*family, op.clone())));
        }
        ops.sort();
        Self { ops }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddSet(set) => write!(f, "+ set {}", set.name),
            Self::AddElement(set, element) => write!(f, "+ {set} {element}"),
            Self::AddChain(chain) => write!(f, "+ chain {chain}"),
            Self::FlushChain(chain) => write!(f, "- rules of {chain}"),
            Self::SetRules(chain) => {
                write!(f, "+ rules of {}", chain.name)?;
                chain.rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
            }
            Self::Hook(direction) => write!(f, "+ {direction}"),
            Self::Unhook(direction) => write!(f, "- {direction}"),
            Self::Unjudge(direction, address) => write!(f, "- {direction} {address}"),
            Self::Unisolate(direction, address) => write!(f, "- {direction}-pods {address}"),
            Self::Isolate(direction, address) => write!(f, "+ {direction}-pods {address}"),
            Self::Judge(direction, address, chain) => write!(f, "+ {direction} {address} : {chain}"),
            Self::DeleteChain(chain) => write!(f, "- chain {chain}"),
            Self::DeleteElement(set, element) => write!(f, "- {set} {element}"),
            Self::DeleteSet(set) => write!(f, "- set {set}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops
            .iter()
            .try_for_each(|(family, op)| writeln!(f, "{family} {op}"))
    }
}
