//! What writers are told beside the answer (`Warning` headers): the WarningsOnCreate and WarningsOnUpdate of the real server's
//! strategies.

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use serde_json::Value;
use svcnet_api::{FieldPath, Kind};

use crate::traits;

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What an object as it was written says against itself. `creates`: it was not there before.
pub(crate) fn of(kind: &Kind, creates: bool, written: &Bytes) -> Vec<String> {
    let warns = traits::of(kind).warns;
    if warns.is_none() && !traits::is_custom(kind) {
        return Vec::new();
    }
    let Ok(object) = serde_json::from_slice::<Value>(written) else {
        return Vec::new();
    };
    let mut warnings = if traits::is_custom(kind) {
        finalizers(&object)
    } else {
        Vec::new()
    };
    if let Some(warns) = warns {
        warnings.extend(warns(&object, creates));
    }
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

fn has_annotation(object: &Value, name: &str) -> bool {
    let annotations = object.get("metadata").and_then(|m| m.get("annotations"));
    annotations.is_some_and(|a| a.get(name).is_some())
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
    let ranges = texts(service, "/spec/loadBalancerSourceRanges");
    warnings.extend(ranges.flat_map(|(i, text)| of_range(&path.index(i), text)));
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

/// An address in a form of its own (apimachinery, pkg/util/validation/ip.go GetWarningsForIP).
fn of_address(path: &FieldPath, text: &str) -> Option<String> {
    let address: IpAddr = text.parse().ok()?;
    let canonical = address.to_canonical();
    if canonical != address {
        return Some(format!(
            "{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use \
             \"{canonical}\""
        ));
    }
    let differs = address.is_ipv6() && address.to_string() != text;
    differs.then(|| {
        format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{address}\")")
    })
}

/// A network that says more than its prefix, or in a form of its own (the same, GetWarningsForCIDR).
fn of_range(path: &FieldPath, text: &str) -> Vec<String> {
    // The real server cuts blanks off before it looks (pkg/apis/core/validation).
    let text = text.trim();
    let Ok(net) = text.parse::<IpNet>() else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    if net.addr() != net.network() {
        let (network, one) = (net.trunc(), IpNet::from(net.addr()));
        warnings.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{network}\" or \"{one}\"?)"
        ));
    }
    if warnings.is_empty() && net.addr().is_ipv6() && net.to_string() != text {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{net}\")"
        ));
    }
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
            creates,
            &object.to_string().into(),
        )
    }

    #[test]
    fn services_are_warned_of_as_in_1_33() {
        let service = json!({
            "metadata": {"annotations": {"service.kubernetes.io/topology-aware-hints": "auto"}},
            "spec": {
                "clusterIPs": ["10.0.0.1", "2001:db8:0:0::2"], "externalIPs": ["::ffff:1.2.3.4"],
                "loadBalancerIP": "2001:DB8::3", "loadBalancerSourceRanges": ["192.12.2.8/24", " 10.0.0.0/8 ", "fd00:0::/64"],
            },
        });
        assert_eq!(
            of_kind("v1", "Service", &service, false),
            [
                "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
                "spec.clusterIPs[1]: IPv6 address \"2001:db8:0:0::2\" should be in RFC 5952 canonical format (\"2001:db8::2\")",
                "spec.externalIPs[0]: non-standard IP address \"::ffff:1.2.3.4\" will be considered invalid in a future Kubernetes release: use \"1.2.3.4\"",
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
}
