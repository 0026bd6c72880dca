//! Event: what happened to an object.

use serde_json::Value;

use crate::columns;
use crate::field::{FieldError, FieldPath};
use crate::kind::{Kind, NameRule};
use crate::metadata;
use crate::rules::Fields;

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    columns: &columns::EVENT,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (own, involved) = (
        new["metadata"].text("namespace"),
        new["involvedObject"].text("namespace"),
    );
    // Events about objects without a namespace live in `default`.
    let agree = own == involved || (involved.is_empty() && own == "default");
    if !agree {
        let path = FieldPath::new("involvedObject").child("namespace");
        errors.push(FieldError::invalid(
            path,
            involved,
            "does not match event.namespace",
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_lives_beside_its_object() {
        let event = |own: &str, involved: Value| json!({"metadata": {"name": "a.1", "namespace": own}, "involvedObject": {"namespace": involved}});
        assert!(validate(&event("a", json!("a")), None).is_empty());
        assert!(validate(&event("default", Value::Null), None).is_empty());
        assert_eq!(
            validate(&event("a", json!("b")), None)[0].to_string(),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"
        );
    }
}
