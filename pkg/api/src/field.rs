//! Field paths and field errors in the words of k8s.io/apimachinery, pkg/util/validation/field.

use std::fmt;

use serde_json::{Value, json};

/// The place of a field in an object, printed as `spec.ports[0].nodePort`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path of one field.
    pub fn new(name: &str) -> Self {
        Self(name.to_string())
    }

    /// The field `name` below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self::new(name)
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// Element `index` of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Entry `key` of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole object, as `field.NewPath("")` prints itself.
        f.write_str(if self.0.is_empty() { "[]" } else { &self.0 })
    }
}

/// What is wrong with a field, beside the free-text detail.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// The value is malformed or not allowed here. Holds the value as given.
    Invalid(Value),
    /// The same of a struct. Holds it in Go's syntax (`%#v`), which is how the real apiserver prints structs.
    InvalidStruct(String),
    /// A needed value is missing.
    Required,
    /// The value stands twice. Holds the value as given.
    Duplicate(Value),
    /// A whole struct stands twice. Holds it in Go's syntax (`%#v`), which is how the real apiserver prints structs.
    DuplicateStruct(String),
    /// Not one of the known values. Holds the value and the known ones.
    NotSupported(Value, Vec<String>),
    /// The field may not be set (in this combination).
    Forbidden,
    /// The value is longer than the limit in bytes.
    TooLong(usize),
    /// The list has more items (first) than the limit (second).
    TooMany(usize, usize),
}

/// One wrong field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Where.
    pub path: FieldPath,
    /// What.
    pub problem: Problem,
    /// Why; may be empty.
    pub detail: String,
}

impl FieldError {
    /// `PATH: Invalid value: VALUE: DETAIL`
    pub fn invalid(path: FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            path,
            problem: Problem::Invalid(value.into()),
            detail: detail.into(),
        }
    }

    /// `PATH: Invalid value: STRUCT: DETAIL`, the struct in Go's syntax.
    pub fn invalid_struct(path: FieldPath, value: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            path,
            problem: Problem::InvalidStruct(value.into()),
            detail: detail.into(),
        }
    }

    /// `PATH: Required value: DETAIL`
    pub fn required(path: FieldPath, detail: impl Into<String>) -> Self {
        Self {
            path,
            problem: Problem::Required,
            detail: detail.into(),
        }
    }

    /// `PATH: Duplicate value: VALUE`
    pub fn duplicate(path: FieldPath, value: impl Into<Value>) -> Self {
        Self {
            path,
            problem: Problem::Duplicate(value.into()),
            detail: String::new(),
        }
    }

    /// `PATH: Unsupported value: VALUE: supported values: "a", "b"`
    pub fn not_supported(path: FieldPath, value: impl Into<Value>, known: &[&str]) -> Self {
        let known = known.iter().map(ToString::to_string).collect();
        Self {
            path,
            problem: Problem::NotSupported(value.into(), known),
            detail: String::new(),
        }
    }

    /// `PATH: Forbidden: DETAIL`
    pub fn forbidden(path: FieldPath, detail: impl Into<String>) -> Self {
        Self {
            path,
            problem: Problem::Forbidden,
            detail: detail.into(),
        }
    }

    /// `PATH: Too long: may not be more than MAX bytes`
    pub fn too_long(path: FieldPath, max: usize) -> Self {
        Self {
            path,
            problem: Problem::TooLong(max),
            detail: String::new(),
        }
    }

    /// `PATH: Too many: GOT: must have at most MAX items`
    pub fn too_many(path: FieldPath, got: usize, max: usize) -> Self {
        Self {
            path,
            problem: Problem::TooMany(got, max),
            detail: String::new(),
        }
    }

    /// As messages have them: one as it is, several in brackets.
    pub fn list(errors: &[Self]) -> String {
        match errors {
            [one] => one.to_string(),
            many => format!(
                "[{}]",
                many.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }
    }

    /// The entry in `Status.details.causes`.
    pub fn to_cause(&self) -> Value {
        let reason = match self.problem {
            Problem::Invalid(_) | Problem::InvalidStruct(_) => "FieldValueInvalid",
            Problem::Required => "FieldValueRequired",
            Problem::Duplicate(_) | Problem::DuplicateStruct(_) => "FieldValueDuplicate",
            Problem::NotSupported(..) => "FieldValueNotSupported",
            Problem::Forbidden => "FieldValueForbidden",
            Problem::TooLong(_) => "FieldValueTooLong",
            Problem::TooMany(..) => "FieldValueTooMany",
        };
        json!({"reason": reason, "message": self.body(), "field": self.path.to_string()})
    }

    fn body(&self) -> String {
        let head = match &self.problem {
            Problem::Invalid(value) => format!("Invalid value: {}", go_value(value)),
            Problem::InvalidStruct(value) => format!("Invalid value: {value}"),
            Problem::DuplicateStruct(value) => format!("Duplicate value: {value}"),
            Problem::Required => "Required value".to_string(),
            Problem::Duplicate(value) => format!("Duplicate value: {}", go_value(value)),
            Problem::NotSupported(value, known) => {
                let known: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
                format!(
                    "Unsupported value: {}: supported values: {}",
                    go_value(value),
                    known.join(", ")
                )
            }
            Problem::Forbidden => "Forbidden".to_string(),
            Problem::TooLong(max) => format!("Too long: may not be more than {max} bytes"),
            Problem::TooMany(got, max) => format!("Too many: {got}: must have at most {max} items"),
        };
        if self.detail.is_empty() {
            head
        } else {
            format!("{head}: {}", self.detail)
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A value as the real apiserver prints it: strings quoted, lists of strings as Go's `[]string{"a"}`, objects as JSON.
fn go_value(value: &Value) -> String {
    match value {
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            format!("[]string{{{}}}", items.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_the_real_ones() {
        let port = FieldPath::new("spec").child("ports").index(0).child("nodePort");
        let error = FieldError::invalid(port, 33333, "provided port is not in the valid range");
        assert_eq!(
            error.to_string(),
            "spec.ports[0].nodePort: Invalid value: 33333: provided port is not in the valid range"
        );
        let ips = FieldError::invalid(
            FieldPath::new("spec").child("clusterIPs"),
            json!(["10.96.0.1"]),
            "taken",
        );
        assert_eq!(
            ips.to_string(),
            "spec.clusterIPs: Invalid value: []string{\"10.96.0.1\"}: taken"
        );
    }
}
