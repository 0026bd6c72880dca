//! Patches as real clients send them.

use serde_json::{Value, json};
use svcnet_api::registry;

use super::*;

fn service() -> &'static Kind {
    registry::by_resource("", "v1", "services").unwrap()
}

fn strategic(current: Value, patch: Value) -> Value {
    apply(service(), PatchKind::Strategic, &patch, &current).unwrap()
}

fn ports(ports: Value) -> Value {
    json!({"spec": {"ports": ports}})
}

#[test]
fn list_items_merge_by_their_key() {
    let current = ports(json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81}]));
    let patch = ports(json!([{"port": 80, "targetPort": 8080}, {"name": "c", "port": 82}]));
    assert_eq!(
        strategic(current, patch),
        ports(json!([
            {"name": "a", "port": 80, "nodePort": 30080, "targetPort": 8080},
            {"name": "b", "port": 81},
            {"name": "c", "port": 82},
        ]))
    );
}

#[test]
fn what_kubectl_apply_sends_when_a_port_goes_and_one_comes() {
    let current = ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30081}]));
    let patch = json!({"spec": {
        "$setElementOrder/ports": [{"port": 82}, {"port": 81}],
        "ports": [{"name": "c", "port": 82}, {"$patch": "delete", "port": 80}],
    }});
    assert_eq!(
        strategic(current, patch),
        ports(json!([{"name": "c", "port": 82}, {"name": "b", "port": 81, "nodePort": 30081}]))
    );
}

#[test]
fn an_order_alone_sorts_and_leaves_foreign_items_in_place() {
    let current = ports(json!([{"port": 1}, {"port": 2}, {"port": 3}, {"port": 4}]));
    let patch = json!({"spec": {"$setElementOrder/ports": [{"port": 4}, {"port": 2}]}});
    // 1 and 3 are not ours: 1 stays before 2 and 4, 3 after what it came after.
    assert_eq!(
        strategic(current, patch),
        ports(json!([{"port": 1}, {"port": 3}, {"port": 4}, {"port": 2}]))
    );
}

#[test]
fn items_out_of_the_given_order_are_refused() {
    let patch = json!({"spec": {
        "$setElementOrder/ports": [{"port": 1}, {"port": 2}], "ports": [{"port": 2}, {"port": 1}],
    }});
    assert!(apply(service(), PatchKind::Strategic, &patch, &ports(json!([]))).is_err());
}

#[test]
fn directives_replace_and_delete() {
    let current = ports(json!([{"port": 80}, {"port": 81}]));
    let patch = ports(json!([{"$patch": "replace"}, {"port": 82}]));
    assert_eq!(strategic(current, patch), ports(json!([{"port": 82}])));

    let current = json!({"spec": {"selector": {"app": "a", "tier": "b"}}});
    let patch = json!({"spec": {"selector": {"$patch": "replace", "app": "c"}}});
    assert_eq!(
        strategic(current.clone(), patch),
        json!({"spec": {"selector": {"app": "c"}}})
    );
    let patch = json!({"spec": {"selector": {"$patch": "delete"}}});
    assert_eq!(
        strategic(current.clone(), patch),
        json!({"spec": {"selector": {}}})
    );
    let patch = json!({"spec": {"selector": {"$patch": "burn"}}});
    assert!(apply(service(), PatchKind::Strategic, &patch, &current).is_err());
}

#[test]
fn nulls_delete_and_lists_without_a_key_are_replaced() {
    let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"externalIPs": ["1.1.1.1"]}});
    let patch = json!({"metadata": {"labels": {"a": null, "x": null}}, "spec": {"externalIPs": ["2.2.2.2"]}});
    assert_eq!(
        strategic(current, patch),
        json!({"metadata": {"labels": {"b": "2"}}, "spec": {"externalIPs": ["2.2.2.2"]}})
    );
}

#[test]
fn lists_of_plain_values_are_sets() {
    let current = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {
        "$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"],
    }});
    assert_eq!(
        strategic(current.clone(), patch),
        json!({"metadata": {"finalizers": ["c", "b"]}})
    );
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}});
    assert_eq!(
        strategic(current, patch),
        json!({"metadata": {"finalizers": ["a"]}})
    );
}

#[test]
fn retained_keys_drop_the_other_half_of_a_union() {
    let pod = registry::by_resource("", "v1", "pods").unwrap();
    let volume = |v: Value| json!({"spec": {"volumes": [v]}});
    let current = volume(json!({"name": "v", "emptyDir": {}}));
    let patch =
        volume(json!({"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}));
    assert_eq!(
        apply(pod, PatchKind::Strategic, &patch, &current).unwrap(),
        volume(json!({"name": "v", "configMap": {"name": "c"}}))
    );
    let patch = volume(json!({"name": "v", "$retainKeys": ["name"], "configMap": {"name": "c"}}));
    assert!(apply(pod, PatchKind::Strategic, &patch, &current).is_err());
}

#[test]
fn items_without_the_key_are_refused() {
    let patch = ports(json!([{"name": "x"}]));
    let refused = apply(
        service(),
        PatchKind::Strategic,
        &patch,
        &ports(json!([{"port": 1}])),
    )
    .unwrap_err();
    assert!(
        refused
            .message
            .contains("does not contain declared merge key: port"),
        "{refused}"
    );
}

#[test]
fn custom_resources_take_no_strategic_patches() {
    let pool = registry::by_kind("metallb.io/v1beta1", "IPAddressPool").unwrap();
    let refused = apply(
        pool,
        PatchKind::Strategic,
        &json!({}),
        &json!({"metadata": {"name": "p"}}),
    )
    .unwrap_err();
    assert_eq!(refused.reason, Reason::UnsupportedMediaType);
}

#[test]
fn json_patches_fail_as_a_whole_and_say_why() {
    let current = json!({"metadata": {"labels": {"a": "1"}}});
    let good = json!([{"op": "replace", "path": "/metadata/labels/a", "value": "2"}]);
    assert_eq!(
        apply(service(), PatchKind::Json, &good, &current).unwrap(),
        json!({"metadata": {"labels": {"a": "2"}}})
    );
    let bad = json!([{"op": "test", "path": "/metadata/labels/a", "value": "9"}]);
    let refused = apply(service(), PatchKind::Json, &bad, &current).unwrap_err();
    assert_eq!(refused.reason, Reason::Invalid);
    assert!(apply(service(), PatchKind::Json, &json!([{"op": "fly"}]), &current).is_err());
    let nothing = json!([{"op": "replace", "path": "", "value": null}]);
    assert!(apply(service(), PatchKind::Json, &nothing, &current).is_err());
}

proptest::proptest! {
    /// Applying a strategic patch twice is applying it once, and an empty patch changes nothing.
    #[test]
    fn patches_settle(port in 1u16..5, target in 1u16..100, delete in proptest::bool::ANY) {
        let current = ports(json!([{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]));
        let item = if delete {
            json!({"port": port, "$patch": "delete"})
        } else {
            json!({"port": port, "targetPort": target})
        };
        let once = strategic(current.clone(), ports(json!([item.clone()])));
        proptest::prop_assert_eq!(&strategic(once.clone(), ports(json!([item]))), &once);
        proptest::prop_assert_eq!(&strategic(current.clone(), json!({})), &current);
    }

    /// Hostile patches are refused or applied; they do not bring the server down.
    #[test]
    fn no_patch_panics(text in r#"[\[\]{}:,"$a-z/0-9 ]{0,80}"#, deep in 0..4usize) {
        let directives = ["$patch", "$retainKeys", "$setElementOrder/ports", "$deleteFromPrimitiveList/ports"];
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            for how in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic] {
                _ = apply(service(), how, &value, &ports(json!([{"port": 1}])));
                let patch = json!({"spec": {directives[deep]: value.clone(), "ports": value.clone()}});
                _ = apply(service(), how, &patch, &ports(json!([{"port": 1}])));
            }
        }
    }
}

#[test]
fn what_is_said_of_an_item_without_its_key_is_in_gos_words() {
    let kind = svcnet_api::registry::by_kind("v1", "Service").unwrap();
    let patch = serde_json::json!({"spec": {"ports": [{"name": "x", "targetPort": null, "more": [1, "a"]}]}});
    let current = serde_json::json!({"spec": {"ports": [{"port": 80}]}});
    let refused = super::apply(kind, super::PatchKind::Strategic, &patch, &current).unwrap_err();
    assert_eq!(
        refused.message,
        "map: map[more:[1 a] name:x targetPort:<nil>] does not contain declared merge key: port"
    );
}

fn json_patch(current: &Value, operations: Value) -> Result<Value, ApiError> {
    apply(service(), PatchKind::Json, &operations, current)
}

/// Found by fuzzing: what had been applied before could not be undone.
#[test]
fn a_move_that_fails_half_way_is_refused() {
    let current = ports(json!([{"port": 80}, {"port": 81}]));
    let operations = json!([
        {"op": "remove", "path": "/spec/ports/1"},
        {"op": "move", "from": "/spec/ports/0", "path": "/spec/ports/1"},
    ]);
    let refused = json_patch(&current, operations).unwrap_err();
    assert_eq!(refused.reason, Reason::Invalid);
}

#[test]
fn no_patch_builds_what_no_stack_and_no_memory_holds() {
    let current = json!({"spec": {"a": "text"}});
    let doubled: Vec<Value> = (0..40)
        .map(|number| json!({"op": "copy", "from": "/spec", "path": format!("/spec/a{number}")}))
        .collect();
    assert_eq!(
        json_patch(&current, doubled.into()).unwrap_err().reason,
        Reason::Invalid
    );
    let wrapped = |times: usize| -> Value {
        let wrap = [
            json!({"op": "add", "path": "/new", "value": {}}),
            json!({"op": "move", "from": "/spec", "path": "/new/spec"}),
            json!({"op": "move", "from": "/new", "path": "/spec"}),
        ];
        std::iter::repeat_n(wrap, times).flatten().collect()
    };
    // The object, `spec`, and what comes around it.
    let most = object::DEPTH_MAX - 2;
    let deepest = json_patch(&current, wrapped(most)).unwrap();
    assert!(object::nests_deeper(&deepest, object::DEPTH_MAX - 1) && object::check_depth(&deepest).is_ok());
    assert_eq!(
        json_patch(&current, wrapped(most + 1)).unwrap_err().reason,
        Reason::Invalid
    );
    assert_eq!(
        json_patch(&current, wrapped(3000)).unwrap_err().reason,
        Reason::Invalid
    );
}
