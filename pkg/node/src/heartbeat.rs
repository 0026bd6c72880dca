//! The Lease of this node: while it moves, the node lives.
//!
//! The server holds Leases in memory only. After its restart ours is gone, so renewing creates it where it is missing,
//! and tries go on at the pace of renewal however long the server is away: the node has to be seen again within seconds.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use svcnet_api::wellknown::NAMESPACE_NODE_LEASE;
use svcnet_runtime::backoff::Backoff;
use tokio_util::sync::CancellationToken;

/// How long the node is held for living without a renewal.
const LEASE_SECONDS: i32 = 6;
/// Three renewals may get lost before the Lease runs out.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A try that takes longer is given up: the next one may find a working connection.
const RENEW_WITHIN: Duration = Duration::from_secs(4);

/// Renews until shutdown.
pub(crate) async fn keep(client: kube::Client, node: &str, shutdown: &CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE_NODE_LEASE);
    let mut failures = Backoff::default();
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let renewed = tokio::select! {
            () = shutdown.cancelled() => return,
            renewed = tokio::time::timeout(RENEW_WITHIN, renew(&leases, node)) => renewed,
        };
        match renewed {
            Ok(Ok(())) => {
                metrics::counter!("svcnet_node_lease_renewals_total", "result" => "ok").increment(1);
                if failures.reset() {
                    tracing::info!(node, "the node's Lease is renewed again");
                }
            }
            Ok(Err(error)) => failed(node, &error.to_string(), &mut failures),
            Err(_) => failed(node, "the server does not answer in time", &mut failures),
        }
    }
}

fn failed(node: &str, reason: &str, failures: &mut Backoff) {
    metrics::counter!("svcnet_node_lease_renewals_total", "result" => "failed").increment(1);
    if failures.is_news(reason) {
        tracing::warn!(node, reason, "cannot renew the node's Lease, trying again");
    }
}

async fn renew(leases: &Api<Lease>, node: &str) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {
        "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
    }});
    match leases
        .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(node.to_string()),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(node.to_string()),
                    lease_duration_seconds: Some(LEASE_SECONDS),
                    acquire_time: Some(now.clone()),
                    renew_time: Some(now),
                    ..LeaseSpec::default()
                }),
            };
            leases.create(&PostParams::default(), &lease).await.map(|_| ())
        }
        answer => answer.map(|_| ()),
    }
}
