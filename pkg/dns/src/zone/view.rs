//! What the watches say, in compact form, and which parts of the zone it may have changed.
//!
//! The view belongs to one task. It is told of objects, remembers which Services, namespaces and pod addresses are
//! *dirty*, and [`View::plan`] turns the dirty ones into the changes that make a zone match: in proportion to what
//! changed, never to what there is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::facts::{Key, ServiceFacts, SliceFacts, pod_addresses, pod_aliases};
use super::plan::{self, Plan};
use super::{PodEntry, ServiceEntry, Zone, desired};

/// Which object: namespace and name.
type Id = (Box<str>, Box<str>);
/// The EndpointSlices of a Service, by name.
type Slices = Vec<(Box<str>, Arc<SliceFacts>)>;

/// The state of the watches.
#[derive(Debug, Default)]
pub struct View {
    services: HashMap<Key, Arc<ServiceFacts>>,
    slices: HashMap<Key, Slices>,
    /// Under which Service each EndpointSlice is filed.
    slice_owner: HashMap<Id, Key>,
    namespaces: HashSet<Key>,
    /// How many Services each namespace has: where one is, the namespace is, whichever watch is first to say so.
    services_in: HashMap<Key, u32>,
    pods: HashMap<Id, Box<[IpAddr]>>,
    /// How many pods have an address: those on the host's network share it.
    pods_at: HashMap<(Key, IpAddr), u32>,
    /// The further names of pods, each with the addresses of those that have it. Most pods have none.
    aliases: HashMap<Key, BTreeMap<Id, Box<[IpAddr]>>>,
    aliases_of: HashMap<Id, Box<[Key]>>,
    dirty: Dirty,
}

#[derive(Debug, Default)]
struct Dirty {
    services: HashSet<Key>,
    namespaces: HashSet<Key>,
    pods: HashSet<(Key, IpAddr)>,
}

impl View {
    /// The whole list of Services: all others are gone.
    pub fn reset_services<'a>(&mut self, list: impl IntoIterator<Item = &'a Service>) {
        for key in std::mem::take(&mut self.services).into_keys() {
            self.dirty.services.insert(key);
        }
        let counted = std::mem::take(&mut self.services_in).into_keys();
        self.dirty.namespaces.extend(counted);
        for service in list {
            self.apply_service(service);
        }
    }

    /// A Service is new or has changed.
    pub fn apply_service(&mut self, service: &Service) {
        let Some(key) = service_key(&service.metadata) else {
            return;
        };
        let facts = Arc::new(ServiceFacts::read(service));
        if self.services.insert(key.clone(), facts).is_none() {
            let namespace = key.parent();
            *self.services_in.entry(namespace.clone()).or_default() += 1;
            self.dirty.namespaces.insert(namespace);
        }
        self.dirty.services.insert(key);
    }

    /// A Service is gone.
    pub fn delete_service(&mut self, service: &Service) {
        let Some(key) = service_key(&service.metadata) else {
            return;
        };
        if self.services.remove(&key).is_some() {
            let namespace = key.parent();
            decrement(&mut self.services_in, &namespace);
            self.dirty.namespaces.insert(namespace);
            self.dirty.services.insert(key);
        }
    }

    /// The whole list of EndpointSlices.
    pub fn reset_slices<'a>(&mut self, list: impl IntoIterator<Item = &'a EndpointSlice>) {
        self.slice_owner.clear();
        for key in std::mem::take(&mut self.slices).into_keys() {
            self.dirty.services.insert(key);
        }
        for slice in list {
            self.apply_slice(slice);
        }
    }

    /// An EndpointSlice is new or has changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        let Some(id) = id(&slice.metadata) else { return };
        let Some((key, facts)) = SliceFacts::read(slice) else {
            return self.delete_slice(slice);
        };
        if self.slice_owner.get(&id).is_some_and(|owner| *owner != key) {
            self.delete_slice(slice);
        }
        // Nearly every Service has one slice.
        let of_service = self
            .slices
            .entry(key.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        let facts = Arc::new(facts);
        match of_service.binary_search_by(|(name, _)| name.cmp(&id.1)) {
            Ok(at) => of_service[at].1 = facts,
            Err(at) => of_service.insert(at, (id.1.clone(), facts)),
        }
        self.slice_owner.insert(id, key.clone());
        self.dirty.services.insert(key);
    }

    /// An EndpointSlice is gone.
    pub fn delete_slice(&mut self, slice: &EndpointSlice) {
        let Some(id) = id(&slice.metadata) else { return };
        let Some(key) = self.slice_owner.remove(&id) else {
            return;
        };
        if let Some(of_service) = self.slices.get_mut(&key) {
            of_service.retain(|(name, _)| *name != id.1);
            if of_service.is_empty() {
                self.slices.remove(&key);
            }
        }
        self.dirty.services.insert(key);
    }

    /// The whole list of namespaces.
    pub fn reset_namespaces<'a>(&mut self, list: impl IntoIterator<Item = &'a Namespace>) {
        self.dirty.namespaces.extend(std::mem::take(&mut self.namespaces));
        for namespace in list {
            self.apply_namespace(namespace);
        }
    }

    /// A namespace is new or has changed.
    pub fn apply_namespace(&mut self, namespace: &Namespace) {
        let Some(key) = namespace.metadata.name.as_deref().and_then(Key::namespace) else {
            return;
        };
        self.namespaces.insert(key.clone());
        self.dirty.namespaces.insert(key);
    }

    /// A namespace is gone.
    pub fn delete_namespace(&mut self, namespace: &Namespace) {
        let Some(key) = namespace.metadata.name.as_deref().and_then(Key::namespace) else {
            return;
        };
        self.namespaces.remove(&key);
        self.dirty.namespaces.insert(key);
    }

    /// The whole list of pods.
    pub fn reset_pods<'a>(&mut self, list: impl IntoIterator<Item = &'a Pod>) {
        self.pods.clear();
        self.aliases_of.clear();
        let aliases = std::mem::take(&mut self.aliases).into_keys();
        self.dirty.services.extend(aliases);
        self.dirty
            .pods
            .extend(std::mem::take(&mut self.pods_at).into_keys());
        for pod in list {
            self.apply_pod(pod);
        }
    }

    /// A pod is new or has changed.
    pub fn apply_pod(&mut self, pod: &Pod) {
        self.set_pod(pod, pod_addresses(pod).into());
        self.set_aliases(pod, pod_aliases(pod));
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, pod: &Pod) {
        self.set_pod(pod, [].into());
        self.set_aliases(pod, [].into());
    }

    fn set_aliases(&mut self, pod: &Pod, aliases: Box<[Key]>) {
        let Some(id) = id(&pod.metadata) else { return };
        for key in self.aliases_of.remove(&id).into_iter().flatten() {
            if let Some(pods) = self.aliases.get_mut(&key) {
                pods.remove(&id);
                if pods.is_empty() {
                    self.aliases.remove(&key);
                }
            }
            self.dirty.services.insert(key);
        }
        // One that has no address has no names either.
        let Some(addresses) = self.pods.get(&id).filter(|_| !aliases.is_empty()) else {
            return;
        };
        for key in &aliases {
            let pods = self.aliases.entry(key.clone()).or_default();
            pods.insert(id.clone(), addresses.clone());
            self.dirty.services.insert(key.clone());
        }
        self.aliases_of.insert(id, aliases);
    }

    fn set_pod(&mut self, pod: &Pod, addresses: Box<[IpAddr]>) {
        let Some(id) = id(&pod.metadata) else { return };
        let Some(namespace) = Key::namespace(&id.0) else {
            return;
        };
        let before = if addresses.is_empty() {
            self.pods.remove(&id)
        } else {
            self.pods.insert(id, addresses.clone())
        };
        if before.as_ref() == Some(&addresses) {
            return;
        }
        for address in before.into_iter().flatten() {
            let at = (namespace.clone(), address);
            decrement(&mut self.pods_at, &at);
            self.dirty.pods.insert(at);
        }
        for address in addresses {
            let at = (namespace.clone(), address);
            *self.pods_at.entry(at.clone()).or_default() += 1;
            self.dirty.pods.insert(at);
        }
    }

    /// The changes that make `zone` match what was heard since the last plan, which must have been applied to it.
    pub fn plan(&mut self, zone: &Zone) -> Plan {
        let dirty = std::mem::take(&mut self.dirty);
        let services = dirty.services.into_iter().filter_map(|key| {
            let wanted = self.service(&key);
            plan::service(key, wanted, zone)
        });
        let services = services.collect();
        let namespaces = dirty.namespaces.into_iter().filter_map(|key| {
            let wanted = self.namespaces.contains(&key) || self.services_in.contains_key(&key);
            plan::namespace(key, wanted, zone)
        });
        let namespaces = namespaces.collect();
        let pods = dirty.pods.into_iter().filter_map(|at| {
            let wanted = self.pods_at.contains_key(&at);
            plan::pod(PodEntry::new(&at.0, at.1), wanted, zone)
        });
        Plan {
            services,
            namespaces,
            pods: pods.collect(),
        }
    }

    fn service(&self, key: &Key) -> Option<ServiceEntry> {
        let Some(facts) = self.services.get(key) else {
            let pods = self.aliases.get(key)?;
            return Some(desired::alias(key.clone(), pods.values().flatten().copied()));
        };
        let slices = self.slices.get(key).map(Vec::as_slice).unwrap_or_default();
        Some(desired::service(
            key.clone(),
            facts.clone(),
            slices.iter().map(|(_, slice)| slice.clone()),
        ))
    }
}

fn id(metadata: &ObjectMeta) -> Option<Id> {
    Some((
        metadata.namespace.as_deref()?.into(),
        metadata.name.as_deref()?.into(),
    ))
}

fn service_key(metadata: &ObjectMeta) -> Option<Key> {
    Key::service(metadata.namespace.as_deref()?, metadata.name.as_deref()?)
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
