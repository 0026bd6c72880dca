//! What writers are told beside the answer (`Warning` headers): the WarningsOnCreate and WarningsOnUpdate of the real server's
//! strategies.

mod address;
mod pod;
mod secret;

use bytes::Bytes;
use serde_json::{Map, Value};
use svcnet_api::{FieldPath, Kind};

use self::address::{of_address, of_network};
pub(crate) use self::pod::{of_pod, of_status as of_pod_status};
pub(crate) use self::secret::of_secret;
use crate::traits;

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What an object as it was written, or a subresource of it, says against itself. `creates`: it was not there before.
pub(crate) fn of(kind: &Kind, subresource: &str, creates: bool, written: &Bytes) -> Vec<String> {
    let traits = traits::of(kind);
    let whole = subresource.is_empty();
    let (warns, status) = match subresource {
        "" => (traits.warns, None),
        "status" => (None, traits.warns_status),
        _ => (None, None),
    };
    let custom = whole && traits::is_custom(kind);
    if warns.is_none() && status.is_none() && !custom {
        return Vec::new();
    }
    let Ok(object) = serde_json::from_slice::<Value>(written) else {
        return Vec::new();
    };
    let mut warnings = if custom { finalizers(&object) } else { Vec::new() };
    warnings.extend(warns.into_iter().flat_map(|warns| warns(&object, creates)));
    warnings.extend(status.into_iter().flat_map(|warns| warns(&object)));
    warnings
}

/// Finalizers of a custom resource may have any name (apiextensions-apiserver, pkg/registry/customresource/strategy.go).
fn finalizers(object: &Value) -> Vec<String> {
    let named = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    let named = named.into_iter().flatten().filter_map(Value::as_str);
    let bare = named.filter(|name| !name.contains('/') && !STANDARD_FINALIZERS.contains(name));
    bare.map(|name| {
        format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name including a path (/) to avoid accidental \
             conflicts with other finalizer writers"
        )
    })
    .collect()
}

fn texts<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
    let list = object.pointer(pointer).and_then(Value::as_array);
    let list = list.into_iter().flatten().filter_map(Value::as_str);
    list.enumerate()
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("annotations")?.as_object()
}

fn has_annotation(object: &Value, name: &str) -> bool {
    annotations(object).is_some_and(|a| a.contains_key(name))
}

/// Whether one of these has written an object, by the label that says so: they write addresses in the one right form.
fn is_managed(object: &Value, label: &str, managers: &[&str]) -> bool {
    let labels = object.get("metadata").and_then(|m| m.get("labels"));
    let by = labels.and_then(|l| l.get(label)).and_then(Value::as_str);
    by.is_some_and(|by| managers.contains(&by))
}

/// Services (kubernetes, pkg/api/service/warnings.go, 1.33).
pub(crate) fn of_service(service: &Value, _: bool) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let mut warnings = Vec::new();
    if has_annotation(service, HINTS) {
        warnings.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let spec = FieldPath::new("spec");
    for field in ["clusterIPs", "externalIPs"] {
        let addresses = texts(service, &format!("/spec/{field}"));
        warnings.extend(addresses.filter_map(|(i, text)| of_address(&spec.child(field).index(i), text)));
    }
    let given = service.pointer("/spec/loadBalancerIP").and_then(Value::as_str);
    warnings.extend(given.and_then(|text| of_address(&spec.child("loadBalancerIP"), text)));
    let path = spec.child("loadBalancerSourceRanges");
    // The real server cuts blanks off before it looks (pkg/apis/core/validation).
    let ranges = texts(service, "/spec/loadBalancerSourceRanges");
    warnings.extend(ranges.flat_map(|(i, text)| of_network(&path.index(i), text.trim())));
    warnings
}

/// Ingresses (kubernetes, pkg/registry/networking/ingress/strategy.go).
pub(crate) fn of_ingress(ingress: &Value, creates: bool) -> Vec<String> {
    const CLASS: &str = "kubernetes.io/ingress.class";
    let has_class = ingress.pointer("/spec/ingressClassName").is_some();
    if !creates || has_class || !has_annotation(ingress, CLASS) {
        return Vec::new();
    }
    vec![format!(
        "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
    )]
}

/// The status of Services (kubernetes, pkg/registry/core/service/strategy.go). The path is the whole entry's, as there.
pub(crate) fn of_service_status(service: &Value) -> Vec<String> {
    let path = FieldPath::new("status").child("loadBalancer").child("ingress");
    let entries = list(&service["status"]["loadBalancer"], "ingress").iter();
    let said = entries
        .enumerate()
        .map(|(i, entry)| of_address(&path.index(i), text(entry, "ip")));
    said.flatten().collect()
}

/// NetworkPolicies (kubernetes, pkg/registry/networking/networkpolicy/strategy.go).
pub(crate) fn of_network_policy(policy: &Value, _: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let path = FieldPath::new("spec").child(direction);
        for (i, rule) in list(&policy["spec"], direction).iter().enumerate() {
            for (j, peer) in list(rule, peers).iter().enumerate() {
                let at = path.index(i).child(peers).index(j).child("ipBlock");
                let block = &peer["ipBlock"];
                warnings.extend(of_network(&at.child("cidr"), text(block, "cidr")));
                let at = at.child("except");
                warnings.extend(texts(block, "/except").flat_map(|(k, net)| of_network(&at.index(k), net)));
            }
        }
    }
    warnings
}

/// EndpointSlices (kubernetes, pkg/registry/discovery/endpointslice/strategy.go).
pub(crate) fn of_endpoint_slice(slice: &Value, creates: bool) -> Vec<String> {
    const MANAGERS: [&str; 2] = [
        "endpointslice-controller.k8s.io",
        "endpointslicemirroring-controller.k8s.io",
    ];
    let mut warnings = Vec::new();
    if creates && text(slice, "addressType") == "FQDN" {
        warnings.push("spec.addressType: FQDN endpoints are deprecated".to_string());
    }
    if is_managed(slice, "endpointslice.kubernetes.io/managed-by", &MANAGERS) {
        return warnings;
    }
    let path = FieldPath::new("endpoints");
    for (i, endpoint) in list(slice, "endpoints").iter().enumerate() {
        let at = path.index(i).child("addresses");
        warnings.extend(texts(endpoint, "/addresses").filter_map(|(j, ip)| of_address(&at.index(j), ip)));
    }
    warnings
}

/// Endpoints (kubernetes, pkg/registry/core/endpoint/strategy.go).
pub(crate) fn of_endpoints(endpoints: &Value, _: bool) -> Vec<String> {
    if is_managed(
        endpoints,
        "endpoints.kubernetes.io/managed-by",
        &["endpoint-controller"],
    ) {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    for (i, subset) in list(endpoints, "subsets").iter().enumerate() {
        for field in ["addresses", "notReadyAddresses"] {
            let at = FieldPath::new("subsets").index(i).child(field);
            let addresses = list(subset, field).iter().enumerate();
            let said = addresses.map(|(j, one)| of_address(&at.index(j).child("ip"), text(one, "ip")));
            warnings.extend(said.flatten());
        }
    }
    warnings
}

/// Nodes (kubernetes, pkg/registry/core/node/strategy.go).
pub(crate) fn of_node(node: &Value, _: bool) -> Vec<String> {
    let spec = &node["spec"];
    let mut warnings = Vec::new();
    if !spec["configSource"].is_null() {
        warnings.push("spec.configSource: the feature is removed".to_string());
    }
    if !text(spec, "externalID").is_empty() {
        warnings.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_string());
    }
    let path = FieldPath::new("spec").child("podCIDRs");
    warnings.extend(texts(spec, "/podCIDRs").flat_map(|(i, net)| of_network(&path.index(i), net)));
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use svcnet_api::registry;

    use super::*;

    fn of_kind(version: &str, kind: &str, object: &Value, creates: bool) -> Vec<String> {
        of(
            registry::by_kind(version, kind).unwrap(),
            "",
            creates,
            &object.to_string().into(),
        )
    }

    #[test]
    fn services_are_warned_of_as_in_1_33() {
        let service = json!({
            "metadata": {"annotations": {"service.kubernetes.io/topology-aware-hints": "auto"}},
            "spec": {
                "clusterIPs": ["10.0.0.1", "2001:db8:0:0::2"], "externalIPs": ["::ffff:1.2.3.4", "010.0.0.1"],
                "loadBalancerIP": "2001:DB8::3", "loadBalancerSourceRanges": ["192.12.2.8/24", " 10.0.0.0/8 ", "fd00:0::/64"],
            },
        });
        assert_eq!(
            of_kind("v1", "Service", &service, false),
            [
                "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
                "spec.clusterIPs[1]: IPv6 address \"2001:db8:0:0::2\" should be in RFC 5952 canonical format (\"2001:db8::2\")",
                "spec.externalIPs[0]: non-standard IP address \"::ffff:1.2.3.4\" will be considered invalid in a future Kubernetes release: use \"1.2.3.4\"",
                "spec.externalIPs[1]: non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
                "spec.loadBalancerIP: IPv6 address \"2001:DB8::3\" should be in RFC 5952 canonical format (\"2001:db8::3\")",
                "spec.loadBalancerSourceRanges[0]: CIDR value \"192.12.2.8/24\" is ambiguous in this context (should be \"192.12.2.0/24\" or \"192.12.2.8/32\"?)",
                "spec.loadBalancerSourceRanges[2]: IPv6 CIDR value \"fd00:0::/64\" should be in RFC 5952 canonical format (\"fd00::/64\")",
            ]
        );
        let plain = json!({"metadata": {}, "spec": {"clusterIPs": ["None"], "externalIPs": ["10.0.0.1"]}});
        assert!(of_kind("v1", "Service", &plain, true).is_empty());
    }

    #[test]
    fn ingresses_are_warned_of_when_they_are_made() {
        let annotations = json!({"kubernetes.io/ingress.class": "x"});
        let old = json!({"metadata": {"annotations": annotations}, "spec": {}});
        let both = json!({"metadata": {"annotations": annotations}, "spec": {"ingressClassName": "x"}});
        let said = |object: &Value, creates| of_kind("networking.k8s.io/v1", "Ingress", object, creates);
        assert_eq!(
            said(&old, true),
            [
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
            ]
        );
        assert!(said(&old, false).is_empty() && said(&both, true).is_empty());
    }

    #[test]
    fn finalizers_of_custom_resources_should_have_a_domain() {
        let object = json!({"metadata": {"finalizers": ["foo", "orphan", "example.com/x"]}});
        let said = of_kind("metallb.io/v1beta1", "IPAddressPool", &object, false);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with("metadata.finalizers: \"foo\": prefer a domain-qualified"),
            "{said:?}"
        );
        assert!(of_kind("v1", "ConfigMap", &object, true).is_empty());
    }

    const NOT_STANDARD: &str = "non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"";

    #[test]
    fn addresses_are_looked_at_wherever_a_kind_has_them() {
        let block = json!({"ipBlock": {"cidr": "10.0.0.0/08", "except": ["10.0.0.0/16", "10.1.0.1/16"]}});
        let policy = json!({"metadata": {}, "spec": {"ingress": [{"from": [{"podSelector": {}}, block]}], "egress": [{"to": [block]}]}});
        let cidr = "non-standard CIDR value \"10.0.0.0/08\" will be considered invalid in a future Kubernetes release: use \"10.0.0.0/8\"";
        let except = "CIDR value \"10.1.0.1/16\" is ambiguous in this context (should be \"10.1.0.0/16\" or \"10.1.0.1/32\"?)";
        assert_eq!(
            of_kind("networking.k8s.io/v1", "NetworkPolicy", &policy, false),
            [
                format!("spec.ingress[0].from[1].ipBlock.cidr: {cidr}"),
                format!("spec.ingress[0].from[1].ipBlock.except[1]: {except}"),
                format!("spec.egress[0].to[0].ipBlock.cidr: {cidr}"),
                format!("spec.egress[0].to[0].ipBlock.except[1]: {except}"),
            ]
        );
        let mut slice =
            json!({"metadata": {}, "addressType": "IPv4", "endpoints": [{"addresses": ["010.0.0.1"]}]});
        let said = |object: &Value| of_kind("discovery.k8s.io/v1", "EndpointSlice", object, true);
        assert_eq!(
            said(&slice),
            [format!("endpoints[0].addresses[0]: {NOT_STANDARD}")]
        );
        slice["metadata"]["labels"] =
            json!({"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"});
        assert!(said(&slice).is_empty());
        let names = json!({"metadata": {}, "addressType": "FQDN"});
        assert_eq!(said(&names), ["spec.addressType: FQDN endpoints are deprecated"]);
        let mut endpoints =
            json!({"metadata": {}, "subsets": [{"notReadyAddresses": [{"ip": "010.0.0.1"}]}]});
        let said = |object: &Value| of_kind("v1", "Endpoints", object, true);
        assert_eq!(
            said(&endpoints),
            [format!("subsets[0].notReadyAddresses[0].ip: {NOT_STANDARD}")]
        );
        endpoints["metadata"]["labels"] =
            json!({"endpoints.kubernetes.io/managed-by": "endpoint-controller"});
        assert!(said(&endpoints).is_empty());
        let node = json!({"metadata": {}, "spec": {"externalID": "x", "podCIDRs": ["10.0.0.0/08"]}});
        assert_eq!(
            of_kind("v1", "Node", &node, true),
            [
                "spec.externalID: this field is deprecated, and is unused by Kubernetes",
                &format!("spec.podCIDRs[0]: {cidr}"),
            ]
        );
    }

    #[test]
    fn with_a_status_only_the_status_is_looked_at() {
        let status = |kind: &str, object: Value| {
            let kind = registry::by_kind("v1", kind).unwrap();
            of(kind, "status", false, &object.to_string().into())
        };
        let service = json!({
            "metadata": {}, "spec": {"externalIPs": ["010.0.0.1"]},
            "status": {"loadBalancer": {"ingress": [{"hostname": "x"}, {"ip": "010.0.0.1"}]}},
        });
        assert_eq!(
            status("Service", service),
            [format!("status.loadBalancer.ingress[1]: {NOT_STANDARD}")]
        );
        let pod = json!({"metadata": {}, "spec": {"imagePullSecrets": [{}]}, "status": {"podIPs": [{"ip": "010.0.0.1"}]}});
        assert_eq!(
            status("Pod", pod),
            [format!("status.podIPs[0].ip: {NOT_STANDARD}")]
        );
    }
}
