//! The configuration that MetalLB read before it had kinds of its own: the ConfigMap `config` in `metallb-system`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{
    AddressRange, IPAddressPool, IPAddressPoolSpec, L2Advertisement, L2AdvertisementSpec, RangeError,
};
use crate::wellknown::NAMESPACE_METALLB;

/// Name of the ConfigMap.
pub const CONFIG_MAP_NAME: &str = "config";
/// Its key that holds the YAML text.
pub const CONFIG_MAP_KEY: &str = "config";

/// The pools and announcements of the ConfigMap, as if they had been written as objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LegacyConfig {
    /// One for each entry of `address-pools`.
    pub pools: Vec<IPAddressPool>,
    /// One for each entry with `protocol: layer2`, of the same name as the pool.
    pub advertisements: Vec<L2Advertisement>,
}

/// What is wrong with the text.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// It is no YAML, or fields have the wrong type.
    #[error("could not parse config: {0}")]
    Yaml(String),
    /// An entry without a name.
    #[error("parsing address pool #{0}: missing pool name")]
    Unnamed(usize),
    /// An entry without addresses.
    #[error("parsing address pool {0:?}: pool has no prefixes defined")]
    Empty(String),
    /// An entry with a malformed address.
    #[error("parsing address pool {pool:?}: {source}")]
    Address {
        /// The entry.
        pool: String,
        /// What is wrong.
        source: RangeError,
    },
    /// A name that stands twice.
    #[error("duplicate definition of pool {0:?}")]
    Duplicate(String),
    /// Neither `layer2` nor `bgp`.
    #[error("parsing address pool {pool:?}: unknown protocol {protocol:?}")]
    Protocol {
        /// The entry.
        pool: String,
        /// What it says.
        protocol: String,
    },
    /// Addresses that are in two pools.
    #[error("address {range} in pool {pool:?} overlaps with already defined address {other}")]
    Overlap {
        /// The later entry.
        pool: String,
        /// Its range.
        range: AddressRange,
        /// The range of an earlier entry.
        other: AddressRange,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    // `peers` and `bgp-communities` stand beside it: read past, there is no BGP here.
    #[serde(default)]
    address_pools: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct Entry {
    name: String,
    protocol: String,
    addresses: Vec<String>,
    auto_assign: Option<bool>,
    avoid_buggy_ips: Option<bool>,
}

impl LegacyConfig {
    /// Reads the text under [`CONFIG_MAP_KEY`].
    ///
    /// # Errors
    /// The first thing that is wrong; no part of a wrong configuration is used.
    pub fn parse(text: &str) -> Result<Self, LegacyError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: File = serde_saphyr::from_str(text).map_err(|e| LegacyError::Yaml(e.to_string()))?;
        let mut config = Self::default();
        let mut taken: Vec<AddressRange> = Vec::new();
        for (index, entry) in file.address_pools.into_iter().enumerate() {
            if entry.name.is_empty() {
                return Err(LegacyError::Unnamed(index + 1));
            }
            if config
                .pools
                .iter()
                .any(|p| p.metadata.name.as_ref() == Some(&entry.name))
            {
                return Err(LegacyError::Duplicate(entry.name));
            }
            let ranges = ranges(&entry)?;
            for &range in &ranges {
                if let Some(&other) = taken.iter().find(|o| o.overlaps(range)) {
                    return Err(LegacyError::Overlap {
                        pool: entry.name,
                        range,
                        other,
                    });
                }
                taken.push(range);
            }
            config.add(entry)?;
        }
        Ok(config)
    }

    fn add(&mut self, entry: Entry) -> Result<(), LegacyError> {
        let metadata = ObjectMeta {
            name: Some(entry.name.clone()),
            namespace: Some(NAMESPACE_METALLB.to_string()),
            ..ObjectMeta::default()
        };
        match entry.protocol.as_str() {
            "layer2" => self.advertisements.push(L2Advertisement {
                metadata: metadata.clone(),
                spec: L2AdvertisementSpec {
                    ip_address_pools: vec![entry.name],
                    ..L2AdvertisementSpec::default()
                },
            }),
            // Its addresses may be given out; who carries them into a network is not our business.
            "bgp" => {}
            other => {
                return Err(LegacyError::Protocol {
                    pool: entry.name,
                    protocol: other.to_string(),
                });
            }
        }
        self.pools.push(IPAddressPool {
            metadata,
            spec: IPAddressPoolSpec {
                addresses: entry.addresses,
                auto_assign: entry.auto_assign,
                avoid_buggy_ips: entry.avoid_buggy_ips,
                service_allocation: None,
            },
        });
        Ok(())
    }
}

fn ranges(entry: &Entry) -> Result<Vec<AddressRange>, LegacyError> {
    if entry.addresses.is_empty() {
        return Err(LegacyError::Empty(entry.name.clone()));
    }
    let parse = |text: &String| {
        text.parse().map_err(|source| LegacyError::Address {
            pool: entry.name.clone(),
            source,
        })
    };
    entry.addresses.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_becomes_a_pool_and_an_advertisement() {
        let text = "address-pools:\n- name: default\n  protocol: layer2\n  addresses:\n  - 172.30.0.240-172.30.0.250\n\
                    \x20 - 192.168.9.0/24\n  auto-assign: false\n";
        let config = LegacyConfig::parse(text).unwrap();
        let [pool] = config.pools.as_slice() else {
            panic!("one pool: {config:?}")
        };
        assert_eq!(pool.metadata.name.as_deref(), Some("default"));
        assert_eq!(pool.metadata.namespace.as_deref(), Some("metallb-system"));
        assert!(!pool.auto_assign());
        assert_eq!(pool.ranges().unwrap().len(), 2);
        let [advertisement] = config.advertisements.as_slice() else {
            panic!("one advertisement: {config:?}")
        };
        assert_eq!(advertisement.spec.ip_address_pools, ["default"]);
    }

    #[test]
    fn bgp_pools_are_given_out_but_not_announced_here() {
        let text = "peers:\n- my-asn: 64512\n  peer-asn: 64512\n  peer-address: 10.0.0.1\n\
                    address-pools:\n- {name: a, protocol: bgp, addresses: [10.1.0.0/24]}\n";
        let config = LegacyConfig::parse(text).unwrap();
        assert_eq!((config.pools.len(), config.advertisements.len()), (1, 0));
        assert_eq!(LegacyConfig::parse("").unwrap(), LegacyConfig::default());
    }

    #[test]
    fn wrong_configurations_are_refused_by_name() {
        let pool = |body: &str| format!("address-pools:\n- {{name: a, {body}}}\n");
        for (text, words) in [
            ("address-pools: 5".to_string(), "could not parse config"),
            (
                "address-pools: [{protocol: layer2}]".to_string(),
                "parsing address pool #1: missing pool name",
            ),
            (
                pool("protocol: layer2"),
                "parsing address pool \"a\": pool has no prefixes defined",
            ),
            (
                pool("protocol: layer2, addresses: [10.0.0.1]"),
                "parsing address pool \"a\": invalid CIDR",
            ),
            (
                pool("protocol: l3, addresses: [10.0.0.0/24]"),
                "unknown protocol \"l3\"",
            ),
            (
                pool("protocol: layer2, addresses: [10.0.0.0/24, 10.0.0.9/32]"),
                "overlaps with",
            ),
        ] {
            let error = LegacyConfig::parse(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
