//! The cluster zone: what the watches say, as an immutable value that answers questions.
//!
//! [`View`] keeps what matters of the watched objects, [`View::plan`] says what that changes, [`Zone::with`] is the zone
//! after the changes, sharing all else with the one before. Whoever holds a zone can answer from it without a lock, and
//! [`Zone::answer`] depends on nothing but the zone and the question. Nothing of the cluster is ever cached: an answer is
//! as new as the last watch event.

mod answer;
mod desired;
mod facts;
mod find;
mod plan;
mod table;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub use answer::{Question, Reason, Verdict};
pub use facts::{Endpoint, Key, Kind, Port, Protocol, ServiceFacts, SliceFacts};
pub use find::Missing;
pub use plan::Plan;
pub use view::View;

use crate::name::{Name, fmt_wire};
use crate::wire::Soa;
use table::{Change, Entry, Table};

/// What does not come from a watch.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone's name, `cluster.local`.
    pub apex: Name,
    /// Time to live of all records, in seconds.
    pub ttl: u32,
    /// Where the zone is served: the addresses of `ns.dns.ZONE`.
    pub servers: Box<[IpAddr]>,
    /// Whether pods have records.
    pub pods: bool,
}

/// The zone.
#[derive(Debug, Clone)]
pub struct Zone {
    settings: Arc<Settings>,
    soa: Arc<Soa>,
    /// Whether every watch has delivered its first list: before that, only what is there can be told.
    synced: bool,
    services: Table<ServiceEntry>,
    namespaces: Table<NamespaceEntry>,
    pods: Table<PodEntry>,
    addresses: Table<AddressEntry>,
}

/// A Service as the zone holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    key: Key,
    /// The IPv4 addresses that its name stands for.
    v4: Box<[Ipv4Addr]>,
    /// The IPv6 addresses that its name stands for.
    v6: Box<[Ipv6Addr]>,
    facts: Arc<ServiceFacts>,
    slices: Box<[Arc<SliceFacts>]>,
}

impl ServiceEntry {
    /// The endpoints that have names, each with the ports of its slice.
    fn published(&self) -> impl Iterator<Item = (&Endpoint, &[Port])> {
        let all = self
            .slices
            .iter()
            .flat_map(|s| s.endpoints.iter().map(move |e| (e, &*s.ports)));
        all.filter(|(endpoint, _)| endpoint.ready || self.facts.publish_not_ready)
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }
}

impl Entry for ServiceEntry {
    fn key(&self) -> &[u8] {
        self.key.wire()
    }
}

/// A namespace that exists.
#[derive(Debug)]
pub(crate) struct NamespaceEntry(Key);

impl Entry for NamespaceEntry {
    fn key(&self) -> &[u8] {
        self.0.wire()
    }
}

/// An address that a pod of a namespace has: the address in 16 bytes, then the namespace's key.
#[derive(Debug)]
pub(crate) struct PodEntry(Box<[u8]>);

impl PodEntry {
    pub(crate) fn new(namespace: &Key, address: IpAddr) -> Self {
        Self([&wide(address), namespace.wire()].concat().into())
    }

    fn from_key(key: &[u8]) -> Self {
        Self(key.into())
    }
}

impl Entry for PodEntry {
    fn key(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for PodEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, namespace) = self.0.split_at_checked(16).unwrap_or_default();
        let address = <[u8; 16]>::try_from(address)
            .map(Ipv6Addr::from)
            .unwrap_or(Ipv6Addr::UNSPECIFIED);
        write!(f, "{} ", address.to_canonical())?;
        fmt_wire(namespace, f)
    }
}

/// Whose names an address has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AddressEntry {
    address: [u8; 16],
    /// Sorted; never empty.
    services: Box<[Key]>,
}

impl Entry for AddressEntry {
    fn key(&self) -> &[u8] {
        &self.address
    }
}

/// An address in 16 bytes, whichever its family.
fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

impl Zone {
    /// A zone that knows of nothing yet.
    pub fn empty(settings: Settings) -> Self {
        let below = |labels: &[&[u8]]| {
            // A cluster domain so long that nothing fits below it has no name server to name.
            Name::from_labels(labels.iter().copied(), &settings.apex).unwrap_or_else(|_| Name::root())
        };
        let soa = Soa {
            zone: settings.apex.clone(),
            server: below(&[b"ns", b"dns"]),
            mailbox: below(&[b"hostmaster"]),
            serial: 1,
            minimum: settings.ttl,
        };
        Self {
            settings: Arc::new(settings),
            soa: Arc::new(soa),
            synced: false,
            services: Table::default(),
            namespaces: Table::default(),
            pods: Table::default(),
            addresses: Table::default(),
        }
    }

    /// The zone after a plan.
    #[must_use]
    pub fn with(&self, plan: Plan, serial: u32) -> Self {
        let addresses = self.addresses.with(self.address_changes(&plan.services));
        Self {
            settings: self.settings.clone(),
            soa: Arc::new(Soa {
                serial,
                ..(*self.soa).clone()
            }),
            synced: self.synced,
            services: self.services.with(plan.services),
            namespaces: self.namespaces.with(plan.namespaces),
            pods: self.pods.with(plan.pods),
            addresses,
        }
    }

    /// The zone, from now on complete: what is not in it does not exist.
    #[must_use]
    pub fn into_synced(self) -> Self {
        Self { synced: true, ..self }
    }

    /// Whether what is not in the zone does not exist.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many Services there are.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// The zone's name.
    pub fn apex(&self) -> &Name {
        &self.settings.apex
    }

    /// What changes in the index from addresses to Services when these Services change.
    fn address_changes(&self, changes: &[Change<ServiceEntry>]) -> Vec<Change<AddressEntry>> {
        let mut touched = std::collections::BTreeMap::<[u8; 16], Vec<Key>>::new();
        let held = |address: &[u8; 16]| {
            self.addresses
                .get(address)
                .map(|entry| entry.services.to_vec())
                .unwrap_or_default()
        };
        for change in changes {
            let before = self.services.get(change_key(change));
            let after = match change {
                Change::Put(entry) => Some(entry),
                Change::Remove(_) => None,
            };
            if let (Some(before), Some(after)) = (before, after)
                && before.v4 == after.v4
                && before.v6 == after.v6
            {
                continue;
            }
            for address in before.into_iter().flat_map(|entry| entry.addresses()).map(wide) {
                let keys = touched.entry(address).or_insert_with(|| held(&address));
                keys.retain(|key| key.wire() != change_key(change));
            }
            for (address, key) in after
                .into_iter()
                .flat_map(|e| e.addresses().map(|a| (wide(a), &e.key)))
            {
                touched
                    .entry(address)
                    .or_insert_with(|| held(&address))
                    .push(key.clone());
            }
        }
        let changes = touched.into_iter().map(|(address, mut services)| {
            services.sort_unstable();
            services.dedup();
            if services.is_empty() {
                Change::Remove(address.into())
            } else {
                Change::Put(Arc::new(AddressEntry {
                    address,
                    services: services.into(),
                }))
            }
        });
        changes.collect()
    }
}

fn change_key(change: &Change<ServiceEntry>) -> &[u8] {
    match change {
        Change::Put(entry) => entry.key(),
        Change::Remove(key) => key,
    }
}
