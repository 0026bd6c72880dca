//! Slices and Endpoints from the wire, and back to it.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use svcnet_api::types::legacy;
use svcnet_api::wellknown::{LABEL_MANAGED_BY, LABEL_SERVICE_NAME};

use super::model::{
    ANNOTATION_TRIGGER_TIME, Address, ENDPOINTS_MANAGER, Endpoint, Endpoints, Family, Hints,
    LABEL_ENDPOINTS_MANAGED_BY, Labels, MANAGER_MIRRORED, MANAGER_SELECTED, Owner, Port, Slice, Subset,
    Target, tcp,
};

const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

impl Slice {
    /// A slice of one of our two managers with the name of its Service; nothing for others' slices.
    pub(super) fn from_object(object: &discovery::EndpointSlice) -> Option<(String, Self)> {
        let labels = object.metadata.labels.clone()?;
        let manager = labels.get(LABEL_MANAGED_BY)?;
        if manager != MANAGER_SELECTED && manager != MANAGER_MIRRORED {
            return None;
        }
        let service = labels.get(LABEL_SERVICE_NAME)?.clone();
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let owner = object
            .metadata
            .owner_references
            .iter()
            .flatten()
            .next()
            .map(|owner| Owner {
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            });
        let slice = Self {
            family,
            ports: object.ports.iter().flatten().map(Port::from_slice).collect(),
            endpoints: object
                .endpoints
                .iter()
                .flatten()
                .filter_map(Endpoint::from_object)
                .collect(),
            labels,
            annotations: kept_annotations(&object.metadata),
            owner,
        };
        Some((service, slice))
    }

    pub(super) fn manager(&self) -> &str {
        self.labels
            .get(LABEL_MANAGED_BY)
            .map(String::as_str)
            .unwrap_or_default()
    }

    pub(super) fn to_object(&self, mut metadata: ObjectMeta) -> discovery::EndpointSlice {
        metadata.labels = Some(self.labels.clone());
        metadata
            .annotations
            .get_or_insert_default()
            .extend(self.annotations.clone());
        metadata.owner_references = self.owner.as_ref().map(|owner| {
            vec![OwnerReference {
                api_version: "v1".to_string(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]
        });
        discovery::EndpointSlice {
            metadata,
            address_type: self.family.as_str().to_string(),
            endpoints: Some(self.endpoints.iter().map(Endpoint::to_object).collect()),
            ports: Some(self.ports.iter().map(Port::to_slice).collect()),
        }
    }
}

impl Endpoint {
    fn from_object(object: &discovery::Endpoint) -> Option<Self> {
        let conditions = object.conditions.clone().unwrap_or_default();
        Some(Self {
            address: legacy::address(object.addresses.first()?)?,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving,
            terminating: conditions.terminating,
            hostname: object.hostname.clone(),
            node: object.node_name.clone(),
            zone: object.zone.clone(),
            hints: object.hints.as_ref().map(Hints::from_object).unwrap_or_default(),
            target: object.target_ref.as_ref().map(Target::from_object),
        })
    }

    fn to_object(&self) -> discovery::Endpoint {
        discovery::Endpoint {
            addresses: vec![self.address.to_string()],
            conditions: Some(discovery::EndpointConditions {
                ready: Some(self.ready),
                serving: self.serving,
                terminating: self.terminating,
            }),
            hostname: self.hostname.clone(),
            node_name: self.node.clone(),
            zone: self.zone.clone(),
            hints: self.hints.to_object(),
            target_ref: self.target.as_ref().map(Target::to_object),
            ..discovery::Endpoint::default()
        }
    }
}

impl Hints {
    fn from_object(object: &discovery::EndpointHints) -> Self {
        let zones = object.for_zones.iter().flatten();
        let nodes = object.for_nodes.iter().flatten();
        Self {
            zones: zones.map(|zone| zone.name.clone()).collect(),
            nodes: nodes.map(|node| node.name.clone()).collect(),
        }
    }

    fn to_object(&self) -> Option<discovery::EndpointHints> {
        let zones = self
            .zones
            .iter()
            .map(|name| discovery::ForZone { name: name.clone() });
        let nodes = self
            .nodes
            .iter()
            .map(|name| discovery::ForNode { name: name.clone() });
        (*self != Self::default()).then(|| discovery::EndpointHints {
            for_zones: Some(zones.collect()).filter(|zones: &Vec<_>| !zones.is_empty()),
            for_nodes: Some(nodes.collect()).filter(|nodes: &Vec<_>| !nodes.is_empty()),
        })
    }
}

impl Target {
    fn from_object(object: &core::ObjectReference) -> Self {
        Self {
            kind: object.kind.clone().unwrap_or_default(),
            namespace: object.namespace.clone().unwrap_or_default(),
            name: object.name.clone().unwrap_or_default(),
            uid: object.uid.clone().unwrap_or_default(),
        }
    }

    fn to_object(&self) -> core::ObjectReference {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        core::ObjectReference {
            kind: text(&self.kind),
            namespace: text(&self.namespace),
            name: text(&self.name),
            uid: text(&self.uid),
            ..core::ObjectReference::default()
        }
    }
}

impl Port {
    fn from_slice(port: &discovery::EndpointPort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            number: port.port.unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(tcp),
            app_protocol: port.app_protocol.clone(),
        }
    }

    fn to_slice(&self) -> discovery::EndpointPort {
        discovery::EndpointPort {
            name: Some(self.name.clone()),
            port: Some(self.number),
            protocol: Some(self.protocol.clone()),
            app_protocol: self.app_protocol.clone(),
        }
    }

    fn from_subset(port: &core::EndpointPort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            number: port.port,
            protocol: port.protocol.clone().unwrap_or_else(tcp),
            app_protocol: port.app_protocol.clone(),
        }
    }

    fn to_subset(&self) -> core::EndpointPort {
        core::EndpointPort {
            name: Some(self.name.clone()).filter(|name| !name.is_empty()),
            port: self.number,
            protocol: Some(self.protocol.clone()),
            app_protocol: self.app_protocol.clone(),
        }
    }
}

impl Address {
    fn from_object(object: &core::EndpointAddress) -> Option<Self> {
        Some(Self {
            ip: legacy::address(&object.ip)?,
            hostname: object.hostname.clone(),
            node: object.node_name.clone(),
            target: object.target_ref.as_ref().map(Target::from_object),
        })
    }

    fn to_object(&self) -> core::EndpointAddress {
        core::EndpointAddress {
            ip: self.ip.to_string(),
            hostname: self.hostname.clone(),
            node_name: self.node.clone(),
            target_ref: self.target.as_ref().map(Target::to_object),
        }
    }
}

impl Endpoints {
    pub(super) fn from_object(object: &core::Endpoints) -> Self {
        let addresses = |list: &Option<Vec<core::EndpointAddress>>| {
            list.iter().flatten().filter_map(Address::from_object).collect()
        };
        let subset = |subset: &core::EndpointSubset| Subset {
            ready: addresses(&subset.addresses),
            not_ready: addresses(&subset.not_ready_addresses),
            ports: subset.ports.iter().flatten().map(Port::from_subset).collect(),
        };
        Self {
            subsets: object.subsets.iter().flatten().map(subset).collect(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
            annotations: kept_annotations(&object.metadata),
        }
    }

    pub(super) fn to_object(&self, mut metadata: ObjectMeta) -> core::Endpoints {
        metadata.labels = Some(self.labels.clone());
        metadata
            .annotations
            .get_or_insert_default()
            .extend(self.annotations.clone());
        let addresses =
            |list: &[Address]| (!list.is_empty()).then(|| list.iter().map(Address::to_object).collect());
        let subset = |subset: &Subset| core::EndpointSubset {
            addresses: addresses(&subset.ready),
            not_ready_addresses: addresses(&subset.not_ready),
            ports: (!subset.ports.is_empty()).then(|| subset.ports.iter().map(Port::to_subset).collect()),
        };
        let subsets: Vec<core::EndpointSubset> = self.subsets.iter().map(subset).collect();
        core::Endpoints {
            metadata,
            subsets: (!subsets.is_empty()).then_some(subsets),
        }
    }

    /// Whether they were made from a selector, by us or by another controller of that kind.
    pub(super) fn is_managed(&self) -> bool {
        self.labels
            .get(LABEL_ENDPOINTS_MANAGED_BY)
            .is_some_and(|manager| manager == ENDPOINTS_MANAGER)
    }
}

fn kept_annotations(metadata: &ObjectMeta) -> Labels {
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.remove(ANNOTATION_TRIGGER_TIME);
    annotations.remove(ANNOTATION_LAST_APPLIED);
    annotations
}
