//! What the engine knows, shared with those who ask about it: the view, and whose each address is.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::{ObjectKey, Policy};
use crate::verdict::End;
use crate::view::{Labels, PodFacts, View};

/// The view with an index: who asks does so for each connection.
#[derive(Debug, Default)]
pub struct Known {
    view: View,
    /// The pods that have an address: two of them for a moment, when one takes over from another.
    pods_at: HashMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Addresses of pods that nobody knows yet, and how often that was said.
    held: HashMap<IpAddr, usize>,
    /// Grows with each change.
    version: u64,
}

impl Deref for Known {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Known {
    /// The end at an address.
    pub(crate) fn end_at(&self, address: IpAddr) -> End<'_> {
        let key = self.pods_at.get(&address).and_then(BTreeSet::first);
        End {
            address,
            pod: key.and_then(|key| self.view.pods.get_key_value(key)),
        }
    }

    /// Whether nobody knows yet whose an address is.
    pub(crate) fn is_held(&self, address: IpAddr) -> bool {
        self.held.contains_key(&address)
    }

    /// Another number than before when anything has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Changes the labels of a namespace; none where it is gone.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.version += 1;
        match labels {
            Some(labels) => _ = self.view.namespaces.insert(name.to_string(), labels),
            None => _ = self.view.namespaces.remove(name),
        }
    }

    /// Changes a pod; none where it is gone.
    pub(crate) fn set_pod(&mut self, key: &ObjectKey, pod: Option<PodFacts>) {
        self.version += 1;
        for address in self.view.pods.get(key).iter().flat_map(|pod| &pod.addresses) {
            if let Some(keys) = self.pods_at.get_mut(address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.pods_at.remove(address);
                }
            }
        }
        let Some(pod) = pod else {
            self.view.pods.remove(key);
            return;
        };
        for address in &pod.addresses {
            self.pods_at.entry(*address).or_default().insert(key.clone());
        }
        self.view.pods.insert(key.clone(), pod);
    }

    /// Changes a policy; none where it is gone. Returns what it was.
    pub(crate) fn set_policy(&mut self, key: &ObjectKey, policy: Option<Policy>) -> Option<Policy> {
        self.version += 1;
        match policy {
            Some(policy) => self.view.policies.insert(key.clone(), policy),
            None => self.view.policies.remove(key),
        }
    }

    /// Nobody knows whose an address is.
    pub(crate) fn hold(&mut self, address: IpAddr) {
        self.version += 1;
        *self.held.entry(address).or_default() += 1;
    }

    /// Takes that back.
    pub(crate) fn release(&mut self, address: IpAddr) {
        self.version += 1;
        if let Some(count) = self.held.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&address);
            }
        }
    }
}

/// The one that all share. Only the engine changes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<RwLock<Known>>);

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
