//! ConfigMap: text and bytes under keys.

use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each};

/// 1 MiB, over all values (MaxSecretSize; the same for both kinds).
pub(super) const SIZE_MAX: usize = 1024 * 1024;

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column("Data", "Data contains the configuration data.", |map, _| {
        json!(map.entries("data").count() + map.entries("binaryData").count())
    }),
    AGE,
];

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in new.entries(field) {
            let path = FieldPath::new(field).key(key);
            errors.extend(each(&path, key, names::config_key(key)));
            if field == "binaryData" && new["data"].has(key) {
                errors.push(FieldError::invalid(
                    path,
                    key.as_str(),
                    "duplicate of key present in data",
                ));
            }
            size += if field == "data" {
                value.len()
            } else {
                value.len() / 4 * 3
            };
        }
    }
    if size > SIZE_MAX {
        errors.push(FieldError::too_long(FieldPath::default(), SIZE_MAX));
    }
    errors.extend(
        old.into_iter()
            .flat_map(|old| immutable_data(new, old, &["data", "binaryData"])),
    );
    errors
}

/// What an object with `immutable: true` may not change any more.
pub(super) fn immutable_data(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    if !old.flag("immutable") {
        return Vec::new();
    }
    let mut wrong: Vec<&str> = fields.iter().copied().filter(|f| new[*f] != old[*f]).collect();
    if !new.flag("immutable") {
        wrong.insert(0, "immutable");
    }
    let detail = "field is immutable when `immutable` is set";
    wrong
        .into_iter()
        .map(|field| FieldError::forbidden(FieldPath::new(field), detail))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(new: &Value, old: Option<&Value>) -> Vec<String> {
        let with_name = |value: &Value| {
            let mut value = value.clone();
            value["metadata"] = json!({"name": "config", "namespace": "default"});
            value
        };
        validate(&with_name(new), old.map(with_name).as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn keys_are_checked_and_immutability_holds() {
        assert!(words(&json!({"data": {"app.properties": "a=b"}}), None).is_empty());
        assert_eq!(
            words(&json!({"data": {"a b": ""}, "binaryData": {"..": ""}}), None),
            [
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', \
                 '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                 '[-._a-zA-Z0-9]+')",
                "binaryData[..]: Invalid value: \"..\": must not be '..'",
            ]
        );
        assert_eq!(
            words(
                &json!({"data": {"a": "2"}}),
                Some(&json!({"data": {"a": "1"}, "immutable": true}))
            ),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }
}
