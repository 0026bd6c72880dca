//! Who may reach an endpoint, and be reached by whom: NetworkPolicies.

use std::net::IpAddr;

use svcnet_policy::model::{ObjectKey, Policy};
use svcnet_policy::verdict::{End, Target, Verdict};
use svcnet_policy::view::{PodFacts, View};

use super::{Origin, SeenAs, Stopped, Tracer, Way};
use crate::cluster::{self, Cluster};
use crate::explain::{Endpoint, What};
use crate::reason::{NotReached, count};

/// What policies look at.
fn view(cluster: &Cluster) -> View {
    let labels = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        let labels = meta.labels.clone().unwrap_or_default();
        (cluster::name(meta).to_string(), labels)
    };
    let object = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        ObjectKey::new(cluster::namespace(meta), cluster::name(meta))
    };
    let policies = cluster.policies.iter().filter_map(|policy| {
        let key = object(&policy.metadata);
        // One that makes no sense is in force nowhere.
        let (parsed, _) = Policy::parse(&key.namespace, policy).ok()?;
        Some((key, parsed))
    });
    View {
        namespaces: cluster
            .namespaces
            .iter()
            .map(|namespace| labels(&namespace.metadata))
            .collect(),
        pods: cluster
            .pods
            .iter()
            .map(|pod| (object(&pod.metadata), PodFacts::of(pod, "")))
            .collect(),
        policies: policies.collect(),
    }
}

impl Tracer<'_> {
    /// Sorts out endpoints that a NetworkPolicy keeps from being reached.
    pub(super) fn permitted(&mut self, origin: &Origin, mut way: Way) -> Result<Way, Stopped> {
        if self.cluster.policies.is_empty() {
            return Ok(way);
        }
        let view = view(self.cluster);
        let (mut reached, mut denied, mut judged) = (Vec::new(), 0, 0);
        for endpoint in std::mem::take(&mut way.endpoints) {
            let Some(verdict) = self.judge(&view, origin, &way, &endpoint) else {
                reached.push(endpoint);
                continue;
            };
            judged += usize::from(verdict != Verdict::Open);
            match verdict {
                Verdict::Denied(why) => {
                    denied += 1;
                    let policies = why.policies.iter().map(ToString::to_string).collect();
                    let reason = NotReached::DeniedByNetworkPolicy {
                        pod: why.pod.to_string(),
                        direction: why.direction.to_string(),
                        policies,
                    };
                    way.dead.push((endpoint, reason));
                }
                Verdict::Open | Verdict::Allowed(_) => reached.push(endpoint),
            }
        }
        way.endpoints = reached;
        if way.endpoints.is_empty()
            && let Some((_, reason)) = way.dead.last().filter(|_| denied > 0)
        {
            return Err((What::Policy, reason.clone()));
        }
        if judged > 0 {
            let all = way.endpoints.len() + denied;
            let text = format!(
                "NetworkPolicies let it through to {} of {}",
                all - denied,
                count(all, "endpoint")
            );
            self.ok(What::Policy, text);
        }
        Ok(way)
    }

    /// Nothing where it can not be told, or is not judged: what the endpoint's own node sends.
    fn judge(&self, view: &View, origin: &Origin, way: &Way, endpoint: &Endpoint) -> Option<Verdict> {
        let to = endpoint.at.ip();
        let itself = match origin {
            Origin::Node { name, .. } if endpoint.node.as_ref() == Some(name) => return None,
            Origin::Node { .. } | Origin::Pod { .. } | Origin::Outside { .. } => origin.address(to.is_ipv6()),
        };
        // Translated on another node than the endpoint's, it comes from there.
        let elsewhere = way.node.is_some() && way.node != endpoint.node;
        let of_pods = |ip| self.cluster.is_of_pods(ip);
        let from: IpAddr = if elsewhere && way.seen_as(origin, endpoint, of_pods) == SeenAs::Node {
            let node = self.cluster.node(way.node.as_deref()?)?;
            cluster::node_addresses(node).find(|ip| ip.is_ipv6() == to.is_ipv6())?
        } else {
            itself?
        };
        let target = Target {
            protocol: svcnet_policy::model::Protocol::from_number(way.protocol.number()),
            port: endpoint.at.port(),
        };
        let end = |address| -> End<'_> { view.end(address) };
        Some(view.judge(end(from), end(to), target))
    }
}
