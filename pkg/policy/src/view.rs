//! What is known of the cluster: labels of namespaces, pods with their labels and addresses, policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use svcnet_api::wellknown::ANNOTATION_RUNTIME_UID;

use crate::model::{Direction, Namespaces, ObjectKey, PodSelector, Policy, Protocol};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The part of a pod that policies look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Who it is: another pod of the same name has another one. Runtimes know some pods by another uid than the API: static
    /// ones, and those that CNI made an object for. So there may be two.
    pub uids: Vec<String>,
    /// Its labels.
    pub labels: Labels,
    /// Its own addresses: none where it has none yet, shares the node's, or has ended.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a pod of this node.
    pub local: bool,
    /// Its ports that have names.
    pub ports: Vec<NamedPort>,
}

/// A port of a pod that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// Where the uid of a static pod stands that runtimes are told (`kubernetes.io/config.hash`).
const STATIC_POD_UID: &str = "kubernetes.io/config.hash";

impl PodFacts {
    /// Reads a Pod, as a pod of the node `node` or of another.
    pub fn of(pod: &Pod, node: &str) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let on_host = spec.is_some_and(|s| s.host_network == Some(true));
        let mut addresses: Vec<IpAddr> = Vec::new();
        // The addresses of a pod that has ended may be another's by now.
        if !on_host && !matches!(phase, "Succeeded" | "Failed") {
            let told = status.iter().flat_map(|s| {
                let all = s.pod_ips.iter().flatten().map(|ip| &ip.ip);
                all.chain(s.pod_ip.as_ref())
            });
            for address in told.filter_map(|text| text.parse().ok()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        let containers = spec.into_iter().flat_map(|s| {
            let init = s.init_containers.iter().flatten();
            // Sidecars: init containers that go on.
            let sidecars = init.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            s.containers.iter().chain(sidecars)
        });
        let mut ports: Vec<NamedPort> = containers
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|port| {
                Some(NamedPort {
                    name: port.name.clone().filter(|name| !name.is_empty())?,
                    protocol: Protocol::from_api(port.protocol.as_deref())?,
                    number: u16::try_from(port.container_port).ok()?,
                })
            })
            .collect();
        ports.sort();
        ports.dedup();
        let meta = &pod.metadata;
        let annotations = meta.annotations.iter();
        let further =
            annotations.flat_map(|a| [STATIC_POD_UID, ANNOTATION_RUNTIME_UID].map(|name| a.get(name)));
        Self {
            uids: meta.uid.iter().chain(further.flatten()).cloned().collect(),
            labels: meta.labels.clone().unwrap_or_default(),
            addresses,
            local: !on_host && spec.and_then(|s| s.node_name.as_deref()) == Some(node),
            ports,
        }
    }
}

/// The cluster as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods.
    pub pods: BTreeMap<ObjectKey, PodFacts>,
    /// Policies.
    pub policies: BTreeMap<ObjectKey, Policy>,
}

/// Everything of a map that is of a namespace.
pub(crate) fn of_namespace<'a, T>(
    map: &'a BTreeMap<ObjectKey, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
    map.range(ObjectKey::new(namespace, "")..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

impl View {
    /// Whether a selector means the pods of a namespace that have its labels.
    pub fn selects_namespace(&self, selector: &PodSelector, namespace: &str) -> bool {
        match &selector.namespaces {
            Namespaces::Own(own) => own == namespace,
            Namespaces::Labelled(labels) => self
                .namespaces
                .get(namespace)
                // Of a namespace that is not known, the labels are not known either.
                .is_some_and(|of| labels.matches_labels(Some(of))),
        }
    }

    /// Whether a selector means a pod.
    pub fn selects(&self, selector: &PodSelector, key: &ObjectKey, pod: &PodFacts) -> bool {
        self.selects_namespace(selector, &key.namespace) && selector.pods.matches_labels(Some(&pod.labels))
    }

    /// The policies that isolate a pod in a direction.
    pub fn isolating<'a>(
        &'a self,
        key: &'a ObjectKey,
        pod: &'a PodFacts,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Policy)> {
        of_namespace(&self.policies, &key.namespace).filter(move |(_, policy)| {
            policy.rules(direction).is_some() && policy.selects.matches_labels(Some(&pod.labels))
        })
    }

    /// The pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<(&ObjectKey, &PodFacts)> {
        self.pods.iter().find(|(_, pod)| pod.addresses.contains(&address))
    }
}
