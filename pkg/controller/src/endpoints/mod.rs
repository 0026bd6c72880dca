//! Endpoints and EndpointSlices: who serves a Service.
//!
//! Three controllers of Kubernetes in one, because they read and write the same objects: slices from selectors, the
//! older Endpoints from selectors, and slices that mirror hand-made Endpoints. Everything is keyed by the Service.

mod apply;
mod desired;
mod index;
mod model;
mod pack;
mod plan;
mod subsets;
mod wire;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use svcnet_api::wellknown::LABEL_SERVICE_NAME;
use svcnet_runtime::{Change, Informers, Scope};

use crate::engine::{Applying, Controller, Mark, source};
use crate::view::{ObjectKey, Version, View};

use apply::Written;
use desired::Desired;
use index::LabelIndex;
use model::{Endpoints, Pod, Service, Slice};
use plan::{Observed, Plan};

/// A change of one of the watched kinds.
pub(crate) enum Event {
    Service(Change<core::Service>),
    Pod(Change<core::Pod>),
    Node(Change<core::Node>),
    Endpoints(Change<core::Endpoints>),
    Slice(Change<EndpointSlice>),
}

/// The controller's state: everything that it watches, cut down, and the ways from one to the other.
pub(crate) struct EndpointsController {
    client: kube::Client,
    services: View<ObjectKey, Service>,
    pods: View<ObjectKey, Pod>,
    zones: View<String, Option<String>>,
    endpoints: View<ObjectKey, Endpoints>,
    /// With the name of the Service that each slice is of.
    slices: View<ObjectKey, (String, Slice)>,
    slices_of: HashMap<ObjectKey, HashSet<String>>,
    pods_by_label: LabelIndex,
    /// Services by one of the labels that they select by: this one.
    services_by_label: LabelIndex,
    found_by: HashMap<ObjectKey, (String, String)>,
    /// Endpoints (by uid) whose Service was seen to go.
    orphans: HashMap<ObjectKey, String>,
    /// Up to when the changes behind a Service's endpoints have been written.
    written_up_to: HashMap<ObjectKey, Timestamp>,
}

impl EndpointsController {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            services: View::default(),
            pods: View::default(),
            zones: View::default(),
            endpoints: View::default(),
            slices: View::default(),
            slices_of: HashMap::new(),
            pods_by_label: LabelIndex::default(),
            services_by_label: LabelIndex::default(),
            found_by: HashMap::new(),
            orphans: HashMap::new(),
            written_up_to: HashMap::new(),
        }
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Event>> {
        vec![
            source(informers.subscribe(Scope::default()), Event::Service),
            source(informers.subscribe(Scope::default()), Event::Pod),
            source(informers.subscribe(Scope::default()), Event::Node),
            source(informers.subscribe(Scope::default()), Event::Endpoints),
            source(informers.subscribe(Scope::default()), Event::Slice),
        ]
    }

    fn service_changed(&mut self, object: &core::Service, mark: Mark<'_, ObjectKey>) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        let service = Service::from_object(object);
        let selector = service.selector.clone();
        if self.services.apply(key.clone(), version, service).is_err() {
            return;
        }
        self.index_service(&key, &selector);
        self.orphans.remove(&key);
        mark(key);
    }

    /// One label is enough to be found by; the least common one spares the most pods from looking.
    fn index_service(&mut self, key: &ObjectKey, selector: &model::Labels) {
        let index = &mut self.services_by_label;
        if let Some((label, value)) = self.found_by.remove(key) {
            index.remove(&key.namespace, &key.name, [(&label, &value)]);
        }
        if let Some(pair) = index.least_common(&key.namespace, selector) {
            index.insert(&key.namespace, &key.name, [pair]);
            self.found_by
                .insert(key.clone(), (pair.0.clone(), pair.1.clone()));
        }
    }

    fn service_gone(&mut self, key: ObjectKey, mark: Mark<'_, ObjectKey>) {
        self.index_service(&key, &model::Labels::new());
        self.written_up_to.remove(&key);
        if let Some(version) = self.endpoints.version(&key) {
            self.orphans.insert(key.clone(), version.uid.clone());
        }
        mark(key);
    }

    fn pod_changed(&mut self, object: &core::Pod, mark: Mark<'_, ObjectKey>) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        let pod = Pod::from_object(object);
        let labels = pod.labels.clone();
        let same = self.pods.get(&key) == Some(&pod);
        let Ok(before) = self.pods.apply(key.clone(), version, pod) else {
            return;
        };
        if same {
            return;
        }
        match before {
            Some(before) if before.labels == labels => {}
            before => {
                if let Some(before) = before {
                    self.pods_by_label
                        .remove(&key.namespace, &key.name, &before.labels);
                    self.mark_services(&key.namespace, &before.labels, mark);
                }
                self.pods_by_label.insert(&key.namespace, &key.name, &labels);
            }
        }
        self.mark_services(&key.namespace, &labels, mark);
    }

    fn pod_gone(&mut self, key: &ObjectKey, pod: &Pod, mark: Mark<'_, ObjectKey>) {
        self.pods_by_label.remove(&key.namespace, &key.name, &pod.labels);
        self.mark_services(&key.namespace, &pod.labels, mark);
    }

    fn mark_services(&self, namespace: &str, labels: &model::Labels, mark: Mark<'_, ObjectKey>) {
        for name in self.services_by_label.any(namespace, labels) {
            let key = ObjectKey::new(namespace, name);
            if self
                .services
                .get(&key)
                .is_some_and(|service| service.selects(labels))
            {
                mark(key);
            }
        }
    }

    fn node_changed(&mut self, object: &core::Node, mark: Mark<'_, ObjectKey>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let zone = model::zone(object);
        let same = self.zones.get(&name) == Some(&zone);
        let applied = self
            .zones
            .apply(name.clone(), Version::of(&object.metadata), zone);
        if !same && applied.is_ok() {
            self.mark_pods_on(&name, mark);
        }
    }

    // Zones hardly ever change, so this may look at every pod.
    fn mark_pods_on(&self, node: &str, mark: Mark<'_, ObjectKey>) {
        for (key, pod) in self
            .pods
            .iter()
            .filter(|(_, pod)| pod.node.as_deref() == Some(node))
        {
            self.mark_services(&key.namespace, &pod.labels, mark);
        }
    }

    fn endpoints_changed(&mut self, object: &core::Endpoints, mark: Mark<'_, ObjectKey>) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        if self
            .endpoints
            .apply(key.clone(), version, Endpoints::from_object(object))
            .is_ok()
        {
            mark(key);
        }
    }

    fn slice_changed(&mut self, object: &EndpointSlice, mark: Mark<'_, ObjectKey>) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        let Some((service, slice)) = Slice::from_object(object) else {
            // Not ours, or no longer.
            if let Some((service, _)) = self.slices.forget(&key) {
                self.slice_gone(&key, &service, mark);
            }
            return;
        };
        let Ok(before) = self.slices.apply(key.clone(), version, (service.clone(), slice)) else {
            return;
        };
        if let Some((before, _)) = before
            && before != service
        {
            self.slice_gone(&key, &before, mark);
        }
        let owner = ObjectKey::new(&key.namespace, &service);
        self.slices_of.entry(owner.clone()).or_default().insert(key.name);
        mark(owner);
    }

    fn slice_gone(&mut self, key: &ObjectKey, service: &str, mark: Mark<'_, ObjectKey>) {
        let owner = ObjectKey::new(&key.namespace, service);
        if let Some(names) = self.slices_of.get_mut(&owner) {
            names.remove(&key.name);
            if names.is_empty() {
                self.slices_of.remove(&owner);
            }
        }
        mark(owner);
    }

    fn desired(&self, key: &ObjectKey) -> Desired {
        let Some(service) = self.services.get(key) else {
            return Desired::Nothing;
        };
        if service.selector.is_empty() {
            return self.mirrored(key, service);
        }
        let names = self.pods_by_label.rarest(&key.namespace, &service.selector);
        let pods = names.filter_map(|name| self.pods.get(&ObjectKey::new(&key.namespace, name)));
        let mut pods: Vec<&Pod> = pods.filter(|pod| service.selects(&pod.labels)).collect();
        pods.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        desired::selected(service, &pods, |node| {
            self.zones.get(&node.to_string())?.as_deref()
        })
    }

    fn mirrored(&self, key: &ObjectKey, service: &Service) -> Desired {
        // The API server writes both the Endpoints and the slice of its own Service.
        let of_the_server = key.namespace == "default" && key.name == "kubernetes";
        match (self.endpoints.get(key), self.endpoints.version(key)) {
            (Some(endpoints), Some(version)) if !service.external && !of_the_server => {
                desired::mirrored(&key.name, &version.uid, endpoints)
            }
            _ => Desired::Nothing,
        }
    }

    fn observed(&self, key: &ObjectKey) -> Observed<'_> {
        let names = self.slices_of.get(key).into_iter().flatten();
        let slices = names.filter_map(|name| {
            let key = ObjectKey::new(&key.namespace, name);
            let (_, slice) = self.slices.get(&key)?;
            Some((name.as_str(), (self.slices.version(&key)?, slice)))
        });
        Observed {
            slices: slices.collect::<BTreeMap<_, _>>(),
            endpoints: self.endpoints.version(key).zip(self.endpoints.get(key)),
            orphan: self.orphans.get(key).map(String::as_str),
        }
    }

    /// Since when what is written now was due: the newest change behind it that has not been written yet.
    fn trigger(&mut self, key: &ObjectKey, desired: &Desired) -> Option<Timestamp> {
        let Desired::Selected { newest, .. } = desired else {
            return None;
        };
        let newest = (*newest)?;
        let before = self.written_up_to.insert(key.clone(), newest);
        before.is_none_or(|before| newest > before).then_some(newest)
    }
}

impl Controller for EndpointsController {
    type Key = ObjectKey;
    type Event = Event;
    type Plan = Plan;
    type Outcome = Vec<Written>;

    const NAME: &'static str = "endpoints";
    const PERIOD: Duration = Duration::from_secs(60);

    fn observe(&mut self, event: Event, mark: Mark<'_, ObjectKey>) {
        match event {
            Event::Service(Change::Apply(object)) => self.service_changed(&object, mark),
            Event::Service(Change::Delete(object)) => {
                let key = ObjectKey::of(&object.metadata);
                if self
                    .services
                    .delete(&key, &Version::of(&object.metadata))
                    .is_some()
                {
                    self.service_gone(key, mark);
                }
            }
            Event::Service(Change::Reset(all)) => {
                for (key, _) in self.services.retain(&keys(&all, |object| &object.metadata)) {
                    self.service_gone(key, mark);
                }
                all.iter().for_each(|object| self.service_changed(object, mark));
            }
            Event::Pod(Change::Apply(object)) => self.pod_changed(&object, mark),
            Event::Pod(Change::Delete(object)) => {
                let key = ObjectKey::of(&object.metadata);
                if let Some(pod) = self.pods.delete(&key, &Version::of(&object.metadata)) {
                    self.pod_gone(&key, &pod, mark);
                }
            }
            Event::Pod(Change::Reset(all)) => {
                for (key, pod) in self.pods.retain(&keys(&all, |object| &object.metadata)) {
                    self.pod_gone(&key, &pod, mark);
                }
                all.iter().for_each(|object| self.pod_changed(object, mark));
            }
            Event::Node(change) => self.observe_nodes(change, mark),
            Event::Endpoints(change) => self.observe_endpoints(change, mark),
            Event::Slice(change) => self.observe_slices(change, mark),
        }
    }

    fn is_synced(&self) -> bool {
        self.services.is_listed()
            && self.pods.is_listed()
            && self.zones.is_listed()
            && self.endpoints.is_listed()
            && self.slices.is_listed()
    }

    fn plan(&mut self, key: &ObjectKey) -> Option<Plan> {
        let desired = self.desired(key);
        let ops = plan::plan(key, &desired, &self.observed(key));
        if ops.is_empty() {
            return None;
        }
        let trigger = self.trigger(key, &desired);
        Some(Plan {
            service: key.clone(),
            trigger,
            ops,
        })
    }

    fn apply(&self, plan: Plan) -> Applying<Vec<Written>> {
        Box::pin(apply::apply(self.client.clone(), plan))
    }

    fn applied(&mut self, key: &ObjectKey, written: Vec<Written>, mark: Mark<'_, ObjectKey>) {
        for one in written {
            match one {
                Written::Slice(object) => self.slice_changed(&object, mark),
                Written::Endpoints(object) => self.endpoints_changed(&object, mark),
                Written::SliceGone(name, version) => {
                    let slice = ObjectKey::new(&key.namespace, &name);
                    if let Some((service, _)) = self.slices.delete(&slice, &version) {
                        self.slice_gone(&slice, &service, mark);
                    }
                }
                Written::EndpointsGone(version) => {
                    self.endpoints.delete(key, &version);
                    self.orphans.remove(key);
                }
            }
        }
    }
}

impl EndpointsController {
    fn observe_nodes(&mut self, change: Change<core::Node>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.node_changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                if self
                    .zones
                    .delete(&name, &Version::of(&object.metadata))
                    .flatten()
                    .is_some()
                {
                    self.mark_pods_on(&name, mark);
                }
            }
            Change::Reset(all) => {
                let names = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                for (name, _) in self.zones.retain(&names) {
                    self.mark_pods_on(&name, mark);
                }
                all.iter().for_each(|object| self.node_changed(object, mark));
            }
        }
    }

    fn observe_endpoints(&mut self, change: Change<core::Endpoints>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.endpoints_changed(&object, mark),
            Change::Delete(object) => {
                let key = ObjectKey::of(&object.metadata);
                if self
                    .endpoints
                    .delete(&key, &Version::of(&object.metadata))
                    .is_some()
                {
                    mark(key);
                }
            }
            Change::Reset(all) => {
                self.endpoints
                    .retain(&keys(&all, |object| &object.metadata))
                    .into_iter()
                    .for_each(|(key, _)| mark(key));
                all.iter().for_each(|object| self.endpoints_changed(object, mark));
            }
        }
    }

    fn observe_slices(&mut self, change: Change<EndpointSlice>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.slice_changed(&object, mark),
            Change::Delete(object) => {
                let key = ObjectKey::of(&object.metadata);
                if let Some((service, _)) = self.slices.delete(&key, &Version::of(&object.metadata)) {
                    self.slice_gone(&key, &service, mark);
                } else if let Some(service) = object
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|l| l.get(LABEL_SERVICE_NAME))
                {
                    // Somebody may have taken our label off before.
                    mark(ObjectKey::new(&key.namespace, service));
                }
            }
            Change::Reset(all) => {
                for (key, (service, _)) in self.slices.retain(&keys(&all, |object| &object.metadata)) {
                    self.slice_gone(&key, &service, mark);
                }
                all.iter().for_each(|object| self.slice_changed(object, mark));
            }
        }
    }
}

fn keys<K>(
    all: &[Arc<K>],
    meta: impl Fn(&K) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> HashSet<ObjectKey> {
    all.iter().map(|object| ObjectKey::of(meta(object))).collect()
}

#[cfg(test)]
mod tests;
