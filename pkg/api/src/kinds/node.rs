//! Node: pod networks that do not change, taints, addresses.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::columns;
use crate::field::{FieldError, FieldPath};
use crate::kind::{Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, object_in};
use crate::types::legacy;

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    status: true,
    volatile: false,
    selectable_fields: &["spec.unschedulable"],
    columns: &columns::NODE,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

/// `podCIDR` and `podCIDRs[0]` say the same; a writer may know only one of them.
fn default(new: &mut Value, _old: Option<&Value>) {
    object_in(new, "spec");
    object_in(new, "status");
    let spec = &mut new["spec"];
    let single = spec.text("podCIDR").to_string();
    let first = spec
        .list("podCIDRs")
        .first()
        .and_then(Value::as_str)
        .map(String::from);
    match first {
        None if !single.is_empty() => spec["podCIDRs"] = json!([single]),
        Some(first) if single.is_empty() => spec["podCIDR"] = json!(first),
        _ => {}
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    errors.extend(pod_networks(spec, &path.child("podCIDRs")));
    let former = old.map(|o| &o["spec"]).filter(|o| !o.list("podCIDRs").is_empty());
    if former.is_some_and(|old| old["podCIDRs"] != spec["podCIDRs"]) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(path.child("podCIDRs"), detail));
    }
    errors.extend(taints(spec));
    let addresses = new["status"].list("addresses");
    for (index, address) in addresses.iter().enumerate() {
        if addresses.iter().take(index).any(|a| a == address) {
            let path = FieldPath::new("status").child("addresses").index(index);
            errors.push(FieldError::duplicate(path, address.clone()));
        }
    }
    errors
}

fn taints(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, taint) in spec.list("taints").iter().enumerate() {
        // The real one names them below metadata, too.
        let path = FieldPath::new("metadata").child("taints").index(index);
        let (key, effect) = (taint.text("key"), taint.text("effect"));
        errors.extend(each(&path.child("key"), key, names::qualified_name(key)));
        let known = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        match effect {
            "" => errors.push(FieldError::required(path.child("effect"), "")),
            effect if known.contains(&effect) => {}
            effect => errors.push(FieldError::not_supported(path.child("effect"), effect, &known)),
        }
    }
    errors
}

fn pod_networks(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let networks = spec.list("podCIDRs");
    for (index, network) in networks.iter().enumerate() {
        let text = network.as_str().unwrap_or_default();
        errors.extend(each(&path.index(index), text, names::cidr(text)));
        if networks.iter().take(index).any(|n| n == network) {
            errors.push(FieldError::duplicate(path.index(index), text));
        }
    }
    let is_v6 = |network: &&Value| matches!(network.as_str().and_then(legacy::network), Some(IpNet::V6(_)));
    if networks.len() > 1 && (networks.len() > 2 || networks.iter().filter(is_v6).count() != 1) {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(
            path.clone(),
            spec["podCIDRs"].clone(),
            detail,
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(new: &Value, old: Option<&Value>) -> Vec<String> {
        validate(new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_pod_network_is_kept_once_given() {
        let mut old = json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"}});
        default(&mut old, None);
        assert_eq!(old["spec"]["podCIDRs"], json!(["10.244.1.0/24"]));
        assert!(words(&old, None).is_empty());
        let mut new = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.2.0/24"]}});
        default(&mut new, Some(&old));
        assert_eq!(
            words(&new, Some(&old)),
            ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
        );
    }

    #[test]
    fn networks_and_taints_are_checked() {
        let node = json!({"metadata": {"name": "n1"}, "spec": {
            "podCIDRs": ["10.244.1.0/24", "10.244.1.0/24"], "taints": [{"key": "a", "effect": "Never"}],
        }});
        assert_eq!(
            words(&node, None),
            [
                "spec.podCIDRs[1]: Duplicate value: \"10.244.1.0/24\"",
                "spec.podCIDRs: Invalid value: []string{\"10.244.1.0/24\", \"10.244.1.0/24\"}: may specify no more \
                 than one CIDR for each IP family",
                "metadata.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \
                 \"NoSchedule\", \"PreferNoSchedule\"",
            ]
        );
    }
}
