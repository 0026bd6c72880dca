use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::json;
use svcnet_runtime::Change;

use super::*;

fn object<K: serde::de::DeserializeOwned>(object: serde_json::Value) -> Change<K> {
    Change::Apply(Arc::new(serde_json::from_value(object).unwrap()))
}

fn slice(service: &str, endpoints: serde_json::Value) -> Change<discovery::EndpointSlice> {
    let slice = json!({
        "metadata": {
            "namespace": "default",
            "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [
            { "name": "", "port": 8080, "protocol": "TCP" },
            { "name": "dns", "port": 5353, "protocol": "UDP" },
        ],
        "endpoints": endpoints,
    });
    object(slice)
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
        external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Settings::default()
    }
}

/// The frontends of `default/web` on node `n1` in zone `a`, a line each.
fn golden(spec: serde_json::Value, endpoints: serde_json::Value) -> String {
    let service = json!({ "metadata": { "namespace": "default", "name": "web" }, "spec": spec });
    golden_of(service, endpoints)
}

fn golden_of(service: serde_json::Value, endpoints: serde_json::Value) -> String {
    let mut view = View::new("n1");
    let mut dirty = BTreeSet::new();
    let node = json!({
        "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": "a" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.11" }] },
    });
    view.change_node(object(node), &mut dirty);
    view.change_services(object(service), &mut dirty);
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

/// What `default/web` with a port 80 at 10.96.1.1 sends to, by the endpoints' last numbers.
fn reached(endpoints: serde_json::Value) -> String {
    let spec = json!({ "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [{ "port": 80 }] });
    golden(spec, endpoints)
        .replace("10.96.1.1:80 tcp (default/web) ", "")
        .replace(":8080", "")
        .replace(" (local)", "")
}

fn hinted(ip: &str, node: &str, zones: &[&str], nodes: &[&str]) -> serde_json::Value {
    let mut endpoint = ready(ip, node);
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({ "name": name }))
            .collect::<Vec<_>>()
    };
    endpoint["hints"] = json!({ "forZones": names(zones), "forNodes": names(nodes) });
    endpoint
}

#[test]
fn hints_narrow_only_where_all_have_one_and_one_is_for_here() {
    let (a, b, c) = ("10.0.0.1", "10.0.0.2", "10.0.0.3");
    let all = "to 10.0.0.1, 10.0.0.2, 10.0.0.3";
    for (endpoints, wanted, why) in [
        (
            json!([
                hinted(a, "n2", &["a"], &[]),
                hinted(b, "n3", &["b", "a"], &[]),
                hinted(c, "n4", &["b"], &[])
            ]),
            "to 10.0.0.1, 10.0.0.2",
            "my zone",
        ),
        (
            json!([
                hinted(a, "n2", &["a"], &[]),
                hinted(b, "n3", &["b"], &[]),
                ready(c, "n4")
            ]),
            all,
            "one has none",
        ),
        (
            json!([
                hinted(a, "n2", &["b"], &[]),
                hinted(b, "n3", &["b"], &[]),
                hinted(c, "n4", &["c"], &[])
            ]),
            all,
            "none is for my zone",
        ),
        (
            json!([
                hinted(a, "n1", &["a"], &["n1"]),
                hinted(b, "n3", &["a"], &["n3"]),
                hinted(c, "n4", &["b"], &["n4"])
            ]),
            "to 10.0.0.1",
            "my node",
        ),
        (
            json!([
                hinted(a, "n2", &["a"], &["n2"]),
                hinted(b, "n3", &["a"], &["n3"]),
                hinted(c, "n4", &["b"], &["n4"])
            ]),
            "to 10.0.0.1, 10.0.0.2",
            "no node hint for mine, but a zone hint",
        ),
        (
            json!([
                hinted(a, "n2", &["a"], &[]),
                hinted(b, "n3", &["b"], &[]),
                endpoint(
                    c,
                    "n4",
                    json!({ "ready": false, "serving": true, "terminating": true })
                ),
            ]),
            "to 10.0.0.1",
            "what is going away needs no hint",
        ),
    ] {
        assert_eq!(reached(endpoints), wanted, "{why}");
    }
}

#[test]
fn policy_local_does_not_ask_for_hints_and_falls_back_to_what_goes_away() {
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
        "externalTrafficPolicy": "Local", "ports": [{ "port": 80, "nodePort": 30080 }],
    });
    let going = json!({ "ready": false, "serving": true, "terminating": true });
    assert_eq!(
        golden(
            spec,
            json!([
                endpoint("10.0.0.1", "n1", going),
                hinted("10.0.0.2", "n2", &["a"], &[])
            ])
        ),
        "10.96.1.1:80 tcp (default/web) to 10.0.0.2:8080\n\
         ip node port 30080 tcp (default/web) to 10.0.0.2:8080; from outside to 10.0.0.1:8080 (local)"
    );
}

#[test]
fn weights_and_schedulers_are_what_annotations_say() {
    let annotated = |annotations: serde_json::Value| {
        let mut first = ready("10.0.0.1", "n1");
        first["targetRef"] = json!({ "kind": "Pod", "name": "web-0" });
        let mut second = ready("10.0.0.2", "n2");
        second["zone"] = json!("b");
        let service = json!({
            "metadata": { "namespace": "default", "name": "web", "annotations": annotations },
            "spec": {
                "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
                "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }],
            },
        });
        golden_of(service, json!([first, second]))
    };
    assert_eq!(
        annotated(json!({ "svcnet.io/weights": "web-0=3", "svcnet.io/scheduler": "wrr" })),
        "10.96.1.1:53 udp (default/web:dns) to 10.0.0.1:5353 (local) weight 3, 10.0.0.2:5353; chosen by wrr"
    );
    assert_eq!(
        annotated(json!({ "svcnet.io/weights": "zone/b=0" })),
        "10.96.1.1:53 udp (default/web:dns) to 10.0.0.1:5353 (local); draining 10.0.0.2:5353",
        "it takes no new connections and keeps what it has"
    );
    assert_eq!(
        annotated(json!({ "svcnet.io/weights": "zone/b=0, 10.0.0.1=0" })),
        "10.96.1.1:53 udp (default/web:dns) refused: no endpoints; draining 10.0.0.1:5353 10.0.0.2:5353"
    );
    let usual = "10.96.1.1:53 udp (default/web:dns) to 10.0.0.1:5353 (local), 10.0.0.2:5353";
    assert_eq!(
        annotated(json!({ "svcnet.io/weights": "zone/b", "svcnet.io/scheduler": "best" })),
        usual
    );
}

#[test]
fn external_addresses_need_a_range_and_sources_let_the_balancer_in() {
    let service = json!({
        "metadata": { "namespace": "default", "name": "web" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "externalIPs": ["203.0.113.7", "198.51.100.1"], "loadBalancerSourceRanges": ["172.30.0.0/24"],
            "ports": [{ "port": 80 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }, { "ip": "192.0.2.10", "ipMode": "Proxy" }] } },
    });
    assert_eq!(
        golden_of(service, json!([ready("10.0.0.1", "n2")])),
        "10.96.1.1:80 tcp (default/web) to 10.0.0.1:8080\n\
         192.0.2.9:80 tcp (default/web) to 10.0.0.1:8080; only from 172.30.0.0/24 192.0.2.9/32\n\
         203.0.113.7:80 tcp (default/web) to 10.0.0.1:8080"
    );
}
