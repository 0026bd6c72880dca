//! Strategic merge: like a merge patch, but lists whose items have a key are merged item by item.
//!
//! Follows k8s.io/apimachinery, pkg/util/strategicpatch. Which lists merge, and by which key, stands in the schema
//! (`x-kubernetes-patch-strategy`, `x-kubernetes-patch-merge-key`).

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use svcnet_api::ApiError;
use svcnet_api::schema::SchemaNode;

use super::directives::{self, Directive};

/// The object after the patch.
pub(super) fn merge(schema: Option<SchemaNode>, patch: &Value, current: &Value) -> Result<Value, ApiError> {
    let empty = Map::new();
    let patch = patch.as_object().unwrap_or(&empty);
    let current = current.as_object().unwrap_or(&empty);
    Ok(Value::Object(merge_object(schema, patch, current)?))
}

fn merge_object(
    schema: Option<SchemaNode>,
    patch: &Map<String, Value>,
    current: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    match Directive::of(patch)? {
        Directive::Delete => return Ok(Map::new()),
        Directive::Replace => return Ok(stripped_object(patch)),
        Directive::Merge => {}
    }
    let mut merged = current.clone();
    if let Some(kept) = directives::retained(patch) {
        merged.retain(|key, _| kept.contains(&key.as_str()));
    }
    for (key, value) in patch {
        if directives::is_directive(key) {
            continue;
        }
        let below = schema.and_then(|node| node.child(key));
        let old = merged.get(key);
        let new = match (value, old) {
            (Value::Null, _) => None,
            (Value::Object(patch), Some(Value::Object(old))) => {
                let removed = Directive::of(patch)? == Directive::Delete;
                (!removed)
                    .then(|| merge_object(below, patch, old).map(Value::Object))
                    .transpose()?
            }
            (Value::Object(patch), _) => {
                let removed = Directive::of(patch)? == Directive::Delete;
                (!removed)
                    .then(|| merge_object(below, patch, &Map::new()).map(Value::Object))
                    .transpose()?
            }
            (Value::Array(items), old) => {
                let old = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                Some(Value::Array(merge_list(below, patch, key, items, old)?))
            }
            (other, _) => Some(other.clone()),
        };
        match new {
            Some(new) => _ = merged.insert(key.clone(), new),
            None => _ = merged.remove(key),
        }
    }
    without_patched_list(schema, patch, &mut merged)?;
    Ok(merged)
}

/// `$deleteFromPrimitiveList` and `$setElementOrder` may stand alone, with no list of the same name in the patch.
fn without_patched_list(
    schema: Option<SchemaNode>,
    patch: &Map<String, Value>,
    merged: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let fields: BTreeSet<&str> = patch
        .keys()
        .filter_map(|key| key.strip_prefix('$')?.split_once('/'))
        .map(|p| p.1)
        .collect();
    for field in fields.into_iter().filter(|field| !patch.contains_key(*field)) {
        let Some(old) = merged.get(field).and_then(Value::as_array).cloned() else {
            continue;
        };
        let below = schema.and_then(|node| node.property(field));
        let list = merge_list(below, patch, field, &[], &old)?;
        merged.insert(field.to_string(), Value::Array(list));
    }
    Ok(())
}

fn merge_list(
    schema: Option<SchemaNode>,
    parent: &Map<String, Value>,
    field: &str,
    patch: &[Value],
    current: &[Value],
) -> Result<Vec<Value>, ApiError> {
    let order = directives::list(parent, "$setElementOrder", field);
    let merges = schema.is_some_and(SchemaNode::merges);
    if !merges {
        return Ok(patch.iter().map(directives::stripped).collect());
    }
    let Some(key) = schema.and_then(SchemaNode::merge_key) else {
        let removed = directives::list(parent, "$deleteFromPrimitiveList", field);
        return Ok(merge_scalars(patch, current, removed, order));
    };
    let items = merge_items(schema.and_then(SchemaNode::items), key, patch, current)?;
    Ok(order.map_or_else(
        || items.clone(),
        |order| ordered(&items, order, |item| item.get(key), |o| o.get(key)),
    ))
}

/// Items with a key: each of the patch is merged into the item of the same key, or added at the end.
fn merge_items(
    schema: Option<SchemaNode>,
    key: &str,
    patch: &[Value],
    current: &[Value],
) -> Result<Vec<Value>, ApiError> {
    let replaces = |item: &Value| item.get("$patch").and_then(Value::as_str) == Some("replace");
    if patch.iter().any(|item| replaces(item) && item.get(key).is_none()) {
        return Ok(patch
            .iter()
            .filter(|item| !replaces(item))
            .map(directives::stripped)
            .collect());
    }
    let mut merged = current.to_vec();
    for item in patch {
        let Some(fields) = item.as_object() else {
            return Err(ApiError::bad_request(format!(
                "an item with the key {key:?} is expected, not {item}"
            )));
        };
        let Some(id) = fields.get(key) else {
            let why = format!("map: {item} does not contain declared merge key: {key}");
            return Err(ApiError::bad_request(why));
        };
        let same = |other: &Value| other.get(key) == Some(id);
        match Directive::of(fields)? {
            Directive::Delete => merged.retain(|other| !same(other)),
            Directive::Replace | Directive::Merge => {
                let old = merged.iter().position(same);
                let before = old
                    .and_then(|i| merged[i].as_object())
                    .cloned()
                    .unwrap_or_default();
                let new = Value::Object(merge_object(schema, fields, &before)?);
                match old {
                    Some(i) => merged[i] = new,
                    None => merged.push(new),
                }
            }
        }
    }
    Ok(merged)
}

/// Plain values: those of the patch join the list, those under `$deleteFromPrimitiveList` leave it.
fn merge_scalars(
    patch: &[Value],
    current: &[Value],
    removed: Option<&Vec<Value>>,
    order: Option<&Vec<Value>>,
) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for value in current
        .iter()
        .filter(|v| !removed.is_some_and(|r| r.contains(v)))
        .chain(patch)
    {
        if !merged.contains(value) {
            merged.push(value.clone());
        }
    }
    order.map_or_else(
        || merged.clone(),
        |order| ordered(&merged, order, |v| Some(v), |o| Some(o)),
    )
}

/// The items in the order that the patch asks for. Items that it does not name (they are the server's own) keep their
/// place after the named item that stood before them.
fn ordered<'a>(
    items: &'a [Value],
    order: &'a [Value],
    id: impl Fn(&'a Value) -> Option<&'a Value>,
    order_id: impl Fn(&'a Value) -> Option<&'a Value>,
) -> Vec<Value> {
    let rank = |item: &'a Value| {
        order
            .iter()
            .position(|o| order_id(o).is_some() && order_id(o) == id(item))
    };
    let mut ranked: Vec<(usize, usize, &Value)> = Vec::with_capacity(items.len());
    let mut last = 0;
    for (place, item) in items.iter().enumerate() {
        // Ranks are doubled, so that what is not named sorts behind what stood before it.
        last = rank(item).map_or(last | 1, |rank| 2 * (rank + 1));
        ranked.push((last, place, item));
    }
    ranked.sort_by_key(|(rank, place, _)| (*rank, *place));
    ranked.into_iter().map(|(_, _, item)| item.clone()).collect()
}

fn stripped_object(patch: &Map<String, Value>) -> Map<String, Value> {
    match directives::stripped(&Value::Object(patch.clone())) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
