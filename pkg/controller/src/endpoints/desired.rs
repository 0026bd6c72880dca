//! Which endpoints a Service should have: from the pods that it selects, or from the Endpoints that somebody wrote for
//! it by hand.

use std::collections::BTreeMap;

use jiff::Timestamp;
use svcnet_api::wellknown::{LABEL_MANAGED_BY, LABEL_SERVICE_NAME};

use super::model::{
    ANNOTATION_LEADER, ANNOTATION_OVER_CAPACITY, Address, ENDPOINTS_MANAGER, Endpoint, Endpoints, Family,
    Hints, LABEL_ENDPOINTS_MANAGED_BY, LABEL_HEADLESS, LABEL_SKIP_MIRROR, Labels, MANAGER_MIRRORED,
    MANAGER_SELECTED, Owner, Pod, Port, Service, Subset,
};
use super::subsets::{self, Serving};

/// Endpoints of one subset of an Endpoints object that are mirrored.
const MIRRORED_MAX: usize = 1000;

/// Endpoints that serve the same ports on addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) family: Family,
    /// In the order of the Service.
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What slices and Endpoints a Service should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Desired {
    /// There is no Service, or none that gets endpoints here.
    Nothing,
    /// The Service selects pods.
    Selected {
        /// At least one of each family, without endpoints where there are none.
        groups: Vec<Group>,
        /// Labels of the slices.
        labels: Labels,
        owner: Owner,
        /// Without annotations.
        endpoints: Endpoints,
        over_capacity: bool,
        /// When the newest of it came about.
        newest: Option<Timestamp>,
    },
    /// The Service has Endpoints that somebody else writes.
    Mirrored {
        groups: Vec<Group>,
        labels: Labels,
        annotations: Labels,
        owner: Owner,
    },
}

/// From the pods that the Service selects.
pub(super) fn selected<'a>(
    service: &Service,
    pods: &[&'a Pod],
    zone_of: impl Fn(&str) -> Option<&'a str>,
) -> Desired {
    let served: Vec<&Pod> = pods
        .iter()
        .copied()
        .filter(|pod| !pod.finished && !pod.addresses.is_empty())
        .collect();
    let mut groups = Vec::new();
    for family in service.families.iter().copied() {
        let found = groups_of(service, &served, family, &zone_of);
        if found.is_empty() {
            groups.push(Group {
                family,
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
        groups.extend(found);
    }
    let mut subsets = subsets_of(service, &served);
    let over_capacity = subsets::truncate(&mut subsets);
    let times = served
        .iter()
        .filter_map(|pod| pod.ready_since)
        .chain(service.created);
    let mut labels = service.labels.clone();
    labels.remove(LABEL_HEADLESS);
    if service.headless {
        labels.insert(LABEL_HEADLESS.to_string(), String::new());
    }
    let mut endpoints_labels = labels.clone();
    endpoints_labels.insert(
        LABEL_ENDPOINTS_MANAGED_BY.to_string(),
        ENDPOINTS_MANAGER.to_string(),
    );
    Desired::Selected {
        groups,
        labels: slice_labels(labels, &service.name, MANAGER_SELECTED),
        owner: Owner {
            kind: "Service".to_string(),
            name: service.name.clone(),
            uid: service.uid.clone(),
        },
        endpoints: Endpoints {
            subsets,
            labels: endpoints_labels,
            annotations: Labels::new(),
        },
        over_capacity,
        newest: times.max(),
    }
}

/// From the Endpoints of the Service's name.
pub(super) fn mirrored(name: &str, uid: &str, endpoints: &Endpoints) -> Desired {
    let refused = endpoints
        .labels
        .get(LABEL_SKIP_MIRROR)
        .is_some_and(|value| value == "true")
        || endpoints.annotations.contains_key(ANNOTATION_LEADER)
        || endpoints.is_managed();
    if refused {
        return Desired::Nothing;
    }
    let mut groups: BTreeMap<(Family, Vec<Port>), Group> = BTreeMap::new();
    for subset in &endpoints.subsets {
        let ready = subset.ready.iter().map(|address| (address, true));
        let all = ready.chain(subset.not_ready.iter().map(|address| (address, false)));
        for (address, ready) in all.take(MIRRORED_MAX) {
            let family = Family::of(address.ip);
            let group = groups
                .entry((family, sorted(&subset.ports)))
                .or_insert_with(|| Group {
                    family,
                    ports: subset.ports.clone(),
                    endpoints: Vec::new(),
                });
            group.endpoints.push(Endpoint {
                address: address.ip,
                ready,
                serving: None,
                terminating: None,
                hostname: address.hostname.clone(),
                node: address.node.clone(),
                zone: None,
                hints: Hints::default(),
                target: address.target.clone(),
            });
        }
    }
    let mut annotations = endpoints.annotations.clone();
    annotations.remove(ANNOTATION_OVER_CAPACITY);
    Desired::Mirrored {
        groups: groups.into_values().collect(),
        labels: slice_labels(endpoints.labels.clone(), name, MANAGER_MIRRORED),
        annotations,
        owner: Owner {
            kind: "Endpoints".to_string(),
            name: name.to_string(),
            uid: uid.to_string(),
        },
    }
}

/// Ports in an order of their own, for comparing: two slices serve the same whatever order it is listed in.
pub(super) fn sorted(ports: &[Port]) -> Vec<Port> {
    let mut ports = ports.to_vec();
    ports.sort();
    ports
}

fn slice_labels(mut labels: Labels, service: &str, manager: &str) -> Labels {
    labels.insert(LABEL_SERVICE_NAME.to_string(), service.to_string());
    labels.insert(LABEL_MANAGED_BY.to_string(), manager.to_string());
    labels
}

fn ports_on(service: &Service, pod: &Pod) -> Vec<Port> {
    service.ports.iter().filter_map(|port| port.on(pod)).collect()
}

fn groups_of<'a>(
    service: &Service,
    pods: &[&'a Pod],
    family: Family,
    zone_of: &impl Fn(&str) -> Option<&'a str>,
) -> Vec<Group> {
    let mut groups: BTreeMap<Vec<Port>, Group> = BTreeMap::new();
    for pod in pods {
        let Some(address) = pod.address(family) else {
            continue;
        };
        let ports = ports_on(service, pod);
        let group = groups.entry(sorted(&ports)).or_insert_with(|| Group {
            family,
            ports,
            endpoints: Vec::new(),
        });
        let ready = service.publish_not_ready || (pod.ready && !pod.terminating);
        let zone = pod.node.as_deref().and_then(zone_of);
        group.endpoints.push(Endpoint {
            address,
            ready,
            serving: Some(pod.ready),
            terminating: Some(pod.terminating),
            hostname: pod.hostname_in(service),
            node: pod.node.clone(),
            zone: zone.map(ToString::to_string),
            hints: service.distribution.hints(ready, pod.node.as_deref(), zone),
            target: Some(pod.target()),
        });
    }
    groups.into_values().collect()
}

// Endpoints know neither terminating pods nor a second family: who needs those reads slices.
fn subsets_of(service: &Service, pods: &[&Pod]) -> Vec<Subset> {
    let family = service.families.first().copied().unwrap_or(Family::V4);
    let mut serving = Vec::new();
    for pod in pods
        .iter()
        .filter(|pod| service.publish_not_ready || !pod.terminating)
    {
        let Some(ip) = pod.address(family) else { continue };
        let address = Address {
            ip,
            hostname: pod.hostname_in(service),
            node: pod.node.clone(),
            target: Some(pod.target()),
        };
        let ready = service.publish_not_ready || pod.ready;
        if service.headless && service.ports.is_empty() {
            serving.push(Serving {
                address,
                port: None,
                ready,
            });
            continue;
        }
        for port in ports_on(service, pod) {
            serving.push(Serving {
                address: address.clone(),
                port: Some(port),
                ready,
            });
        }
    }
    subsets::repack(serving)
}
