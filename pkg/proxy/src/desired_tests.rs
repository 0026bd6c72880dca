use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::json;
use svcnet_runtime::Change;

use super::*;

fn service(name: &str, spec: serde_json::Value) -> Change<core::Service> {
    let spec = json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec });
    Change::Apply(Arc::new(serde_json::from_value(spec).unwrap()))
}

fn slice(service: &str, endpoints: serde_json::Value) -> Change<discovery::EndpointSlice> {
    let slice = json!({
        "metadata": {
            "namespace": "default",
            "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    Change::Apply(Arc::new(serde_json::from_value(slice).unwrap()))
}

fn endpoint(ip: &str, node: &str, conditions: serde_json::Value) -> serde_json::Value {
    json!({ "addresses": [ip], "nodeName": node, "conditions": conditions })
}

fn ready(ip: &str, node: &str) -> serde_json::Value {
    endpoint(ip, node, json!({ "ready": true, "serving": true }))
}

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        node_local: vec!["10.96.0.10".parse().unwrap()],
        ..Settings::default()
    }
}

/// The frontends of `default/web` on node `n1`, a line each.
fn golden(spec: serde_json::Value, endpoints: serde_json::Value) -> String {
    let mut view = View::new("n1");
    let mut dirty = BTreeSet::new();
    view.change_services(service("web", spec), &mut dirty);
    view.change_slices(slice("web", endpoints), &mut dirty);
    assert_eq!(dirty.len(), 1);
    let lines: Vec<String> = frontends("default/web", &view, &settings())
        .iter()
        .map(ToString::to_string)
        .collect();
    lines.join("\n")
}

#[test]
fn every_way_to_a_service_is_a_frontend() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
        "externalIPs": ["203.0.113.7"],
        "ports": [{ "port": 80, "nodePort": 30080, "protocol": "TCP" }],
    });
    assert_eq!(
        golden(
            spec,
            json!([ready("10.244.1.5", "n1"), ready("10.244.2.5", "n2")])
        ),
        "10.96.1.1:80 tcp (default/web) to 10.244.1.5:8080 (local), 10.244.2.5:8080\n\
         203.0.113.7:80 tcp (default/web) to 10.244.1.5:8080 (local), 10.244.2.5:8080\n\
         ip node port 30080 tcp (default/web) to 10.244.1.5:8080 (local), 10.244.2.5:8080"
    );
}

#[test]
fn policy_local_binds_those_outside() {
    let spec = |internal: &str| {
        json!({
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": internal,
            "ports": [{ "port": 80, "nodePort": 30080 }],
        })
    };
    assert_eq!(
        golden(
            spec("Cluster"),
            json!([ready("10.244.1.5", "n1"), ready("10.244.2.5", "n2")])
        ),
        "10.96.1.1:80 tcp (default/web) to 10.244.1.5:8080 (local), 10.244.2.5:8080\n\
         ip node port 30080 tcp (default/web) to 10.244.1.5:8080 (local), 10.244.2.5:8080; \
         from outside to 10.244.1.5:8080 (local)"
    );
    assert_eq!(
        golden(spec("Local"), json!([ready("10.244.2.5", "n2")])),
        "10.96.1.1:80 tcp (default/web) dropped: endpoints only on other nodes\n\
         ip node port 30080 tcp (default/web) to 10.244.2.5:8080; \
         from outside dropped: endpoints only on other nodes"
    );
    assert_eq!(
        golden(spec("Local"), json!([])),
        "10.96.1.1:80 tcp (default/web) refused: no endpoints\n\
         ip node port 30080 tcp (default/web) refused: no endpoints"
    );
}

#[test]
fn endpoints_that_go_away_serve_until_there_are_others() {
    let spec = || json!({ "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [{ "port": 80 }] });
    let going = endpoint(
        "10.244.1.5",
        "n1",
        json!({ "ready": false, "serving": true, "terminating": true }),
    );
    let not_ready = endpoint("10.244.1.6", "n1", json!({ "ready": false, "serving": false }));
    assert_eq!(
        golden(spec(), json!([going, not_ready])),
        "10.96.1.1:80 tcp (default/web) to 10.244.1.5:8080 (local)"
    );
    assert_eq!(
        golden(spec(), json!([going, not_ready, ready("10.244.2.5", "n2")])),
        "10.96.1.1:80 tcp (default/web) to 10.244.2.5:8080"
    );
    assert_eq!(
        golden(spec(), json!([not_ready])),
        "10.96.1.1:80 tcp (default/web) refused: no endpoints"
    );
    let unknown = endpoint("10.244.1.7", "n1", json!({}));
    assert_eq!(
        golden(spec(), json!([unknown])),
        "10.96.1.1:80 tcp (default/web) to 10.244.1.7:8080 (local)"
    );
}

#[test]
fn affinity_has_a_time() {
    let spec = json!({
        "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "sessionAffinity": "ClientIP", "ports": [{ "port": 80 }],
    });
    assert_eq!(
        golden(spec, json!([ready("10.244.2.5", "n2")])),
        "10.96.1.1:80 tcp (default/web) to 10.244.2.5:8080; clients stay for 10800 s"
    );
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let skipped = |service: serde_json::Value| {
        let service: core::Service = serde_json::from_value(service).unwrap();
        crate::view::Service::new(&service).unwrap_err()
    };
    use crate::view::Skipped;
    assert_eq!(
        skipped(json!({ "spec": { "clusterIP": "None" } })),
        Skipped::Headless
    );
    assert_eq!(
        skipped(json!({ "spec": { "type": "ExternalName", "externalName": "a.b" } })),
        Skipped::ExternalName
    );
    assert_eq!(
        skipped(json!({ "spec": { "type": "ClusterIP" } })),
        Skipped::NoClusterIp
    );
    let other = json!({
        "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": "x" } },
        "spec": { "clusterIP": "10.96.1.1" },
    });
    assert_eq!(skipped(other), Skipped::OtherProxy);
    let dns = json!({ "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 53 }] });
    assert_eq!(
        golden(dns, json!([ready("10.244.2.5", "n2")])),
        "",
        "the node answers itself"
    );
}
