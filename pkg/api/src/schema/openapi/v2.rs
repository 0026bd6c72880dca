//! `/openapi/v2`, which clients read that are older than version 3: kubectl up to 1.28 (in protobuf alone: without it,
//! `create`, `apply` and `explain` of those versions fail), Terraform, and whoever looks with `kubectl get --raw`. It is made
//! of what version 3 says: a Swagger 2.0 document, and the same as message `openapi.v2.Document` of google/gnostic
//! (openapiv2/OpenAPIv2.proto), of which only what kubectl looks at is filled in.

use serde_json::{Map, Value, json};

use crate::rules::Fields;

/// Where version 3 keeps its definitions.
const SCHEMAS: &str = "#/components/schemas/";
/// What is called the same in both versions, and holds no schema. Defaults are left out, as by the real server.
const KEPT: [&str; 4] = ["description", "format", "required", "type"];

/// The document of definitions in the shape of /openapi/v3, and paths made by [`super::paths::add`].
pub(super) fn document(definitions: &Map<String, Value>, paths: &Map<String, Value>) -> Value {
    let paths: Map<String, Value> = paths
        .iter()
        .map(|(path, item)| (path.clone(), path_item(item)))
        .collect();
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": super::VERSION},
        "paths": paths, "definitions": schemas(definitions),
    })
}

fn path_item(item: &Value) -> Value {
    let convert = |(name, part): (&String, &Value)| {
        let part = match part {
            Value::Array(parameters) => parameters.iter().map(parameter).collect(),
            part => operation(part),
        };
        (name.clone(), part)
    };
    item.as_object().into_iter().flatten().map(convert).collect()
}

fn operation(operation: &Value) -> Value {
    let mut parameters: Vec<Value> = operation.list("parameters").iter().map(parameter).collect();
    let mut converted = extensions(operation);
    if let Some((media, body)) = content(&operation["requestBody"]) {
        let required = operation["requestBody"]["required"] == true;
        parameters.push(json!({"in": "body", "name": "body", "required": required, "schema": body}));
        converted.insert("consumes".to_string(), json!(media));
    }
    converted.insert("parameters".to_string(), parameters.into());
    converted.insert("produces".to_string(), json!(["application/json"]));
    let answers = operation["responses"].as_object().into_iter().flatten();
    let answers: Map<String, Value> = answers
        .map(|(code, answer)| {
            let mut converted = json!({"description": answer["description"]});
            if let Some((_, schema)) = content(answer) {
                converted["schema"] = schema;
            }
            (code.clone(), converted)
        })
        .collect();
    converted.insert("responses".to_string(), answers.into());
    converted.into()
}

/// The media types of a body, and its schema, which is the same for all.
fn content(body: &Value) -> Option<(Vec<&String>, Value)> {
    let content = body["content"].as_object()?;
    let (_, first) = content.iter().next()?;
    Some((content.keys().collect(), schema(&first["schema"])))
}

/// What a parameter's value is stands beside its name here.
fn parameter(parameter: &Value) -> Value {
    let mut converted = parameter.clone();
    let schema = converted
        .as_object_mut()
        .and_then(|fields| fields.remove("schema"));
    for (name, value) in schema.as_ref().and_then(Value::as_object).into_iter().flatten() {
        converted[name] = value.clone();
    }
    converted
}

fn schemas(all: &Map<String, Value>) -> Map<String, Value> {
    all.iter()
        .map(|(name, each)| (name.clone(), schema(each)))
        .collect()
}

fn schema(schema: &Value) -> Value {
    let mut converted = extensions(schema);
    let reference = schema.list("allOf").first().unwrap_or(schema).text("$ref");
    if let Some(name) = reference.strip_prefix(SCHEMAS) {
        converted.insert("$ref".to_string(), format!("#/definitions/{name}").into());
    }
    for name in KEPT.into_iter().filter(|name| schema.has(name)) {
        converted.insert(name.to_string(), schema[name].clone());
    }
    // There is no oneOf: numbers that may be names, and quantities, are called strings.
    if schema.has("oneOf") {
        converted.insert("type".to_string(), "string".into());
    }
    for name in ["additionalProperties", "items"] {
        if schema.has(name) {
            converted.insert(name.to_string(), self::schema(&schema[name]));
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        converted.insert("properties".to_string(), schemas(properties).into());
    }
    converted.into()
}

/// The fields that begin with `x-`.
fn extensions(value: &Value) -> Map<String, Value> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| name.starts_with("x-"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A document in protobuf.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, document["info"].text("title"));
    info.text(2, document["info"].text("version"));
    let mut message = Message::default();
    message.text(1, document.text("swagger"));
    message.message(2, &info);
    let mut all = Message::default();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        all.message(2, &named(path, &path_item_message(item)));
    }
    message.message(8, &all);
    let mut all = Message::default();
    for (name, definition) in document["definitions"].as_object().into_iter().flatten() {
        all.message(1, &named(name, &schema_message(definition)));
    }
    message.message(9, &all);
    message.0
}

fn path_item_message(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item.has(method) {
            message.message(field, &operation_message(&item[method]));
        }
    }
    message
}

fn operation_message(operation: &Value) -> Message {
    let mut message = Message::default();
    let parameters = operation.list("parameters").iter();
    for parameter in parameters.filter(|p| p.text("in") != "body") {
        let mut query = Message::default();
        query.text(2, parameter.text("in"));
        query.text(3, parameter.text("description"));
        query.text(4, parameter.text("name"));
        query.text(6, parameter.text("type"));
        // ParametersItem, Parameter, NonBodyParameter: each a oneof around the next.
        message.message(8, &wrapped(1, &wrapped(2, &wrapped(3, &query))));
    }
    extension_messages(&mut message, 13, operation);
    message
}

fn schema_message(schema: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, schema.text("$ref"));
    message.text(2, schema.text("format"));
    message.text(4, schema.text("description"));
    for name in schema.list("required") {
        message.text(19, name.as_str().unwrap_or_default());
    }
    if schema.has("additionalProperties") {
        let inner = schema_message(&schema["additionalProperties"]);
        message.message(21, &wrapped(1, &inner));
    }
    if schema.has("type") {
        let mut types = Message::default();
        types.text(1, schema.text("type"));
        message.message(22, &types);
    }
    if schema.has("items") {
        message.message(23, &wrapped(1, &schema_message(&schema["items"])));
    }
    let mut properties = Message::default();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        properties.message(1, &named(name, &schema_message(property)));
    }
    if !properties.0.is_empty() {
        message.message(25, &properties);
    }
    extension_messages(&mut message, 31, schema);
    message
}

/// The fields that begin with `x-`, their values as YAML (of which JSON is a part).
fn extension_messages(message: &mut Message, field: u32, value: &Value) {
    for (name, value) in extensions(value) {
        let mut any = Message::default();
        any.text(2, &value.to_string());
        message.message(field, &named(&name, &any));
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
    use super::*;

    #[test]
    fn a_schema_encodes_field_by_field() {
        let encoded = schema_message(&schema(&json!({"type": "string", "x-a": 1})));
        let wanted = [
            0xb2, 0x01, 0x08, 0x0a, 0x06, b's', b't', b'r', b'i', b'n',
            b'g', // 22: type { 1: "string" }
            0xfa, 0x01, 0x0a, 0x0a, 0x03, b'x', b'-', b'a', 0x12, 0x03, 0x12, 0x01,
            b'1', // 31: extension
        ];
        assert_eq!(encoded.0, wanted);
        let reference = schema(&json!({"allOf": [{"$ref": "#/components/schemas/a"}], "default": {}}));
        assert_eq!(schema_message(&reference).0, b"\x0a\x0f#/definitions/a");
        let mut long = Message::default();
        long.text(1, &"a".repeat(300));
        assert_eq!(long.0[..3], [0x0a, 0xac, 0x02]);
    }

    #[test]
    fn what_version_3_says_is_said_in_the_words_of_version_2() {
        let port = json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"});
        let list = json!({"type": "array", "items": {"$ref": "#/components/schemas/p"}, "default": []});
        let whole = json!({"type": "object", "required": ["port"], "properties": {"port": port, "list": list}, "x-a": [1]});
        let list = json!({"type": "array", "items": {"$ref": "#/definitions/p"}});
        let port = json!({"type": "string", "format": "int-or-string"});
        assert_eq!(
            schema(&whole),
            json!({"type": "object", "required": ["port"], "properties": {"port": port, "list": list}, "x-a": [1]})
        );
        let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/a"}}});
        let query =
            json!({"name": "dryRun", "in": "query", "description": "d", "schema": {"type": "string"}});
        let post = json!({
            "parameters": [query], "requestBody": {"content": content, "required": true},
            "responses": {"201": {"description": "Created", "content": content}}, "x-kubernetes-action": "post",
        });
        let reference = json!({"$ref": "#/definitions/a"});
        assert_eq!(
            path_item(&json!({"post": post, "parameters": [query]})),
            json!({
                "parameters": [{"name": "dryRun", "in": "query", "description": "d", "type": "string"}],
                "post": {
                    "consumes": ["application/json"], "produces": ["application/json"], "x-kubernetes-action": "post",
                    "parameters": [
                        {"name": "dryRun", "in": "query", "description": "d", "type": "string"},
                        {"name": "body", "in": "body", "required": true, "schema": reference},
                    ],
                    "responses": {"201": {"description": "Created", "schema": reference}},
                },
            })
        );
    }
}
