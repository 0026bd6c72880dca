//! L2Advertisement.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

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
    columns: &[],
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
