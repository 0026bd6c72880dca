//! EndpointSlice: a part of what is behind a Service, of one address family.

use std::collections::HashSet;

use serde_json::Value;

use crate::columns;
use crate::field::{FieldError, FieldPath};
use crate::kind::{Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, endpoint_address, immutable, port_number, protocol};
use crate::types::legacy;

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;

pub(crate) const KIND: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &columns::ENDPOINT_SLICE,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(new: &mut Value, _old: Option<&Value>) {
    let ports = new
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten();
    for port in ports.filter_map(Value::as_object_mut) {
        // Here the empty name is a name, and is written out.
        port.entry("name").or_insert_with(|| "".into());
        port.entry("protocol").or_insert_with(|| "TCP".into());
    }
    if let Value::Object(fields) = new {
        // Typed clients take these lists for required.
        for list in ["endpoints", "ports"] {
            fields.entry(list).or_insert(Value::Array(Vec::new()));
        }
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let type_ = new.text("addressType");
    let path = FieldPath::new("addressType");
    let known = ["FQDN", "IPv4", "IPv6"];
    if type_.is_empty() {
        errors.push(FieldError::required(path.clone(), ""));
    } else if !known.contains(&type_) {
        errors.push(FieldError::not_supported(path.clone(), type_, &known));
    }
    if let Some(old) = old {
        errors.extend(immutable(path, &new["addressType"], &old["addressType"]));
    }
    let (endpoints, path) = (new.list("endpoints"), FieldPath::new("endpoints"));
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(path, endpoints.len(), ENDPOINTS_MAX));
    } else {
        let each = endpoints.iter().enumerate();
        errors.extend(each.flat_map(|(at, endpoint)| validate_endpoint(endpoint, type_, &path.index(at))));
    }
    errors.extend(validate_ports(new.list("ports"), &FieldPath::new("ports")));
    errors
}

fn validate_endpoint(endpoint: &Value, type_: &str, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (addresses, at) = (endpoint.list("addresses"), path.child("addresses"));
    if addresses.is_empty() {
        errors.push(FieldError::required(
            at.clone(),
            "must contain at least 1 address",
        ));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(at.clone(), addresses.len(), ADDRESSES_MAX));
    }
    for (index, address) in addresses.iter().enumerate() {
        let (address, at) = (address.as_str().unwrap_or_default(), at.index(index));
        let family = match type_ {
            "IPv4" => (!legacy::address(address).is_some_and(|a| a.is_ipv4()))
                .then_some("must be a valid IPv4 address"),
            "IPv6" => (!legacy::address(address).is_some_and(|a| a.is_ipv6()))
                .then_some("must be a valid IPv6 address"),
            _ => None,
        };
        errors.extend(family.map(|detail| FieldError::invalid(at.clone(), address, detail)));
        match type_ {
            "IPv4" | "IPv6" => errors.extend(endpoint_address(&at, address)),
            "FQDN" => errors.extend(each(
                &at,
                address,
                names::dns_subdomain(address.trim_end_matches('.')),
            )),
            _ => {}
        }
    }
    if let Some(node) = endpoint["nodeName"].as_str() {
        errors.extend(each(&path.child("nodeName"), node, names::dns_subdomain(node)));
    }
    if let Some(host) = endpoint["hostname"].as_str() {
        errors.extend(each(&path.child("hostname"), host, names::dns_label(host)));
    }
    errors
}

fn validate_ports(ports: &[Value], path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(path.clone(), ports.len(), PORTS_MAX));
        return errors;
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let (path, name) = (path.index(index), port.text("name"));
        if !name.is_empty() {
            errors.extend(each(&path.child("name"), name, names::dns_label(name)));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        errors.extend(protocol(path.child("protocol"), port.text("protocol")));
        // No port at all stands for all of them; a number out of range, which the real one lets pass, is no port.
        if let Some(number) = port["port"].as_i64() {
            errors.extend(port_number(&path.child("port"), number));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(fields: Value, old: Option<&Value>) -> Vec<String> {
        let mut new = fields;
        new["metadata"] = json!({"name": "nginx-abc", "namespace": "default"});
        default(&mut new, old);
        validate(&new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_slice_is_right_and_filled_in() {
        let mut slice = json!({"addressType": "IPv4", "ports": [{"port": 80}]});
        default(&mut slice, None);
        assert_eq!(
            slice["ports"],
            json!([{"name": "", "port": 80, "protocol": "TCP"}])
        );
        let endpoints =
            json!([{"addresses": ["10.244.1.2"], "conditions": {"ready": true}, "nodeName": "n1"}]);
        assert!(words(json!({"addressType": "IPv4", "endpoints": endpoints}), None).is_empty());
    }

    #[test]
    fn wrong_slices_are_refused_in_the_real_words() {
        let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
        for (fields, wanted) in [
            (json!({}), "addressType: Required value"),
            (
                json!({"addressType": "IPX"}),
                "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
            ),
            (
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]}),
                "endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be a valid IPv4 address",
            ),
            (
                json!({"addressType": "IPv4", "endpoints": [{"addresses": []}]}),
                "endpoints[0].addresses: Required value: must contain at least 1 address",
            ),
            (
                json!({"addressType": "IPv4", "endpoints": many}),
                "endpoints: Too many: 1001: must have at most 1000 items",
            ),
            (
                json!({"addressType": "IPv4", "ports": [{"port": 80}, {"port": 81}]}),
                "ports[1].name: Duplicate value: \"\"",
            ),
        ] {
            assert_eq!(words(fields, None), [wanted]);
        }
        let old = json!({"metadata": {"name": "nginx-abc", "namespace": "default"}, "addressType": "IPv6"});
        assert_eq!(
            words(json!({"addressType": "IPv4"}), Some(&old)),
            ["addressType: Invalid value: \"IPv4\": field is immutable"]
        );
    }
}
