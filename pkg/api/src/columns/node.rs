//! Columns of Nodes.

use serde_json::{Value, json};

use super::{AGE, NAME, NONE, column, or_none, wide};
use crate::kind::Column;
use crate::rules::Fields;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

pub(crate) const NODE: [Column; 10] = [
    NAME,
    column("Status", "The status of the node", |node, _| json!(status(node))),
    column("Roles", "The roles of the node", |node, _| or_none(&roles(node))),
    AGE,
    column("Version", "Kubelet Version reported by the node.", |node, _| {
        json!(node["status"]["nodeInfo"].text("kubeletVersion"))
    }),
    wide(column(
        "Internal-IP",
        "List of addresses reachable to the node.",
        |node, _| address(node, "InternalIP"),
    )),
    wide(column(
        "External-IP",
        "List of addresses reachable to the node.",
        |node, _| address(node, "ExternalIP"),
    )),
    wide(column(
        "OS-Image",
        "OS Image reported by the node from /etc/os-release.",
        |node, _| info(node, "osImage"),
    )),
    wide(column(
        "Kernel-Version",
        "Kernel Version reported by the node from 'uname -r'.",
        |node, _| info(node, "kernelVersion"),
    )),
    wide(column(
        "Container-Runtime",
        "ContainerRuntime Version reported by the node.",
        |node, _| info(node, "containerRuntimeVersion"),
    )),
];

fn status(node: &Value) -> String {
    let ready = node["status"]
        .list("conditions")
        .iter()
        .find(|c| c.text("type") == "Ready");
    let mut text = match ready.map(|c| c.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if node["spec"].flag("unschedulable") {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(node: &Value) -> String {
    let role = |(key, value): (&String, &str)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) if !role.is_empty() => Some(role.to_string()),
        _ if key == ROLE_LABEL && !value.is_empty() => Some(value.to_string()),
        _ => None,
    };
    let mut roles: Vec<String> = node["metadata"].entries("labels").filter_map(role).collect();
    roles.sort();
    roles.dedup();
    roles.join(",")
}

fn address(node: &Value, type_: &str) -> Value {
    let found = node["status"]
        .list("addresses")
        .iter()
        .find(|a| a.text("type") == type_);
    json!(found.map_or(NONE, |a| a.text("address")))
}

fn info(node: &Value, field: &str) -> Value {
    match node["status"]["nodeInfo"].text(field) {
        "" => json!("<unknown>"),
        text => json!(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_prints_in_full() {
        let node = json!({
            "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": "", "x": "y"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "172.30.0.11"}],
                "nodeInfo": {"kubeletVersion": "v1.33.0+svcnet", "kernelVersion": "6.18.0"},
            },
        });
        let cells: Vec<Value> = NODE.iter().map(|c| (c.cell)(&node, 0)).collect();
        assert_eq!(
            cells,
            [
                "n1",
                "Ready,SchedulingDisabled",
                "control-plane",
                "<unknown>",
                "v1.33.0+svcnet",
                "172.30.0.11",
                "<none>",
                "<unknown>",
                "6.18.0",
                "<unknown>",
            ]
        );
        let lost = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        assert_eq!(
            (status(&lost).as_str(), status(&json!({})).as_str()),
            ("NotReady", "Unknown")
        );
    }
}
