//! What counts as one field of a value: leaves, the items of lists that can be told apart, and atoms, which are owned as a
//! whole (structured-merge-diff, typed/tofieldset.go, validate.go).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use svcnet_api::schema::{SchemaNode, Type};

use super::path::{Path, Step, StepError};
use super::set::Set;

/// How a place in an object is owned and merged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As a whole: scalars, atomic lists and maps.
    Leaf,
    /// Key by key.
    Map,
    /// Item by item.
    List,
}

/// The shape of a place, of which these are values. What the schema does not describe goes by the values
/// (`__untyped_deduced_`): maps by keys, lists as a whole.
pub(crate) fn shape(schema: Option<SchemaNode>, values: [Option<&Value>; 2]) -> Shape {
    let given = || values.into_iter().flatten().filter(|v| !v.is_null());
    match schema.map(SchemaNode::type_) {
        None | Some(Type::Any) if given().next().is_some() && given().all(Value::is_object) => Shape::Map,
        Some(Type::Object | Type::Map) if schema.is_some_and(|s| !s.atomic_map()) => Shape::Map,
        Some(Type::List) if matches!(schema.and_then(SchemaNode::list_type), Some("set" | "map")) => {
            Shape::List
        }
        _ => Shape::Leaf,
    }
}

/// The entries of a map; none of what is no map.
pub(crate) fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value
        .and_then(Value::as_object)
        .filter(|fields| !fields.is_empty())
}

/// The items of a list; none of what is no list.
pub(crate) fn items(value: Option<&Value>) -> &[Value] {
    value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// The step to an item of a list whose items can be told apart.
pub(crate) fn step_to(list: Option<SchemaNode>, item: &Value) -> Result<Step, StepError> {
    match list {
        Some(list) if list.list_type() == Some("map") => Step::keyed(list, item),
        _ => Step::of_set(item),
    }
}

/// The items of a list by the step that leads to them, in their order. Items that cannot be named are left out.
pub(crate) fn indexed(list: Option<SchemaNode>, items: &[Value]) -> BTreeMap<Step, Vec<&Value>> {
    let mut found: BTreeMap<Step, Vec<&Value>> = BTreeMap::new();
    for item in items {
        if let Ok(step) = step_to(list, item) {
            found.entry(step).or_default().push(item);
        }
    }
    found
}

/// All fields of an object.
pub(crate) fn fields_of(object: &Value, schema: Option<SchemaNode>) -> Set {
    let mut found = Set::default();
    gather(object, schema, &mut Path::default(), &mut found);
    found
}

fn gather(value: &Value, schema: Option<SchemaNode>, at: &mut Path, found: &mut Set) {
    match shape(schema, [Some(value), None]) {
        Shape::Leaf => found.insert(at),
        Shape::Map => {
            for (name, value) in entries(Some(value)).into_iter().flatten() {
                let below = schema.and_then(|s| s.child(name));
                at.within(Step::Field(name.clone()), |at| {
                    gather(value, below, at, found);
                    // Keys of maps are owned besides what they hold; of fields, only those that hold nothing.
                    let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    if empty || schema.and_then(|s| s.property(name)).is_none() {
                        found.insert(at);
                    }
                });
            }
        }
        Shape::List => {
            let below = schema.and_then(SchemaNode::items);
            for (step, same) in indexed(schema, items(Some(value))) {
                at.within(step, |at| {
                    // Several of one key are owned together.
                    if let [one] = same[..] {
                        gather(one, below, at, found);
                    }
                    found.insert(at);
                });
            }
        }
    }
}

/// What of an applied configuration the schema does not allow, in the words of structured-merge-diff.
pub(crate) fn validate(object: &Value, schema: Option<SchemaNode>) -> Vec<String> {
    let mut errors = Vec::new();
    check(object, schema, &mut Path::default(), &mut errors);
    errors
}

fn check(value: &Value, schema: Option<SchemaNode>, at: &mut Path, errors: &mut Vec<String>) {
    let Some(schema) = schema.filter(|s| s.type_() != Type::Any && !value.is_null()) else {
        return;
    };
    match (schema.type_(), value) {
        (Type::Object | Type::Map, Value::Object(fields)) => {
            for (name, value) in fields {
                at.within(Step::Field(name.clone()), |at| match schema.child(name) {
                    Some(below) => check(value, Some(below), at, errors),
                    None => errors.push(format!("{at}: field not declared in schema")),
                });
            }
        }
        (Type::List, Value::Array(items)) => check_list(items, schema, at, errors),
        (Type::Object | Type::Map, other) => {
            errors.push(format!("{at}: expected map, got &{{{}}}", shown(other)))
        }
        (Type::List, other) => errors.push(format!("{at}: expected list, got &{{{}}}", shown(other))),
        (type_, value) => {
            if let Some(wrong) = wrong_scalar(type_, value) {
                errors.push(format!("{at}: {wrong}"));
            }
        }
    }
}

fn check_list(items: &[Value], schema: SchemaNode, at: &mut Path, errors: &mut Vec<String>) {
    let associative = matches!(schema.list_type(), Some("set" | "map"));
    let mut seen = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let step = if associative {
            match step_to(Some(schema), item) {
                Ok(step) => step,
                Err(error) => {
                    errors.push(format!("{at}: element {index}: {error}"));
                    continue;
                }
            }
        } else {
            Step::Index(i64::try_from(index).unwrap_or_default())
        };
        if seen.contains(&step) {
            errors.push(format!("{at}: duplicate entries for key {step}"));
            continue;
        }
        at.within(step.clone(), |at| check(item, schema.items(), at, errors));
        seen.push(step);
    }
}

/// What is wrong with a scalar. The server's Go values show in the words.
fn wrong_scalar(type_: Type, value: &Value) -> Option<String> {
    let go_value = || format!("&value.valueUnstructured{{Value:{}}}", go_syntax(value));
    match type_ {
        Type::Int32 | Type::Int64 | Type::Number if !value.is_number() => {
            Some(format!("expected numeric (int or float), got {}", go_type(value)))
        }
        Type::String | Type::Bytes | Type::Time if !value.is_string() => {
            Some(format!("expected string, got {}", go_value()))
        }
        Type::Boolean if !value.is_boolean() => Some(format!("expected boolean, got &{{{}}}", shown(value))),
        Type::IntOrString | Type::Quantity if value.is_object() || value.is_array() => {
            Some(format!("expected any scalar, got &{{{}}}", shown(value)))
        }
        _ => None,
    }
}

/// `%T`
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// `%#v`
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(k, v)| format!("{k:?}:{}", go_syntax(v)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        Value::Null => "interface {}(nil)".to_string(),
        scalar => scalar.to_string(),
    }
}

/// As Go prints a value, by `%v`.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_string(),
        other => other.to_string(),
    }
}
