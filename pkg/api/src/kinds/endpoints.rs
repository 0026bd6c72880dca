//! Endpoints: the older list of what is behind a Service, also made by hand for Services without a selector.

use serde_json::Value;

use crate::columns;
use crate::field::{FieldError, FieldPath};
use crate::kind::{Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, endpoint_address, port_number, protocol, set_default};

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &columns::ENDPOINTS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

fn default(new: &mut Value, _old: Option<&Value>) {
    for subset in new
        .get_mut("subsets")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let ports = subset
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for port in ports.filter_map(Value::as_object_mut) {
            set_default(port, "protocol", "TCP");
        }
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    for (index, subset) in new.list("subsets").iter().enumerate() {
        let path = FieldPath::new("subsets").index(index);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| subset.list(list).is_empty()) {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(path.clone(), detail));
        }
        for list in lists {
            for (at, address) in subset.list(list).iter().enumerate() {
                errors.extend(validate_address(address, &path.child(list).index(at)));
            }
        }
        let ports = subset.list("ports");
        for (at, port) in ports.iter().enumerate() {
            errors.extend(validate_port(
                port,
                ports.len() > 1,
                &path.child("ports").index(at),
            ));
        }
    }
    errors
}

fn validate_address(address: &Value, path: &FieldPath) -> Vec<FieldError> {
    let (ip, host, node) = (
        address.text("ip"),
        address.text("hostname"),
        address.text("nodeName"),
    );
    let ip_path = path.child("ip");
    let malformed = names::ip_address(ip);
    let mut errors = Vec::new();
    if malformed.is_empty() {
        errors.extend(endpoint_address(&ip_path, ip));
    }
    errors.extend(each(&ip_path, ip, malformed));
    if !host.is_empty() {
        errors.extend(each(&path.child("hostname"), host, names::dns_label(host)));
    }
    if address.has("nodeName") {
        errors.extend(each(&path.child("nodeName"), node, names::dns_subdomain(node)));
    }
    errors
}

fn validate_port(port: &Value, name_required: bool, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match port.text("name") {
        "" if name_required => errors.push(FieldError::required(path.child("name"), "")),
        "" => {}
        name => errors.extend(each(&path.child("name"), name, names::dns_label(name))),
    }
    errors.extend(port_number(&path.child("port"), port.number("port")));
    errors.extend(protocol(path.child("protocol"), port.text("protocol")));
    if let Some(name) = port["appProtocol"].as_str() {
        errors.extend(each(
            &path.child("appProtocol"),
            name,
            names::qualified_name(name),
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(subsets: &Value) -> Vec<String> {
        let mut new = json!({"metadata": {"name": "db", "namespace": "default"}, "subsets": subsets});
        default(&mut new, None);
        validate(&new, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_outside_address_is_right() {
        assert!(
            words(&json!([{"addresses": [{"ip": "192.168.1.23"}], "ports": [{"port": 3306}]}])).is_empty()
        );
        let mut none = json!({"metadata": {"name": "db", "namespace": "default"}});
        default(&mut none, None);
        assert_eq!((none.get("subsets"), validate(&none, None)), (None, Vec::new()));
    }

    #[test]
    fn wrong_subsets_are_refused_in_the_real_words() {
        for (subsets, wanted) in [
            (
                json!([{}]),
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            ),
            (
                json!([{"addresses": [{"ip": "127.0.0.1"}]}]),
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
            ),
            (
                json!([{"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 70000}]}]),
                "subsets[0].ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "name": "a"}, {"port": 2}]}]),
                "subsets[0].ports[1].name: Required value",
            ),
        ] {
            assert_eq!(words(&subsets), [wanted]);
        }
    }
}
