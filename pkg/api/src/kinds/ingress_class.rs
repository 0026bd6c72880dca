//! IngressClass: who carries out Ingresses. Words and order are those of kube-apiserver (pkg/apis/networking/validation,
//! pkg/apis/networking/v1/defaults.go).

use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, immutable, set_default, typed_reference};

/// `maxLenIngressClassController`, in bytes.
const CONTROLLER_MAX: usize = 250;

pub(crate) const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 4] = [
    NAME,
    column(
        "Controller",
        "Controller that is responsible for handling this class",
        |class, _| json!(class["spec"].text("controller")),
    ),
    column(
        "Parameters",
        "A reference to a resource with additional parameters",
        |class, _| json!(parameters(&class["spec"]["parameters"])),
    ),
    AGE,
];

fn parameters(parameters: &Value) -> String {
    if !parameters.is_object() {
        return "<none>".to_string();
    }
    let (kind, name) = (parameters.text("kind"), parameters.text("name"));
    match parameters["apiGroup"].as_str() {
        Some(group) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

fn default(new: &mut Value, _old: Option<&Value>) {
    let parameters = new.pointer_mut("/spec/parameters").and_then(Value::as_object_mut);
    if let Some(parameters) = parameters {
        set_default(parameters, "scope", "Cluster");
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    let (controller, at) = (spec.text("controller"), path.child("controller"));
    if let Some(old) = old {
        errors.extend(immutable(
            at.clone(),
            &spec["controller"],
            &old["spec"]["controller"],
        ));
    }
    if controller.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        if controller.len() > CONTROLLER_MAX {
            errors.push(FieldError::too_long(at.clone(), CONTROLLER_MAX));
        }
        errors.extend(domain_prefixed_path(&at, controller));
    }
    if spec.has("parameters") {
        errors.extend(validate_parameters(
            &path.child("parameters"),
            &spec["parameters"],
        ));
    }
    errors
}

/// `IsDomainPrefixedPath`
fn domain_prefixed_path(path: &FieldPath, value: &str) -> Vec<FieldError> {
    let (host, rest) = match value.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => (host, rest),
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return vec![FieldError::invalid(path.clone(), value, detail)];
        }
    };
    let mut errors: Vec<FieldError> = each(path, host, names::dns_subdomain(host)).collect();
    errors.extend(each(path, rest, names::http_path(rest)));
    errors
}

/// `validateIngressClassParametersReference`
fn validate_parameters(path: &FieldPath, parameters: &Value) -> Vec<FieldError> {
    let mut errors = typed_reference(path, parameters);
    let (namespace, at) = (parameters["namespace"].as_str(), path.child("namespace"));
    match parameters["scope"].as_str() {
        None => errors.push(FieldError::required(path.child("scope"), "")),
        Some("Namespace") => match namespace {
            None => errors.push(FieldError::required(
                at,
                "`parameters.scope` is set to 'Namespace'",
            )),
            Some(namespace) => errors.extend(each(&at, namespace, names::dns_label(namespace))),
        },
        Some("Cluster") if namespace.is_some() => {
            errors.push(FieldError::forbidden(
                at,
                "`parameters.scope` is set to 'Cluster'",
            ));
        }
        Some("Cluster") => {}
        Some(other) => {
            let known = ["Cluster", "Namespace"];
            errors.push(FieldError::not_supported(path.child("scope"), other, &known));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(spec: Value) -> Value {
        let mut new = json!({"metadata": {"name": "nginx"}, "spec": spec});
        default(&mut new, None);
        new
    }

    fn words(spec: Value) -> Vec<String> {
        validate(&class(spec), None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn parameters_are_of_the_cluster_unless_they_say_otherwise() {
        let new = class(json!({"controller": "example.com/a", "parameters": {"kind": "K", "name": "n"}}));
        assert_eq!(new["spec"]["parameters"]["scope"], "Cluster");
        assert_eq!(validate(&new, None), []);
        assert_eq!(
            class(json!({"controller": "example.com/a"}))["spec"]["parameters"],
            Value::Null
        );
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_real_words() {
        let with = |parameters: Value| json!({"controller": "example.com/a", "parameters": parameters});
        for (spec, wanted) in [
            (json!({}), "spec.controller: Required value"),
            (
                json!({"controller": "nginx"}),
                "spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                json!({"controller": "a.b/c?d"}),
                "spec.controller: Invalid value: \"c?d\": Invalid path (regex used for validation is \
                 '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
            ),
            (
                with(json!({"kind": "K", "name": "n", "scope": "Namespace"})),
                "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
            ),
            (
                with(json!({"kind": "K", "name": "n", "namespace": "a"})),
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ),
            (
                with(json!({"kind": "K", "name": "n", "scope": "Moon"})),
                "spec.parameters.scope: Unsupported value: \"Moon\": supported values: \"Cluster\", \"Namespace\"",
            ),
            (with(json!({"name": "n"})), "spec.parameters.kind: Required value"),
            (
                json!({"controller": format!("a.b/{}", "c".repeat(250))}),
                "spec.controller: Too long: may not be more than 250 bytes",
            ),
        ] {
            assert_eq!(words(spec), [wanted]);
        }
        let (old, new) = (
            class(json!({"controller": "a.b/c"})),
            class(json!({"controller": "a.b/d"})),
        );
        assert_eq!(
            validate(&new, Some(&old))[0].to_string(),
            "spec.controller: Invalid value: \"a.b/d\": field is immutable"
        );
    }

    #[test]
    fn cells_are_those_of_the_real_printer() {
        assert_eq!(parameters(&Value::Null), "<none>");
        let full = json!({"apiGroup": "k8s.example.com", "kind": "Params", "name": "external"});
        assert_eq!(parameters(&full), "Params.k8s.example.com/external");
        assert_eq!(
            parameters(&json!({"kind": "ConfigMap", "name": "a"})),
            "ConfigMap/a"
        );
    }
}
