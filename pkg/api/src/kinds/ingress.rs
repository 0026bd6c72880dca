//! Ingress: routes for HTTP into the cluster. Words and order are those of kube-apiserver
//! (pkg/apis/networking/validation, pkg/printers/internalversion).

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, port_number, typed_reference};

/// The older way to say the class.
const ANNOTATION_CLASS: &str = "kubernetes.io/ingress.class";
/// How many hosts the printer shows.
const HOSTS_SHOWN: usize = 3;

pub(crate) const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    categories: &[],
    namespaced: true,
    status: true,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 6] = [
    NAME,
    column(
        "Class",
        "The name of the IngressClass resource that should be used for additional configuration",
        |ingress, _| match &ingress["spec"]["ingressClassName"] {
            Value::String(class) => json!(class),
            _ => json!("<none>"),
        },
    ),
    column(
        "Hosts",
        "Hosts that incoming requests are matched against before the ingress rule",
        |ingress, _| json!(hosts(ingress["spec"].list("rules"))),
    ),
    column(
        "Address",
        "Address is a list containing ingress points for the load-balancer",
        |ingress, _| json!(addresses(&ingress["status"]["loadBalancer"])),
    ),
    column("Ports", "Ports of TLS configurations that open", |ingress, _| {
        json!(if ingress["spec"].list("tls").is_empty() {
            "80"
        } else {
            "80, 443"
        })
    }),
    AGE,
];

/// `formatHosts`
fn hosts(rules: &[Value]) -> String {
    let all: Vec<&str> = rules
        .iter()
        .map(|r| r.text("host"))
        .filter(|h| !h.is_empty())
        .collect();
    let shown = all.get(..HOSTS_SHOWN).unwrap_or(&all);
    // The real one counts rules, not hosts, once three hosts have been found.
    let third = rules
        .iter()
        .enumerate()
        .filter(|(_, r)| !r.text("host").is_empty())
        .nth(HOSTS_SHOWN - 1);
    match (shown, third) {
        ([], _) => "*".to_string(),
        (shown, Some((at, _))) if at + 1 < rules.len() => {
            format!("{} + {} more...", shown.join(","), rules.len() - HOSTS_SHOWN)
        }
        (shown, _) => shown.join(","),
    }
}

/// `ingressLoadBalancerStatusStringer`
fn addresses(load_balancer: &Value) -> String {
    let of = |ingress: &Value| match ingress.text("ip") {
        "" => ingress.text("hostname").to_string(),
        ip => ip.to_string(),
    };
    let all: BTreeSet<String> = load_balancer.list("ingress").iter().map(of).collect();
    all.into_iter()
        .filter(|a| !a.is_empty())
        .collect::<Vec<_>>()
        .join(",")
}

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    let kept = Kept::of(old);
    let (rules, backend) = (spec.list("rules"), &spec["defaultBackend"]);
    if rules.is_empty() && backend.is_null() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        let value = if spec.has("rules") {
            "[]networking.IngressRule{}"
        } else {
            "[]networking.IngressRule(nil)"
        };
        errors.push(FieldError::invalid_struct(path.clone(), value, detail));
    }
    if !backend.is_null() {
        errors.extend(validate_backend(&path.child("defaultBackend"), backend));
    }
    for (index, rule) in rules.iter().enumerate() {
        errors.extend(validate_rule(&path.child("rules").index(index), rule, &kept));
    }
    for (index, tls) in spec.list("tls").iter().enumerate() {
        errors.extend(validate_tls(&path.child("tls").index(index), tls, &kept));
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        errors.extend(each(
            &path.child("ingressClassName"),
            class,
            names::dns_subdomain(class),
        ));
        let annotation = new["metadata"]["annotations"][ANNOTATION_CLASS].as_str();
        if let (None, Some(annotation)) = (old, annotation.filter(|a| *a != class)) {
            let path = FieldPath::new("annotations").child(ANNOTATION_CLASS);
            let detail = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(path, annotation, detail));
        }
    }
    errors.extend(validate_status(&new["status"]["loadBalancer"]));
    errors
}

/// What was wrong before and may therefore stay so.
#[derive(Default)]
struct Kept {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Kept {
    fn of(old: Option<&Value>) -> Self {
        let Some(old) = old else { return Self::default() };
        let (path, spec) = (FieldPath::default(), &old["spec"]);
        let wrong_secret = |tls: &Value| {
            let name = tls.text("secretName");
            !name.is_empty() && !names::dns_subdomain(name).is_empty()
        };
        let wrong_rule =
            |rule: &Value| rule.text("host").contains('*') && !validate_http(&path, rule).is_empty();
        Self {
            secret_names: spec.list("tls").iter().any(wrong_secret),
            wildcard_rules: spec.list("rules").iter().any(wrong_rule),
        }
    }
}

/// `validateIngressTLS`
fn validate_tls(path: &FieldPath, tls: &Value, kept: &Kept) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, host) in tls.list("hosts").iter().enumerate() {
        let (host, path) = (
            host.as_str().unwrap_or_default(),
            path.child("hosts").index(index),
        );
        errors.extend(each(&path, host, host_name(host)));
    }
    let secret = tls.text("secretName");
    if !secret.is_empty() && !kept.secret_names {
        errors.extend(each(
            &path.child("secretName"),
            secret,
            names::dns_subdomain(secret),
        ));
    }
    errors
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') {
        names::wildcard_subdomain(host)
    } else {
        names::dns_subdomain(host)
    }
}

/// `validateIngressRules`
fn validate_rule(path: &FieldPath, rule: &Value, kept: &Kept) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (host, at) = (rule.text("host"), path.child("host"));
    if !host.is_empty() {
        errors.extend(no_address(&at, host));
        errors.extend(each(&at, host, host_name(host)));
    }
    if !(host.contains('*') && kept.wildcard_rules) {
        errors.extend(validate_http(path, rule));
    }
    errors
}

fn no_address(path: &FieldPath, host: &str) -> Option<FieldError> {
    let detail = "must be a DNS name, not an IP address";
    let address = host.parse::<IpAddr>();
    address
        .is_ok()
        .then(|| FieldError::invalid(path.clone(), host, detail))
}

/// `validateHTTPIngressRuleValue`
fn validate_http(path: &FieldPath, rule: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !rule.has("http") {
        return errors;
    }
    let (paths, at) = (rule["http"].list("paths"), path.child("http").child("paths"));
    if paths.is_empty() {
        errors.push(FieldError::required(at.clone(), ""));
    }
    for (index, path) in paths.iter().enumerate() {
        errors.extend(validate_path(&at.index(index), path));
    }
    errors
}

/// `validateHTTPIngressPath`
fn validate_path(at: &FieldPath, path: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (text, text_at) = (path.text("path"), at.child("path"));
    let wrong = |detail: String| FieldError::invalid(text_at.clone(), text, detail);
    let relative = || (!text.starts_with('/')).then(|| wrong("must be an absolute path".to_string()));
    match path["pathType"].as_str() {
        None => {
            let path = at.child("pathType");
            return vec![FieldError::required(path, "pathType must be specified")];
        }
        Some("Exact" | "Prefix") => {
            errors.extend(relative());
            let within = ["//", "/./", "/../", "%2f", "%2F"].into_iter();
            errors.extend(
                within
                    .filter(|w| text.contains(w))
                    .map(|w| wrong(format!("must not contain '{w}'"))),
            );
            let at_end = ["/..", "/."].into_iter();
            errors.extend(
                at_end
                    .filter(|e| text.ends_with(e))
                    .map(|e| wrong(format!("cannot end with '{e}'"))),
            );
        }
        Some("ImplementationSpecific") => errors.extend(relative().filter(|_| !text.is_empty())),
        Some(other) => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(FieldError::not_supported(at.child("pathType"), other, &known));
        }
    }
    errors.extend(validate_backend(&at.child("backend"), &path["backend"]));
    errors
}

/// `validateIngressBackend`
fn validate_backend(path: &FieldPath, backend: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (service, at) = (&backend["service"], path.child("service"));
    match (backend.has("resource"), backend.has("service")) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            return vec![FieldError::invalid(path.clone(), "", detail)];
        }
        (true, false) => return typed_reference(&path.child("resource"), &backend["resource"]),
        (false, false) => {
            let detail = "resource or service backend is required";
            return vec![FieldError::invalid(path.clone(), "", detail)];
        }
        (false, true) => {}
    }
    let name = service.text("name");
    if name.is_empty() {
        errors.push(FieldError::required(at.child("name"), ""));
    } else {
        errors.extend(each(&at.child("name"), name, names::dns_label_1035(name)));
    }
    let (port, at) = (&service["port"], at.child("port"));
    match (port.text("name"), port.number("number")) {
        ("", 0) => errors.push(FieldError::required(
            path.clone(),
            "port name or number is required",
        )),
        ("", number) => errors.extend(port_number(&at.child("number"), number)),
        (name, 0) => errors.extend(each(&at.child("name"), name, names::port_name(name))),
        _ => {
            let detail = "cannot set both port name & port number";
            errors.push(FieldError::invalid(path.clone(), "", detail));
        }
    }
    errors
}

/// `ValidateIngressLoadBalancerStatus`
fn validate_status(load_balancer: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = FieldPath::new("status").child("loadBalancer").child("ingress");
    for (index, ingress) in load_balancer.list("ingress").iter().enumerate() {
        let (ip, hostname) = (ingress.text("ip"), ingress.text("hostname"));
        if !ip.is_empty() {
            let path = path.index(index).child("ip");
            errors.extend(each(&path, ip, names::ip_address(ip)));
        }
        if !hostname.is_empty() {
            let path = path.index(index).child("hostname");
            errors.extend(each(&path, hostname, names::dns_subdomain(hostname)));
            errors.extend(no_address(&path, hostname));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(spec: &Value) -> Vec<String> {
        let new = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        validate(&new, None).iter().map(ToString::to_string).collect()
    }

    fn backend() -> Value {
        json!({"service": {"name": "web", "port": {"number": 80}}})
    }

    #[test]
    fn what_is_right_passes() {
        let path = |type_: &str, path: &str| json!({"pathType": type_, "path": path, "backend": backend()});
        let spec = json!({
            "ingressClassName": "nginx", "defaultBackend": backend(),
            "tls": [{"hosts": ["a.example.com", "*.example.com"], "secretName": "cert"}],
            "rules": [
                {"host": "*.example.com", "http": {"paths": [path("Prefix", "/"), path("Exact", "/a/b")]}},
                {"http": {"paths": [{"pathType": "ImplementationSpecific", "backend": {
                    "service": {"name": "web", "port": {"name": "http"}}}}]}},
                {"host": "b.example.com"},
                {"http": {"paths": [{"pathType": "Exact", "path": "/", "backend": {
                    "resource": {"apiGroup": "example.com", "kind": "Bucket", "name": "static"}}}]}},
            ],
        });
        assert_eq!(words(&spec), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_real_words() {
        let path = |path: Value| json!({"rules": [{"http": {"paths": [path]}}]});
        let with = |backend: Value| json!({"defaultBackend": backend});
        for (spec, wanted) in [
            (
                json!({}),
                "spec: Invalid value: []networking.IngressRule(nil): either `defaultBackend` or `rules` must be specified",
            ),
            (
                path(json!({"path": "/", "backend": backend()})),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                path(json!({"path": "a", "pathType": "Prefix", "backend": backend()})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
            ),
            (
                path(json!({"path": "/a//b", "pathType": "Exact", "backend": backend()})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b\": must not contain '//'",
            ),
            (
                path(json!({"path": "/a/..", "pathType": "Exact", "backend": backend()})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a/..\": cannot end with '/..'",
            ),
            (
                path(json!({"path": "/", "pathType": "Regex", "backend": backend()})),
                "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Regex\": supported values: \"Exact\", \
                 \"ImplementationSpecific\", \"Prefix\"",
            ),
            (
                json!({"rules": [{"host": "a.b", "http": {}}]}),
                "spec.rules[0].http.paths: Required value",
            ),
            (
                json!({"rules": [{"host": "*.*.b"}]}),
                "spec.rules[0].host: Invalid value: \"*.*.b\": a wildcard DNS-1123 subdomain must start with '*.', followed \
                 by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with \
                 an alphanumeric character (e.g. '*.example.com', regex used for validation is \
                 '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ),
            (
                json!({"rules": [{"host": "10.0.0.1"}]}),
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
            (
                with(json!({})),
                "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
            ),
            (
                with(json!({"service": {"name": "web"}})),
                "spec.defaultBackend: Required value: port name or number is required",
            ),
            (
                with(json!({"service": {"port": {"number": 80}}})),
                "spec.defaultBackend.service.name: Required value",
            ),
            (
                with(json!({"service": {"name": "web", "port": {"number": 80, "name": "http"}}})),
                "spec.defaultBackend: Invalid value: \"\": cannot set both port name & port number",
            ),
            (
                with(json!({"service": {"name": "web", "port": {"number": 70000}}})),
                "spec.defaultBackend.service.port.number: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                with(json!({"resource": {"kind": "a/b", "name": "c"}})),
                "spec.defaultBackend.resource.kind: Invalid value: \"a/b\": may not contain '/'",
            ),
        ] {
            assert_eq!(words(&spec), [wanted]);
        }
    }

    #[test]
    fn an_annotation_must_not_contradict_the_class() {
        let mut new = json!({
            "metadata": {"name": "web", "namespace": "default", "annotations": {ANNOTATION_CLASS: "a"}},
            "spec": {"ingressClassName": "b", "defaultBackend": backend()},
        });
        let errors = validate(&new, None);
        assert_eq!(
            errors[0].to_string(),
            "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are \
             specified"
        );
        assert_eq!(validate(&new, Some(&new)), []);
        new["metadata"]["annotations"][ANNOTATION_CLASS] = json!("b");
        assert_eq!(validate(&new, None), []);
    }

    #[test]
    fn cells_are_those_of_the_real_printer() {
        let rules = |names: &[&str]| names.iter().map(|n| json!({"host": n})).collect::<Vec<_>>();
        assert_eq!(hosts(&[]), "*");
        assert_eq!(hosts(&rules(&["", ""])), "*");
        assert_eq!(hosts(&rules(&["a", "b", "c"])), "a,b,c");
        assert_eq!(hosts(&rules(&["a", "b", "c", "d", "e"])), "a,b,c + 2 more...");
        let status =
            json!({"ingress": [{"ip": "10.0.0.2"}, {"hostname": "lb.example.com"}, {"ip": "10.0.0.1"}]});
        assert_eq!(addresses(&status), "10.0.0.1,10.0.0.2,lb.example.com");
    }
}
