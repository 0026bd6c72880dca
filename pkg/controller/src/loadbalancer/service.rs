//! What a Service says about LoadBalancer addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use svcnet_api::types::legacy;

use super::addresses::{SharingKey, Usage, UsedPort};

/// The prefixes of MetalLB's annotations, today's first.
const PREFIXES: [&str; 2] = ["metallb.io", "metallb.universe.tf"];

/// What a Service wants, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LbService {
    pub(super) wish: Wish,
    /// `status.loadBalancer.ingress[].ip`.
    pub(super) current: Vec<IpAddr>,
    /// Whether the status holds anything at all.
    pub(super) has_status: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) usage: Usage,
    /// Seconds since the epoch: who came first keeps an address that two have.
    pub(super) created: i64,
}

/// What a Service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// No address: another type, or nothing to send the traffic to.
    Nothing,
    /// `loadBalancerClass` names another implementation: not our business.
    Foreign,
    Address(Request),
    /// The wish cannot be understood, and why.
    Malformed(String),
}

/// An address, or one of each family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// For each wanted address, whether it is an IPv6 one.
    pub(super) v6: Vec<bool>,
    /// Whether less than all families will do.
    pub(super) prefers: bool,
    /// These very addresses; empty for any.
    pub(super) addresses: Vec<IpAddr>,
    /// Of this pool.
    pub(super) pool: Option<String>,
}

impl LbService {
    pub(super) fn from_object(object: &core::Service) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let annotations = object.metadata.annotations.clone().unwrap_or_default();
        let ingress = object
            .status
            .iter()
            .filter_map(|status| status.load_balancer.as_ref());
        let ingress: Vec<_> = ingress.flat_map(|lb| lb.ingress.iter().flatten()).collect();
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let ports = spec.ports.iter().flatten().map(|port| UsedPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_string()),
            port: port.port,
        });
        let key = SharingKey {
            sharing: annotation(&annotations, "allow-shared-ip")
                .unwrap_or_default()
                .to_string(),
            backend: if local {
                selector_text(&spec)
            } else {
                String::new()
            },
        };
        Self {
            wish: wish(&spec, &annotations),
            current: ingress
                .iter()
                .filter_map(|one| legacy::address(one.ip.as_deref()?))
                .collect(),
            has_status: !ingress.is_empty(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
            usage: Usage {
                ports: ports.collect(),
                key,
            },
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
        }
    }
}

fn wish(spec: &core::ServiceSpec, annotations: &BTreeMap<String, String>) -> Wish {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return Wish::Nothing;
    }
    if spec.load_balancer_class.is_some() {
        return Wish::Foreign;
    }
    let cluster_ips: Vec<IpAddr> = match &spec.cluster_ips {
        Some(ips) => ips.iter().filter_map(|ip| legacy::address(ip)).collect(),
        None => spec
            .cluster_ip
            .iter()
            .filter_map(|ip| legacy::address(ip))
            .collect(),
    };
    if cluster_ips.is_empty() {
        return Wish::Nothing;
    }
    let v6: Vec<bool> = cluster_ips.iter().map(IpAddr::is_ipv6).collect();
    let named = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty());
    let annotated = annotation(annotations, "loadBalancerIPs");
    if named.is_some() && annotated.is_some() {
        let why = "service can not have both metallb.io/loadBalancerIPs and svc.Spec.LoadBalancerIP";
        return Wish::Malformed(why.to_string());
    }
    let wanted = named.or(annotated);
    let parsed: Option<Vec<IpAddr>> = wanted
        .map(|list| list.split(',').map(|ip| ip.trim().parse().ok()).collect())
        .unwrap_or(Some(Vec::new()));
    let Some(addresses) = parsed else {
        return Wish::Malformed(format!(
            "invalid loadBalancerIPs {:?}",
            wanted.unwrap_or_default()
        ));
    };
    let families: Vec<bool> = addresses.iter().map(IpAddr::is_ipv6).collect();
    let fits = addresses.is_empty() || same_set(&families, &v6);
    if !fits {
        let list = super::addresses::listed(&addresses);
        return Wish::Malformed(format!(
            "requested loadBalancer IP(s) {list} does not match the ipFamily of the service"
        ));
    }
    Wish::Address(Request {
        v6,
        prefers: spec.ip_family_policy.as_deref() == Some("PreferDualStack"),
        addresses,
        pool: annotation(annotations, "address-pool").map(ToString::to_string),
    })
}

fn same_set(a: &[bool], b: &[bool]) -> bool {
    a.len() == b.len() && a.iter().all(|one| b.contains(one)) && b.iter().all(|one| a.contains(one))
}

fn annotation<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    let mut found = PREFIXES
        .iter()
        .filter_map(|prefix| annotations.get(&format!("{prefix}/{name}")));
    found.find(|value| !value.is_empty()).map(String::as_str)
}

fn selector_text(spec: &core::ServiceSpec) -> String {
    let pairs = spec
        .selector
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(annotations: Value, spec: Value) -> LbService {
        let mut spec = spec;
        let object = spec.as_object_mut().unwrap();
        object.entry("type").or_insert(json!("LoadBalancer"));
        object.entry("clusterIPs").or_insert(json!(["10.96.0.9"]));
        let object = json!({"metadata": {"name": "a", "annotations": annotations}, "spec": spec});
        LbService::from_object(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn wishes_are_read_in_both_spellings() {
        let address: IpAddr = "172.30.0.241".parse().unwrap();
        for (annotations, spec) in [
            (json!({"metallb.io/loadBalancerIPs": "172.30.0.241"}), json!({})),
            (
                json!({"metallb.universe.tf/loadBalancerIPs": " 172.30.0.241 "}),
                json!({}),
            ),
            (json!({}), json!({"loadBalancerIP": "172.30.0.241"})),
        ] {
            let Wish::Address(request) = read(annotations, spec).wish else {
                panic!("a request")
            };
            assert_eq!(request.addresses, [address]);
        }
        let both = json!({"metallb.io/address-pool": "p", "metallb.io/allow-shared-ip": "k"});
        let service = read(
            both,
            json!({"externalTrafficPolicy": "Local", "selector": {"a": "b", "c": "d"}}),
        );
        assert_eq!(
            service.usage.key,
            SharingKey {
                sharing: "k".to_string(),
                backend: "a=b,c=d".to_string()
            }
        );
        let Wish::Address(request) = service.wish else {
            panic!("a request")
        };
        assert_eq!(request.pool.as_deref(), Some("p"));
    }

    #[test]
    fn impossible_wishes_say_why() {
        let malformed = |annotations: Value, spec: Value| match read(annotations, spec).wish {
            Wish::Malformed(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            malformed(
                json!({"metallb.io/loadBalancerIPs": "1.1.1.1"}),
                json!({"loadBalancerIP": "1.1.1.1"})
            ),
            "service can not have both metallb.io/loadBalancerIPs and svc.Spec.LoadBalancerIP"
        );
        assert_eq!(
            malformed(json!({"metallb.io/loadBalancerIPs": "x"}), json!({})),
            "invalid loadBalancerIPs \"x\""
        );
        assert_eq!(
            malformed(json!({}), json!({"loadBalancerIP": "fd00::1"})),
            "requested loadBalancer IP(s) [\"fd00::1\"] does not match the ipFamily of the service"
        );
    }

    #[test]
    fn other_types_and_classes_want_nothing_of_us() {
        assert_eq!(read(json!({}), json!({"type": "NodePort"})).wish, Wish::Nothing);
        assert_eq!(
            read(json!({}), json!({"clusterIPs": ["None"]})).wish,
            Wish::Nothing
        );
        assert_eq!(
            read(json!({}), json!({"loadBalancerClass": "example.com/x"})).wish,
            Wish::Foreign
        );
    }
}
