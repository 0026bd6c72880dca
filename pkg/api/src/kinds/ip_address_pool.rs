//! IPAddressPool (MetalLB): addresses for Services of type LoadBalancer.

use serde_json::Value;

use super::l2_advertisement::selectors;
use crate::columns::{NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::metallb::AddressRange;
use crate::rules::{Fields, object_in, set_default};

pub(crate) const KIND: Kind = Kind {
    group: "metallb.io",
    version: "v1beta1",
    kind: "IPAddressPool",
    plural: "ipaddresspools",
    singular: "ipaddresspool",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: true,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

// Those of the CustomResourceDefinition, lists as JSON: a custom resource has no printer of its own.
const COLUMNS: [Column; 4] = [
    NAME,
    Column {
        type_: "boolean",
        ..column(
            "Auto Assign",
            "Whether Services get addresses without asking for the pool.",
            |pool, _| pool["spec"]["autoAssign"].clone(),
        )
    },
    Column {
        type_: "boolean",
        ..column(
            "Avoid Buggy IPs",
            "Whether addresses ending in .0 and .255 are left out.",
            |pool, _| pool["spec"]["avoidBuggyIPs"].clone(),
        )
    },
    column("Addresses", "The ranges of the pool.", |pool, _| {
        super::l2_advertisement::as_json(&pool["spec"]["addresses"])
    }),
];

fn default(new: &mut Value, _old: Option<&Value>) {
    // Those of MetalLB's CustomResourceDefinition, which fills in a spec but makes none.
    if new.has("spec") {
        let spec = object_in(new, "spec");
        set_default(spec, "autoAssign", true);
        set_default(spec, "avoidBuggyIPs", false);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    if spec.is_null() {
        errors.push(FieldError::required(path, ""));
        return errors;
    }
    let (addresses, at) = (spec.list("addresses"), path.child("addresses"));
    if addresses.is_empty() {
        errors.push(FieldError::required(at.clone(), "pool has no prefixes defined"));
    }
    let mut known: Vec<(&str, AddressRange)> = Vec::new();
    for (index, item) in addresses.iter().enumerate() {
        let text = item.as_str().unwrap_or_default();
        match text.parse::<AddressRange>() {
            Err(error) => errors.push(FieldError::invalid(at.index(index), text, error.to_string())),
            Ok(range) => {
                if let Some((other, _)) = known.iter().find(|(_, other)| other.overlaps(range)) {
                    let detail = format!("overlaps with already defined \"{other}\"");
                    errors.push(FieldError::invalid(at.index(index), text, detail));
                }
                known.push((text, range));
            }
        }
    }
    let (allocation, at) = (&spec["serviceAllocation"], path.child("serviceAllocation"));
    for list in ["namespaceSelectors", "serviceSelectors"] {
        errors.extend(selectors(allocation, list, &at));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(addresses: &[&str]) -> Vec<String> {
        let new = json!({"metadata": {"name": "a", "namespace": "metallb-system"}, "spec": {"addresses": addresses}});
        validate(&new, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_wrong_address_is_named() {
        assert!(words(&["172.30.0.240-172.30.0.250", "10.0.0.0/24"]).is_empty());
        assert_eq!(
            words(&["nonsense", "10.0.0.9-10.0.0.1", "10.1.0.0/16", "10.1.2.0/24"]),
            [
                "spec.addresses[0]: Invalid value: \"nonsense\": invalid CIDR \"nonsense\"",
                "spec.addresses[1]: Invalid value: \"10.0.0.9-10.0.0.1\": invalid IP range \"10.0.0.9-10.0.0.1\": \
                 start IP \"10.0.0.9\" is after the end IP \"10.0.0.1\"",
                "spec.addresses[3]: Invalid value: \"10.1.2.0/24\": overlaps with already defined \"10.1.0.0/16\"",
            ]
        );
        assert_eq!(
            words(&[]),
            ["spec.addresses: Required value: pool has no prefixes defined"]
        );
    }

    #[test]
    fn pools_are_filled_in() {
        let mut new = json!({"spec": {"addresses": ["10.0.0.0/24"]}});
        default(&mut new, None);
        assert_eq!(
            new["spec"],
            json!({"addresses": ["10.0.0.0/24"], "autoAssign": true, "avoidBuggyIPs": false})
        );
    }
}
