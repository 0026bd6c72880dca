//! Event.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

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
    columns: &[],
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
