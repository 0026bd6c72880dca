//! Writing the Node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use svcnet_api::wellknown::ANNOTATION_HOST_PORTS;

use crate::desired::DesiredNode;
use crate::plan::{Op, Plan};

/// What a /24 of pod addresses leaves beside the network's own, the gateway's and the broadcast address.
const PODS_MAX: u32 = 253;

/// Carries out a plan; the Node as the server has it afterwards.
pub(crate) async fn apply(
    nodes: &Api<Node>,
    desired: &DesiredNode,
    plan: Plan,
    now: Timestamp,
) -> Result<Option<Node>, kube::Error> {
    let mut stored = None;
    let params = PatchParams::default();
    for op in plan.0 {
        stored = Some(match op {
            Op::Register => {
                let node = nodes
                    .create(&PostParams::default(), &object(desired, now))
                    .await?;
                // A stock API server takes no status with a new object.
                if node
                    .status
                    .as_ref()
                    .is_some_and(|status| status.addresses.is_some())
                {
                    node
                } else {
                    let patch = json!({"status": status(desired, now)});
                    nodes
                        .patch_status(&desired.name, &params, &Patch::Strategic(&patch))
                        .await?
                }
            }
            Op::Label(labels) => {
                let patch = json!({"metadata": {"labels": labels}});
                nodes.patch(&desired.name, &params, &Patch::Merge(&patch)).await?
            }
            Op::HostPorts(ports) => {
                let patch = json!({"metadata": {"annotations": {ANNOTATION_HOST_PORTS: ports}}});
                nodes.patch(&desired.name, &params, &Patch::Merge(&patch)).await?
            }
            Op::Status(_) => {
                let mut patch = json!({"status": status(desired, now)});
                // An address that is no longer ours must go: merged, it would stay beside the new one.
                if let Some(addresses) = patch
                    .pointer_mut("/status/addresses")
                    .and_then(|a| a.as_array_mut())
                {
                    addresses.push(json!({"$patch": "replace"}));
                }
                nodes
                    .patch_status(&desired.name, &params, &Patch::Strategic(&patch))
                    .await?
            }
        });
    }
    Ok(stored)
}

/// The whole Node, as it is registered.
pub(crate) fn object(desired: &DesiredNode, now: Timestamp) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(desired.name.clone()),
            labels: Some(desired.labels.clone()),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(status(desired, now)),
    }
}

/// The parts of the status that are ours.
pub(crate) fn status(desired: &DesiredNode, now: Timestamp) -> NodeStatus {
    let machine = &desired.machine;
    let addresses = desired.addresses.iter().map(|(kind, address)| NodeAddress {
        type_: (*kind).to_string(),
        address: address.clone(),
    });
    let capacity: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory_kib)),
        ("pods", PODS_MAX.to_string()),
    ]
    .into_iter()
    .map(|(resource, amount)| (resource.to_string(), Quantity(amount)))
    .collect();
    NodeStatus {
        capacity: Some(capacity.clone()),
        allocatable: Some(capacity),
        addresses: Some(addresses.collect()),
        conditions: Some(vec![NodeCondition {
            type_: "Ready".to_string(),
            status: "True".to_string(),
            reason: Some("KubeletReady".to_string()),
            message: Some("svcnet agent is posting ready status".to_string()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }]),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            kernel_version: machine.kernel_version.clone(),
            kubelet_version: desired.kubelet_version.to_string(),
            machine_id: machine.machine_id.clone(),
            system_uuid: machine.machine_id.clone(),
            operating_system: "linux".to_string(),
            os_image: machine.os_image.clone(),
            container_runtime_version: "svcnet://0.1.0".to_string(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}
