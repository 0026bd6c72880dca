use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use svcnet_api::metallb::{IPAddressPool, L2Advertisement};
use svcnet_runtime::Change;

use super::*;

fn object<K: DeserializeOwned>(value: Value) -> Change<K> {
    Change::Apply(Arc::new(serde_json::from_value(value).unwrap()))
}

fn service(name: &str, address: &str, spec: Value) -> Change<core::Service> {
    let mut service = json!({
        "metadata": {"namespace": "default", "name": name, "uid": "u"},
        "spec": {"type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": [{"ip": address}]}},
    });
    service["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    object(service)
}

fn endpoint(service: &str, node: &str, conditions: Value) -> Change<EndpointSlice> {
    object(json!({
        "metadata": {
            "namespace": "default", "name": format!("{service}-{node}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": node, "conditions": conditions}],
    }))
}

fn node(name: &str, address: &str, labels: Value) -> Change<core::Node> {
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": [
            {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
        ]},
    }))
}

fn pool(name: &str, range: &str) -> Change<IPAddressPool> {
    object(json!({
        "metadata": {"namespace": "metallb-system", "name": name, "labels": {"pool": name}},
        "spec": {"addresses": [range]},
    }))
}

fn advertisement(spec: Value) -> Change<L2Advertisement> {
    object(json!({"metadata": {"namespace": "metallb-system", "name": "l2"}, "spec": spec}))
}

/// Two nodes, a pool, an advertisement of all, a Service with an endpoint on the other node.
fn view() -> View {
    let mut view = View::new("n1");
    view.change_node(&node(
        "n1",
        "172.30.0.11",
        json!({"kubernetes.io/hostname": "n1"}),
    ));
    view.change_node(&node("n2", "172.30.0.12", json!({})));
    view.change_pool(&pool("first", "172.30.0.240-172.30.0.250"));
    view.change_advertisement(&advertisement(json!({})));
    view.change_service(&service("web", "172.30.0.240", json!({})));
    view.change_slice(&endpoint("web", "n2", json!({"ready": true})));
    view
}

fn verdict_of(view: &View) -> Result<Links, NotAnnounced> {
    let desired = Desired::new(view, None);
    desired.addresses[&"172.30.0.240".parse::<IpAddr>().unwrap()]
        .verdict
        .clone()
}

#[test]
fn an_address_with_a_ready_endpoint_anywhere_is_announced_on_all_links() {
    let view = view();
    assert_eq!(verdict_of(&view), Ok(Links::All));
    let desired = Desired::new(&view, None);
    assert_eq!(desired.own, ["172.30.0.11".parse::<IpAddr>().unwrap()]);
    assert_eq!(desired.peers.len(), 1);
    assert_eq!(desired.peers["n2"], ["172.30.0.12".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_node_without_a_node_object_announces_nothing() {
    let mut view = view();
    view.change_node(&Change::Delete(Arc::new(core::Node {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some("n1".to_string()),
            ..Default::default()
        },
        ..core::Node::default()
    })));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::NodeUnknown));
}

#[test]
fn an_excluded_node_announces_nothing() {
    let mut view = view();
    let label = json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
    assert!(view.change_node(&node("n1", "172.30.0.11", label)));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::Excluded));
}

#[test]
fn other_classes_are_left_alone() {
    let mut view = view();
    view.change_service(&service(
        "web",
        "172.30.0.240",
        json!({"loadBalancerClass": "example.com/lb"}),
    ));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::OtherClass));
    let desired = Desired::new(&view, Some("example.com/lb"));
    assert!(desired.addresses.values().all(|a| a.verdict.is_ok()));
}

#[test]
fn without_pool_or_advertisement_nothing_is_announced() {
    let mut view = view();
    view.change_service(&service("web", "172.30.0.240", json!({})));
    view.change_advertisement(&advertisement(json!({"ipAddressPools": ["second"]})));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::NoAdvertisement));
    view.change_pool(&Change::Reset(Vec::new()));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::NoPool));
}

#[test]
fn advertisements_select_pools_by_name_and_label_nodes_by_label_and_links_by_name() {
    let mut view = view();
    for (spec, expected) in [
        (json!({"ipAddressPools": ["first"]}), Ok(Links::All)),
        (
            json!({"ipAddressPoolSelectors": [{"matchLabels": {"pool": "first"}}]}),
            Ok(Links::All),
        ),
        (
            json!({"ipAddressPoolSelectors": [{"matchLabels": {"pool": "second"}}]}),
            Err(NotAnnounced::NoAdvertisement),
        ),
        (
            json!({"nodeSelectors": [{"matchLabels": {"kubernetes.io/hostname": "n2"}}]}),
            Err(NotAnnounced::NodeSelector),
        ),
        (
            json!({"nodeSelectors": [{"matchLabels": {"kubernetes.io/hostname": "n2"}},
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}),
            Ok(Links::All),
        ),
        (
            json!({"interfaces": ["eth1"]}),
            Ok(Links::Named(["eth1".to_string()].into())),
        ),
    ] {
        assert!(view.change_advertisement(&advertisement(spec.clone())), "{spec}");
        assert_eq!(verdict_of(&view), expected, "{spec}");
    }
}

#[test]
fn endpoints_must_serve() {
    for (conditions, expected) in [
        (json!({}), true),
        (json!({"ready": true}), true),
        (json!({"ready": false}), false),
        (
            json!({"ready": false, "serving": true, "terminating": true}),
            true,
        ),
        (
            json!({"ready": false, "serving": false, "terminating": true}),
            false,
        ),
    ] {
        let mut view = view();
        view.change_slice(&endpoint("web", "n2", conditions.clone()));
        let verdict = verdict_of(&view);
        let expected = if expected {
            Ok(Links::All)
        } else {
            Err(NotAnnounced::NoReadyEndpoint)
        };
        assert_eq!(verdict, expected, "{conditions}");
    }
}

#[test]
fn the_local_policy_asks_for_an_endpoint_on_this_node() {
    let mut view = view();
    view.change_service(&service(
        "web",
        "172.30.0.240",
        json!({"externalTrafficPolicy": "Local"}),
    ));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::LocalPolicyNoLocalEndpoint));
    assert!(view.change_slice(&endpoint("web", "n1", json!({"ready": true}))));
    assert_eq!(verdict_of(&view), Ok(Links::All));
}

#[test]
fn a_shared_address_is_announced_while_any_of_its_services_can_be() {
    let mut view = view();
    view.change_service(&service("api", "172.30.0.240", json!({})));
    let desired = Desired::new(&view, None);
    let shared = &desired.addresses[&"172.30.0.240".parse::<IpAddr>().unwrap()];
    assert_eq!(shared.verdict, Ok(Links::All));
    assert_eq!(shared.services.len(), 2);
}

#[test]
fn the_older_configuration_announces_too_and_a_wrong_one_changes_nothing() {
    let mut view = View::new("n1");
    view.change_node(&node("n1", "172.30.0.11", json!({})));
    view.change_service(&service("web", "172.30.0.240", json!({})));
    view.change_slice(&endpoint("web", "n2", json!({})));
    let config = |text: &str| {
        object::<core::ConfigMap>(json!({
            "metadata": {"namespace": "metallb-system", "name": "config"}, "data": {"config": text},
        }))
    };
    let text = "address-pools:\n- {name: old, protocol: layer2, addresses: [172.30.0.240/28]}\n";
    assert!(view.change_config_map(&config(text)));
    assert_eq!(verdict_of(&view), Ok(Links::All));
    assert!(!view.change_config_map(&config("address-pools: 5")));
    assert_eq!(verdict_of(&view), Ok(Links::All));
    assert!(view.change_config_map(&Change::Reset(Vec::new())));
    assert_eq!(verdict_of(&view), Err(NotAnnounced::NoPool));
}

#[test]
fn reasons_have_names_and_words() {
    let reasons = [
        NotAnnounced::NoLink,
        NotAnnounced::Settling,
        NotAnnounced::LostElection {
            owner: "n2".to_string(),
        },
        NotAnnounced::AddressInUse {
            mac: [2; 6],
            node: None,
        },
    ];
    let text: Vec<String> = reasons.iter().map(|r| format!("{}: {r}", r.name())).collect();
    assert_eq!(
        text,
        [
            "no_link: no link can carry the announcement",
            "settling: this node listens for its peers first",
            "lost_election: node n2 announces it",
            "address_in_use: 02:02:02:02:02:02, which is no node of the cluster, answers for it",
        ]
    );
}
