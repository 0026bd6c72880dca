//! Lease: who holds what, and since when.

use serde_json::Value;

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;

pub(crate) const KIND: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: true,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column(
        "Holder",
        "holderIdentity contains the identity of the holder of a current lease.",
        |lease, _| lease["spec"]["holderIdentity"].clone(),
    ),
    AGE,
];

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    let mut at_least = |field: &str, least: i64, detail: &str| {
        if let Some(number) = spec[field].as_i64().filter(|n| *n < least) {
            errors.push(FieldError::invalid(path.child(field), number, detail));
        }
    };
    at_least("leaseDurationSeconds", 1, "must be greater than 0");
    at_least("leaseTransitions", 0, "must be greater than or equal to 0");
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_lasts() {
        let lease = |seconds: i64| {
            let metadata = json!({"name": "n1", "namespace": "kube-node-lease"});
            json!({"metadata": metadata, "spec": {"leaseDurationSeconds": seconds}})
        };
        assert!(validate(&lease(6), None).is_empty());
        assert_eq!(
            validate(&lease(0), None)[0].to_string(),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"
        );
    }
}
