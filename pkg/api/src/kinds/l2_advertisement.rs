//! L2Advertisement (MetalLB): which pools are answered for on the local network.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::Deserialize;
use serde_json::Value;

use crate::columns::{NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::rules::Fields;
use crate::selector::LabelSelector;

pub(crate) const KIND: Kind = Kind {
    group: "metallb.io",
    version: "v1beta1",
    kind: "L2Advertisement",
    plural: "l2advertisements",
    singular: "l2advertisement",
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
const COLUMNS: [Column; 5] = [
    NAME,
    column(
        "IPAddressPools",
        "The pools that are announced, by name.",
        |it, _| as_json(&it["spec"]["ipAddressPools"]),
    ),
    column(
        "IPAddressPool Selectors",
        "The pools that are announced, by label.",
        |it, _| as_json(&it["spec"]["ipAddressPoolSelectors"]),
    ),
    column("Interfaces", "The links that are announced on.", |it, _| {
        as_json(&it["spec"]["interfaces"])
    }),
    Column {
        priority: 10,
        ..column("Node Selectors", "The nodes that may announce.", |it, _| {
            as_json(&it["spec"]["nodeSelectors"])
        })
    },
];

/// A cell with a list in it; empty where there is none.
pub(super) fn as_json(value: &Value) -> Value {
    if value.is_null() {
        Value::Null
    } else {
        value.to_string().into()
    }
}

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    for list in ["ipAddressPoolSelectors", "nodeSelectors"] {
        errors.extend(selectors(spec, list, &path));
    }
    for list in ["ipAddressPools", "interfaces"] {
        let items = spec.list(list);
        for (index, item) in items.iter().enumerate() {
            if items.iter().take(index).any(|i| i == item) {
                errors.push(FieldError::duplicate(path.child(list).index(index), item.clone()));
            }
        }
    }
    errors
}

/// A list of `metav1.LabelSelector`s.
pub(super) fn selectors(object: &Value, list: &str, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, selector) in object.list(list).iter().enumerate() {
        // What the schema has let through is a selector in form; what it says may still be wrong.
        let Ok(typed) = meta::LabelSelector::deserialize(selector) else {
            continue;
        };
        if let Err(error) = LabelSelector::try_from(&typed) {
            let path = path.child(list).index(index);
            errors.push(FieldError::invalid(path, selector.clone(), error.to_string()));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_and_repeated_names_are_checked() {
        let new = json!({"metadata": {"name": "a", "namespace": "metallb-system"}, "spec": {
            "ipAddressPools": ["a", "a"],
            "nodeSelectors": [{"matchLabels": {"a": "b"}}, {"matchExpressions": [{"key": "a", "operator": "Is"}]}],
        }});
        let words: Vec<String> = validate(&new, None).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "spec.nodeSelectors[1]: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Is\"}]}: \
                 \"Is\" is not a valid label selector operator",
                "spec.ipAddressPools[1]: Duplicate value: \"a\"",
            ]
        );
    }
}
