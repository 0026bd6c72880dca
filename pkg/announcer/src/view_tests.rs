use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn service(name: &str, kind: &str) -> Arc<core::Service> {
    object(json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"type": kind},
        "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.240"}, {"hostname": "lb.example.com"}]}},
    }))
}

fn slice(name: &str, family: &str, endpoints: &[Value]) -> Arc<EndpointSlice> {
    object(json!({
        "metadata": {
            "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": family,
        "endpoints": endpoints,
    }))
}

fn web() -> Key {
    Key::new("default", "web")
}

fn v4() -> IpAddr {
    "172.30.0.240".parse().unwrap()
}

fn v6() -> IpAddr {
    "2001:db8::1".parse().unwrap()
}

#[test]
fn only_services_with_addresses_are_kept_and_only_changes_matter() {
    let mut view = View::new("n1");
    assert!(!view.change_service(&Change::Apply(service("web", "ClusterIP"))));
    assert!(view.change_service(&Change::Apply(service("web", "LoadBalancer"))));
    assert!(!view.change_service(&Change::Apply(service("web", "LoadBalancer"))));
    assert_eq!(view.services[&web()].addresses, [v4()]);
    assert!(view.change_service(&Change::Apply(service("web", "ClusterIP"))));
    assert!(view.services.is_empty());
}

#[test]
fn slices_add_up_by_family_and_node() {
    let mut view = View::new("n1");
    view.change_service(&Change::Apply(service("web", "LoadBalancer")));
    let there = json!({"addresses": ["10.244.2.2"], "nodeName": "n2"});
    let here = json!({"addresses": ["10.244.1.2"], "nodeName": "n1"});
    assert!(view.change_slice(&Change::Apply(slice(
        "web-a",
        "IPv4",
        std::slice::from_ref(&there)
    ))));
    assert_eq!(
        view.reach(&web(), v4()),
        Reach {
            anywhere: true,
            here: false
        }
    );
    assert_eq!(view.reach(&web(), v6()), Reach::default());
    assert!(view.change_slice(&Change::Apply(slice(
        "web-b",
        "IPv4",
        std::slice::from_ref(&here)
    ))));
    assert!(view.reach(&web(), v4()).here);
    let more = [here, there];
    assert!(
        !view.change_slice(&Change::Apply(slice("web-b", "IPv4", &more))),
        "nothing that matters"
    );
    assert!(view.change_slice(&Change::Delete(slice("web-b", "IPv4", &more))));
    assert!(!view.reach(&web(), v4()).here);
    assert!(view.change_slice(&Change::Apply(slice("web-a", "IPv4", &[]))));
    assert!(view.slices.is_empty());
}

#[test]
fn slices_of_other_services_do_not_matter_but_are_known() {
    let mut view = View::new("n1");
    let endpoint = json!({"addresses": ["10.244.2.2"], "nodeName": "n2"});
    assert!(!view.change_slice(&Change::Apply(slice("web-a", "IPv4", &[endpoint]))));
    view.change_service(&Change::Apply(service("web", "LoadBalancer")));
    assert!(view.reach(&web(), v4()).anywhere);
}

#[test]
fn a_relist_replaces_everything() {
    let mut view = View::new("n1");
    view.change_service(&Change::Apply(service("web", "LoadBalancer")));
    view.change_service(&Change::Reset(vec![service("api", "LoadBalancer")]));
    assert_eq!(
        view.services.keys().map(Key::to_string).collect::<Vec<_>>(),
        ["default/api"]
    );
}

#[test]
fn a_wrong_pool_keeps_its_last_valid_state() {
    let mut view = View::new("n1");
    let pool = |range: &str| {
        object::<IPAddressPool>(json!({
            "metadata": {"namespace": "metallb-system", "name": "first"}, "spec": {"addresses": [range]},
        }))
    };
    assert!(view.change_pool(&Change::Apply(pool("172.30.0.240/28"))));
    assert!(!view.change_pool(&Change::Apply(pool("172.30.0.240/99"))));
    view.change_pool(&Change::Reset(vec![pool("nonsense")]));
    let pools = &view.configurations[0].pools;
    assert!(pools.values().all(|p| p.ranges[0].contains(v4())) && pools.len() == 1);
}
