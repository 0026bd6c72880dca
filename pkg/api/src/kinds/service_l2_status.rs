//! ServiceL2Status (MetalLB): which node answers for the addresses of a Service on the local network.

use serde_json::Value;

use crate::columns::{NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::rules::Fields;

pub(crate) const KIND: Kind = Kind {
    group: "metallb.io",
    version: "v1beta1",
    kind: "ServiceL2Status",
    plural: "servicel2statuses",
    singular: "servicel2status",
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

// Those of the CustomResourceDefinition.
const COLUMNS: [Column; 4] = [
    NAME,
    column("Allocated Node", "The node that announces.", |it, _| {
        it["status"]["node"].clone()
    }),
    column("Service Name", "The Service that is announced.", |it, _| {
        it["status"]["serviceName"].clone()
    }),
    column("Service Namespace", "Its namespace.", |it, _| {
        it["status"]["serviceNamespace"].clone()
    }),
];

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let Some(old) = old else { return errors };
    // The rules `self == oldSelf` of the CustomResourceDefinition hold from the moment that there is a value.
    for field in ["node", "serviceName", "serviceNamespace"] {
        let (is, was) = (&new["status"], &old["status"]);
        if was.has(field) && is.has(field) && is[field] != was[field] {
            let path = FieldPath::new("status").child(field);
            errors.push(FieldError::invalid(path, is[field].clone(), "Value is immutable"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whom_it_is_about_never_changes() {
        let status = |node: &str| {
            json!({
                "metadata": {"name": "l2-abcde", "namespace": "metallb-system"},
                "status": {"node": node, "serviceName": "web", "serviceNamespace": "default"},
            })
        };
        assert_eq!(validate(&status("n1"), None), []);
        assert_eq!(validate(&status("n1"), Some(&status("n1"))), []);
        let empty = json!({"metadata": {"name": "l2-abcde", "namespace": "metallb-system"}});
        assert_eq!(validate(&status("n1"), Some(&empty)), []);
        assert_eq!(
            validate(&status("n2"), Some(&status("n1")))[0].to_string(),
            "status.node: Invalid value: \"n2\": Value is immutable"
        );
    }
}
