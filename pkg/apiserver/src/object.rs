//! Objects as stored: their metadata, and the way from JSON to the store's bytes and back.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use svcnet_api::ApiError;
use svcnet_store::{Entry, Template};

use crate::managed;

/// Letters of generated names: none that makes words or is taken for another.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// What a record of the server's own begins with, before its revision.
const RECORD_HEAD: &[u8] = b"{\"revision\":";
/// Names that get a suffix are cut to this length first.
const GENERATE_MAX: usize = 63 - SUFFIX_LENGTH;

/// How deep what is stored may nest. No kind needs it, but `fieldsV1` may hold anything, and clients that read a list of such
/// objects give up at 128 levels (serde_json), so that one object would keep every informer of its kind from going on.
pub(crate) const DEPTH_MAX: usize = 100;

/// Refuses what nests too deep.
pub(crate) fn check_depth(object: &Value) -> Result<(), ApiError> {
    if nests_deeper(object, DEPTH_MAX) {
        let why = format!("the object nests deeper than {DEPTH_MAX} levels");
        return Err(ApiError::bad_request(why));
    }
    Ok(())
}

/// Whether there are more than so many arrays and objects around each other. Takes no stack, however deep it is.
pub(crate) fn nests_deeper(value: &Value, levels: usize) -> bool {
    let mut open = vec![(value, levels)];
    while let Some((value, left)) = open.pop() {
        let inner: &mut dyn Iterator<Item = &Value> = match value {
            Value::Array(items) => &mut items.iter(),
            Value::Object(fields) => &mut fields.values(),
            _ => continue,
        };
        let Some(left) = left.checked_sub(1) else {
            return true;
        };
        open.extend(inner.map(|value| (value, left)));
    }
    false
}

/// A stored object, parsed.
pub(crate) fn parse(entry: &Entry) -> Result<Value, ApiError> {
    serde_json::from_slice(&entry.value)
        .map_err(|e| ApiError::internal(format!("a stored object is damaged: {e}")))
}

/// The object's bytes, with a hole for the revision that the store will give it.
pub(crate) fn template(object: &Value) -> Template {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut before = String::from("{");
    for name in ["apiVersion", "kind"] {
        if let Some(value) = fields.get(name) {
            before.push_str(&format!("\"{name}\":{value},"));
        }
    }
    before.push_str("\"metadata\":{");
    for (name, value) in fields
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty)
    {
        if name != "resourceVersion" {
            before.push_str(&format!("{}:{value},", Value::from(name.as_str())));
        }
    }
    before.push_str("\"resourceVersion\":\"");
    let mut after = String::from("\"}");
    for (name, value) in fields {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            after.push_str(&format!(",{}:{value}", Value::from(name.as_str())));
        }
    }
    after.push('}');
    Template::new(before.into_bytes(), after.into_bytes())
}

/// The template of what is stored: of an object, or of a record of the server's own, which begins with its revision.
pub(crate) fn template_of(stored: &[u8]) -> Option<Template> {
    let value: Value = serde_json::from_slice(stored).ok()?;
    if value.get("metadata").is_some() {
        return Some(template(&value));
    }
    let rest = stored.strip_prefix(RECORD_HEAD)?;
    let end = rest.iter().position(|b| !b.is_ascii_digit())?;
    Some(Template::new(RECORD_HEAD.to_vec(), rest[end..].to_vec()))
}

/// `metadata`, which [`crate::decode::checked`] has made sure is there.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(fields) => fields,
        _ => unreachable!("invariant: it was just made an object"),
    }
}

/// A text in `metadata`; empty where there is none.
pub(crate) fn meta_text<'a>(object: &'a Value, field: &str) -> &'a str {
    let value = object.get("metadata").and_then(|m| m.get(field));
    value.and_then(Value::as_str).unwrap_or_default()
}

/// The time as metadata has it.
pub(crate) fn now() -> String {
    time(Timestamp::now())
}

/// A time as metadata has it.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name after `generateName`.
pub(crate) fn generated_name(base: &str) -> String {
    let cut = base
        .char_indices()
        .nth(GENERATE_MAX)
        .map_or(base.len(), |(at, _)| at);
    let letters = (0..SUFFIX_LENGTH).map(|_| {
        let index = usize::from(rand::random::<u8>()) % SUFFIX_LETTERS.len();
        char::from(SUFFIX_LETTERS[index])
    });
    base[..cut].chars().chain(letters).collect()
}

/// Whether anything in `metadata.finalizers` (or, where the kind has them, `spec.finalizers`) keeps the object alive.
pub(crate) fn is_held(object: &Value, spec_too: bool) -> bool {
    let some = |part: &str| {
        let list = object
            .get(part)
            .and_then(|p| p.get("finalizers"))
            .and_then(Value::as_array);
        list.is_some_and(|l| !l.is_empty())
    };
    some("metadata") || spec_too && some("spec")
}

/// Whether the object is on its way out.
pub(crate) fn is_terminating(object: &Value) -> bool {
    !meta_text(object, "deletionTimestamp").is_empty()
}

/// Whether two objects say the same, apart from the revision and the times of managed fields.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        metadata(&mut v).remove("resourceVersion");
        metadata(&mut v).remove("managedFields");
        v
    };
    let managed = |v: &Value| v.get("metadata").and_then(|m| m.get("managedFields")).cloned();
    strip(a) == strip(b) && (managed(a) == managed(b) || managed::same_but_times(a, b))
}

/// Whether anything differs that `metadata.generation` counts: all but metadata and status.
pub(crate) fn spec_differs(a: &Value, b: &Value) -> bool {
    let empty = Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let counted = |name: &&String| !matches!(name.as_str(), "metadata" | "status");
    let differ = |name: &String| a.get(name) != b.get(name);
    a.keys().filter(counted).any(differ) || b.keys().filter(counted).any(differ)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever stands in an object, the store's bytes are the object with the revision in its place.
        #[test]
        fn templates_hold_the_object(
            labels in prop::collection::btree_map(".*", ".*", 0..4),
            name in ".*",
            data in ".*",
        ) {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": {"\"k": data}, "x\"y": 1,
                "metadata": {"name": name, "labels": labels, "resourceVersion": "7", "uid": "u"},
            });
            let Ok(bytes) = fill(&object, 42) else { panic!("not JSON") };
            let mut expect = object;
            expect["metadata"]["resourceVersion"] = "42".into();
            prop_assert_eq!(bytes, expect);
        }
    }

    fn fill(object: &Value, revision: u64) -> Result<Value, serde_json::Error> {
        let text = format!("{:?}", template(object));
        // The template's parts are private to the store; its Debug form shows them as lists of bytes.
        let parts: Vec<Vec<u8>> = text
            .split('[')
            .skip(1)
            .map(|p| p.split(']').next().unwrap_or_default())
            .map(|p| p.split(", ").filter_map(|n| n.parse().ok()).collect())
            .collect();
        let mut whole = parts[0].clone();
        whole.extend_from_slice(revision.to_string().as_bytes());
        whole.extend_from_slice(&parts[1]);
        serde_json::from_slice(&whole)
    }

    #[test]
    fn levels_are_counted() {
        assert!(!nests_deeper(&json!("text"), 0));
        assert!(nests_deeper(&json!([]), 0) && !nests_deeper(&json!([]), 1));
        let three = json!({"a": 1, "b": [{"c": 2}, 3]});
        assert!(nests_deeper(&three, 2) && !nests_deeper(&three, 3));
    }

    #[test]
    fn generated_names_are_short_and_differ() {
        let long = "x".repeat(100);
        assert_eq!(generated_name(&long).len(), 63);
        let name = generated_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_ne!(generated_name("web-"), generated_name("web-"));
    }

    #[test]
    fn generation_counts_all_but_metadata_and_status() {
        let a = json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {}});
        let mut b = a.clone();
        b["metadata"]["labels"] = json!({"l": "1"});
        b["status"] = json!({"y": 1});
        assert!(!spec_differs(&a, &b));
        b["spec"]["x"] = json!(2);
        assert!(spec_differs(&a, &b));
    }
}
