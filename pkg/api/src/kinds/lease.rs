//! Lease.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

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
    columns: &[],
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
