//! What a strategic merge patch says about itself, in keys that begin with `$`.

use serde_json::{Map, Value};
use svcnet_api::ApiError;

/// `$patch` in an object or in an item of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directive {
    /// Merge, which is what happens without a directive.
    Merge,
    /// Put the patch in place of what is there.
    Replace,
    /// Remove what is there.
    Delete,
}

impl Directive {
    /// The directive of an object; a value that is none of the three is an error.
    pub(super) fn of(patch: &Map<String, Value>) -> Result<Self, ApiError> {
        match patch.get("$patch") {
            None => Ok(Self::Merge),
            Some(Value::String(text)) if text == "merge" => Ok(Self::Merge),
            Some(Value::String(text)) if text == "replace" => Ok(Self::Replace),
            Some(Value::String(text)) if text == "delete" => Ok(Self::Delete),
            Some(other) => Err(ApiError::bad_request(format!("unknown patch type: {other}"))),
        }
    }
}

/// The list under `$retainKeys`: fields of the object that stay, all others go.
pub(super) fn retained(patch: &Map<String, Value>) -> Option<Vec<&str>> {
    let keys = patch.get("$retainKeys")?.as_array()?;
    Some(keys.iter().filter_map(Value::as_str).collect())
}

/// The lists under `$deleteFromPrimitiveList/FIELD` and `$setElementOrder/FIELD`.
pub(super) fn list<'a>(
    patch: &'a Map<String, Value>,
    directive: &str,
    field: &str,
) -> Option<&'a Vec<Value>> {
    patch.get(&format!("{directive}/{field}"))?.as_array()
}

/// Whether a key of a patch is about the patch rather than about the object.
pub(super) fn is_directive(key: &str) -> bool {
    key == "$patch" || key == "$retainKeys" || key.starts_with("$setElementOrder/") || is_removal(key)
}

/// The field that `$deleteFromPrimitiveList/FIELD` is about.
pub(super) fn is_removal(key: &str) -> bool {
    key.starts_with("$deleteFromPrimitiveList/")
}

/// A value of a patch as it is stored: without directives and nulls.
pub(super) fn stripped(patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, value)| !is_directive(key) && !value.is_null())
            .map(|(key, value)| (key.clone(), stripped(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items
            .iter()
            .filter(|item| item.get("$patch").and_then(Value::as_str) != Some("delete"))
            .filter(|item| {
                !item
                    .as_object()
                    .is_some_and(|o| o.len() == 1 && o.contains_key("$patch"))
            })
            .map(stripped)
            .collect::<Vec<_>>()
            .into(),
        other => other.clone(),
    }
}
