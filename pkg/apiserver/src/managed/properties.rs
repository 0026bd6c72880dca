//! What holds whatever several writers do to one object.

use proptest::prelude::*;

use super::tests::Object;
use super::*;

/// A configuration of labels, ports and finalizers.
fn any_part() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[a-d]", "[12]", 0..4);
    let ports = prop::collection::btree_map(1..5_u16, 1..3_u16, 0..4);
    let finalizers = prop::collection::btree_set("[a-c]", 0..3);
    (labels, ports, finalizers).prop_map(|(labels, ports, finalizers)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(p, t)| json!({"port": p, "targetPort": t}))
            .collect();
        let mut part = json!({});
        if !labels.is_empty() {
            part["metadata"]["labels"] = json!(labels);
        }
        if !finalizers.is_empty() {
            part["metadata"]["finalizers"] = json!(finalizers);
        }
        if !ports.is_empty() {
            part["spec"]["ports"] = json!(ports);
        }
        part
    })
}

/// Whether an object says all that a configuration says.
fn says(object: &Value, part: &Value) -> bool {
    match (object, part) {
        (Value::Object(object), Value::Object(part)) => part
            .iter()
            .all(|(k, v)| object.get(k).is_some_and(|o| says(o, v))),
        (Value::Array(object), Value::Array(part)) => part.iter().all(|p| object.iter().any(|o| says(o, p))),
        (object, part) => object == part,
    }
}

proptest! {
    /// Applying twice is applying once; what a manager applied stays whatever others apply, until it is taken by force;
    /// and when all have given up, nothing is left.
    #[test]
    fn applies_settle_and_respect_each_other(parts in prop::collection::vec((0..3_usize, any_part(), any::<bool>()), 1..10)) {
        let mut object = Object::service();
        let names = ["a", "b", "c"];
        let mut last: [Option<Value>; 3] = [None, None, None];
        for (who, part, force) in parts {
            let before = object.stored.clone();
            match object.apply_to(names[who], "", &part, force) {
                Ok(()) => {
                    let stored = object.stored.clone().unwrap();
                    prop_assert!(says(&stored, &part), "{} does not say {}", stored, part);
                    object.apply_to(names[who], "", &part, force).unwrap();
                    prop_assert_eq!(object.stored.as_ref(), Some(&stored), "a second time changes nothing");
                    if force {
                        last = [None, None, None];
                    }
                    last[who] = Some(part);
                    for part in last.iter().flatten() {
                        prop_assert!(says(&stored, part), "{} lost {}", stored, part);
                    }
                }
                Err(_) => {
                    prop_assert!(!force);
                    prop_assert_eq!(&object.stored, &before);
                }
            }
        }
        if object.stored.is_some() {
            for name in names {
                object.apply(name, &json!({})).unwrap();
            }
            prop_assert_eq!(object.owners(), []);
            for gone in ["/metadata/labels", "/metadata/finalizers", "/spec/ports"] {
                prop_assert_eq!(object.at(gone), Value::Null);
            }
        }
    }

    /// Whatever is updated, each field has an owner, and nobody owns what is not there.
    #[test]
    fn updates_leave_no_field_without_owner(parts in prop::collection::vec((0..3_usize, any_part()), 1..8)) {
        let mut object = Object::service();
        for (who, part) in parts {
            object.update(["a", "b", "c"][who], |new| {
                for field in ["labels", "finalizers"] {
                    new["metadata"].as_object_mut().unwrap().remove(field);
                }
                new["spec"] = json!({});
                // An object that nobody owns anything of is not tracked.
                new["metadata"]["annotations"] = json!({"kept": "1"});
                json_patch::merge(new, &part);
            });
            let stored = object.stored.as_ref().unwrap();
            let schema = SchemaNode::root(object.kind);
            let there = walk::fields_of(stored, schema).with_named_members(schema);
            let owned = Owners::of(stored).unwrap().fields();
            for path in owned.paths() {
                // Containers are owned by those who made them.
                prop_assert!(there.has_path(&path) || path.0.len() == 2, "{} is not there", path);
            }
            let mut unowned = walk::fields_of(stored, schema).difference(&owned);
            unowned = unowned.recursive_difference(&["apiVersion", "kind", "spec"].iter().map(|n| Path::fields(&[n])).collect());
            unowned = unowned.difference(&["name", "namespace"].iter().map(|n| Path::fields(&["metadata", n])).collect());
            let unowned: Vec<String> = unowned.paths().iter().map(ToString::to_string).filter(|p| !p.starts_with(".metadata.managedFields")).collect();
            prop_assert!(unowned.is_empty(), "nobody owns {:?}", unowned);
        }
    }

    #[test]
    fn no_configuration_panics(text in r#"[\[\]{}:,"a-z/0-9 ]{0,60}"#, field in "(ports|selector|type|foo)") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let mut object = Object::service();
            object.update("a", |new| new["spec"] = json!({"ports": [{"port": 1}, {"port": 1}]}));
            _ = object.apply("b", &json!({"spec": {field: value.clone()}}));
            _ = object.apply("b", &value);
        }
    }
}
