//! No object, however twisted, may bring the server down: whatever parses as JSON goes through every step that a write
//! goes through, for every kind.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use serde_json::{Value, json};
use svcnet_api::columns::{IncludeObject, table};
use svcnet_api::registry::kinds;
use svcnet_api::schema::{check, decode, prune};
use svcnet_api::selector::{FieldSelector, field_value};

/// Names that the code looks for, so that values of wrong types meet it often.
const FIELDS: [&str; 40] = [
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "spec",
    "status",
    "type",
    "ports",
    "port",
    "nodePort",
    "protocol",
    "targetPort",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "sessionAffinity",
    "sessionAffinityConfig",
    "clientIP",
    "externalIPs",
    "loadBalancer",
    "ingress",
    "ip",
    "addresses",
    "subsets",
    "endpoints",
    "containers",
    "image",
    "data",
    "stringData",
    "podCIDR",
    "podCIDRs",
    "taints",
    "conditions",
    "phase",
    "involvedObject",
    "selector",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "None",
            "ClusterIP",
            "NodePort",
            "LoadBalancer",
            "ExternalName",
            "ClientIP",
            "Local",
            "TCP",
            "10.96.0.5",
            "fd00::5",
            "10.0.0.0/24",
            "IPv4",
            "IPv6",
            "a",
            "-",
            "1970-01-01T00:00:00Z",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        let field = prop::sample::select(FIELDS.to_vec());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field, inner, 0..6).prop_map(|map| map
                .into_iter()
                .map(|(k, v)| (k.to_string(), v))
                .collect::<Value>()),
        ]
    })
}

/// The same, with the outer fields of an object in place more often than chance has it.
fn any_object() -> impl Strategy<Value = Value> {
    let outer = prop::sample::subsequence(
        vec![
            "metadata",
            "spec",
            "status",
            "ports",
            "endpoints",
            "subsets",
            "data",
        ],
        0..7,
    );
    let spec = prop::sample::subsequence(
        vec![
            "ports",
            "type",
            "clusterIP",
            "clusterIPs",
            "externalIPs",
            "containers",
            "podCIDRs",
            "addresses",
            "selector",
        ],
        0..9,
    );
    let values = prop::collection::vec(any_json(), 16);
    prop_oneof![
        any_json(),
        (outer, spec, values).prop_map(|(outer, spec, values)| {
            let mut values = values.into_iter();
            let mut object: Value = outer.into_iter().zip(values.by_ref()).collect();
            let spec: Value = spec.into_iter().zip(values).collect();
            if object.get("spec").is_some_and(|s| !s.is_object()) {
                object["spec"] = spec;
            }
            object
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_step_takes_every_object(new in any_object(), old in any_object()) {
        for kind in kinds() {
            let checked = check(kind, &new);
            let mut pruned = new.clone();
            prune(kind, &mut pruned);
            prop_assert_eq!(check(kind, &pruned).unknown, Vec::<String>::new());
            prop_assert!(checked.type_error.is_some() || check(kind, &pruned).type_error.is_none());
            for object in [&new, &pruned] {
                let mut object = object.clone();
                (kind.default)(&mut object, None);
                (kind.default)(&mut object, Some(&old));
                let errors = (kind.validate)(&object, Some(&old));
                let _: Vec<(String, Value)> = errors.iter().map(|e| (e.to_string(), e.to_cause())).collect();
                table(kind, [&object], &json!({}), IncludeObject::Metadata, 0);
                for field in kind.selectable_fields {
                    field_value(&object, field);
                }
            }
        }
    }

    #[test]
    fn what_defaulting_makes_fits_the_schema(new in any_object()) {
        for kind in kinds() {
            let mut object = new.clone();
            prune(kind, &mut object);
            if object.is_object() && check(kind, &object).type_error.is_none() {
                (kind.default)(&mut object, None);
                let checked = check(kind, &object);
                prop_assert_eq!(&checked.type_error, &None, "{}: {}", kind.kind, object);
                prop_assert_eq!(checked.unknown, Vec::<String>::new(), "{}: {}", kind.kind, object);
                let mut again = object.clone();
                (kind.default)(&mut again, None);
                prop_assert_eq!(again, object);
            }
        }
    }

    #[test]
    fn decoding_agrees_with_the_plain_parser(new in any_json()) {
        let text = new.to_string();
        let (value, duplicates) = decode(text.as_bytes()).unwrap();
        prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
        prop_assert_eq!(duplicates, Vec::<String>::new());
    }

    #[test]
    fn no_text_breaks_the_field_selectors(text in ".{0,40}") {
        for kind in kinds() {
            let _ = FieldSelector::parse(&text, kind);
        }
    }
}
