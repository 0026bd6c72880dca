//! Bodies in protobuf, which kubectl sends for some commands from 1.32 on.
//!
//! The form is `k8s\0` and a `runtime.Unknown` whose `raw` holds the object (k8s.io/apimachinery,
//! pkg/runtime/serializer/protobuf). What each message holds stands in `messages.txt`, a line a message, as
//! `NUMBER:JSON_NAME:TYPE`; `generate.py` writes it. Fields that are not there are passed over, as protobuf asks.

mod scalar;
mod table;
#[cfg(test)]
mod tests;

use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::{Map, Value};
use svcnet_api::ApiError;
use table::{Field, Type};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages in messages; the deepest of the real ones has about ten.
const DEPTH_MAX: usize = 40;

/// Turns a body into the object that the same client would have sent as JSON.
///
/// # Errors
/// 400 for what is no such body, and 415 for kinds that are not in the table.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or_else(|| malformed("it does not begin with k8s\\0"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for_each(envelope, |number, content| {
        match (number, content) {
            (1, Content::Bytes(type_meta)) => for_each(type_meta, |number, content| {
                match (number, content) {
                    (1, Content::Bytes(text)) => api_version = scalar::text(text)?,
                    (2, Content::Bytes(text)) => kind = scalar::text(text)?,
                    _ => {}
                }
                Ok(())
            })?,
            (2, Content::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
        Ok(())
    })?;
    let Some(message) = table::root(&api_version, &kind) else {
        let text = format!("{kind} of {api_version} is not understood in protobuf: send JSON");
        return Err(ApiError::new(svcnet_api::Reason::UnsupportedMediaType, text));
    };
    let mut object = message_to_json(message, raw, 0)?;
    object.insert("apiVersion".to_string(), api_version.into());
    object.insert("kind".to_string(), kind.into());
    Ok(Value::Object(object))
}

/// What stands behind a field's number.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

fn malformed(why: &str) -> ApiError {
    ApiError::bad_request(format!("the body is not a Kubernetes object in protobuf: {why}"))
}

fn for_each<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u32, Content<'a>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let cut = |_| malformed("it is cut off or garbled");
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).map_err(cut)?;
        let content = match wire {
            WireType::Varint => Content::Varint(decode_varint(&mut bytes).map_err(cut)?),
            WireType::SixtyFourBit => {
                let (head, rest) = bytes
                    .split_first_chunk()
                    .ok_or_else(|| malformed("it is cut off"))?;
                bytes = rest;
                Content::Fixed64(u64::from_le_bytes(*head))
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(cut)?;
                let length = usize::try_from(length).map_err(|_| malformed("a length is absurd"))?;
                let (head, rest) = bytes
                    .split_at_checked(length)
                    .ok_or_else(|| malformed("it is cut off"))?;
                bytes = rest;
                Content::Bytes(head)
            }
            _ => return Err(malformed("it holds a wire type that Kubernetes does not use")),
        };
        visit(number, content)?;
    }
    Ok(())
}

fn message_to_json(
    fields: &'static [Field],
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, ApiError> {
    if depth > DEPTH_MAX {
        return Err(malformed("it is nested too deeply"));
    }
    let mut object = Map::new();
    for_each(bytes, |number, content| {
        let Some(field) = fields.iter().find(|field| field.number == number) else {
            return Ok(());
        };
        if field.embedded {
            if let (Type::Message(inner), Content::Bytes(bytes)) = (field.type_, content) {
                object.append(&mut message_to_json(table::message(inner), bytes, depth + 1)?);
            }
            return Ok(());
        }
        let name = || field.name.to_string();
        if field.map {
            let (key, value) = map_entry(field.type_, content, depth)?;
            let map = object.entry(name()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
        } else if field.repeated {
            let list = object.entry(name()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(value_to_json(field.type_, content, depth)?);
            }
        } else {
            let value = value_to_json(field.type_, content, depth)?;
            // Go writes fields of plain types even when they are empty; its JSON leaves those out.
            if !is_empty(field.type_, &value) {
                object.insert(name(), value);
            }
        }
        Ok(())
    })?;
    Ok(object)
}

fn map_entry(type_: Type, content: Content<'_>, depth: usize) -> Result<(String, Value), ApiError> {
    let Content::Bytes(entry) = content else {
        return Err(malformed("a map's entry is no message"));
    };
    let (mut key, mut value) = (String::new(), None);
    for_each(entry, |number, content| {
        match (number, content) {
            (1, Content::Bytes(text)) => key = scalar::text(text)?,
            (2, content) => value = Some(value_to_json(type_, content, depth)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, value.unwrap_or_else(|| Value::String(String::new()))))
}

fn value_to_json(type_: Type, content: Content<'_>, depth: usize) -> Result<Value, ApiError> {
    Ok(match (type_, content) {
        (Type::Message(name), Content::Bytes(bytes)) => {
            Value::Object(message_to_json(table::message(name), bytes, depth + 1)?)
        }
        (Type::String, Content::Bytes(bytes)) => scalar::text(bytes)?.into(),
        (Type::Bytes, Content::Bytes(bytes)) => scalar::base64(bytes),
        (Type::Time, Content::Bytes(bytes)) => scalar::time(bytes, false)?,
        (Type::MicroTime, Content::Bytes(bytes)) => scalar::time(bytes, true)?,
        (Type::IntOrString, Content::Bytes(bytes)) => scalar::int_or_string(bytes)?,
        (Type::Quantity, Content::Bytes(bytes)) => scalar::quantity(bytes)?,
        (Type::Json, Content::Bytes(bytes)) => scalar::json(bytes)?,
        (Type::Int32 | Type::Int64, Content::Varint(bits)) => bits.cast_signed().into(),
        (Type::Bool | Type::BoolOrAbsent, Content::Varint(bits)) => (bits != 0).into(),
        (Type::Double, Content::Fixed64(bits)) => f64::from_bits(bits).into(),
        _ => return Err(malformed("a field has the wrong wire type")),
    })
}

fn is_empty(type_: Type, value: &Value) -> bool {
    match (type_, value) {
        (Type::Message(_) | Type::BoolOrAbsent, _) => false,
        (_, Value::Null) => true,
        (_, Value::Bool(set)) => !set,
        (_, Value::String(text)) => text.is_empty(),
        (Type::Int32 | Type::Int64 | Type::IntOrString, Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    }
}
