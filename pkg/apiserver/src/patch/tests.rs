use proptest::prelude::*;
use serde_json::json;
use svcnet_api::registry;

use super::*;

fn kind(name: &str) -> &'static Kind {
    registry::kinds().iter().find(|kind| kind.kind == name).unwrap()
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "nginx", "labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
        "spec": {
            "type": "NodePort", "selector": {"app": "nginx"},
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080},
                {"name": "https", "port": 443, "protocol": "TCP", "targetPort": 8443, "nodePort": 30443},
            ],
        },
    })
}

fn strategic(patch: Value) -> Value {
    apply(kind("Service"), PatchKind::Strategic, &patch, &service()).unwrap()
}

#[test]
fn ports_merge_by_their_number() {
    let patched = strategic(
        json!({"spec": {"ports": [{"port": 443, "targetPort": 9443}, {"port": 81, "name": "new"}]}}),
    );
    let ports = &patched["spec"]["ports"];
    assert_eq!(ports[0]["nodePort"], 30080);
    assert_eq!(
        ports[1],
        json!({"name": "https", "port": 443, "protocol": "TCP", "targetPort": 9443, "nodePort": 30443})
    );
    assert_eq!(ports[2], json!({"port": 81, "name": "new"}));
}

#[test]
fn items_are_deleted_and_ordered_as_kubectl_apply_asks() {
    let patched = strategic(json!({"spec": {
        "$setElementOrder/ports": [{"port": 443}, {"port": 81}],
        "ports": [{"port": 80, "$patch": "delete"}, {"port": 81}],
    }}));
    let numbers: Vec<_> = patched["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["port"].clone())
        .collect();
    assert_eq!(numbers, [443, 81]);
    assert!(patched["spec"].get("$setElementOrder/ports").is_none());
    let swapped = strategic(json!({"spec": {"$setElementOrder/ports": [{"port": 443}, {"port": 80}]}}));
    assert_eq!(swapped["spec"]["ports"][0]["port"], 443);
}

#[test]
fn maps_merge_and_nulls_remove() {
    let patched =
        strategic(json!({"metadata": {"labels": {"a": null, "c": "3"}}, "spec": {"selector": null}}));
    assert_eq!(patched["metadata"]["labels"], json!({"b": "2", "c": "3"}));
    assert!(patched["spec"].get("selector").is_none());
}

#[test]
fn directives_replace_delete_and_retain() {
    let replaced = strategic(json!({"spec": {"selector": {"$patch": "replace", "app": "other"}}}));
    assert_eq!(replaced["spec"]["selector"], json!({"app": "other"}));
    let list = strategic(json!({"spec": {"ports": [{"$patch": "replace"}, {"port": 9}]}}));
    assert_eq!(list["spec"]["ports"], json!([{"port": 9}]));
    let kept = strategic(json!({"spec": {"$retainKeys": ["type"], "type": "ClusterIP"}}));
    assert_eq!(kept["spec"], json!({"type": "ClusterIP"}));
    let removed = strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}));
    assert_eq!(removed["metadata"]["finalizers"], json!(["y"]));
    let joined = strategic(json!({"metadata": {"finalizers": ["z", "x"]}}));
    assert_eq!(joined["metadata"]["finalizers"], json!(["x", "y", "z"]));
}

#[test]
fn lists_without_a_key_are_replaced() {
    let patched = strategic(json!({"spec": {"externalIPs": ["192.0.2.1"]}}));
    let patched = apply(
        kind("Service"),
        PatchKind::Strategic,
        &json!({"spec": {"externalIPs": ["192.0.2.2"]}}),
        &patched,
    );
    assert_eq!(patched.unwrap()["spec"]["externalIPs"], json!(["192.0.2.2"]));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |how, patch| {
        apply(kind("Service"), how, &patch, &service())
            .unwrap_err()
            .reason
            .code()
    };
    assert_eq!(
        refused(
            PatchKind::Strategic,
            json!({"spec": {"ports": [{"name": "no key"}]}})
        ),
        400
    );
    assert_eq!(
        refused(PatchKind::Strategic, json!({"spec": {"$patch": "explode"}})),
        400
    );
    assert_eq!(refused(PatchKind::Merge, json!([1])), 400);
    assert_eq!(refused(PatchKind::Json, json!({"op": "add"})), 400);
    assert_eq!(
        refused(
            PatchKind::Json,
            json!([{"op": "test", "path": "/spec/type", "value": "x"}])
        ),
        422
    );
    let pool = json!({"metadata": {"name": "p"}});
    let error = apply(kind("IPAddressPool"), PatchKind::Strategic, &json!({}), &pool).unwrap_err();
    assert_eq!(error.reason.code(), 415);
}

#[test]
fn the_plain_kinds_of_patch() {
    let merged = apply(
        kind("Service"),
        PatchKind::Merge,
        &json!({"spec": {"ports": [{"port": 1}], "type": null}}),
        &service(),
    )
    .unwrap();
    assert_eq!(merged["spec"]["ports"], json!([{"port": 1}]));
    assert!(merged["spec"].get("type").is_none());
    let operations = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]);
    let patched = apply(kind("Service"), PatchKind::Json, &operations, &service()).unwrap();
    assert_eq!(patched["spec"]["ports"][0]["port"], 81);
    assert_eq!(
        PatchKind::from_content_type("application/merge-patch+json"),
        Some(PatchKind::Merge)
    );
}

proptest! {
    /// Applying a strategic patch twice is applying it once, and an empty patch changes nothing.
    #[test]
    fn patches_settle(port in 1u16..5, target in 1u16..100, delete in any::<bool>()) {
        let item = if delete {
            json!({"port": port, "$patch": "delete"})
        } else {
            json!({"port": port, "targetPort": target})
        };
        let patch = json!({"spec": {"ports": [item]}});
        let once = strategic(patch.clone());
        let twice = apply(kind("Service"), PatchKind::Strategic, &patch, &once).unwrap();
        prop_assert_eq!(&once, &twice);
        prop_assert_eq!(strategic(json!({})), service());
    }
}
