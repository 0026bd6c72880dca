//! What concerns announcements of all that the API says, kept small: a cluster of 100,000 Services has few
//! LoadBalancers among them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_api::metallb::{AddressRange, CONFIG_MAP_KEY, IPAddressPool, L2Advertisement, LegacyConfig};
use svcnet_api::selector::{LabelSelector, SelectorError};
use svcnet_api::types::legacy;
use svcnet_api::wellknown::{LABEL_EXCLUDE_LB, LABEL_SERVICE_NAME};
use svcnet_runtime::Change;

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// What is known of the cluster, as seen from one node.
#[derive(Debug)]
pub(crate) struct View {
    /// Name of this node.
    pub(crate) me: Box<str>,
    /// Services that have LoadBalancer addresses.
    pub(crate) services: BTreeMap<Key, Service>,
    /// The nodes by name.
    pub(crate) nodes: BTreeMap<Key, Node>,
    /// Labels of this node. `None`: it has no Node object.
    pub(crate) labels: Option<Labels>,
    /// What the objects of metallb.io say, and what the older ConfigMap says.
    pub(crate) configurations: [Configuration; 2],
    /// Endpoints of every Service: which of them will have an address is not known before. Services have few slices.
    slices: HashMap<Key, Vec<(Box<str>, Serving)>>,
}

/// A Service with LoadBalancer addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) addresses: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`.
    pub(crate) local: bool,
    pub(crate) class: Option<Box<str>>,
    pub(crate) uid: Box<str>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its internal addresses, in order.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Pools and advertisements of one source: an advertisement speaks of pools of its own source only.
#[derive(Debug, Default)]
pub(crate) struct Configuration {
    pub(crate) pools: BTreeMap<Key, Pool>,
    pub(crate) advertisements: BTreeMap<Key, Advertisement>,
}

/// A pool of addresses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pool {
    pub(crate) ranges: Vec<AddressRange>,
    pub(crate) labels: Labels,
}

/// Which pools are announced where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Advertisement {
    pub(crate) pools: Vec<String>,
    pub(crate) pool_selectors: Vec<LabelSelector>,
    pub(crate) node_selectors: Vec<LabelSelector>,
    pub(crate) interfaces: Vec<String>,
}

/// Where endpoints of a Service serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Serving {
    /// By address family: IPv4, IPv6.
    families: [Reach; 2],
}

/// Where endpoints of one family serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// On any node.
    pub(crate) anywhere: bool,
    /// On this node.
    pub(crate) here: bool,
}

/// Why an object of the configuration is not used; its last valid state is.
#[derive(Debug, thiserror::Error)]
enum Invalid {
    #[error("spec.addresses[{0}]: {1}")]
    Range(usize, svcnet_api::metallb::RangeError),
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

impl View {
    pub(crate) fn new(me: &str) -> Self {
        Self {
            me: me.into(),
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            labels: None,
            configurations: Default::default(),
            slices: HashMap::new(),
        }
    }

    /// Where a Service's endpoints of the address's family serve.
    pub(crate) fn reach(&self, service: &Key, address: IpAddr) -> Reach {
        let family = usize::from(address.is_ipv6());
        let mut reach = Reach::default();
        for (_, serving) in self.slices.get(service).into_iter().flatten() {
            reach.anywhere |= serving.families[family].anywhere;
            reach.here |= serving.families[family].here;
        }
        reach
    }

    // Each of the following takes a change and says whether it matters.

    pub(crate) fn change_service(&mut self, change: &Change<core::Service>) -> bool {
        update(&mut self.services, change, |s| Ok(Service::read(s)))
    }

    pub(crate) fn change_pool(&mut self, change: &Change<IPAddressPool>) -> bool {
        update(&mut self.configurations[0].pools, change, |p| {
            Pool::read(p).map(Some)
        })
    }

    pub(crate) fn change_advertisement(&mut self, change: &Change<L2Advertisement>) -> bool {
        let map = &mut self.configurations[0].advertisements;
        update(map, change, |a| Advertisement::read(a).map(Some))
    }

    pub(crate) fn change_node(&mut self, change: &Change<core::Node>) -> bool {
        let own = |node: &core::Node| node.metadata.name.as_deref() == Some(&*self.me);
        let labels = |node: &core::Node| node.metadata.labels.clone().unwrap_or_default();
        let before = self.labels.clone();
        match change {
            Change::Reset(nodes) => self.labels = nodes.iter().find(|n| own(n)).map(|n| labels(n)),
            Change::Apply(node) if own(node) => self.labels = Some(labels(node)),
            Change::Delete(node) if own(node) => self.labels = None,
            _ => {}
        }
        // Both must happen: no short circuit.
        update(&mut self.nodes, change, |n| Ok(Some(Node::read(n)))) | (before != self.labels)
    }

    /// The older configuration. One that is wrong changes nothing.
    pub(crate) fn change_config_map(&mut self, change: &Change<core::ConfigMap>) -> bool {
        let map = match change {
            Change::Reset(maps) => maps.first(),
            Change::Apply(map) => Some(map),
            Change::Delete(_) => None,
        };
        let text = map
            .and_then(|map| map.data.as_ref())
            .and_then(|data| data.get(CONFIG_MAP_KEY));
        match LegacyConfig::parse(text.map_or("", String::as_str)) {
            Ok(config) => {
                self.configurations[1] = Configuration::from_legacy(&config);
                true
            }
            Err(error) => {
                tracing::warn!(object.kind = "ConfigMap", object.ns = "metallb-system", object.name = "config",
                    %error, "configuration is wrong, keeping the last valid one");
                false
            }
        }
    }

    pub(crate) fn change_slice(&mut self, change: &Change<EndpointSlice>) -> bool {
        match change {
            Change::Reset(slices) => {
                self.slices = HashMap::new();
                for slice in slices {
                    self.put_slice(slice, true);
                }
                true
            }
            Change::Apply(slice) => self.put_slice(slice, true),
            Change::Delete(slice) => self.put_slice(slice, false),
        }
    }

    /// A slice never changes the Service that it belongs to: controllers replace it instead, and the informer's next
    /// list would heal what a hand changed.
    fn put_slice(&mut self, slice: &EndpointSlice, present: bool) -> bool {
        let meta = &slice.metadata;
        let Some(service) = meta.labels.as_ref().and_then(|l| l.get(LABEL_SERVICE_NAME)) else {
            return false;
        };
        let service = Key::new(meta.namespace.as_deref().unwrap_or_default(), service);
        let name = meta.name.as_deref().unwrap_or_default();
        let serving = present
            .then(|| Serving::read(slice, &self.me))
            .filter(|s| *s != Serving::default());
        let matters = self.services.contains_key(&service);
        let list = self.slices.entry(service.clone()).or_default();
        let at = list.iter().position(|(n, _)| &**n == name);
        let changed = match (at, serving) {
            (Some(at), Some(serving)) => std::mem::replace(&mut list[at].1, serving) != serving,
            (None, Some(serving)) => {
                list.push((name.into(), serving));
                true
            }
            (Some(at), None) => {
                list.swap_remove(at);
                true
            }
            (None, None) => false,
        };
        if list.is_empty() {
            self.slices.remove(&service);
        }
        changed && matters
    }
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl Service {
    fn read(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() != Some("LoadBalancer") {
            return None;
        }
        let status = service.status.as_ref()?.load_balancer.as_ref()?;
        let ingress = status.ingress.iter().flatten();
        // A proxy-mode ingress address is not for the node's proxy, but it is announced all the same.
        let addresses: Vec<IpAddr> = ingress.filter_map(|i| legacy::address(i.ip.as_ref()?)).collect();
        (!addresses.is_empty()).then(|| Self {
            addresses,
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            class: spec.load_balancer_class.as_deref().map(Into::into),
            uid: service.metadata.uid.as_deref().unwrap_or_default().into(),
        })
    }
}

impl Node {
    fn read(node: &core::Node) -> Self {
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        Self {
            addresses: addresses
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
        }
    }
}

impl Node {
    /// The label that keeps a node from announcing, whatever its value.
    pub(crate) fn is_excluded(labels: &Labels) -> bool {
        labels.contains_key(LABEL_EXCLUDE_LB)
    }
}

impl Pool {
    fn read(pool: &IPAddressPool) -> Result<Self, Invalid> {
        Ok(Self {
            ranges: pool.ranges().map_err(|(at, error)| Invalid::Range(at, error))?,
            labels: pool.metadata.labels.clone().unwrap_or_default(),
        })
    }
}

impl Advertisement {
    fn read(advertisement: &L2Advertisement) -> Result<Self, Invalid> {
        let spec = &advertisement.spec;
        let selectors = |list: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector]| {
            list.iter()
                .map(LabelSelector::try_from)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            pools: spec.ip_address_pools.clone(),
            pool_selectors: selectors(&spec.ip_address_pool_selectors)?,
            node_selectors: selectors(&spec.node_selectors)?,
            interfaces: spec.interfaces.clone(),
        })
    }

    /// Whether it speaks of the pool. Neither names nor selectors: of every pool.
    pub(crate) fn covers(&self, name: &str, pool: &Pool) -> bool {
        let every = self.pools.is_empty() && self.pool_selectors.is_empty();
        every
            || self.pools.iter().any(|p| p == name)
            || self
                .pool_selectors
                .iter()
                .any(|s| s.matches_labels(Some(&pool.labels)))
    }

    /// Whether a node with these labels may announce for it.
    pub(crate) fn takes(&self, labels: &Labels) -> bool {
        self.node_selectors.is_empty() || self.node_selectors.iter().any(|s| s.matches_labels(Some(labels)))
    }
}

impl Configuration {
    fn from_legacy(config: &LegacyConfig) -> Self {
        // The parser has checked the ranges, and there are no selectors.
        let pools = config
            .pools
            .iter()
            .filter_map(|p| Some((Key::of(&p.metadata), Pool::read(p).ok()?)));
        let advertisements = config
            .advertisements
            .iter()
            .filter_map(|a| Some((Key::of(&a.metadata), Advertisement::read(a).ok()?)));
        Self {
            pools: pools.collect(),
            advertisements: advertisements.collect(),
        }
    }
}

impl Serving {
    /// An endpoint counts while it serves, also one that is terminating: proxies fall back to those (KEP-1669).
    fn read(slice: &EndpointSlice, me: &str) -> Self {
        let family = match slice.address_type.as_str() {
            "IPv4" => 0,
            "IPv6" => 1,
            _ => return Self::default(),
        };
        let mut reach = Reach::default();
        for endpoint in slice.endpoints.iter().flatten() {
            let serves = endpoint
                .conditions
                .as_ref()
                .is_none_or(|c| c.serving.or(c.ready).unwrap_or(true));
            reach.anywhere |= serves;
            reach.here |= serves && endpoint.node_name.as_deref() == Some(me);
        }
        let mut families = [Reach::default(); 2];
        families[family] = reach;
        Self { families }
    }
}

/// Carries a change over to a map of what is read from the objects. What cannot be read keeps its last valid state.
fn update<K, V>(
    map: &mut BTreeMap<Key, V>,
    change: &Change<K>,
    read: impl Fn(&K) -> Result<Option<V>, Invalid>,
) -> bool
where
    K: Metadata<Ty = ObjectMeta> + k8s_openapi::Resource,
    V: PartialEq,
{
    let warn = |key: &Key, error: &Invalid| {
        tracing::warn!(object.kind = K::KIND, object.ns = %key.namespace, object.name = %key.name, %error,
            "configuration is wrong, keeping the last valid one");
    };
    match change {
        Change::Reset(objects) => {
            let mut before = std::mem::take(map);
            for object in objects {
                let key = Key::of(object.metadata());
                let value = read(object).unwrap_or_else(|error| {
                    warn(&key, &error);
                    before.remove(&key)
                });
                map.extend(value.map(|v| (key, v)));
            }
            true
        }
        Change::Apply(object) => {
            let key = Key::of(object.metadata());
            match read(object) {
                Ok(Some(value)) => {
                    let changed = map.get(&key) != Some(&value);
                    map.insert(key, value);
                    changed
                }
                Ok(None) => map.remove(&key).is_some(),
                Err(error) => {
                    warn(&key, &error);
                    false
                }
            }
        }
        Change::Delete(object) => map.remove(&Key::of(object.metadata())).is_some(),
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
