//! What is wrong with a Service (pkg/apis/core/validation, ValidateService). What concerns addresses and families is in
//! `families`; ranges and who has what already are the allocators' business.

use std::net::IpAddr;

use serde_json::Value;

use super::{KIND, externally_accessible, families, is_headless, needs_health_check};
use crate::field::{FieldError, FieldPath};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, endpoint_address, labels, port_number, protocol};

/// What the kubelet listens on: clouds that over-open firewalls must not lead there.
const KUBELET_PORT: i64 = 10_250;
const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

pub(super) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    if let Some(old) = old {
        let old = &old["spec"];
        errors.extend(families::validate_change(spec, old, &path));
        errors.extend(load_balancer_class_change(spec, old, &path));
        if needs_health_check(old)
            && needs_health_check(spec)
            && old.number("healthCheckNodePort") != spec.number("healthCheckNodePort")
        {
            errors.push(FieldError::forbidden(
                path.child("healthCheckNodePort"),
                "field is immutable",
            ));
        }
    }
    if spec.list("ports").is_empty() && !is_headless(spec) && spec.text("type") != "ExternalName" {
        errors.push(FieldError::required(path.child("ports"), ""));
    }
    errors.extend(type_rules(spec, &path));
    errors.extend(ports(spec, &path.child("ports")));
    errors.extend(labels(&path.child("selector"), spec, "selector"));
    errors.extend(session_affinity(spec, &path));
    errors.extend(families::validate(spec, &path));
    errors.extend(external_ips(spec, &path.child("externalIPs")));
    errors.extend(type_itself(spec, path.child("type")));
    errors.extend(duplicate_ports(spec, &path.child("ports")));
    errors.extend(source_ranges(new, &path));
    errors.extend(load_balancer_fields(spec, &path));
    errors.extend(traffic_policies(spec, &path));
    errors.extend(load_balancer_status(&new["status"]["loadBalancer"]));
    errors
}

fn type_rules(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let type_ = spec.text("type");
    if type_ == "LoadBalancer" {
        for (index, port) in spec.list("ports").iter().enumerate() {
            if port.number("port") == KUBELET_PORT {
                let detail =
                    format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                errors.push(FieldError::invalid(
                    path.child("ports").index(index),
                    KUBELET_PORT,
                    detail,
                ));
            }
        }
    }
    if matches!(type_, "LoadBalancer" | "NodePort") && is_headless(spec) {
        let detail = format!("may not be set to 'None' for {type_} services");
        errors.push(FieldError::invalid(
            path.child("clusterIPs").index(0),
            "None",
            detail,
        ));
    }
    if type_ == "ExternalName" {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.has(field) && spec[field] != Value::Array(Vec::new()) {
                errors.push(FieldError::forbidden(
                    path.child(field),
                    "may not be set for ExternalName services",
                ));
            }
        }
        // A trailing dot says that the name is complete.
        let (name, path) = (spec.text("externalName"), path.child("externalName"));
        match name.strip_suffix('.').unwrap_or(name) {
            "" => errors.push(FieldError::required(path, "")),
            name => errors.extend(each(&path, name, names::dns_subdomain(name))),
        }
    }
    errors
}

fn ports(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ports = spec.list("ports");
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(path.child("name"), ""));
        } else if !name.is_empty() {
            errors.extend(each(&path.child("name"), name, names::dns_label(name)));
            if ports.iter().take(index).any(|p| p.text("name") == name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        errors.extend(port_number(&path.child("port"), port.number("port")));
        errors.extend(protocol(path.child("protocol"), port.text("protocol")));
        match &port["targetPort"] {
            Value::String(name) => {
                errors.extend(each(&path.child("targetPort"), name, names::port_name(name)))
            }
            number => errors.extend(port_number(
                &path.child("targetPort"),
                number.as_i64().unwrap_or_default(),
            )),
        }
        if let Some(name) = port["appProtocol"].as_str() {
            errors.extend(each(
                &path.child("appProtocol"),
                name,
                names::qualified_name(name),
            ));
        }
    }
    errors
}

fn duplicate_ports(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ports = spec.list("ports");
    for (index, port) in ports.iter().enumerate() {
        let number = port.number("nodePort");
        if number != 0 && spec.text("type") == "ClusterIP" {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(path.index(index).child("nodePort"), detail));
        }
        let before = || {
            ports
                .iter()
                .take(index)
                .filter(|p| p.text("protocol") == port.text("protocol"))
        };
        if number != 0 && before().any(|p| p.number("nodePort") == number) {
            errors.push(FieldError::duplicate(path.index(index).child("nodePort"), number));
        }
        let (number, protocol) = (port.number("port"), port.text("protocol"));
        if before().any(|p| p.number("port") == number) {
            errors.push(FieldError {
                path: path.index(index),
                problem: crate::field::Problem::DuplicateStruct(format!(
                    "core.ServicePort{{Name:\"\", Protocol:\"{protocol}\", AppProtocol:(*string)(nil), Port:{number}, \
                     TargetPort:intstr.IntOrString{{Type:0, IntVal:0, StrVal:\"\"}}, NodePort:0}}"
                )),
                detail: String::new(),
            });
        }
    }
    errors
}

fn session_affinity(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let config_path = path.child("sessionAffinityConfig");
    let config = &spec["sessionAffinityConfig"];
    let error = match spec.text("sessionAffinity") {
        "" => FieldError::required(path.child("sessionAffinity"), ""),
        "None" if config.is_null() => return Vec::new(),
        "None" => FieldError::forbidden(config_path, "must not be set when session affinity is None"),
        "ClientIP" => {
            let seconds = &config["clientIP"]["timeoutSeconds"];
            let path = config_path.child("clientIP").child("timeoutSeconds");
            match seconds.as_i64() {
                // The message says less than 86400, which is what the real one says and does not mean.
                Some(1..=86_400) => return Vec::new(),
                Some(seconds) => {
                    FieldError::invalid(path, seconds, "must be greater than 0 and less than 86400")
                }
                None => FieldError::required(path, "when session affinity type is ClientIP"),
            }
        }
        other => FieldError::not_supported(path.child("sessionAffinity"), other, &["ClientIP", "None"]),
    };
    vec![error]
}

fn external_ips(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, address) in spec.list("externalIPs").iter().enumerate() {
        let (address, path) = (address.as_str().unwrap_or_default(), path.index(index));
        let malformed = names::ip_address(address);
        if malformed.is_empty() {
            errors.extend(endpoint_address(&path, address));
        }
        errors.extend(each(&path, address, malformed));
    }
    errors
}

fn type_itself(spec: &Value, path: FieldPath) -> Option<FieldError> {
    match spec.text("type") {
        "ClusterIP" | "ExternalName" | "LoadBalancer" | "NodePort" => None,
        "" => Some(FieldError::required(path, "")),
        other => {
            let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            Some(FieldError::not_supported(path, other, &known))
        }
    }
}

fn source_ranges(service: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &service["spec"];
    let load_balancer = spec.text("type") == "LoadBalancer";
    let ranges = spec.list("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // In capitals, as the real one writes this path.
        let path = path.child("LoadBalancerSourceRanges");
        if !load_balancer {
            errors.push(FieldError::forbidden(path.clone(), ONLY_LOAD_BALANCER));
        }
        for (index, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            errors.extend(each(&path.index(index), range, names::cidr(range)));
        }
    } else if let Some(annotation) = crate::meta::annotation(service, ANNOTATION_SOURCE_RANGES) {
        let path = FieldPath::new("metadata")
            .child("annotations")
            .key(ANNOTATION_SOURCE_RANGES);
        if !load_balancer {
            errors.push(FieldError::forbidden(path.clone(), ONLY_LOAD_BALANCER));
        }
        for range in annotation
            .split(',')
            .map(str::trim)
            .filter(|_| !annotation.trim().is_empty())
        {
            errors.extend(each(&path, range, names::cidr(range)));
        }
    }
    errors
}

fn load_balancer_fields(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let load_balancer = spec.text("type") == "LoadBalancer";
    let allocate = "allocateLoadBalancerNodePorts";
    match (load_balancer, spec.has(allocate)) {
        (false, true) => errors.push(FieldError::forbidden(path.child(allocate), ONLY_LOAD_BALANCER)),
        (true, false) => errors.push(FieldError::required(FieldPath::new(allocate), "")),
        _ => {}
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let path = path.child("loadBalancerClass");
        if load_balancer {
            errors.extend(each(&path, class, names::qualified_name(class)));
        } else {
            errors.push(FieldError::forbidden(path, ONLY_LOAD_BALANCER));
        }
    }
    errors
}

fn load_balancer_class_change(spec: &Value, old: &Value, path: &FieldPath) -> Option<FieldError> {
    let both = spec.text("type") == "LoadBalancer" && old.text("type") == "LoadBalancer";
    let (new, old) = (&spec["loadBalancerClass"], &old["loadBalancerClass"]);
    let error = || {
        FieldError::invalid(
            path.child("loadBalancerClass"),
            new.clone(),
            "may not change once set",
        )
    };
    (both && new != old).then(error)
}

fn traffic_policies(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policies = ["Cluster", "Local"];
    let (policy, at) = (
        spec.text("externalTrafficPolicy"),
        path.child("externalTrafficPolicy"),
    );
    match (externally_accessible(spec), policy) {
        (false, "") | (true, "Cluster" | "Local") => {}
        (false, given) => {
            errors.push(FieldError::invalid(
                at,
                given,
                "may only be set for externally-accessible services",
            ));
        }
        (true, "") => errors.push(FieldError::required(at, "")),
        (true, other) => errors.push(FieldError::not_supported(at, other, &policies)),
    }
    let (number, at) = (
        spec.number("healthCheckNodePort"),
        path.child("healthCheckNodePort"),
    );
    match (needs_health_check(spec), number) {
        (false, 0) => {}
        (false, given) => {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(at, given, detail));
        }
        (true, 0) => errors.push(FieldError::required(at, "")),
        (true, given) => errors.extend(port_number(&at, given)),
    }
    let at = path.child("internalTrafficPolicy");
    match (spec.text("internalTrafficPolicy"), spec.text("type")) {
        ("Cluster" | "Local", _) => {}
        ("", "ClusterIP" | "NodePort" | "LoadBalancer") => errors.push(FieldError::required(at, "")),
        ("", _) => {}
        (other, _) => errors.push(FieldError::not_supported(at, other, &policies)),
    }
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if let Some(given) = spec["trafficDistribution"]
        .as_str()
        .filter(|given| !known.contains(given))
    {
        errors.push(FieldError::not_supported(
            path.child("trafficDistribution"),
            given,
            &known,
        ));
    }
    errors
}

fn load_balancer_status(status: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = FieldPath::new("status").child("loadBalancer").child("ingress");
    for (index, ingress) in status.list("ingress").iter().enumerate() {
        let (ip, hostname) = (ingress.text("ip"), ingress.text("hostname"));
        if !ip.is_empty() {
            errors.extend(each(&path.index(index).child("ip"), ip, names::ip_address(ip)));
        }
        if !hostname.is_empty() {
            let path = path.index(index).child("hostname");
            errors.extend(each(&path, hostname, names::dns_subdomain(hostname)));
            if hostname.parse::<IpAddr>().is_ok() {
                errors.push(FieldError::invalid(
                    path,
                    hostname,
                    "must be a DNS name, not an IP address",
                ));
            }
        }
    }
    errors
}
