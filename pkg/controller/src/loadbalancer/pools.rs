//! The pools that LoadBalancer addresses come from: every IPAddressPool and the older ConfigMap together, checked as a
//! whole. A configuration with a mistake in it is not used at all; the last good one stays (MetalLB's rule).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use svcnet_api::metallb::{AddressRange, IPAddressPool, LegacyConfig, ServiceAllocation};
use svcnet_api::selector::LabelSelector;

/// Where a part of the configuration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// This IPAddressPool.
    Pool { namespace: String, name: String },
    /// The ConfigMap.
    ConfigMap,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct ConfigError {
    pub(super) source_of: Source,
    pub(super) message: String,
}

#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) ranges: Vec<AddressRange>,
    pub(super) auto_assign: bool,
    avoid_buggy: bool,
    allocation: Option<Allocation>,
}

#[derive(Debug, Clone)]
struct Allocation {
    /// Lower comes first; 0 has been made the last.
    priority: u64,
    namespaces: Vec<String>,
    namespace_selectors: Vec<LabelSelector>,
    service_selectors: Vec<LabelSelector>,
}

/// All pools by name.
#[derive(Debug, Clone, Default)]
pub(super) struct PoolSet {
    pools: BTreeMap<String, Pool>,
}

/// Who asks for an address.
pub(super) struct Asker<'a> {
    pub(super) namespace: &'a str,
    pub(super) namespace_labels: Option<&'a BTreeMap<String, String>>,
    pub(super) labels: &'a BTreeMap<String, String>,
}

impl PoolSet {
    /// Reads all pools, or says the first thing that is wrong.
    pub(super) fn read<'a>(
        objects: impl IntoIterator<Item = &'a IPAddressPool>,
        config_map: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let mut set = Self::default();
        for object in objects {
            let source = Source::Pool {
                namespace: object.metadata.namespace.clone().unwrap_or_default(),
                name: object.metadata.name.clone().unwrap_or_default(),
            };
            set.add(object, &source)?;
        }
        let legacy = config_map.map(LegacyConfig::parse).transpose();
        let legacy = legacy.map_err(|error| ConfigError {
            source_of: Source::ConfigMap,
            message: error.to_string(),
        })?;
        for object in legacy.iter().flat_map(|legacy| &legacy.pools) {
            set.add(object, &Source::ConfigMap)?;
        }
        Ok(set)
    }

    fn add(&mut self, object: &IPAddressPool, source: &Source) -> Result<(), ConfigError> {
        let wrong = |message: String| ConfigError {
            source_of: source.clone(),
            message,
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        let ranges = object
            .ranges()
            .map_err(|(_, error)| wrong(format!("parsing address pool {name}: {error}")))?;
        if self.pools.contains_key(&name) {
            return Err(wrong(format!("duplicate definition of pool {name:?}")));
        }
        for range in &ranges {
            for (other, pool) in &self.pools {
                if let Some(there) = pool.ranges.iter().find(|there| there.overlaps(*range)) {
                    let message = format!(
                        "CIDR \"{range}\" in pool {name:?} overlaps with already defined CIDR \"{there}\" of pool {other:?}"
                    );
                    return Err(wrong(message));
                }
            }
        }
        let allocation = object
            .spec
            .service_allocation
            .as_ref()
            .map(Allocation::read)
            .transpose();
        let pool = Pool {
            ranges,
            auto_assign: object.auto_assign(),
            avoid_buggy: object.avoid_buggy_ips(),
            allocation: allocation.map_err(|error| wrong(format!("parsing address pool {name}: {error}")))?,
        };
        self.pools.insert(name, pool);
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// The pool that an address belongs to.
    pub(super) fn of(&self, address: IpAddr) -> Option<(&str, &Pool)> {
        let mut pools = self.pools.iter();
        pools
            .find(|(_, pool)| pool.holds(address))
            .map(|(name, pool)| (name.as_str(), pool))
    }

    /// The pools that are tried for who names none: those made for the asker by priority, then those for everybody.
    pub(super) fn candidates(&self, asker: &Asker<'_>) -> Vec<&str> {
        let mut found: Vec<(u64, &str)> = Vec::new();
        for (name, pool) in self.pools.iter().filter(|(_, pool)| pool.auto_assign) {
            match &pool.allocation {
                None => found.push((u64::MAX, name)),
                Some(allocation) if allocation.admits(asker) => found.push((allocation.priority, name)),
                Some(_) => {}
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }
}

impl Pool {
    /// Whether the address may be given out of this pool.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        !(self.avoid_buggy && is_buggy(address)) && self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether the asker may draw from this pool at all.
    pub(super) fn admits(&self, asker: &Asker<'_>) -> bool {
        self.allocation
            .as_ref()
            .is_none_or(|allocation| allocation.admits(asker))
    }
}

impl Allocation {
    fn read(spec: &ServiceAllocation) -> Result<Self, String> {
        let selectors = |list: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector]| {
            let parsed = list
                .iter()
                .map(|selector| LabelSelector::try_from(selector).map_err(|e| e.to_string()));
            parsed.collect::<Result<Vec<_>, _>>()
        };
        let priority = spec
            .priority
            .and_then(|priority| u64::try_from(priority).ok())
            .filter(|p| *p > 0);
        Ok(Self {
            // Just before the pools that are for everybody.
            priority: priority.unwrap_or(u64::MAX - 1),
            namespaces: spec.namespaces.clone(),
            namespace_selectors: selectors(&spec.namespace_selectors)?,
            service_selectors: selectors(&spec.service_selectors)?,
        })
    }

    fn admits(&self, asker: &Asker<'_>) -> bool {
        let any_namespace = self.namespaces.is_empty() && self.namespace_selectors.is_empty();
        let namespace = any_namespace
            || self.namespaces.iter().any(|name| name == asker.namespace)
            || self
                .namespace_selectors
                .iter()
                .any(|selector| selector.matches_labels(asker.namespace_labels));
        let service = self.service_selectors.is_empty()
            || self
                .service_selectors
                .iter()
                .any(|selector| selector.matches_labels(Some(asker.labels)));
        namespace && service
    }
}

/// Addresses that some home routers take for a network's own or for its broadcast address.
fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets(), [_, _, _, 0 | 255]))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { namespace, name } => write!(f, "IPAddressPool {namespace}/{name}"),
            Self::ConfigMap => f.write_str("ConfigMap metallb-system/config"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(name: &str, spec: Value) -> IPAddressPool {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "metallb-system"}, "spec": spec}),
        )
        .unwrap()
    }

    fn asker<'a>(namespace: &'a str, labels: &'a BTreeMap<String, String>) -> Asker<'a> {
        Asker {
            namespace,
            namespace_labels: Some(labels),
            labels,
        }
    }

    #[test]
    fn pools_made_for_the_asker_come_first() {
        let labels: BTreeMap<String, String> = [("tier".to_string(), "front".to_string())].into();
        let set = PoolSet::read(
            &[
                pool("all", json!({"addresses": ["10.0.0.0/28"]})),
                pool("late", json!({"addresses": ["10.0.1.0/28"], "serviceAllocation": {"namespaces": ["a"]}})),
                pool("first", json!({"addresses": ["10.0.2.0/28"], "serviceAllocation": {"priority": 5, "namespaces": ["a"]}})),
                pool("named", json!({"addresses": ["10.0.3.0/28"], "autoAssign": false})),
                pool("labelled", json!({"addresses": ["10.0.4.0/28"], "serviceAllocation": {
                    "priority": 9, "serviceSelectors": [{"matchLabels": {"tier": "front"}}]}})),
            ],
            None,
        )
        .unwrap();
        assert_eq!(
            set.candidates(&asker("a", &labels)),
            ["first", "labelled", "late", "all"]
        );
        assert_eq!(set.candidates(&asker("b", &BTreeMap::new())), ["all"]);
        assert!(!set.get("late").unwrap().admits(&asker("b", &labels)));
    }

    #[test]
    fn buggy_addresses_are_left_out_on_request() {
        let set = PoolSet::read(
            &[pool(
                "a",
                json!({"addresses": ["10.0.0.0/23"], "avoidBuggyIPs": true}),
            )],
            None,
        )
        .unwrap();
        assert!(set.of("10.0.0.255".parse().unwrap()).is_none());
        assert!(set.of("10.0.1.0".parse().unwrap()).is_none());
        assert_eq!(
            set.of("10.0.1.1".parse().unwrap()).map(|(name, _)| name),
            Some("a")
        );
    }

    #[test]
    fn one_mistake_spoils_all() {
        let overlap = [
            pool("a", json!({"addresses": ["10.0.0.0/24"]})),
            pool("b", json!({"addresses": ["10.0.0.9-10.0.0.12"]})),
        ];
        let error = PoolSet::read(&overlap, None).unwrap_err();
        assert_eq!(error.source_of.to_string(), "IPAddressPool metallb-system/b");
        assert!(
            error.message.contains("overlaps with already defined CIDR"),
            "{error}"
        );
        let error = PoolSet::read(&[pool("a", json!({"addresses": ["x"]}))], None).unwrap_err();
        assert!(
            error.message.starts_with("parsing address pool a: invalid CIDR"),
            "{error}"
        );
        let error = PoolSet::read(&[], Some("address-pools: 5")).unwrap_err();
        assert_eq!(error.source_of, Source::ConfigMap);
    }

    #[test]
    fn the_older_form_counts_like_pools() {
        let text =
            "address-pools:\n- {name: default, protocol: layer2, addresses: [172.30.0.240-172.30.0.250]}\n";
        let set = PoolSet::read(&[], Some(text)).unwrap();
        assert_eq!(
            set.of("172.30.0.240".parse().unwrap()).map(|(name, _)| name),
            Some("default")
        );
    }
}
