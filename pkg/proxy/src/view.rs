//! What the cluster says that concerns a proxy, held small: no API object stays in memory.

mod service;
mod slice;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_runtime::Change;

pub use service::{Service, ServicePort, Skipped};
pub use slice::{Names, NodeFacts, NodeHint, Slice, SliceEndpoint};

/// `namespace/name`
pub type Name = Arc<str>;

/// Services and slices as last heard of.
#[derive(Debug, Default)]
pub struct View {
    node_name: Box<str>,
    /// In boxes, so that the table can grow in a moment: at 100,000 Services, a change would wait for it.
    services: HashMap<Name, Box<Service>>,
    /// By Service. Most have one or two.
    slices: HashMap<Name, Vec<Named>>,
    slice_owner: HashMap<Name, Name>,
    names: Names,
    node: NodeFacts,
    services_listed: bool,
    slices_listed: bool,
    node_awaited: bool,
}

/// A slice with its own name. A Service's are ordered by it, so that the first of two that say different things is the
/// same everywhere.
#[derive(Debug)]
struct Named {
    name: Name,
    slice: Slice,
}

impl View {
    /// Nothing heard yet.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            ..Self::default()
        }
    }

    /// Whether the lists of Services and of slices have both arrived: before that, what is missing may just be late.
    pub fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed && !self.node_awaited
    }

    /// From now on it is not complete before the Node has been heard of too.
    pub fn await_node(&mut self) {
        self.node_awaited = true;
    }

    /// What is known of this node.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// The Service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name).map(|service| &**service)
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> {
        let slices = self.slices.get(service).into_iter().flatten();
        slices.map(|named| &named.slice)
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Takes in a change of Services, and adds those that it concerns to `dirty`.
    pub fn change_services(&mut self, change: Change<core::Service>, dirty: &mut BTreeSet<Name>) {
        match change {
            Change::Apply(service) => self.put_service(&service, dirty),
            Change::Delete(service) => self.remove_service(&name_of(&service.metadata), dirty),
            Change::Reset(services) => {
                let there: HashSet<Name> = services.iter().map(|s| name_of(&s.metadata)).collect();
                let gone: Vec<Name> = self
                    .services
                    .keys()
                    .filter(|n| !there.contains(*n))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| self.remove_service(name, dirty));
                services
                    .iter()
                    .for_each(|service| self.put_service(service, dirty));
                self.services_listed = true;
            }
        }
    }

    /// Takes in a change of this node's Node, and adds the Services that it concerns to `dirty`.
    pub fn change_node(&mut self, change: Change<core::Node>, dirty: &mut BTreeSet<Name>) {
        let is_ours = |node: &&Arc<core::Node>| node.metadata.name.as_deref() == Some(&*self.node_name);
        let node = match &change {
            Change::Apply(node) => Some(node).filter(is_ours),
            Change::Reset(nodes) => nodes.iter().find(is_ours),
            // A node that is taken out of the cluster keeps what it had to its end.
            Change::Delete(_) => None,
        };
        self.node_awaited &= !matches!(change, Change::Reset(_));
        let Some(facts) = node
            .map(|node| NodeFacts::new(node))
            .filter(|facts| *facts != self.node)
        else {
            return;
        };
        if facts.zone != self.node.zone {
            let hinted = |slice: &Slice| slice.endpoints.iter().any(|e| !e.for_zones.is_empty());
            let concerned = self
                .slices
                .iter()
                .filter(|(_, slices)| slices.iter().any(|named| hinted(&named.slice)));
            dirty.extend(concerned.map(|(service, _)| service.clone()));
        }
        if facts.addresses != self.node.addresses {
            let concerned = self
                .services
                .iter()
                .filter(|(_, service)| service.source_ranges.is_some());
            dirty.extend(concerned.map(|(name, _)| name.clone()));
        }
        self.node = facts;
    }

    /// Takes in a change of slices, and adds the Services that it concerns to `dirty`.
    pub fn change_slices(&mut self, change: Change<discovery::EndpointSlice>, dirty: &mut BTreeSet<Name>) {
        match change {
            Change::Apply(slice) => self.put_slice(&slice, dirty),
            Change::Delete(slice) => self.remove_slice(&name_of(&slice.metadata), dirty),
            Change::Reset(slices) => {
                let there: HashSet<Name> = slices.iter().map(|s| name_of(&s.metadata)).collect();
                let gone: Vec<Name> = self
                    .slice_owner
                    .keys()
                    .filter(|n| !there.contains(*n))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| self.remove_slice(name, dirty));
                slices.iter().for_each(|slice| self.put_slice(slice, dirty));
                self.names.forget_unused();
                self.slices_listed = true;
            }
        }
    }

    fn put_service(&mut self, service: &core::Service, dirty: &mut BTreeSet<Name>) {
        let name = name_of(&service.metadata);
        match Service::new(service) {
            Ok(service) => {
                if self.service(&name) != Some(&service) {
                    dirty.insert(name.clone());
                    self.services.insert(name, Box::new(service));
                }
            }
            Err(reason) => {
                tracing::trace!(object.name = %name, ?reason, "service is not ours");
                self.remove_service(&name, dirty);
            }
        }
    }

    fn remove_service(&mut self, name: &Name, dirty: &mut BTreeSet<Name>) {
        if self.services.remove(name).is_some() {
            dirty.insert(name.clone());
        }
    }

    fn put_slice(&mut self, slice: &discovery::EndpointSlice, dirty: &mut BTreeSet<Name>) {
        let name = name_of(&slice.metadata);
        let Some(mut slice) = Slice::new(slice, &self.node_name, &mut self.names) else {
            self.remove_slice(&name, dirty);
            return;
        };
        if self
            .slice_owner
            .get(&name)
            .is_some_and(|owner| *owner != slice.service)
        {
            self.remove_slice(&name, dirty);
        }
        // One copy of the Service's name serves all.
        if let Some((service, _)) = self.services.get_key_value(&slice.service) {
            slice.service = service.clone();
        }
        let slices = self.slices.entry(slice.service.clone()).or_default();
        match slices.binary_search_by(|named| named.name.cmp(&name)) {
            Ok(at) if slices[at].slice == slice => {}
            Ok(at) => {
                dirty.insert(slice.service.clone());
                slices[at].slice = slice;
            }
            Err(at) => {
                dirty.insert(slice.service.clone());
                self.slice_owner.insert(name.clone(), slice.service.clone());
                slices.reserve_exact(1);
                slices.insert(at, Named { name, slice });
            }
        }
    }

    fn remove_slice(&mut self, name: &Name, dirty: &mut BTreeSet<Name>) {
        let Some(service) = self.slice_owner.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.retain(|named| named.name != *name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        dirty.insert(service);
    }
}

fn name_of(metadata: &ObjectMeta) -> Name {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()).into()
}
