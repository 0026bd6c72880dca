//! The difference between what the watches say and what the zone holds.

use std::fmt;
use std::sync::Arc;

use super::facts::Key;
use super::table::{Change, Entry};
use super::{NamespaceEntry, PodEntry, ServiceEntry, Zone};
use crate::name::fmt_wire;

/// Changes to a zone. Empty when it holds all that it should and nothing else.
#[derive(Debug, Default)]
pub struct Plan {
    pub(super) services: Vec<Change<ServiceEntry>>,
    pub(super) namespaces: Vec<Change<NamespaceEntry>>,
    pub(super) pods: Vec<Change<PodEntry>>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.services.len() + self.namespaces.len() + self.pods.len()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_changes(f, "service", &self.services)?;
        write_changes(f, "namespace", &self.namespaces)?;
        for change in &self.pods {
            match change {
                Change::Put(pod) => writeln!(f, "put pod {pod}")?,
                Change::Remove(key) => writeln!(f, "remove pod {}", PodEntry::from_key(key))?,
            }
        }
        Ok(())
    }
}

fn write_changes<V: Entry>(f: &mut fmt::Formatter<'_>, what: &str, changes: &[Change<V>]) -> fmt::Result {
    for change in changes {
        let (verb, key) = match change {
            Change::Put(entry) => ("put", entry.key()),
            Change::Remove(key) => ("remove", &**key),
        };
        write!(f, "{verb} {what} ")?;
        fmt_wire(key, f)?;
        writeln!(f)?;
    }
    Ok(())
}

/// The change that a Service needs, if any.
pub(super) fn service(key: Key, wanted: Option<ServiceEntry>, zone: &Zone) -> Option<Change<ServiceEntry>> {
    match (wanted, zone.services.get(key.wire())) {
        (Some(wanted), Some(held)) if wanted == **held => None,
        (Some(wanted), _) => Some(Change::Put(Arc::new(wanted))),
        (None, Some(_)) => Some(Change::Remove(key.wire().into())),
        (None, None) => None,
    }
}

/// The change that a namespace needs, if any.
pub(super) fn namespace(key: Key, wanted: bool, zone: &Zone) -> Option<Change<NamespaceEntry>> {
    match (wanted, zone.namespaces.get(key.wire()).is_some()) {
        (true, false) => Some(Change::Put(Arc::new(NamespaceEntry(key)))),
        (false, true) => Some(Change::Remove(key.wire().into())),
        _ => None,
    }
}

/// The change that the address of a pod needs, if any.
pub(super) fn pod(entry: PodEntry, wanted: bool, zone: &Zone) -> Option<Change<PodEntry>> {
    match (wanted, zone.pods.get(entry.key()).is_some()) {
        (true, false) => Some(Change::Put(Arc::new(entry))),
        (false, true) => Some(Change::Remove(entry.key().into())),
        _ => None,
    }
}
