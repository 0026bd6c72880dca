//! From the slices and Endpoints that there are to those that there should be, with as few writes as possible.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use jiff::Timestamp;

use super::desired::{Desired, Group, sorted};
use super::model::{ANNOTATION_OVER_CAPACITY, Endpoint, Endpoints, Family, Labels, Owner, Port, Slice};
use super::model::{MANAGER_MIRRORED, MANAGER_SELECTED};
use super::pack::pack;
use crate::view::{ObjectKey, Version};

/// Room that the random-looking end of a name leaves to its beginning (client-go's names.SimpleNameGenerator).
const NAME_BASE_MAX: usize = 57;
/// Letters and digits that make no words.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What there is for a Service.
#[derive(Default)]
pub(super) struct Observed<'a> {
    /// Slices of ours, by name.
    pub(super) slices: BTreeMap<&'a str, (&'a Version, &'a Slice)>,
    pub(super) endpoints: Option<(&'a Version, &'a Endpoints)>,
    /// The Endpoints that a Service left behind when it went.
    pub(super) orphan: Option<&'a str>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Makes a slice, or puts another content into it.
    WriteSlice {
        name: String,
        slice: Slice,
        over: Option<Version>,
    },
    DeleteSlice {
        name: String,
        version: Version,
    },
    /// Makes the Endpoints, or puts another content into them.
    WriteEndpoints {
        endpoints: Endpoints,
        over: Option<Version>,
    },
    DeleteEndpoints {
        version: Version,
    },
}

/// The writes for one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(super) service: ObjectKey,
    /// Written with everything: since when the cluster is not as it should be.
    pub(super) trigger: Option<Timestamp>,
    pub(super) ops: Vec<Op>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, op) in self.ops.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{op}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteSlice { name, slice, over } => {
                let verb = if over.is_some() { "update" } else { "create" };
                let ports: Vec<String> = slice
                    .ports
                    .iter()
                    .map(|port| format!("{}/{}", port.number, port.protocol))
                    .collect();
                let (family, ports) = (slice.family.as_str(), ports.join(","));
                write!(
                    f,
                    "{verb} slice {name} {family} ports [{ports}] endpoints {}",
                    slice.endpoints.len()
                )
            }
            Self::DeleteSlice { name, .. } => write!(f, "delete slice {name}"),
            Self::WriteEndpoints { endpoints, over } => {
                let verb = if over.is_some() { "update" } else { "create" };
                let ready: usize = endpoints.subsets.iter().map(|subset| subset.ready.len()).sum();
                let not_ready: usize = endpoints
                    .subsets
                    .iter()
                    .map(|subset| subset.not_ready.len())
                    .sum();
                write!(f, "{verb} endpoints ready {ready} not ready {not_ready}")
            }
            Self::DeleteEndpoints { .. } => f.write_str("delete endpoints"),
        }
    }
}

/// The writes that make `observed` into `desired`; empty when it is so.
pub(super) fn plan(service: &ObjectKey, desired: &Desired, observed: &Observed<'_>) -> Vec<Op> {
    let mut ops = match desired {
        Desired::Nothing => Slices::new(service, "", observed).finish(),
        Desired::Selected {
            groups,
            labels,
            owner,
            ..
        } => {
            let mut slices = Slices::new(service, MANAGER_SELECTED, observed);
            slices.make(groups, labels, None, owner);
            slices.finish()
        }
        Desired::Mirrored {
            groups,
            labels,
            annotations,
            owner,
        } => {
            let mut slices = Slices::new(service, MANAGER_MIRRORED, observed);
            slices.make(groups, labels, Some(annotations), owner);
            slices.finish()
        }
    };
    ops.extend(endpoints_op(desired, observed));
    ops
}

fn endpoints_op(desired: &Desired, observed: &Observed<'_>) -> Option<Op> {
    let Desired::Selected {
        endpoints,
        over_capacity,
        ..
    } = desired
    else {
        let (version, endpoints) = observed.endpoints?;
        let ours = endpoints.is_managed() || observed.orphan == Some(version.uid.as_str());
        return ours.then(|| Op::DeleteEndpoints {
            version: version.clone(),
        });
    };
    let mut endpoints = endpoints.clone();
    if let Some((_, there)) = observed.endpoints {
        endpoints.annotations.clone_from(&there.annotations);
    }
    if *over_capacity {
        endpoints
            .annotations
            .insert(ANNOTATION_OVER_CAPACITY.to_string(), "truncated".to_string());
    } else {
        endpoints.annotations.remove(ANNOTATION_OVER_CAPACITY);
    }
    match observed.endpoints {
        Some((_, there)) if *there == endpoints => None,
        there => Some(Op::WriteEndpoints {
            endpoints,
            over: there.map(|(version, _)| version.clone()),
        }),
    }
}

/// Slices of one Service on their way from what they are to what they should be.
struct Slices<'a> {
    service: &'a ObjectKey,
    /// Slices that nothing has been decided on yet; what is left at the end goes.
    open: BTreeMap<&'a str, (&'a Version, &'a Slice)>,
    /// Slices of the other manager: their contents are made anew, their names are not reused.
    foreign: Vec<(&'a str, &'a Version)>,
    names: HashSet<String>,
    writes: Vec<Op>,
}

impl<'a> Slices<'a> {
    fn new(service: &'a ObjectKey, manager: &str, observed: &Observed<'a>) -> Self {
        let (open, foreign): (BTreeMap<_, _>, BTreeMap<_, _>) = observed
            .slices
            .iter()
            .map(|(name, entry)| (*name, *entry))
            .partition(|(_, (_, slice))| slice.manager() == manager);
        Self {
            service,
            open,
            foreign: foreign
                .into_iter()
                .map(|(name, (version, _))| (name, version))
                .collect(),
            names: observed.slices.keys().map(ToString::to_string).collect(),
            writes: Vec::new(),
        }
    }

    /// `annotations` are left as they are where none are given.
    fn make(&mut self, groups: &[Group], labels: &Labels, annotations: Option<&Labels>, owner: &Owner) {
        let content = |family: Family, ports: &[Port], endpoints: Vec<Endpoint>| Slice {
            family,
            ports: ports.to_vec(),
            endpoints,
            labels: labels.clone(),
            annotations: annotations.cloned().unwrap_or_default(),
            owner: Some(owner.clone()),
        };
        let mut created: Vec<Slice> = Vec::new();
        for group in groups {
            let wanted = sorted(&group.ports);
            let mine: Vec<(&'a str, &'a Slice)> = self
                .open
                .iter()
                .filter(|(_, (_, slice))| slice.family == group.family && sorted(&slice.ports) == wanted)
                .map(|(name, (_, slice))| (*name, *slice))
                .collect();
            if group.endpoints.is_empty() {
                // A Service without endpoints has one empty slice, so that readers can tell "none" from "not yet".
                match mine.first() {
                    Some((name, _)) => {
                        self.write(name, content(group.family, &group.ports, Vec::new()), annotations)
                    }
                    None => created.push(content(group.family, &group.ports, Vec::new())),
                }
                continue;
            }
            let existing = mine
                .iter()
                .map(|(name, slice)| (*name, slice.endpoints.as_slice()));
            let packing = pack(existing, group.endpoints.iter().cloned());
            for (name, endpoints) in packing.update {
                self.write(&name, content(group.family, &group.ports, endpoints), annotations);
            }
            for name in packing.keep {
                let there = mine
                    .iter()
                    .find(|(other, _)| *other == name)
                    .map(|(_, slice)| slice.endpoints.clone());
                let endpoints = there.unwrap_or_default();
                self.write(&name, content(group.family, &group.ports, endpoints), annotations);
            }
            created.extend(
                packing
                    .create
                    .into_iter()
                    .map(|e| content(group.family, &group.ports, e)),
            );
        }
        for slice in created {
            self.create(slice, annotations);
        }
    }

    /// Decides on a slice that there is: its new content, if that is another one.
    fn write(&mut self, name: &str, mut slice: Slice, annotations: Option<&Labels>) {
        let Some((version, there)) = self.open.remove(name) else {
            return;
        };
        if annotations.is_none() {
            slice.annotations.clone_from(&there.annotations);
        }
        let same_ports = sorted(&slice.ports) == sorted(&there.ports);
        if same_ports
            && slice
                == (Slice {
                    ports: slice.ports.clone(),
                    ..there.clone()
                })
        {
            return;
        }
        self.writes.push(Op::WriteSlice {
            name: name.to_string(),
            slice,
            over: Some(version.clone()),
        });
    }

    /// A new content goes into a slice that is no longer needed, else into one more.
    fn create(&mut self, slice: Slice, annotations: Option<&Labels>) {
        let spare = self
            .open
            .iter()
            .find(|(_, (_, there))| there.family == slice.family)
            .map(|(name, _)| *name);
        if let Some(name) = spare {
            self.write(name, slice, annotations);
            return;
        }
        let owner = slice
            .owner
            .as_ref()
            .map(|owner| owner.uid.as_str())
            .unwrap_or_default();
        let name = free_name(&self.service.name, owner, slice.family, &self.names);
        self.names.insert(name.clone());
        self.writes.push(Op::WriteSlice {
            name,
            slice,
            over: None,
        });
    }

    // New contents first: a reader in between sees an endpoint twice rather than not at all.
    fn finish(self) -> Vec<Op> {
        let mut ops = self.writes;
        let open = self.open.into_iter().map(|(name, (version, _))| (name, version));
        ops.extend(open.chain(self.foreign).map(|(name, version)| Op::DeleteSlice {
            name: name.to_string(),
            version: version.clone(),
        }));
        ops
    }
}

/// A name as the API server would generate it, but the same one each time: a slice whose creation was not heard of is
/// not created again under another name.
fn free_name(service: &str, owner: &str, family: Family, taken: &HashSet<String>) -> String {
    let base: String = service.chars().take(NAME_BASE_MAX).collect();
    let mut number = 0u64;
    loop {
        let mut hash = fnv1a(format!("{owner}/{}/{number}", family.as_str()).as_bytes());
        let mut name = format!("{base}-");
        for _ in 0..5 {
            let length = NAME_ALPHABET.len() as u64;
            let letter = usize::try_from(hash % length)
                .ok()
                .and_then(|index| NAME_ALPHABET.get(index));
            name.push(char::from(*letter.unwrap_or(&b'b')));
            hash /= length;
        }
        if !taken.contains(&name) {
            return name;
        }
        number += 1;
    }
}

/// FNV-1a with a final mix: stable over builds, and spread enough for names.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
