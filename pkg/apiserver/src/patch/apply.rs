//! Server-side apply, in its simple form: what the caller gives is merged in by the schema's list keys, and nothing is
//! ever taken away, because nobody is remembered as the owner of a field.

use serde_json::Value;
use svcnet_api::schema::SchemaNode;

/// The object that an applied configuration makes of another.
pub(crate) fn merge(live: Value, applied: Value, schema: Option<SchemaNode>) -> Value {
    match (live, applied) {
        (Value::Object(mut live), Value::Object(applied)) if !schema.is_some_and(SchemaNode::atomic_map) => {
            for (key, value) in applied {
                let below = schema.and_then(|s| s.child(&key));
                let merged = match live.remove(&key) {
                    _ if value.is_null() => continue,
                    Some(old) => merge(old, value, below),
                    None => value,
                };
                live.insert(key, merged);
            }
            Value::Object(live)
        }
        (Value::Array(live), Value::Array(applied)) => Value::Array(merge_lists(live, applied, schema)),
        (_, applied) => applied,
    }
}

fn merge_lists(mut live: Vec<Value>, applied: Vec<Value>, schema: Option<SchemaNode>) -> Vec<Value> {
    let keys = schema.map(SchemaNode::list_map_keys).unwrap_or_default();
    match schema.and_then(SchemaNode::list_type) {
        Some("set") => {
            let new: Vec<Value> = applied.into_iter().filter(|i| !live.contains(i)).collect();
            live.extend(new);
            live
        }
        Some("map") if !keys.is_empty() => {
            let items = schema.and_then(SchemaNode::items);
            for item in applied {
                let same = |other: &&mut Value| keys.iter().all(|k| key(other, k) == key(&item, k));
                match live.iter_mut().find(same) {
                    Some(slot) => *slot = merge(slot.take(), item, items),
                    None => live.push(item),
                }
            }
            live
        }
        _ => applied,
    }
}

/// A key of a list item. `protocol` is the one key with a default in these schemas, and the one that is left out.
fn key<'a>(item: &'a Value, name: &str) -> std::borrow::Cow<'a, Value> {
    match item.get(name) {
        Some(value) => std::borrow::Cow::Borrowed(value),
        None if name == "protocol" => std::borrow::Cow::Owned("TCP".into()),
        None => std::borrow::Cow::Owned(Value::Null),
    }
}
