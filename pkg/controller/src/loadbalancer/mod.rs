//! LoadBalancer addresses: out of the pools into `status.loadBalancer.ingress`. Announcing them is another role's.
//!
//! What Services have in their status is the truth; the table of addresses in use is rebuilt from it at start and
//! whenever the pools change. A Service keeps its address for as long as the configuration allows.

mod addresses;
mod apply;
mod pools;
mod service;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ObjectReference, Service};
use svcnet_api::metallb::{CONFIG_MAP_KEY, CONFIG_MAP_NAME, IPAddressPool};
use svcnet_api::wellknown::NAMESPACE_METALLB;
use svcnet_runtime::{Change, Informers, Scope};

use crate::engine::{Applying, Controller, Mark, source};
use crate::recorder::{Notice, Recorder, Severity};
use crate::view::{ObjectKey, Version, View};

use addresses::{Addresses, Refusal, listed};
use pools::{Asker, ConfigError, PoolSet, Source};
use service::{LbService, Request, Wish};

/// A change of one of the watched kinds.
pub(crate) enum Event {
    Service(Change<Service>),
    Pool(Change<IPAddressPool>),
    ConfigMap(Change<ConfigMap>),
    Namespace(Change<Namespace>),
}

/// A new status of a Service, or something to tell at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    service: ObjectKey,
    version: Version,
    /// The new ingress addresses; nothing where the status stays.
    status: Option<Vec<IpAddr>>,
    /// Why there is no address.
    failure: Option<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.status {
            Some(addresses) if addresses.is_empty() => f.write_str("take the address away")?,
            Some(addresses) => write!(f, "give {}", listed(addresses))?,
            None => f.write_str("leave the status")?,
        }
        self.failure
            .as_ref()
            .map_or(Ok(()), |why| write!(f, "; say that {why}"))
    }
}

pub(crate) struct LoadBalancerController {
    client: kube::Client,
    recorder: Recorder,
    services: View<ObjectKey, LbService>,
    namespaces: View<String, BTreeMap<String, String>>,
    pool_objects: View<ObjectKey, IPAddressPool>,
    config_map: Option<String>,
    config_map_listed: bool,
    /// The last configuration without a mistake; none until there was one.
    pools: Option<PoolSet>,
    stale: Option<ConfigError>,
    config_changed: bool,
    addresses: Addresses,
    /// Services that an address could not be found for, with what was told to them.
    waiting: HashMap<ObjectKey, String>,
}

/// What becomes of a Service.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// The status is somebody else's, or right as it is.
    Leave,
    Give(Vec<IpAddr>),
    Refuse(String),
}

impl LoadBalancerController {
    pub(crate) fn new(client: kube::Client, recorder: Recorder) -> Self {
        Self {
            client,
            recorder,
            services: View::default(),
            namespaces: View::default(),
            pool_objects: View::default(),
            config_map: None,
            config_map_listed: false,
            pools: None,
            stale: None,
            config_changed: true,
            addresses: Addresses::default(),
            waiting: HashMap::new(),
        }
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Event>> {
        let config_map = Scope {
            namespace: Some(NAMESPACE_METALLB.to_string()),
            fields: Some(format!("metadata.name={CONFIG_MAP_NAME}")),
            ..Scope::default()
        };
        vec![
            source(informers.subscribe(Scope::default()), Event::Service),
            source(informers.subscribe(Scope::default()), Event::Pool),
            source(informers.subscribe(config_map), Event::ConfigMap),
            source(informers.subscribe(Scope::default()), Event::Namespace),
        ]
    }

    /// Takes in the pools after a change, and settles who keeps what under them.
    fn reconfigure(&mut self) {
        self.config_changed = false;
        let objects = self.pool_objects.iter().map(|(_, pool)| pool);
        match PoolSet::read(objects, self.config_map.as_deref()) {
            Ok(pools) => {
                self.stale = None;
                self.pools = Some(pools);
                self.adopt();
            }
            Err(error) => self.tell_stale(error),
        }
        metrics::gauge!("svcnet_controller_pools_config_stale").set(if self.stale.is_some() {
            1.0
        } else {
            0.0
        });
    }

    fn tell_stale(&mut self, error: ConfigError) {
        if self.stale.as_ref() == Some(&error) {
            return;
        }
        tracing::warn!(source = %error.source_of, reason = %error, "invalid pools, the last valid ones stay in use");
        self.recorder.record(Notice {
            about: self.config_reference(&error.source_of),
            severity: Severity::Warning,
            reason: "InvalidConfig",
            message: format!("{error}; the last valid configuration stays in use"),
        });
        self.stale = Some(error);
    }

    fn config_reference(&self, source: &Source) -> ObjectReference {
        let (kind, api_version, namespace, name) = match source {
            Source::Pool { namespace, name } => (
                "IPAddressPool",
                "metallb.io/v1beta1",
                namespace.as_str(),
                name.as_str(),
            ),
            Source::ConfigMap => ("ConfigMap", "v1", NAMESPACE_METALLB, CONFIG_MAP_NAME),
        };
        let version = self.pool_objects.version(&ObjectKey::new(namespace, name));
        ObjectReference {
            kind: Some(kind.to_string()),
            api_version: Some(api_version.to_string()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid: version.map(|version| version.uid.clone()),
            ..ObjectReference::default()
        }
    }

    // The oldest Service first: where two claim one address, who came first keeps it.
    fn adopt(&mut self) {
        self.addresses = Addresses::default();
        let Some(pools) = &self.pools else { return };
        let holding = self
            .services
            .iter()
            .filter(|(_, service)| !service.current.is_empty());
        let mut holding: Vec<(&ObjectKey, &LbService)> = holding.collect();
        holding.sort_unstable_by_key(|(key, service)| (service.created, *key));
        for (key, service) in holding {
            if let Wish::Address(request) = &service.wish
                && keeps(request, &service.current, pools)
            {
                // Refused ones are looked at again, one by one, when their turn comes.
                _ = self
                    .addresses
                    .assign(key, &service.current, &service.usage, pools);
            }
        }
    }

    fn decide(&mut self, key: &ObjectKey) -> Decision {
        let (Some(service), Some(pools)) = (self.services.get(key), &self.pools) else {
            return Decision::Leave;
        };
        let request = match &service.wish {
            Wish::Nothing => {
                return if service.has_status {
                    Decision::Give(Vec::new())
                } else {
                    Decision::Leave
                };
            }
            Wish::Foreign => return Decision::Leave,
            // What it has stays until it says clearly what else it wants.
            Wish::Malformed(why) => return Decision::Refuse(why.clone()),
            Wish::Address(request) => request,
        };
        let held = self.addresses.of(key).map(<[IpAddr]>::to_vec);
        let known = held.unwrap_or_else(|| service.current.clone());
        if !known.is_empty()
            && keeps(request, &known, pools)
            && self.addresses.assign(key, &known, &service.usage, pools).is_ok()
        {
            return Decision::Give(known);
        }
        self.addresses.release(key);
        let asker = Asker {
            namespace: &key.namespace,
            namespace_labels: self.namespaces.get(&key.namespace),
            labels: &service.labels,
        };
        match allocate(&mut self.addresses, key, service, request, &asker, pools) {
            Ok(addresses) => Decision::Give(addresses),
            Err(refusal) => Decision::Refuse(refusal),
        }
    }

    fn service_changed(&mut self, object: &Service, mark: Mark<'_, ObjectKey>) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        let service = LbService::from_object(object);
        let wants = matches!(service.wish, Wish::Address(_));
        let same = self.services.get(&key) == Some(&service);
        if self.services.apply(key.clone(), version, service).is_err() || same {
            return;
        }
        if !wants {
            self.release(&key, mark);
        }
        mark(key);
    }

    /// Frees what a Service has, and lets those that wait have a look.
    fn release(&mut self, key: &ObjectKey, mark: Mark<'_, ObjectKey>) {
        self.waiting.remove(key);
        if self.addresses.release(key) {
            self.waiting.keys().cloned().for_each(mark);
        }
    }

    fn pools_changed(&mut self, mark: Mark<'_, ObjectKey>) {
        self.config_changed = true;
        self.services.iter().for_each(|(key, _)| mark(key.clone()));
    }

    fn observe_services(&mut self, change: Change<Service>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.service_changed(&object, mark),
            Change::Delete(object) => {
                let key = ObjectKey::of(&object.metadata);
                if self
                    .services
                    .delete(&key, &Version::of(&object.metadata))
                    .is_some()
                {
                    self.release(&key, mark);
                }
            }
            Change::Reset(all) => {
                let keys = all.iter().map(|object| ObjectKey::of(&object.metadata)).collect();
                for (key, _) in self.services.retain(&keys) {
                    self.release(&key, mark);
                }
                all.iter().for_each(|object| self.service_changed(object, mark));
            }
        }
    }

    fn observe_pools(&mut self, change: Change<IPAddressPool>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.pool_changed(&object),
            Change::Delete(object) => {
                self.pool_objects
                    .delete(&ObjectKey::of(&object.metadata), &Version::of(&object.metadata));
            }
            Change::Reset(all) => {
                let keys: std::collections::HashSet<ObjectKey> =
                    all.iter().map(|object| ObjectKey::of(&object.metadata)).collect();
                self.pool_objects.retain(&keys);
                all.iter().for_each(|object| self.pool_changed(object));
            }
        }
        self.pools_changed(mark);
    }

    fn pool_changed(&mut self, object: &IPAddressPool) {
        let (key, version) = (ObjectKey::of(&object.metadata), Version::of(&object.metadata));
        _ = self.pool_objects.apply(key, version, object.clone());
    }

    fn observe_config_map(&mut self, change: Change<ConfigMap>, mark: Mark<'_, ObjectKey>) {
        let ours = |object: &ConfigMap| {
            object.metadata.name.as_deref() == Some(CONFIG_MAP_NAME)
                && object.metadata.namespace.as_deref() == Some(NAMESPACE_METALLB)
        };
        let text = |object: &ConfigMap| {
            object
                .data
                .as_ref()
                .and_then(|data| data.get(CONFIG_MAP_KEY).cloned())
        };
        match change {
            Change::Apply(object) if ours(&object) => self.config_map = text(&object),
            Change::Delete(object) if ours(&object) => self.config_map = None,
            Change::Apply(_) | Change::Delete(_) => return,
            Change::Reset(all) => {
                self.config_map_listed = true;
                self.config_map = all
                    .iter()
                    .find(|object| ours(object))
                    .and_then(|object| text(object));
            }
        }
        self.pools_changed(mark);
    }

    fn namespace_changed(&mut self, object: &Namespace, mark: Mark<'_, ObjectKey>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let same = self.namespaces.get(&name) == Some(&labels);
        if self
            .namespaces
            .apply(name.clone(), Version::of(&object.metadata), labels)
            .is_ok()
            && !same
        {
            // Another label may open a pool to Services that wait.
            self.waiting
                .keys()
                .filter(|key| key.namespace == name)
                .cloned()
                .for_each(mark);
        }
    }

    fn observe_namespaces(&mut self, change: Change<Namespace>, mark: Mark<'_, ObjectKey>) {
        match change {
            Change::Apply(object) => self.namespace_changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                self.namespaces.delete(&name, &Version::of(&object.metadata));
            }
            Change::Reset(all) => {
                let names = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                self.namespaces.retain(&names);
                all.iter().for_each(|object| self.namespace_changed(object, mark));
            }
        }
    }
}

/// Whether a Service may keep what it has: it is what it asks for, from pools that there are.
fn keeps(request: &Request, addresses: &[IpAddr], pools: &PoolSet) -> bool {
    let as_set = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<IpAddr>>();
    let families: BTreeSet<bool> = addresses.iter().map(IpAddr::is_ipv6).collect();
    let wanted: BTreeSet<bool> = request.v6.iter().copied().collect();
    let right_families = families == wanted || (request.prefers && families.is_subset(&wanted));
    let right_addresses = request.addresses.is_empty() || as_set(&request.addresses) == as_set(addresses);
    let right_pool = |address: &IpAddr| match (pools.of(*address), &request.pool) {
        (Some((name, _)), Some(wanted)) => name == wanted,
        (found, None) => found.is_some(),
        (None, Some(_)) => false,
    };
    right_families && right_addresses && addresses.iter().all(right_pool)
}

fn allocate(
    all: &mut Addresses,
    key: &ObjectKey,
    service: &LbService,
    request: &Request,
    asker: &Asker<'_>,
    pools: &PoolSet,
) -> Result<Vec<IpAddr>, String> {
    if !request.addresses.is_empty() {
        all.assign(key, &request.addresses, &service.usage, pools)
            .map_err(|refusal| refusal.to_string())?;
        if keeps(request, &request.addresses, pools) {
            return Ok(request.addresses.clone());
        }
        all.release(key);
        let (list, pool) = (
            listed(&request.addresses),
            request.pool.as_deref().unwrap_or_default(),
        );
        return Err(format!(
            "requested loadBalancer IP(s) {list} is not compatible with requested address pool {pool}"
        ));
    }
    let whole = !request.prefers;
    let refusal = if let Some(name) = &request.pool {
        match pools.get(name) {
            None => Refusal::UnknownPool(name.clone()),
            Some(pool) if !pool.admits(asker) => Refusal::PoolNotForYou(name.clone()),
            Some(pool) => match all.allocate(key, &request.v6, whole, (name, pool), &service.usage) {
                Ok(addresses) => return Ok(addresses),
                Err(refusal) => refusal,
            },
        }
    } else {
        for name in pools.candidates(asker) {
            let Some(pool) = pools.get(name) else { continue };
            if let Ok(addresses) = all.allocate(key, &request.v6, whole, (name, pool), &service.usage) {
                return Ok(addresses);
            }
        }
        Refusal::NoneLeft
    };
    Err(refusal.to_string())
}

impl Controller for LoadBalancerController {
    type Key = ObjectKey;
    type Event = Event;
    type Plan = Plan;
    type Outcome = Option<Box<Service>>;

    const NAME: &'static str = "loadbalancer";
    const PERIOD: Duration = Duration::from_secs(60);

    fn observe(&mut self, event: Event, mark: Mark<'_, ObjectKey>) {
        match event {
            Event::Service(change) => self.observe_services(change, mark),
            Event::Pool(change) => self.observe_pools(change, mark),
            Event::ConfigMap(change) => self.observe_config_map(change, mark),
            Event::Namespace(change) => self.observe_namespaces(change, mark),
        }
    }

    fn is_synced(&self) -> bool {
        self.services.is_listed()
            && self.namespaces.is_listed()
            && self.pool_objects.is_listed()
            && self.config_map_listed
    }

    fn plan(&mut self, key: &ObjectKey) -> Option<Plan> {
        if self.config_changed {
            self.reconfigure();
        }
        let decision = self.decide(key);
        let service = self.services.get(key)?;
        let (current, has_status) = (service.current.clone(), service.has_status);
        let malformed = matches!(service.wish, Wish::Malformed(_));
        let plan = Plan {
            service: key.clone(),
            version: self.services.version(key)?.clone(),
            status: None,
            failure: None,
        };
        match decision {
            Decision::Leave => None,
            Decision::Give(addresses) => {
                self.waiting.remove(key);
                let right = addresses == current && (!addresses.is_empty() || !has_status);
                (!right).then_some(Plan {
                    status: Some(addresses),
                    ..plan
                })
            }
            Decision::Refuse(why) => {
                let told = self.waiting.insert(key.clone(), why.clone());
                let news = (told.as_ref() != Some(&why)).then_some(why);
                // An address that it may no longer have is not left standing in its status.
                let status = (has_status && !malformed).then(Vec::new);
                (news.is_some() || status.is_some()).then_some(Plan {
                    status,
                    failure: news,
                    ..plan
                })
            }
        }
    }

    fn apply(&self, plan: Plan) -> Applying<Option<Box<Service>>> {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        Box::pin(async move {
            match apply::apply(client, &recorder, plan).await {
                Ok(service) => (service.map(Box::new), Ok(())),
                Err(error) => (None, Err(error)),
            }
        })
    }

    fn applied(&mut self, _: &ObjectKey, service: Option<Box<Service>>, mark: Mark<'_, ObjectKey>) {
        if let Some(service) = service {
            self.service_changed(&service, mark);
        }
    }
}

#[cfg(test)]
mod tests;
