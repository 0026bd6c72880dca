//! What is to be written so that the Node says what it should.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Node;
use svcnet_api::wellknown::ANNOTATION_HOST_PORTS;

use crate::desired::DesiredNode;

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// There is no such Node.
    Register,
    /// Labels that are missing or wrong.
    Label(BTreeMap<String, String>),
    /// Ports that are taken on the machine; none is no annotation.
    HostPorts(Option<String>),
    /// Addresses, machine or readiness in the status.
    Status(Vec<Part>),
}

/// A part of the status that is not right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Addresses,
    Machine,
    Ready,
}

/// The writes for the Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan(pub(crate) Vec<Op>);

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, op) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            match op {
                Op::Register => f.write_str("register")?,
                Op::Label(labels) => {
                    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    write!(f, "label {}", pairs.join(","))?;
                }
                Op::HostPorts(ports) => {
                    write!(f, "tell taken ports {}", ports.as_deref().unwrap_or("none"))?;
                }
                Op::Status(parts) => {
                    let parts: Vec<String> = parts
                        .iter()
                        .map(|part| format!("{part:?}").to_lowercase())
                        .collect();
                    write!(f, "write status {}", parts.join(","))?;
                }
            }
        }
        Ok(())
    }
}

/// The writes that make the Node say what is desired; none when it does.
pub(crate) fn plan(desired: &DesiredNode, observed: Option<&Node>) -> Plan {
    let Some(node) = observed else {
        return Plan(vec![Op::Register]);
    };
    let mut ops = Vec::new();
    let there = node.metadata.labels.clone().unwrap_or_default();
    let missing: BTreeMap<String, String> = desired
        .labels
        .iter()
        .filter(|(key, value)| there.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !missing.is_empty() {
        ops.push(Op::Label(missing));
    }
    let told = node.metadata.annotations.as_ref();
    let told = told
        .and_then(|a| a.get(ANNOTATION_HOST_PORTS))
        .map_or("", String::as_str);
    if let Some(ports) = desired.host_ports.as_deref().filter(|ports| *ports != told) {
        ops.push(Op::HostPorts((!ports.is_empty()).then(|| ports.to_string())));
    }
    let wrong: Vec<Part> = [
        (Part::Addresses, has_addresses(desired, node)),
        (Part::Machine, has_machine(desired, node)),
        (Part::Ready, is_ready(node)),
    ]
    .into_iter()
    .filter_map(|(part, right)| (!right).then_some(part))
    .collect();
    if !wrong.is_empty() {
        ops.push(Op::Status(wrong));
    }
    Plan(ops)
}

fn has_addresses(desired: &DesiredNode, node: &Node) -> bool {
    let there = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let there = there.map(|address| (address.type_.as_str(), address.address.as_str()));
    desired
        .addresses
        .iter()
        .map(|(kind, address)| (*kind, address.as_str()))
        .eq(there)
}

fn has_machine(desired: &DesiredNode, node: &Node) -> bool {
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
        return false;
    };
    let machine = &desired.machine;
    let measured = node
        .status
        .as_ref()
        .is_some_and(|status| status.capacity.is_some());
    measured
        && info.kernel_version == machine.kernel_version
        && info.os_image == machine.os_image
        && info.boot_id == machine.boot_id
        && info.kubelet_version == desired.kubelet_version
}

// A controller that has held this node for dead gives the condition back when it sees the Lease move. Written from here
// as well, the two could take turns for as long as the Lease does not get through.
fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready");
    ready.is_some_and(|condition| match condition.status.as_str() {
        "True" => true,
        "Unknown" => condition
            .reason
            .as_deref()
            .is_some_and(|reason| reason.starts_with("NodeStatus")),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::apply::{object, status};
    use crate::desired::{Machine, desired};

    fn wanted() -> DesiredNode {
        let machine = Machine {
            kernel_version: "6.1".to_string(),
            ..Machine::default()
        };
        desired("n1", &["172.30.0.11".parse().unwrap()], &machine)
    }

    #[test]
    fn nothing_is_written_to_a_node_that_is_right() {
        let node = object(&wanted(), Timestamp::UNIX_EPOCH);
        assert_eq!(plan(&wanted(), Some(&node)), Plan::default());
        assert_eq!(plan(&wanted(), None).to_string(), "register");
    }

    #[test]
    fn what_others_put_there_stays_and_what_is_ours_is_repaired() {
        let mut node = object(&wanted(), Timestamp::UNIX_EPOCH);
        node.metadata
            .labels
            .as_mut()
            .unwrap()
            .insert("zone".to_string(), "a".to_string());
        assert_eq!(plan(&wanted(), Some(&node)), Plan::default());
        node.metadata.labels.as_mut().unwrap().remove("kubernetes.io/os");
        let moved = desired("n1", &["172.30.0.99".parse().unwrap()], &wanted().machine);
        assert_eq!(
            plan(&moved, Some(&node)).to_string(),
            "label kubernetes.io/os=linux; write status addresses"
        );
        node.status = None;
        let all = plan(&wanted(), Some(&node)).to_string();
        assert_eq!(
            all,
            "label kubernetes.io/os=linux; write status addresses,machine,ready"
        );
    }

    #[test]
    fn taken_ports_are_told_and_taken_back() {
        let mut node = object(&wanted(), Timestamp::UNIX_EPOCH);
        let with = |ports: &str| DesiredNode {
            host_ports: Some(ports.to_string()),
            ..wanted()
        };
        assert_eq!(plan(&with(""), Some(&node)), Plan::default());
        assert_eq!(
            plan(&with("30080"), Some(&node)).to_string(),
            "tell taken ports 30080"
        );
        node.metadata.annotations = Some([(ANNOTATION_HOST_PORTS.to_string(), "30080".to_string())].into());
        assert_eq!(plan(&with("30080"), Some(&node)), Plan::default());
        assert_eq!(plan(&with(""), Some(&node)).to_string(), "tell taken ports none");
        // Not known is not none.
        assert_eq!(plan(&wanted(), Some(&node)), Plan::default());
    }

    #[test]
    fn readiness_that_the_controller_took_is_left_to_it() {
        let mut node = object(&wanted(), Timestamp::UNIX_EPOCH);
        let condition = &mut node.status.as_mut().unwrap().conditions.as_mut().unwrap()[0];
        condition.status = "Unknown".to_string();
        condition.reason = Some("NodeStatusUnknown".to_string());
        assert_eq!(plan(&wanted(), Some(&node)), Plan::default());
        node.status.as_mut().unwrap().conditions = None;
        assert_eq!(plan(&wanted(), Some(&node)).to_string(), "write status ready");
    }

    #[test]
    fn the_status_is_complete() {
        let text = serde_json::to_string_pretty(&status(&wanted(), Timestamp::UNIX_EPOCH)).unwrap();
        for part in ["172.30.0.11", "\"KubeletReady\"", "v1.33.0+svcnet", "\"6.1\""] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
