//! What the API says.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::ListParams;
use svcnet_api::wellknown::NAMESPACE_NODE_LEASE;

use crate::cluster::Cluster;

/// The reason of the Events by which announcers tell who answers for an address.
const REASON_ANNOUNCED: &str = "nodeAssigned";

/// What is not in the API.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How proxies are run.
    pub proxy: svcnet_proxy::Config,
    /// The domain of the cluster's names.
    pub domain: String,
}

/// Everything that matters here, out of the API.
///
/// # Errors
/// When the API refuses or does not answer.
pub async fn cluster(client: &kube::Client, settings: Settings) -> Result<Cluster, kube::Error> {
    let all = ListParams::default();
    let events = ListParams::default().fields(&format!("reason={REASON_ANNOUNCED}"));
    let (services, slices, pods, nodes, leases, told) = (
        Api::<Service>::all(client.clone()),
        Api::<EndpointSlice>::all(client.clone()),
        Api::<Pod>::all(client.clone()),
        Api::<Node>::all(client.clone()),
        Api::<Lease>::namespaced(client.clone(), NAMESPACE_NODE_LEASE),
        Api::<Event>::all(client.clone()),
    );
    let (services, slices, pods, nodes, leases) = tokio::try_join!(
        services.list(&all),
        slices.list(&all),
        pods.list(&all),
        nodes.list(&all),
        leases.list(&all),
    )?;
    // Events are for people: that they can not be read keeps nobody from an answer.
    let told = told
        .list(&events)
        .await
        .map(|list| list.items)
        .unwrap_or_default();
    // Nor that policies can not: they may be nobody's affair but an operator's.
    let (namespaces, policies) = (
        Api::<Namespace>::all(client.clone()),
        Api::<NetworkPolicy>::all(client.clone()),
    );
    let (namespaces, policies) = tokio::join!(namespaces.list(&all), policies.list(&all));
    Ok(Cluster {
        namespaces: namespaces.map(|list| list.items).unwrap_or_default(),
        policies: policies.map(|list| list.items).unwrap_or_default(),
        services: services.items.into_iter().map(Arc::new).collect(),
        slices: slices.items.into_iter().map(Arc::new).collect(),
        pods: pods.items,
        nodes: nodes.items,
        leases: leases.items,
        announcers: announcers(told),
        proxy: settings.proxy,
        domain: settings.domain,
        now: Timestamp::now(),
    })
}

/// The node that told last, for each Service.
fn announcers(events: Vec<Event>) -> BTreeMap<String, String> {
    let mut last: BTreeMap<String, (Option<Timestamp>, String)> = BTreeMap::new();
    for event in events {
        let of = &event.involved_object;
        let (Some(namespace), Some(name)) = (&of.namespace, &of.name) else {
            continue;
        };
        let Some(node) = event.source.and_then(|source| source.host) else {
            continue;
        };
        if event.reason.as_deref() != Some(REASON_ANNOUNCED) {
            continue;
        }
        let at = event.last_timestamp.map(|time| time.0);
        let known = last.entry(format!("{namespace}/{name}")).or_default();
        if at >= known.0 {
            *known = (at, node);
        }
    }
    last.into_iter()
        .map(|(service, (_, node))| (service, node))
        .collect()
}
