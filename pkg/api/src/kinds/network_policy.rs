//! NetworkPolicy: who may talk to which pods, and whom they may talk to. Words and order are those of kube-apiserver
//! (pkg/apis/networking/validation, pkg/apis/networking/v1/defaults.go).

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, labels, object_in, port_number, set_default};
use crate::selector::LabelSelector;
use crate::types::legacy;

pub(crate) const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column(
        "Pod-Selector",
        "Selects the pods to which this NetworkPolicy object applies. The array of ingress rules is applied to any \
         pods selected by this field. Multiple network policies can select the same set of pods. In this case, the \
         ingress rules for each are combined additively. This field is NOT optional and follows standard label \
         selector semantics. An empty podSelector matches all pods in this namespace.",
        |policy, _| json!(format_selector(&policy["spec"]["podSelector"])),
    ),
    AGE,
];

/// `metav1.FormatLabelSelector`
fn format_selector(selector: &Value) -> String {
    let typed = meta::LabelSelector::deserialize(selector).unwrap_or_default();
    match LabelSelector::try_from(&typed) {
        Ok(selector) if selector.is_everything() => "<none>".to_string(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_string(),
    }
}

fn default(new: &mut Value, _old: Option<&Value>) {
    let spec = object_in(new, "spec");
    spec.entry("podSelector").or_insert_with(|| json!({}));
    for rules in ["ingress", "egress"] {
        let rules = spec
            .get_mut(rules)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for rule in rules {
            let ports = rule.get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                set_default(port, "protocol", "TCP");
            }
        }
    }
    let filled = |spec: &Map<String, Value>, name: &str| {
        spec.get(name)
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
    };
    if !filled(spec, "policyTypes") {
        let mut types = vec![json!("Ingress")];
        if filled(spec, "egress") {
            types.push(json!("Egress"));
        }
        spec.insert("policyTypes".to_string(), types.into());
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    errors.extend(label_selector(&path.child("podSelector"), &spec["podSelector"]));
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in spec.list(rules).iter().enumerate() {
            let path = path.child(rules).index(index);
            for (index, port) in rule.list("ports").iter().enumerate() {
                errors.extend(validate_port(&path.child("ports").index(index), port));
            }
            for (index, peer) in rule.list(peers).iter().enumerate() {
                errors.extend(validate_peer(&path.child(peers).index(index), peer));
            }
        }
    }
    let (types, path) = (spec.list("policyTypes"), path.child("policyTypes"));
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(path, spec["policyTypes"].clone(), detail));
        return errors;
    }
    for (index, type_) in types.iter().enumerate() {
        if !matches!(type_.as_str(), Some("Ingress" | "Egress")) {
            let known = ["Egress", "Ingress"];
            errors.push(FieldError::not_supported(
                path.index(index),
                type_.clone(),
                &known,
            ));
        }
    }
    errors
}

/// `ValidateNetworkPolicyPort`
fn validate_port(path: &FieldPath, port: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let protocol = port.text("protocol");
    if port.has("protocol") && !["TCP", "UDP", "SCTP"].contains(&protocol) {
        let known = ["SCTP", "TCP", "UDP"];
        errors.push(FieldError::not_supported(
            path.child("protocol"),
            protocol,
            &known,
        ));
    }
    let (at, end_at) = (path.child("port"), path.child("endPort"));
    let end = port["endPort"].as_i64();
    let wrong_end = |end: i64, detail: &str| FieldError::invalid(end_at.clone(), end, detail);
    match (&port["port"], end) {
        (Value::Number(number), end) => {
            let number = number.as_i64().unwrap_or_default();
            errors.extend(port_number(&at, number));
            if let Some(end) = end {
                if end < number {
                    errors.push(wrong_end(end, "must be greater than or equal to `port`"));
                }
                errors.extend(port_number(&end_at, end));
            }
        }
        (Value::String(name), end) => {
            if let Some(end) = end {
                errors.push(wrong_end(end, "may not be specified when `port` is non-numeric"));
            }
            errors.extend(each(&at, name, names::port_name(name)));
        }
        (_, Some(end)) => errors.push(wrong_end(
            end,
            "may not be specified when `port` is not specified",
        )),
        (_, None) => {}
    }
    errors
}

/// `ValidateNetworkPolicyPeer`
fn validate_peer(path: &FieldPath, peer: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut count = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        if peer.has(selector) {
            count += 1;
            errors.extend(label_selector(&path.child(selector), &peer[selector]));
        }
    }
    if peer.has("ipBlock") {
        count += 1;
        errors.extend(validate_block(&path.child("ipBlock"), &peer["ipBlock"]));
    }
    if count == 0 {
        errors.push(FieldError::required(path.clone(), "must specify a peer"));
    } else if count > 1 && peer.has("ipBlock") {
        errors.push(FieldError::forbidden(
            path.clone(),
            "may not specify both ipBlock and another peer",
        ));
    }
    errors
}

/// `ValidateIPBlock`
fn validate_block(path: &FieldPath, block: &Value) -> Vec<FieldError> {
    let (cidr, at) = (block.text("cidr"), path.child("cidr"));
    if cidr.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let Some(net) = legacy::network(cidr) else {
        return each(&at, cidr, names::cidr(cidr)).collect();
    };
    let mut errors = Vec::new();
    for (index, except) in block.list("except").iter().enumerate() {
        let (text, at) = (
            except.as_str().unwrap_or_default(),
            path.child("except").index(index),
        );
        match legacy::network(text) {
            None => errors.extend(each(&at, text, names::cidr(text))),
            Some(except) if !net.contains(&except.addr()) || net.prefix_len() >= except.prefix_len() => {
                errors.push(FieldError::invalid(at, text, "must be a strict subset of `cidr`"));
            }
            Some(_) => {}
        }
    }
    errors
}

/// `ValidateLabelSelector` (k8s.io/apimachinery, pkg/apis/meta/v1/validation)
fn label_selector(path: &FieldPath, selector: &Value) -> Vec<FieldError> {
    let mut errors = labels(&path.child("matchLabels"), selector, "matchLabels");
    for (index, expression) in selector.list("matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let (values, at) = (expression.list("values"), path.child("values"));
        match expression.text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                at.clone(),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                at.clone(),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = expression.text("key");
        errors.extend(each(&path.child("key"), key, names::qualified_name(key)));
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.extend(each(&at.index(index), value, names::label_value(value)));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(spec: Value) -> Vec<String> {
        let mut new = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        default(&mut new, None);
        validate(&new, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn types_and_protocols_are_filled_in() {
        let filled = |spec: Value| {
            let mut new = json!({"spec": spec});
            default(&mut new, None);
            new["spec"].clone()
        };
        assert_eq!(
            filled(json!(null)),
            json!({"podSelector": {}, "policyTypes": ["Ingress"]})
        );
        assert_eq!(
            filled(json!({"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]})),
            json!({
                "podSelector": {}, "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}],
                "policyTypes": ["Ingress", "Egress"],
            })
        );
        let deny = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": []});
        assert_eq!(filled(deny.clone()), deny);
    }

    #[test]
    fn what_is_right_passes() {
        assert_eq!(
            words(json!({
                "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]},
                "ingress": [{}, {
                    "from": [
                        {"podSelector": {}, "namespaceSelector": {"matchLabels": {"team": "x"}}},
                        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                        {"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:1::/32"]}},
                    ],
                    "ports": [{"port": "http"}, {"port": 80, "endPort": 90, "protocol": "SCTP"}, {"protocol": "UDP"}],
                }],
            })),
            [""; 0]
        );
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_real_words() {
        let ingress = |rule: Value| json!({"ingress": [rule]});
        for (spec, wanted) in [
            (
                ingress(json!({"ports": [{"port": 0}]})),
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                ingress(json!({"ports": [{"port": 90, "endPort": 80}]})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ),
            (
                ingress(json!({"ports": [{"port": "http", "endPort": 80}]})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
            ),
            (
                ingress(json!({"ports": [{"endPort": 80}]})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is not specified",
            ),
            (
                ingress(json!({"ports": [{"port": 80, "protocol": "ICMP"}]})),
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \
                 \"UDP\"",
            ),
            (
                ingress(json!({"from": [{}]})),
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ),
            (
                ingress(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]})),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                ingress(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]})),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of \
                 `cidr`",
            ),
            (
                json!({"egress": [{"to": [{"ipBlock": {"cidr": ""}}]}]}),
                "spec.egress[0].to[0].ipBlock.cidr: Required value",
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                "spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' \
                 or 'NotIn'",
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
                "spec.podSelector.matchExpressions[0].operator: Invalid value: \"Gt\": not a valid selector operator",
            ),
            (
                json!({"policyTypes": ["Ingress", "Both"]}),
                "spec.policyTypes[1]: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\"",
            ),
        ] {
            assert_eq!(words(spec), [wanted]);
        }
    }

    #[test]
    fn selectors_print_as_kubectl_shows_them() {
        assert_eq!(format_selector(&json!({})), "<none>");
        let selector = json!({
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}],
        });
        assert_eq!(format_selector(&selector), "a=1,b=2,c in (x,y),d");
    }
}
