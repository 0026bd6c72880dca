//! Strategic merge patches, after k8s.io/apimachinery, pkg/util/strategicpatch.
//!
//! Like RFC 7396, but lists whose schema says `merge` are merged: of objects by the field that the schema names, of plain
//! values as sets. Directives in the patch say what a plain merge cannot: `$patch` (`replace`, `delete`, `merge`) in a map
//! or an item, `$retainKeys` (union types), `$setElementOrder/LIST`, `$deleteFromPrimitiveList/LIST`.

use serde_json::{Map, Value};
use svcnet_api::schema::SchemaNode;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// What is wrong with a patch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StrategicError {
    #[error("unknown patch type found: {0}")]
    Directive(String),
    #[error("merging list items needs a merge key, and the list {0:?} has none")]
    NoMergeKey(String),
    #[error("map: {item} does not contain declared merge key: {key}")]
    KeyMissing { item: String, key: String },
    #[error("the directive {0} must hold a list")]
    NoList(String),
    #[error("{0} must hold all fields of the patch")]
    RetainKeys(&'static str),
    #[error(
        "the list of {0} is not in the order of its $setElementOrder, or has items that it does not name"
    )]
    Order(String),
}

type Result<T> = std::result::Result<T, StrategicError>;
type Object = Map<String, Value>;

/// The object that a patch makes of another.
pub(crate) fn merge(original: Value, patch: Value, schema: Option<SchemaNode>) -> Result<Value> {
    match (original, patch) {
        (Value::Object(original), Value::Object(patch)) => {
            Ok(Value::Object(merge_maps(original, patch, schema)?))
        }
        (_, patch) => Ok(without_directives(patch)),
    }
}

fn merge_maps(mut original: Object, mut patch: Object, schema: Option<SchemaNode>) -> Result<Object> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(how)) if how == "replace" => return Ok(plain(patch)),
        Some(Value::String(how)) if how == "delete" => return Ok(Object::new()),
        Some(Value::String(how)) if how == "merge" => {}
        Some(other) => return Err(StrategicError::Directive(other.to_string())),
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, schema)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            let Value::Array(gone) = value else {
                return Err(StrategicError::NoList(key));
            };
            if let Some(Value::Array(items)) = original.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let below = schema.and_then(|s| s.child(&key));
        let merged = match (original.remove(&key), value) {
            (_, Value::Null) => continue,
            (Some(Value::Object(old)), Value::Object(new)) if !replaces(below) => {
                Value::Object(merge_maps(old, new, below)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if below.is_some_and(SchemaNode::merges) => {
                Value::Array(merge_lists(old, new, below, &key)?)
            }
            (_, new) => without_directives(new),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn replaces(schema: Option<SchemaNode>) -> bool {
    schema.is_some_and(|s| s.patch_strategies().any(|s| s == "replace"))
}

/// `$retainKeys`: of the original stay only these (a volume changes from one source to another).
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(list) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = list else {
        return Err(StrategicError::NoList(RETAIN_KEYS.to_string()));
    };
    let kept = |key: &String| keys.iter().any(|k| k.as_str() == Some(key));
    let fields = patch.iter().filter(|(k, v)| !k.starts_with('$') && !v.is_null());
    if fields.map(|(k, _)| k).any(|k| !kept(k)) {
        return Err(StrategicError::RetainKeys(RETAIN_KEYS));
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Merges the lists whose order the patch gives, and puts them in that order.
fn set_orders(original: &mut Object, patch: &mut Object, schema: Option<SchemaNode>) -> Result<()> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(StrategicError::NoList(directive));
        };
        let name = directive.trim_start_matches(ELEMENT_ORDER);
        let below = schema.and_then(|s| s.child(name));
        let key = below.and_then(SchemaNode::merge_key);
        let gone = patch.remove(&format!("{DELETE_FROM}{name}"));
        let change = match patch.remove(name) {
            Some(Value::Array(change)) => change,
            // `ports: null` beside an order: the list goes.
            Some(Value::Null) => {
                original.remove(name);
                continue;
            }
            Some(other) => {
                original.insert(name.to_string(), without_directives(other));
                continue;
            }
            None => Vec::new(),
        };
        if !follows(&change, &order, key) {
            return Err(StrategicError::Order(name.to_string()));
        }
        let before = match original.get(name) {
            Some(Value::Array(items)) => items.clone(),
            _ => Vec::new(),
        };
        let mut merged = merge_lists(before.clone(), change, below, name)?;
        if let Some(Value::Array(gone)) = gone {
            merged.retain(|item| !gone.contains(item));
        }
        if merged.is_empty() && !original.contains_key(name) {
            continue;
        }
        original.insert(
            name.to_string(),
            Value::Array(ordered(merged, &order, &before, key)),
        );
    }
    Ok(())
}

/// Whether the items of a patch stand in the order that the patch gives.
fn follows(change: &[Value], order: &[Value], key: Option<&str>) -> bool {
    let mut rest = order.iter();
    change
        .iter()
        .filter(|item| item.get(PATCH).is_none())
        .all(|item| rest.any(|o| is_same_item(o, item, key)))
}

/// Items that the order names come in that order; the others keep their place among them as far as that goes.
fn ordered(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|o| is_same_item(o, item, key));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| place(order, i).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (Some(other), Some(named)) => {
                let (other, named) = (place(before, other), place(before, named));
                other.zip(named).is_some_and(|(other, named)| other < named)
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return merged,
        };
        merged.extend(if other_first { others.next() } else { named.next() });
    }
}

/// Whether two items are one: by the key, or as a whole where there is none.
fn is_same_item(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn merge_lists(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    schema: Option<SchemaNode>,
    name: &str,
) -> Result<Vec<Value>> {
    if !original.iter().chain(&patch).any(Value::is_object) {
        for item in patch {
            if !original.contains(&item) {
                original.push(item);
            }
        }
        return Ok(original);
    }
    let key = schema.and_then(SchemaNode::merge_key);
    let items = schema.and_then(SchemaNode::items);
    let (special, patch): (Vec<Value>, Vec<Value>) = patch.into_iter().partition(|i| i.get(PATCH).is_some());
    let mut is_replaced = false;
    for item in special {
        match item[PATCH].as_str() {
            Some("replace") => is_replaced = true,
            Some("delete") => {
                let key = key.ok_or_else(|| StrategicError::NoMergeKey(name.to_string()))?;
                if item.get(key).is_none() {
                    return Err(key_missing(&item, key));
                }
                original.retain(|o| !is_same_item(o, &item, Some(key)));
            }
            _ => return Err(StrategicError::Directive(item[PATCH].to_string())),
        }
    }
    if is_replaced {
        return Ok(patch.into_iter().map(without_directives).collect());
    }
    let key = key.ok_or_else(|| StrategicError::NoMergeKey(name.to_string()))?;
    for item in patch {
        if item.get(key).is_none() {
            return Err(key_missing(&item, key));
        }
        match original.iter_mut().find(|o| is_same_item(o, &item, Some(key))) {
            Some(slot) => *slot = merge(slot.take(), item, items)?,
            None => original.push(without_directives(item)),
        }
    }
    Ok(original)
}

fn key_missing(item: &Value, key: &str) -> StrategicError {
    StrategicError::KeyMissing {
        item: go_text(item),
        key: key.to_string(),
    }
}

/// A value as Go prints it (`%v`), which is how the real server's message has it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", go_text(value)));
            format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
        }
        plain => plain.to_string(),
    }
}

/// A value out of a patch that meets nothing to merge with: directives and nulls have no meaning there.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(plain(fields)),
        Value::Array(items) => {
            let kept = items
                .into_iter()
                .filter(|i| i.get(PATCH).is_none_or(|how| how != "delete"));
            Value::Array(kept.map(without_directives).collect())
        }
        other => other,
    }
}

fn plain(fields: Object) -> Object {
    let kept = fields
        .into_iter()
        .filter(|(k, v)| !v.is_null() && !is_directive(k));
    kept.map(|(k, v)| (k, without_directives(v))).collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM)
}
