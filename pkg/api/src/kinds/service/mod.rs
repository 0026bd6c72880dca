//! Service: the table entry. Defaults in `default`, checks in `validate` and `families`.

mod default;
mod families;
mod validate;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::columns;
use crate::kind::{Kind, NameRule};
use crate::rules::Fields;

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    status: true,
    volatile: false,
    selectable_fields: &["spec.clusterIP", "spec.type"],
    columns: &columns::SERVICE,
    default: default::default,
    validate: validate::validate,
    name_rule: NameRule::Label1035,
};

fn is_headless(spec: &Value) -> bool {
    matches!(spec.list("clusterIPs"), [only] if only == "None")
}

/// Every type but ExternalName.
fn needs_cluster_ip(spec: &Value) -> bool {
    spec.text("type") != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    matches!(spec.text("type"), "NodePort" | "LoadBalancer")
}

/// Reached from outside the cluster by some way of ours (`ExternallyAccessible`).
fn externally_accessible(spec: &Value) -> bool {
    needs_node_port(spec) || (spec.text("type") == "ClusterIP" && !spec.list("externalIPs").is_empty())
}

fn needs_health_check(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}
