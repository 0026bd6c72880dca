//! Checks objects against their schema in the words of a strict kube-apiserver, and drops what a lenient one would.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::model::{SchemaNode, Type};
use crate::kind::Kind;
use crate::types::{QuantityError, canonical_quantity};

/// What is wrong with the form of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Fields that the kind does not have, as in `spec.ports[0].foo`.
    pub unknown: Vec<String>,
    /// The first value of a wrong type: `json: cannot unmarshal string into Go struct field …`. Refused whatever
    /// `fieldValidation` says.
    pub type_error: Option<String>,
}

impl Check {
    /// What `fieldValidation=Warn` says in `Warning` headers: `unknown field "spec.foo"`. `doubts` are those of the decoder
    /// before ([`decode`](super::decode)).
    pub fn warnings(&self, doubts: &[String]) -> Vec<String> {
        let unknown = self
            .unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""));
        unknown.chain(doubts.iter().cloned()).collect()
    }

    /// What `fieldValidation=Strict` refuses: `strict decoding error: unknown field "spec.foo", …`.
    pub fn strict_error(&self, doubts: &[String]) -> Option<String> {
        let warnings = self.warnings(doubts);
        (!warnings.is_empty()).then(|| format!("strict decoding error: {}", warnings.join(", ")))
    }
}

/// Compares an object with the schema of its kind.
pub fn check(kind: &Kind, object: &Value) -> Check {
    let mut walk = Walk {
        struct_name: "",
        fields: Vec::new(),
        path: String::new(),
        found: Check::default(),
    };
    if let Some(root) = SchemaNode::root(kind) {
        walk.value(object, root);
    }
    walk.found
}

/// Drops fields that the kind does not have, and those that are null: decoding into a Go type does the same. Items of lists
/// and entries of maps that are null become the zero value of their type: a label without a value has an empty one. Quantities
/// get their one form.
pub fn prune(kind: &Kind, object: &mut Value) {
    if let Some(root) = SchemaNode::root(kind) {
        prune_value(object, root);
    }
}

fn prune_value(value: &mut Value, schema: SchemaNode) {
    match (value, schema.type_()) {
        (_, Type::Any) => {}
        (value, Type::Quantity) => {
            if let Ok(canonical) = quantity(value) {
                *value = canonical.into();
            }
        }
        (Value::Object(fields), _) => fields.retain(|name, value| {
            let Some(child) = schema.child(name) else {
                return false;
            };
            if value.is_null() && schema.property(name).is_none() {
                *value = zero(child.type_());
            }
            prune_value(value, child);
            !value.is_null()
        }),
        (Value::Array(items), _) => {
            if let Some(schema) = schema.items() {
                for item in items {
                    if item.is_null() {
                        *item = zero(schema.type_());
                    }
                    prune_value(item, schema);
                }
            }
        }
        _ => {}
    }
}

/// A quantity in the form that it is shown in: it may be given as a number too.
fn quantity(value: &Value) -> Result<String, QuantityError> {
    match value {
        Value::String(text) => canonical_quantity(text),
        Value::Number(number) => canonical_quantity(&number.to_string()),
        _ => Err(QuantityError::Format),
    }
}

/// What Go makes of a null in a list or a map.
fn zero(type_: Type) -> Value {
    match type_ {
        Type::Object | Type::Map => Value::Object(Map::new()),
        Type::List => Value::Array(Vec::new()),
        Type::String | Type::Bytes => Value::from(""),
        Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => Value::from(0),
        Type::Boolean => Value::from(false),
        Type::Quantity => Value::from("0"),
        Type::Time | Type::Any => Value::Null,
    }
}

struct Walk {
    /// The innermost Go struct, and the names of the fields that lead into it: Go's messages hold no list indexes.
    struct_name: &'static str,
    fields: Vec<String>,
    path: String,
    found: Check,
}

impl Walk {
    fn value(&mut self, value: &Value, schema: SchemaNode) {
        match (schema.type_(), value) {
            (Type::Any, _)
            | (_, Value::Null)
            | (Type::String | Type::IntOrString, Value::String(_))
            | (Type::Number, Value::Number(_))
            | (Type::Boolean, Value::Bool(_)) => {}
            (Type::Object, Value::Object(fields)) => {
                let outside = std::mem::replace(&mut self.struct_name, schema.struct_name());
                for (name, value) in fields {
                    match schema.property(name) {
                        Some(child) => {
                            self.fields.push(name.clone());
                            self.step(&format!(".{name}"), value, child);
                            self.fields.pop();
                        }
                        None => self.unknown(name),
                    }
                }
                self.struct_name = outside;
            }
            (Type::Map, Value::Object(entries)) => {
                if let Some(child) = schema.additional_properties() {
                    entries
                        .iter()
                        .for_each(|(name, value)| self.step(&format!(".{name}"), value, child));
                }
            }
            (Type::List, Value::Array(items)) => {
                if let Some(child) = schema.items() {
                    items
                        .iter()
                        .enumerate()
                        .for_each(|(i, v)| self.step(&format!("[{i}]"), v, child));
                }
            }
            (Type::Bytes, Value::String(text)) => self.base64(text),
            (Type::Time, Value::String(text)) => self.time(text),
            (Type::Quantity, value) => {
                if let Err(error) = quantity(value) {
                    self.fail(error.to_string());
                }
            }
            (Type::Int32 | Type::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (Type::Int64, Value::Number(n)) if n.is_i64() => {}
            (_, value) => self.mismatch(value, schema),
        }
    }

    fn step(&mut self, step: &str, value: &Value, schema: SchemaNode) {
        let length = self.path.len();
        self.path.push_str(step);
        self.value(value, schema);
        self.path.truncate(length);
    }

    fn unknown(&mut self, name: &str) {
        let path = format!("{}.{name}", self.path);
        self.found.unknown.push(path.trim_start_matches('.').to_string());
    }

    fn mismatch(&mut self, value: &Value, schema: SchemaNode) {
        let given = match value {
            Value::Null => "null".to_string(),
            Value::Bool(_) => "bool".to_string(),
            Value::Number(n) if matches!(schema.type_(), Type::Int32 | Type::Int64 | Type::IntOrString) => {
                format!("number {n}")
            }
            Value::Number(_) => "number".to_string(),
            Value::String(_) => "string".to_string(),
            Value::Array(_) => "array".to_string(),
            Value::Object(_) => "object".to_string(),
        };
        let into = match schema.type_() {
            // These decode themselves, so the message does not know where it is.
            Type::IntOrString | Type::Time => "Go value".to_string(),
            _ if self.struct_name.is_empty() => "Go value".to_string(),
            _ => format!("Go struct field {}.{}", self.struct_name, self.fields.join(".")),
        };
        self.fail(format!(
            "json: cannot unmarshal {given} into {into} of type {}",
            schema.go_type()
        ));
    }

    fn base64(&mut self, text: &str) {
        let at = match STANDARD.decode(text) {
            Ok(_) => return,
            Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
                at
            }
            Err(_) => text.len(),
        };
        self.fail(format!("illegal base64 data at input byte {at}"));
    }

    fn time(&mut self, text: &str) {
        if text.parse::<jiff::Timestamp>().is_err() {
            let layout = "2006-01-02T15:04:05Z07:00";
            self.fail(format!(
                "parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\""
            ));
        }
    }

    fn fail(&mut self, message: String) {
        self.found.type_error.get_or_insert(message);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_kind;

    fn checked(kind: &str, object: &Value) -> Check {
        check(by_kind("v1", kind).unwrap(), object)
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let found = checked(
            "Service",
            &json!({"spec": {"foo": 1, "ports": [{"port": 80}, {"port": 81, "prot": "TCP"}]}, "x": {}}),
        );
        assert_eq!(found.unknown, ["spec.foo", "spec.ports[1].prot", "x"]);
        assert_eq!(
            found
                .strict_error(&["duplicate field \"spec.type\"".to_string()])
                .unwrap(),
            "strict decoding error: unknown field \"spec.foo\", unknown field \"spec.ports[1].prot\", unknown field \
             \"x\", duplicate field \"spec.type\""
        );
        assert_eq!(found.type_error, None);
    }

    #[test]
    fn wrong_types_read_as_go_says_it() {
        for (kind, object, words) in [
            (
                "Service",
                json!({"spec": {"ports": [{"port": "80"}]}}),
                "json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
            ),
            (
                "Service",
                json!({"spec": {"ports": {}}}),
                "json: cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort",
            ),
            (
                "Service",
                json!({"metadata": {"labels": {"a": 5}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "Service",
                json!({"spec": {"ports": [{"port": 80, "targetPort": true}]}}),
                "json: cannot unmarshal bool into Go value of type int32",
            ),
            (
                "Service",
                json!({"spec": {"ports": [{"port": 3_000_000_000_u64}]}}),
                "json: cannot unmarshal number 3000000000 into Go struct field ServicePort.spec.ports.port of type \
                 int32",
            ),
            (
                "Service",
                json!({"spec": "x"}),
                "json: cannot unmarshal string into Go struct field Service.spec of type v1.ServiceSpec",
            ),
            (
                "Secret",
                json!({"data": {"a": "!"}}),
                "illegal base64 data at input byte 0",
            ),
        ] {
            assert_eq!(checked(kind, &object).type_error.unwrap(), words);
        }
    }

    #[test]
    fn right_objects_pass_and_nulls_are_fine() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"containers": [{
                "name": "a", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": "http"}},
            }]},
            "status": {"startTime": "2026-11-21T02:00:00Z"},
        });
        assert_eq!(checked("Pod", &object), Check::default());
    }

    #[test]
    fn pruning_keeps_what_is_known() {
        let mut object = json!({
            "metadata": {"creationTimestamp": null, "name": "a", "labels": {"any": "b"}, "managedFields": [
                {"fieldsV1": {"f:spec": {}}},
            ]},
            "spec": {"foo": 1, "ports": [{"port": 80, "x": 1, "name": null}]},
        });
        prune(by_kind("v1", "Service").unwrap(), &mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "a", "labels": {"any": "b"}, "managedFields": [{"fieldsV1": {"f:spec": {}}}]},
                "spec": {"ports": [{"port": 80}]},
            })
        );
    }

    /// A selector that lost such an entry would select everything.
    #[test]
    fn entries_of_maps_without_a_value_have_the_empty_one() {
        let mut policy = json!({
            "metadata": {"labels": {"a": null}, "annotations": null},
            "spec": {"podSelector": {"matchLabels": {"role": null}}, "ingress": [{"from": [{"podSelector": null}]}]},
        });
        prune(
            by_kind("networking.k8s.io/v1", "NetworkPolicy").unwrap(),
            &mut policy,
        );
        assert_eq!(
            policy,
            json!({
                "metadata": {"labels": {"a": ""}},
                "spec": {"podSelector": {"matchLabels": {"role": ""}}, "ingress": [{"from": [{}]}]},
            })
        );
        let mut node = json!({"status": {"capacity": {"cpu": null}}});
        prune(by_kind("v1", "Node").unwrap(), &mut node);
        assert_eq!(node, json!({"status": {"capacity": {"cpu": "0"}}}));
        let mut secret = json!({"data": {"a": null}, "stringData": {"b": null}});
        prune(by_kind("v1", "Secret").unwrap(), &mut secret);
        assert_eq!(secret, json!({"data": {"a": ""}, "stringData": {"b": ""}}));
    }
}
