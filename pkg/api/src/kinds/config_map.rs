//! ConfigMap.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &[],
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
