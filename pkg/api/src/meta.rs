//! Short ways to the metadata of an object held as JSON.

use serde_json::Value;

/// `metadata.name`, or nothing.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.namespace`, or nothing.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.labels[key]`.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// `metadata.annotations[key]`.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}
