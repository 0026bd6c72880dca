//! IPAddress: an address of a ServiceCIDR that somebody has (KEP-1880). Words are those of kube-apiserver
//! (pkg/apis/networking/validation, pkg/printers/internalversion).

use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, immutable, path_segment};

pub(crate) const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    categories: &[],
    namespaced: false,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Address,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column(
        "ParentRef",
        "ParentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.",
        |address, _| json!(parent(&address["spec"]["parentRef"])),
    ),
    AGE,
];

fn parent(parent: &Value) -> String {
    if !parent.is_object() {
        return "<none>".to_string();
    }
    let resource = match (parent.text("resource"), parent.text("group")) {
        (resource, "") => resource.to_string(),
        (resource, group) => format!("{resource}.{group}"),
    };
    let parts = [
        &resource.to_lowercase(),
        parent.text("namespace"),
        parent.text("name"),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    parts.join("/")
}

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, parent) = (
        FieldPath::new("spec").child("parentRef"),
        &new["spec"]["parentRef"],
    );
    if let Some(old) = old {
        errors.extend(immutable(path, parent, &old["spec"]["parentRef"]));
        return errors;
    }
    if !parent.is_object() {
        errors.push(FieldError::required(path, ""));
        return errors;
    }
    let group = parent.text("group");
    if !group.is_empty() {
        errors.extend(each(&path.child("group"), group, names::dns_subdomain(group)));
    }
    for field in ["resource", "name"] {
        errors.extend(path_segment(path.child(field), parent.text(field)));
    }
    let namespace = parent.text("namespace");
    if !namespace.is_empty() {
        errors.extend(path_segment(path.child("namespace"), namespace));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str, parent: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"parentRef": parent}})
    }

    fn words(new: &Value) -> Vec<String> {
        validate(new, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_has_a_parent_and_a_canonical_name() {
        let parent = json!({"resource": "services", "namespace": "default", "name": "web"});
        for name in ["10.96.0.7", "fd00::7"] {
            assert_eq!(words(&address(name, parent.clone())), [""; 0]);
        }
        assert_eq!(
            words(&address("web", parent.clone())),
            [
                "metadata.name: Invalid value: \"web\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            ]
        );
        assert_eq!(
            words(&address("fd00:0::7", parent.clone())),
            ["metadata.name: Invalid value: \"fd00:0::7\": must be in canonical form (\"fd00::7\")"]
        );
        assert_eq!(
            words(&address("10.96.0.7", Value::Null)),
            ["spec.parentRef: Required value"]
        );
        assert_eq!(
            words(&address("10.96.0.7", json!({}))),
            [
                "spec.parentRef.resource: Required value",
                "spec.parentRef.name: Required value",
            ]
        );
        let old = address("10.96.0.7", parent);
        let new = address("10.96.0.7", json!({"resource": "services", "name": "other"}));
        assert_eq!(
            validate(&new, Some(&old))[0].to_string(),
            "spec.parentRef: Invalid value: {\"name\":\"other\",\"resource\":\"services\"}: field is immutable"
        );
    }

    #[test]
    fn parents_print_as_the_real_ones() {
        assert_eq!(parent(&Value::Null), "<none>");
        let service = json!({"group": "", "resource": "services", "namespace": "default", "name": "web"});
        assert_eq!(parent(&service), "services/default/web");
        let gateway = json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "edge"});
        assert_eq!(parent(&gateway), "gateways.gateway.networking.k8s.io/edge");
    }
}
