//! Namespace: a label with its own name, and the finalizer that has its contents deleted first.

use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, object_in, set_default};

/// Label that lets selectors name a namespace.
const LABEL_NAME: &str = "kubernetes.io/metadata.name";

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    status: true,
    volatile: false,
    selectable_fields: &["status.phase"],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Label1123,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column("Status", "The status of the namespace", |namespace, _| {
        namespace["status"]["phase"].clone()
    }),
    AGE,
];

fn default(new: &mut Value, old: Option<&Value>) {
    let name = new["metadata"].text("name").to_string();
    if !name.is_empty() {
        object_in(&mut new["metadata"], "labels").insert(LABEL_NAME.to_string(), json!(name));
    }
    let spec = object_in(new, "spec");
    if old.is_none() {
        spec.insert("finalizers".to_string(), json!(["kubernetes"]));
    }
    set_default(object_in(new, "status"), "phase", "Active");
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let path = FieldPath::new("spec").child("finalizers");
    for (index, finalizer) in new["spec"].list("finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        // The one without a prefix is the standard one; others must be qualified.
        if finalizer != "kubernetes" {
            errors.extend(each(
                &path.index(index),
                finalizer,
                names::qualified_name(finalizer),
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_knows_its_name_and_is_active() {
        let mut new = json!({"metadata": {"name": "team-a"}});
        default(&mut new, None);
        assert_eq!(
            new,
            json!({
                "metadata": {"name": "team-a", "labels": {"kubernetes.io/metadata.name": "team-a"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            })
        );
        assert_eq!(validate(&new, None), []);
        let mut dying = new.clone();
        dying["spec"] = json!({});
        dying["status"]["phase"] = json!("Terminating");
        default(&mut dying, Some(&new));
        assert_eq!(
            (&dying["spec"], &dying["status"]["phase"]),
            (&json!({}), &json!("Terminating"))
        );
    }
}
