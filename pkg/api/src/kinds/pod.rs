//! Pod.

use serde_json::Value;

use crate::field::FieldError;
use crate::kind::{Kind, NameRule};

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    status: true,
    volatile: false,
    selectable_fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
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
