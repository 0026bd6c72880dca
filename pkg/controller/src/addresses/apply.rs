//! Writing IPAddresses, and what ServiceCIDRs say of themselves.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::{LABEL_FAMILY, LABEL_MANAGED_BY, MANAGER, Outcome, Plan};
use crate::alloc::STILL_IN_USE;
use crate::view::ObjectKey;

pub(super) async fn apply(client: kube::Client, plan: Plan) -> Result<Outcome, kube::Error> {
    let addresses: Api<IPAddress> = Api::all(client.clone());
    let cidrs: Api<ServiceCIDR> = Api::all(client);
    match plan {
        Plan::Make { address, service } => {
            let object = object(address, &service);
            let made = addresses.create(&PostParams::default(), &object).await?;
            Ok(Outcome::Address(Box::new(made)))
        }
        Plan::Remove { address, version } => {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: Some(version.uid),
                resource_version: None,
            });
            gone(addresses.delete(&address.to_string(), &params).await.map(|_| ()))
        }
        Plan::SayTerminating { cidr } => {
            let patch = json!({"status": {"conditions": [{
                "type": "Ready", "status": "False", "reason": "Terminating", "message": STILL_IN_USE,
                "lastTransitionTime": Time(Timestamp::now()),
            }]}});
            let params = PatchParams::default();
            let stored = cidrs
                .patch_status(&cidr, &params, &Patch::Strategic(&patch))
                .await?;
            tracing::info!(
                object.kind = "ServiceCIDR",
                object.name = cidr,
                reason = "InUse",
                "the range stays until its addresses are free"
            );
            Ok(Outcome::Cidr(Box::new(stored)))
        }
        Plan::LetGo {
            cidr,
            version,
            finalizers,
        } => {
            let patch = json!({"metadata": {
                "finalizers": finalizers, "uid": version.uid, "resourceVersion": version.revision,
            }});
            let done = cidrs
                .patch(&cidr, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            gone(done.map(|_| ()))
        }
    }
}

/// What is gone already need not go.
fn gone(done: Result<(), kube::Error>) -> Result<Outcome, kube::Error> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Nothing),
        done => done.map(|()| Outcome::Nothing),
    }
}

fn object(address: IpAddr, service: &ObjectKey) -> IPAddress {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = [(LABEL_FAMILY, family), (LABEL_MANAGED_BY, MANAGER)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            labels: Some(
                labels
                    .into_iter()
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect(),
            ),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_string(),
                namespace: Some(service.namespace.clone()),
                name: service.name.clone(),
            },
        },
    }
}
