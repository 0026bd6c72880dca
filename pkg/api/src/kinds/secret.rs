//! Secret: bytes under keys; `stringData` is for writing only.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::config_map::{SIZE_MAX, immutable_data};
use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, immutable, object_in, set_default};

pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    volatile: false,
    selectable_fields: &["type"],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 4] = [
    NAME,
    column(
        "Type",
        "Used to facilitate programmatic handling of secret data.",
        |secret, _| secret["type"].clone(),
    ),
    column("Data", "Data contains the secret data.", |secret, _| {
        json!(secret.entries("data").count())
    }),
    AGE,
];

fn default(new: &mut Value, _old: Option<&Value>) {
    let Value::Object(fields) = &mut *new else { return };
    set_default(fields, "type", "Opaque");
    if let Some(Value::Object(plain)) = fields.remove("stringData") {
        let data = object_in(new, "data");
        for (key, value) in plain {
            let bytes = STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(key, bytes.into());
        }
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let data = FieldPath::new("data");
    let mut size = 0;
    for (key, value) in new.entries("data") {
        errors.extend(each(&data.key(key), key, names::config_key(key)));
        size += value.len() / 4 * 3;
    }
    if size > SIZE_MAX {
        errors.push(FieldError::too_long(data.clone(), SIZE_MAX));
    }
    errors.extend(
        required_keys(new)
            .into_iter()
            .map(|key| FieldError::required(data.key(key), "")),
    );
    errors.extend(docker_config(new));
    if let Some(old) = old {
        errors.extend(immutable(FieldPath::new("type"), &new["type"], &old["type"]));
        errors.extend(immutable_data(new, old, &["data"]));
    }
    errors
}

/// What is wrong with the JSON of a docker configuration (`ValidateSecret`; its content is not told).
fn docker_config(secret: &Value) -> Option<FieldError> {
    let key = match secret.text("type") {
        "kubernetes.io/dockercfg" => ".dockercfg",
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        _ => return None,
    };
    let bytes = STANDARD.decode(secret.get("data")?.get(key)?.as_str()?).ok()?;
    let error = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).err()?;
    // Go's words for what both decoders find most often.
    let why = if error.is_eof() {
        "unexpected end of JSON input".to_string()
    } else {
        error.to_string()
    };
    let path = FieldPath::new("data").key(key);
    Some(FieldError::invalid(path, "<secret contents redacted>", why))
}

/// Keys that the type demands and that are not there.
fn required_keys(secret: &Value) -> Vec<&'static str> {
    let absent = |keys: &[&'static str]| -> Vec<&'static str> {
        keys.iter()
            .copied()
            .filter(|key| !secret["data"].has(key))
            .collect()
    };
    match secret.text("type") {
        "kubernetes.io/tls" => absent(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => absent(&["ssh-privatekey"]),
        "kubernetes.io/dockercfg" => absent(&[".dockercfg"]),
        "kubernetes.io/dockerconfigjson" => absent(&[".dockerconfigjson"]),
        // One of the two is enough.
        "kubernetes.io/basic-auth" => {
            let absent = absent(&["username", "password"]);
            if absent.len() == 2 { absent } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_becomes_data() {
        let mut new = json!({
            "metadata": {"name": "a", "namespace": "default"}, "stringData": {"b": "x"}, "data": {"a": "eA=="},
        });
        default(&mut new, None);
        assert_eq!(
            (&new["data"], &new["type"]),
            (&json!({"a": "eA==", "b": "eA=="}), &json!("Opaque"))
        );
        assert!(new.get("stringData").is_none());
        assert_eq!(validate(&new, None), []);
    }

    #[test]
    fn types_demand_keys_and_stay() {
        let object = |type_: &str| json!({"metadata": {"name": "a", "namespace": "default"}, "type": type_});
        let found = validate(&object("kubernetes.io/tls"), Some(&object("Opaque")));
        let words: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "data[tls.crt]: Required value",
                "data[tls.key]: Required value",
                "type: Invalid value: \"kubernetes.io/tls\": field is immutable",
            ]
        );
    }
}
