use svcnet_runtime::Change;

use super::*;
use crate::fake::{Fake, service};

fn engine() -> (Engine, Fake) {
    let fake = Fake::default();
    let settings = Settings {
        external_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Settings::default()
    };
    (Engine::new("n1", settings, Box::new(fake.clone())), fake)
}

/// An engine that has heard the first lists, which are empty.
fn running() -> (Engine, Fake) {
    let (mut engine, fake) = engine();
    engine.apply_change(Update::Services(Change::Reset(Vec::new())));
    engine.apply_change(Update::Slices(Change::Reset(Vec::new())));
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["converge"]);
    (engine, fake)
}

#[test]
fn nothing_is_done_before_both_lists_have_come() {
    let (mut engine, fake) = engine();
    engine.apply_change(Update::Services(Change::Reset(vec![service(
        "a",
        "10.96.0.1",
        None,
    )])));
    assert!(!engine.is_pending());
    engine.sync().unwrap();
    assert!(
        fake.calls().is_empty(),
        "endpoints may just be late: nothing must be refused for that"
    );
    engine.apply_change(Update::Slices(Change::Reset(Vec::new())));
    assert!(engine.is_pending());
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["converge"]);
    assert_eq!(fake.names(), ["default/a"]);
    assert!(!engine.is_pending());
}

#[test]
fn what_changes_nothing_is_not_told() {
    let (mut engine, fake) = running();
    engine.apply_change(Update::Services(Change::Apply(service("a", "10.96.0.1", None))));
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["change"]);
    engine.apply_change(Update::Services(Change::Apply(service("a", "10.96.0.1", None))));
    engine.apply_change(Update::Services(Change::Reset(vec![service(
        "a",
        "10.96.0.1",
        None,
    )])));
    assert!(!engine.is_pending());
    engine.sync().unwrap();
    assert!(fake.calls().is_empty());
}

#[test]
fn a_new_list_heals_a_missed_delete() {
    let (mut engine, fake) = running();
    engine.apply_change(Update::Services(Change::Apply(service("a", "10.96.0.1", None))));
    engine.apply_change(Update::Services(Change::Apply(service("b", "10.96.0.2", None))));
    engine.sync().unwrap();
    engine.apply_change(Update::Services(Change::Reset(vec![service(
        "b",
        "10.96.0.2",
        None,
    )])));
    engine.sync().unwrap();
    assert_eq!(fake.names(), ["default/b"]);
}

#[test]
fn a_refusal_is_followed_by_a_look_and_then_by_a_fresh_start() {
    let (mut engine, fake) = running();
    fake.fail(2);
    engine.apply_change(Update::Services(Change::Apply(service("a", "10.96.0.1", None))));
    assert!(engine.sync().is_err());
    assert!(engine.is_pending(), "it is not forgotten");
    assert!(engine.sync().is_err());
    engine.apply_change(Update::Services(Change::Apply(service("b", "10.96.0.2", None))));
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["change", "converge", "scratch"]);
    assert_eq!(fake.names(), ["default/a", "default/b"]);
    engine.apply_change(Update::Services(Change::Delete(service("a", "10.96.0.1", None))));
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["change"], "trusted again");
}

#[test]
fn a_foreign_hand_makes_it_look() {
    let (mut engine, fake) = running();
    assert!(!engine.check().unwrap());
    fake.0.lock().unwrap().touched = true;
    assert!(engine.check().unwrap());
    assert!(engine.is_pending());
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["converge"]);
}

#[test]
fn rivals_are_settled_by_name_in_whatever_order_they_come() {
    let shared = Some("203.0.113.1");
    let all = [
        service("a", "10.96.0.1", shared),
        service("b", "10.96.0.2", shared),
        service("c", "10.96.0.3", shared),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (mut engine, fake) = running();
        for index in order {
            engine.apply_change(Update::Services(Change::Apply(all[index].clone())));
            engine.sync().unwrap();
        }
        let owner = |fake: &Fake| fake.names().pop().unwrap();
        assert_eq!(owner(&fake), "default/a", "{order:?}");
        engine.apply_change(Update::Services(Change::Delete(all[0].clone())));
        engine.sync().unwrap();
        assert_eq!(owner(&fake), "default/b", "{order:?}");
        engine.apply_change(Update::Services(Change::Apply(service("b", "10.96.0.2", None))));
        engine.sync().unwrap();
        assert_eq!(owner(&fake), "default/c", "{order:?}");
        engine.apply_change(Update::Services(Change::Delete(all[2].clone())));
        engine.sync().unwrap();
        assert_eq!(fake.names(), ["default/b"], "{order:?}");
    }
}

#[test]
fn what_a_slice_was_waited_for_is_told_once() {
    let (mut engine, _) = running();
    // A Service that changes at the same time takes nothing of it.
    engine.apply_change(Update::Services(Change::Apply(service("a", "10.96.0.9", None))));
    let slice = serde_json::json!({
        "metadata": {
            "namespace": "default", "name": "a-1", "labels": { "kubernetes.io/service-name": "a" },
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" },
        },
        "addressType": "IPv4", "ports": [], "endpoints": [],
    });
    let slice: std::sync::Arc<EndpointSlice> = std::sync::Arc::new(serde_json::from_value(slice).unwrap());
    engine.apply_change(Update::Slices(Change::Apply(slice.clone())));
    engine.apply_change(Update::Slices(Change::Apply(slice)));
    engine.sync().unwrap();
    assert_eq!(engine.take_triggers(), ["2026-01-01T00:00:00Z".parse().unwrap()]);
    assert!(engine.take_triggers().is_empty());
}

#[test]
fn an_external_address_outside_the_ranges_is_nobodys() {
    let (mut engine, fake) = running();
    engine.apply_change(Update::Services(Change::Apply(service(
        "a",
        "10.96.0.1",
        Some("198.51.100.1"),
    ))));
    engine.sync().unwrap();
    assert_eq!(fake.names(), ["default/a"], "the ClusterIP alone");
}

#[test]
fn the_zone_of_the_node_is_waited_for_where_it_is_watched() {
    let fake = Fake::default();
    let mut engine = Engine::new("n1", Settings::default(), Box::new(fake.clone())).awaiting_node();
    engine.apply_change(Update::Services(Change::Reset(Vec::new())));
    engine.apply_change(Update::Slices(Change::Reset(Vec::new())));
    engine.sync().unwrap();
    assert!(fake.calls().is_empty());
    // The list of a node that is not registered yet is empty.
    engine.apply_change(Update::Node(Change::Reset(Vec::new())));
    engine.sync().unwrap();
    assert_eq!(fake.calls(), ["converge"]);
}
