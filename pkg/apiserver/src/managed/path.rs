//! One step of a path to a field, as `fieldsV1` names it (structured-merge-diff, fieldpath/serialize-pe.go).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use svcnet_api::schema::SchemaNode;

/// A step from a value into it. Values in it are held as their canonical JSON, so that equal steps are equal texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A field of an object, or a key of a map: `f:spec`.
    Field(String),
    /// An item of a list whose items have keys: `k:{"port":80,"protocol":"TCP"}`.
    Key(String),
    /// An item of a list that is a set: `v:"example.com/finalizer"`.
    Value(String),
    /// An item by its place: `i:0`. Read, never written.
    Index(i64),
}

/// Why a list is none whose items can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StepError {
    #[error("associative list with keys may not have a null element")]
    NullItem,
    #[error("associative list with keys may not have non-map elements")]
    NoMap,
    #[error(
        "associative list with keys has an element that omits key field {0:?} (and doesn't have default value)"
    )]
    KeyMissing(String),
    #[error("associative list without keys has an element that's a map type")]
    MapInSet,
    #[error("not supported: associative list with lists as elements")]
    ListInSet,
    #[error("associative list without keys has an element that's an explicit null")]
    NullInSet,
}

impl Step {
    /// The step to an item of a list with keys.
    pub(crate) fn keyed(list: SchemaNode, item: &Value) -> Result<Self, StepError> {
        let fields = match item {
            Value::Object(fields) => fields,
            Value::Null => return Err(StepError::NullItem),
            _ => return Err(StepError::NoMap),
        };
        let mut keys = BTreeMap::new();
        for name in list.list_map_keys() {
            let value = match fields.get(name) {
                Some(value) => value.clone(),
                None => key_default(name).ok_or_else(|| StepError::KeyMissing(name.clone()))?,
            };
            keys.insert(name.as_str(), value);
        }
        Ok(Self::Key(serde_json::json!(keys).to_string()))
    }

    /// The step to an item of a set.
    pub(crate) fn of_set(item: &Value) -> Result<Self, StepError> {
        match item {
            Value::Object(_) => Err(StepError::MapInSet),
            Value::Array(_) => Err(StepError::ListInSet),
            Value::Null => Err(StepError::NullInSet),
            scalar => Ok(Self::Value(scalar.to_string())),
        }
    }

    /// As `fieldsV1` writes it.
    pub(crate) fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    /// What [`Self::encode`] has written; nothing for what it has not.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let (prefix, rest) = text.split_once(':')?;
        match prefix {
            "f" => Some(Self::Field(rest.to_string())),
            "k" => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Self::Key(serde_json::json!(keys).to_string()))
            }
            "v" => Some(Self::Value(serde_json::from_str::<Value>(rest).ok()?.to_string())),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

/// The one key of a list that has a default in the schemas of Kubernetes: the `protocol` of ports. The package that our
/// schemas are made from leaves defaults out.
fn key_default(name: &str) -> Option<Value> {
    (name == "protocol").then(|| "TCP".into())
}

/// As messages about conflicts write it: `.spec`, `[port=80,protocol="TCP"]`, `[="a"]`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(f, "[{}]", pairs.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The steps from an object to a field of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    /// The path through these fields.
    pub(crate) fn fields(names: &[&str]) -> Self {
        Self(
            names
                .iter()
                .map(|name| Step::Field((*name).to_string()))
                .collect(),
        )
    }

    /// Does something one step further in.
    pub(crate) fn within<T>(&mut self, step: Step, then: impl FnOnce(&mut Self) -> T) -> T {
        self.0.push(step);
        let done = then(self);
        self.0.pop();
        done
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "{step}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_written_as_kubernetes_writes_them_and_read_again() {
        for (written, shown) in [
            ("f:spec", ".spec"),
            ("f:a:b/c", ".a:b/c"),
            (r#"k:{"port":80,"protocol":"TCP"}"#, r#"[port=80,protocol="TCP"]"#),
            (r#"v:"example.com/x""#, r#"[="example.com/x"]"#),
            ("v:5", "[=5]"),
            ("i:3", "[3]"),
        ] {
            let step = Step::decode(written).unwrap();
            assert_eq!(
                (step.encode().as_str(), step.to_string().as_str()),
                (written, shown)
            );
        }
        let unordered = Step::decode(r#"k:{"protocol": "TCP", "port": 80}"#).unwrap();
        assert_eq!(unordered.encode(), r#"k:{"port":80,"protocol":"TCP"}"#);
        for wrong in ["", "spec", "x:1", "k:5", "v:", "i:x"] {
            assert_eq!(Step::decode(wrong), None, "{wrong}");
        }
    }
}
