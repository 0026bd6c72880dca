//! Reads JSON and notices keys that stand twice, which a plain parser drops in silence.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::kind::Kind;

/// Parses a body; what a strict decoder says of keys that stand twice in one object comes along, as in `duplicate field
/// "spec.type"` (the last one of them counts, as in Go).
///
/// # Errors
/// When it is no JSON.
pub fn decode(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let place = Place {
        path: String::new(),
        duplicates: &mut duplicates,
    };
    let value = place.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates))
}

/// The refusal of a body that cannot be read as the kind: `Service in version "v1" cannot be handled as a Service: …`
/// with what [`Check`](super::Check) has found, or the parser's message.
pub fn encode_error(kind: &Kind, why: &str) -> ApiError {
    let Kind { kind, version, .. } = kind;
    ApiError::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
    ))
}

struct Place<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match access.next_element_seed(Place {
                path,
                duplicates: self.duplicates,
            })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            let value = access.next_value_seed(Place {
                path: path.clone(),
                duplicates: self.duplicates,
            })?;
            let doubt = || format!("duplicate field \"{path}\"");
            if fields.insert(key, value).is_some() && !self.duplicates.contains(&doubt()) {
                self.duplicates.push(doubt());
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_kind;

    #[test]
    fn keys_that_stand_twice_are_named_and_the_last_counts() {
        let body =
            br#"{"a": 1, "spec": {"ports": [{"port": 1, "port": 2}], "x": null, "y": -1, "z": 1.5}, "a": 2}"#;
        let (value, duplicates) = decode(body).unwrap();
        assert_eq!(
            value,
            json!({"a": 2, "spec": {"ports": [{"port": 2}], "x": null, "y": -1, "z": 1.5}})
        );
        assert_eq!(
            duplicates,
            ["duplicate field \"spec.ports[0].port\"", "duplicate field \"a\""]
        );
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in ["", "{", "{} x", "{\"a\":}"] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn refusals_name_kind_and_version() {
        let error = encode_error(
            by_kind("v1", "Service").unwrap(),
            "strict decoding error: unknown field \"x\"",
        );
        assert_eq!(
            error.to_string(),
            "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"x\""
        );
    }
}
