//! Why a Service has no endpoint that can be used.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use svcnet_api::selector::LabelSelector;

use crate::cluster::{Cluster, key, name, namespace, pod_addresses, pod_trouble};
use crate::names::distance;
use crate::reason::{NotReached, PodTrouble};

/// How many pods that almost match are told.
const NEAR_MAX: usize = 3;

/// The reason why a port of a Service has no endpoint of a family.
pub(crate) fn no_endpoints(cluster: &Cluster, service: &Service, port: &ServicePort, v6: bool) -> NotReached {
    let shown = key(&service.metadata);
    let selector = selector(service);
    if selector.is_empty() {
        return NotReached::NoEndpointsWritten { service: shown };
    }
    let matching = matching(cluster, service);
    if matching.is_empty() {
        return NotReached::NoPodMatches {
            service: shown,
            selector: labels_text(&selector),
            near: almost(cluster, service, &selector),
        };
    }
    let troubled: Vec<PodTrouble> = troubles(cluster, service);
    let ready: Vec<&Pod> = matching
        .iter()
        .copied()
        .filter(|pod| trouble(cluster, service, pod).is_none())
        .collect();
    if ready.is_empty() {
        return NotReached::NoReadyPod {
            service: shown,
            pods: troubled,
        };
    }
    if let Some(reason) = wrong_target_port(&shown, port, &ready) {
        return reason;
    }
    if ready
        .iter()
        .all(|pod| !pod_addresses(pod).any(|ip| ip.is_ipv6() == v6))
    {
        return NotReached::NoEndpointOfFamily {
            service: shown,
            family: if v6 { "IPv6" } else { "IPv4" },
        };
    }
    NotReached::ControllerBehind {
        service: shown,
        pods: ready.iter().map(|pod| key(&pod.metadata)).collect(),
    }
}

/// The pods that match and can not be used, each with the reason.
pub(crate) fn troubles(cluster: &Cluster, service: &Service) -> Vec<PodTrouble> {
    let pods = matching(cluster, service).into_iter();
    pods.filter_map(|pod| {
        Some(PodTrouble {
            pod: key(&pod.metadata),
            why: trouble(cluster, service, pod)?,
        })
    })
    .collect()
}

/// Why a pod is no endpoint of a Service. The node's death is told before what the pod last said of itself.
fn trouble(cluster: &Cluster, service: &Service, pod: &Pod) -> Option<String> {
    let publishes = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.publish_not_ready_addresses == Some(true));
    let trouble = pod_trouble(pod)?;
    if publishes && pod_addresses(pod).next().is_some() && pod.metadata.deletion_timestamp.is_none() {
        return None;
    }
    let node = crate::cluster::pod_node(pod).and_then(|node| Some((node, cluster.node_down(node)?)));
    Some(match node {
        Some((node, why)) => format!("its node {node} is down: {why}"),
        None => trouble,
    })
}

fn selector(service: &Service) -> BTreeMap<String, String> {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.selector.clone()).unwrap_or_default()
}

fn matching<'a>(cluster: &'a Cluster, service: &Service) -> Vec<&'a Pod> {
    let labels = selector(service);
    if labels.is_empty() {
        return Vec::new();
    }
    let selector = LabelSelector::from_labels(&labels);
    let of_namespace = namespace(&service.metadata);
    let pods = cluster.pods.iter();
    pods.filter(|pod| namespace(&pod.metadata) == of_namespace)
        .filter(|pod| selector.matches_labels(pod.metadata.labels.as_ref()))
        .collect()
}

fn labels_text(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.join(",")
}

/// Pods whose labels are nearly those: the same key with another value, or the labels in another namespace.
fn almost(cluster: &Cluster, service: &Service, wanted: &BTreeMap<String, String>) -> Vec<String> {
    let of_namespace = namespace(&service.metadata);
    let mut near: Vec<(usize, String)> = Vec::new();
    for pod in &cluster.pods {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let here = namespace(&pod.metadata) == of_namespace;
        if !here && LabelSelector::from_labels(wanted).matches_labels(Some(&labels)) {
            near.push((
                0,
                format!("{} has them, in another namespace", key(&pod.metadata)),
            ));
        }
        for (label, value) in labels.iter().filter(|_| here) {
            let Some(meant) = wanted.get(label).filter(|meant| *meant != value) else {
                continue;
            };
            let far = distance(meant, value);
            if far > 1 + meant.chars().count() / 3 {
                continue;
            }
            near.push((far, format!("{} has {label}={value}", name(&pod.metadata))));
        }
    }
    near.sort();
    near.into_iter().take(NEAR_MAX).map(|(_, text)| text).collect()
}

/// When `targetPort` is a name that no ready pod has.
fn wrong_target_port(service: &str, port: &ServicePort, ready: &[&Pod]) -> Option<NotReached> {
    let Some(IntOrString::String(target)) = &port.target_port else {
        return None;
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut names: Vec<String> = Vec::new();
    for container in ready
        .iter()
        .flat_map(|pod| pod.spec.iter())
        .flat_map(|spec| &spec.containers)
    {
        for there in container.ports.iter().flatten() {
            let of_protocol = there.protocol.as_deref().unwrap_or("TCP") == protocol;
            if of_protocol && there.name.as_ref() == Some(target) {
                return None;
            }
            let number = there.container_port;
            let shown = match &there.name {
                Some(name) => format!("{name} ({number})"),
                None => format!("{number} without a name"),
            };
            if of_protocol && !names.contains(&shown) {
                names.push(shown);
            }
        }
    }
    names.sort();
    Some(NotReached::TargetPortName {
        service: service.to_string(),
        target_port: target.clone(),
        names,
    })
}
