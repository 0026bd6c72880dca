//! MetalLB's configuration, which LoadBalancer addresses come from: the kinds `IPAddressPool` and `L2Advertisement`
//! (metallb.io/v1beta1) as types that `kube::Api` takes, their address ranges, and the older ConfigMap form.

mod legacy;
mod range;

pub use legacy::{CONFIG_MAP_KEY, CONFIG_MAP_NAME, LegacyConfig, LegacyError};
pub use range::{AddressRange, RangeError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::{ListableResource, Metadata, NamespaceResourceScope, Resource};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// Group of both kinds.
pub const GROUP: &str = "metallb.io";
/// Version of both kinds.
pub const VERSION: &str = "v1beta1";
/// `apiVersion` of both kinds.
pub const API_VERSION: &str = "metallb.io/v1beta1";

/// A set of addresses that may be given to Services of type LoadBalancer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IPAddressPool {
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// What is in the pool, and who may draw from it.
    pub spec: IPAddressPoolSpec,
}

/// What is in a pool, and who may draw from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IPAddressPoolSpec {
    /// Networks (`192.168.10.0/24`) and ranges (`192.168.9.1-192.168.9.5`); [`AddressRange`] parses them.
    pub addresses: Vec<String>,
    /// Whether Services get addresses of it without asking for it by name (default: yes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_assign: Option<bool>,
    /// Leave out addresses that end in .0 and .255 (default: no).
    #[serde(rename = "avoidBuggyIPs", skip_serializing_if = "Option::is_none")]
    pub avoid_buggy_ips: Option<bool>,
    /// Restricts the pool to some Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services may draw from a pool. Namespaces (by name or by label) and Services must both match where both are
/// given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAllocation {
    /// Lower is tried first; 0 and absent come after all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Names of namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Namespaces by label; one that matches is enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Services by label; one that matches is enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_selectors: Vec<LabelSelector>,
}

/// Says that the addresses of some pools are answered for on the local network (ARP, NDP).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct L2Advertisement {
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// Which pools, from which nodes, on which links.
    pub spec: L2AdvertisementSpec,
}

/// Which pools are announced, from which nodes, on which links. Neither pool names nor selectors: every pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L2AdvertisementSpec {
    /// Names of pools in the same namespace.
    #[serde(rename = "ipAddressPools", skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pools: Vec<String>,
    /// Pools by label; one selector that matches is enough.
    #[serde(rename = "ipAddressPoolSelectors", skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// Nodes that may announce; none given means every node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_selectors: Vec<LabelSelector>,
    /// Links to announce on; none given means every link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

impl IPAddressPool {
    /// The ranges of `spec.addresses`.
    ///
    /// # Errors
    /// The index of the first item that is no range, and why.
    pub fn ranges(&self) -> Result<Vec<AddressRange>, (usize, RangeError)> {
        self.spec
            .addresses
            .iter()
            .enumerate()
            .map(|(i, text)| text.parse().map_err(|e| (i, e)))
            .collect()
    }

    /// Whether Services get addresses of it without naming it.
    pub fn auto_assign(&self) -> bool {
        self.spec.auto_assign.unwrap_or(true)
    }

    /// Whether addresses that end in .0 and .255 are left out.
    pub fn avoid_buggy_ips(&self) -> bool {
        self.spec.avoid_buggy_ips.unwrap_or(false)
    }
}

macro_rules! kind {
    ($type:ident, $kind:literal, $list:literal, $plural:literal) => {
        impl Resource for $type {
            const API_VERSION: &'static str = API_VERSION;
            const GROUP: &'static str = GROUP;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = VERSION;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = NamespaceResourceScope;
        }

        impl ListableResource for $type {
            const LIST_KIND: &'static str = $list;
        }

        impl Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        // As the types of k8s-openapi do: the type says what `apiVersion` and `kind` are, the wire needs them.
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut state = serializer.serialize_struct($kind, 4)?;
                state.serialize_field("apiVersion", API_VERSION)?;
                state.serialize_field("kind", $kind)?;
                state.serialize_field("metadata", &self.metadata)?;
                state.serialize_field("spec", &self.spec)?;
                state.end()
            }
        }
    };
}

kind!(
    IPAddressPool,
    "IPAddressPool",
    "IPAddressPoolList",
    "ipaddresspools"
);
kind!(
    L2Advertisement,
    "L2Advertisement",
    "L2AdvertisementList",
    "l2advertisements"
);

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn pools_keep_the_names_of_the_wire() {
        let wire = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": {"name": "first", "namespace": "metallb-system"},
            "spec": {
                "addresses": ["172.30.0.240-172.30.0.250"], "autoAssign": false, "avoidBuggyIPs": true,
                "serviceAllocation": {
                    "priority": 50, "namespaces": ["a"], "serviceSelectors": [{"matchLabels": {"app": "web"}}],
                },
            },
        });
        let pool: IPAddressPool = from_value(wire.clone()).unwrap();
        assert!(!pool.auto_assign() && pool.avoid_buggy_ips());
        assert_eq!(pool.ranges().unwrap().len(), 1);
        assert_eq!(to_value(&pool).unwrap(), wire);
    }

    #[test]
    fn advertisements_keep_the_names_of_the_wire() {
        let wire = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement", "metadata": {"name": "first"},
            "spec": {
                "ipAddressPools": ["first"], "interfaces": ["eth0"],
                "ipAddressPoolSelectors": [{"matchLabels": {"a": "b"}}],
                "nodeSelectors": [{"matchLabels": {"kubernetes.io/hostname": "n1"}}],
            },
        });
        let advertisement: L2Advertisement = from_value(wire.clone()).unwrap();
        assert_eq!(to_value(&advertisement).unwrap(), wire);
    }

    #[test]
    fn an_advertisement_without_spec_is_for_every_pool() {
        let wire = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement", "metadata": {"name": "all"},
        });
        let advertisement: L2Advertisement = from_value(wire).unwrap();
        assert_eq!(advertisement.spec, L2AdvertisementSpec::default());
    }
}
