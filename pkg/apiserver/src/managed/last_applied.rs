//! The annotation of client-side apply, as far as server-side apply of kubectl knows it (apimachinery, lastappliedmanager.go,
//! lastappliedupdater.go): users change from one to the other without conflicts, and back without surprises.

use serde_json::Value;
use svcnet_api::meta;
use svcnet_api::schema::SchemaNode;

use super::merge::compare;
use super::set::Set;
use super::walk::fields_of;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// TotalAnnotationSizeLimitB: what would be larger is left out.
const ANNOTATIONS_SIZE_MAX: usize = 256 * 1024;

/// The fields that client-side apply has set, and that are as it has set them.
pub(super) fn fields(live: &Value, api_version: &str, schema: Option<SchemaNode>) -> Set {
    let last = meta::annotation(live, ANNOTATION).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(last) = last.filter(|l| l.get("apiVersion").and_then(Value::as_str) == Some(api_version)) else {
        return Set::default();
    };
    let differ = compare(&last, live, schema);
    fields_of(&last, schema)
        .difference(&differ.modified)
        .difference(&differ.added)
        .difference(&differ.removed)
}

/// Writes into the annotation what was applied just now, where it is there.
pub(super) fn keep_up(object: &mut Value, applied: &Value) {
    if meta::annotation(object, ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut applied = applied.clone();
    let annotations = applied.get_mut("metadata").and_then(|m| m.get_mut("annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    // Go's encoder escapes these, and ends with a line feed.
    let text = applied
        .to_string()
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        + "\n";
    let Some(annotations) = object["metadata"]["annotations"].as_object_mut() else {
        return;
    };
    annotations.insert(ANNOTATION.to_string(), text.into());
    let size: usize = annotations
        .iter()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > ANNOTATIONS_SIZE_MAX {
        annotations.remove(ANNOTATION);
    }
}
