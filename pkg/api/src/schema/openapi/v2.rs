//! `/openapi/v2` in protobuf, the only form that kubectl up to 1.28 reads: without it, `create`, `apply` and `explain`
//! of those versions fail. The message is `openapi.v2.Document` of google/gnostic (openapiv2/OpenAPIv2.proto), of which
//! only what these clients look at is filled in.

use serde_json::{Map, Value};

use crate::rules::Fields;

/// Encodes definitions in the shape of /openapi/v3, and paths made by `add_paths`.
pub(super) fn encode(definitions: &Map<String, Value>, paths: &Map<String, Value>) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, "Kubernetes");
    info.text(2, super::VERSION);
    let mut document = Message::default();
    document.text(1, "2.0");
    document.message(2, &info);
    let mut all = Message::default();
    for (path, item) in paths {
        all.message(2, &named(path, &path_item(item)));
    }
    document.message(8, &all);
    let mut all = Message::default();
    for (name, definition) in definitions {
        all.message(1, &named(name, &schema(definition)));
    }
    document.message(9, &all);
    document.0
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item.has(method) {
            message.message(field, &operation(&item[method]));
        }
    }
    message
}

fn operation(operation: &Value) -> Message {
    let mut message = Message::default();
    for parameter in operation.list("parameters") {
        let mut query = Message::default();
        query.text(2, parameter.text("in"));
        query.text(3, parameter.text("description"));
        query.text(4, parameter.text("name"));
        query.text(6, parameter["schema"].text("type"));
        // ParametersItem, Parameter, NonBodyParameter: each a oneof around the next.
        message.message(8, &wrapped(1, &wrapped(2, &wrapped(3, &query))));
    }
    extensions(&mut message, 13, operation);
    message
}

fn schema(schema: &Value) -> Message {
    let mut message = Message::default();
    let reference = schema.list("allOf").first().unwrap_or(schema).text("$ref");
    if let Some(name) = reference.strip_prefix("#/components/schemas/") {
        message.text(1, &format!("#/definitions/{name}"));
    }
    message.text(2, schema.text("format"));
    message.text(4, schema.text("description"));
    for name in schema.list("required") {
        message.text(19, name.as_str().unwrap_or_default());
    }
    if schema.has("additionalProperties") {
        message.message(21, &wrapped(1, &self::schema(&schema["additionalProperties"])));
    }
    // Version 2 has no oneOf: numbers that may be names, and quantities, are called strings there.
    let type_ = if schema.has("oneOf") {
        "string"
    } else {
        schema.text("type")
    };
    if !type_.is_empty() {
        let mut types = Message::default();
        types.text(1, type_);
        message.message(22, &types);
    }
    if schema.has("items") {
        message.message(23, &wrapped(1, &self::schema(&schema["items"])));
    }
    let mut properties = Message::default();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        properties.message(1, &named(name, &self::schema(property)));
    }
    if !properties.0.is_empty() {
        message.message(25, &properties);
    }
    extensions(&mut message, 31, schema);
    message
}

/// The fields that begin with `x-`, their values as YAML (of which JSON is a part).
fn extensions(message: &mut Message, field: u32, value: &Value) {
    for (name, value) in value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("x-"))
    {
        let mut any = Message::default();
        any.text(2, &value.to_string());
        message.message(field, &named(name, &any));
    }
}

fn named(name: &str, value: &Message) -> Message {
    let mut message = Message::default();
    message.text(1, name);
    message.message(2, value);
    message
}

fn wrapped(field: u32, inner: &Message) -> Message {
    let mut message = Message::default();
    message.message(field, inner);
    message
}

/// A protobuf message as far as it is written; all fields here are texts and messages.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Empty texts are left out, as proto3 does.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u32, message: &Message) {
        self.bytes(field, &message.0);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        // Wire type 2: a length, then as many bytes.
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_encodes_field_by_field() {
        let encoded = schema(&json!({"type": "string", "x-a": 1}));
        let wanted = [
            0xb2, 0x01, 0x08, 0x0a, 0x06, b's', b't', b'r', b'i', b'n',
            b'g', // 22: type { 1: "string" }
            0xfa, 0x01, 0x0a, 0x0a, 0x03, b'x', b'-', b'a', 0x12, 0x03, 0x12, 0x01,
            b'1', // 31: extension
        ];
        assert_eq!(encoded.0, wanted);
        let reference = schema(&json!({"allOf": [{"$ref": "#/components/schemas/a"}], "default": {}}));
        assert_eq!(reference.0, b"\x0a\x0f#/definitions/a");
        let mut long = Message::default();
        long.text(1, &"a".repeat(300));
        assert_eq!(long.0[..3], [0x0a, 0xac, 0x02]);
    }
}
