//! IPAddressPool.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

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
    columns: &[],
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
