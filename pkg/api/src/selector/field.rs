//! Field selectors, as k8s.io/apimachinery, pkg/fields: exact matches on the few fields that a kind lets select.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use crate::kind::Kind;

/// All terms must hold; none at all selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

/// Why a text is no field selector for a kind; in the real words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FieldSelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Syntax { selector: String, term: String },
    #[error("invalid field selector: {0}: trailing or unknown escape")]
    Escape(String),
    #[error("field label not supported: {0}")]
    NotSupported(String),
    #[error("{0:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")]
    NotKnown(String),
}

impl FieldSelector {
    /// Selects every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// The syntax of `kubectl get --field-selector` and of the query parameter `fieldSelector`.
    ///
    /// # Errors
    /// When it does not parse, or names a field that the kind does not let select.
    pub fn parse(text: &str, kind: &Kind) -> Result<Self, FieldSelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text).into_iter().filter(|p| !p.is_empty()) {
            let (field, equal, value) = split_term(part).ok_or_else(|| FieldSelectorError::Syntax {
                selector: text.to_string(),
                term: part.to_string(),
            })?;
            check_field(field, kind)?;
            terms.push(Term {
                field: field.to_string(),
                equal,
                value: unescape(value)?,
            });
        }
        Ok(Self { terms })
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the field must have, if the selector demands one: with `metadata.name` a list becomes a get.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// Whether an object of the kind is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms
            .iter()
            .all(|t| (field_value(object, &t.field) == t.value.as_str()) == t.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Term { field, equal, value }) in self.terms.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let sign = if *equal { "=" } else { "!=" };
            write!(f, "{comma}{field}{sign}{}", escape(value))?;
        }
        Ok(())
    }
}

/// What a field selector compares with: the text at a dotted path, empty where there is nothing.
pub fn field_value<'a>(object: &'a Value, path: &str) -> Cow<'a, str> {
    // The only field that is not simply looked up (pkg/registry/core/event, ToSelectableFields).
    if path == "source" && object.get("source").is_some_and(Value::is_object) {
        let component = field_value(object, "source.component");
        return if component.is_empty() {
            field_value(object, "reportingComponent")
        } else {
            component
        };
    }
    let value = path.split('.').try_fold(object, |value, name| value.get(name));
    match value {
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => Cow::Owned(value.to_string()),
        _ if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => Cow::Borrowed("false"),
        _ => Cow::Borrowed(""),
    }
}

fn check_field(field: &str, kind: &Kind) -> Result<(), FieldSelectorError> {
    let of_metadata = field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced);
    if of_metadata || kind.selectable_fields.contains(&field) {
        Ok(())
    } else if kind.selectable_fields.is_empty() && kind.group != crate::metallb::GROUP {
        // Kinds without a conversion of their own answer in the words of DefaultMetaV1FieldSelectorConversion;
        // custom resources and the others say it shortly.
        Err(FieldSelectorError::NotKnown(field.to_string()))
    } else {
        Err(FieldSelectorError::NotSupported(field.to_string()))
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.extend(text.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.extend(text.get(start..));
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find("!=").into_iter().chain(term.find('=')).min()?;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, false, value));
    }
    rest.strip_prefix("==")
        .or_else(|| rest.strip_prefix('='))
        .map(|value| (field, true, value))
}

fn unescape(text: &str) -> Result<String, FieldSelectorError> {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                _ => return Err(FieldSelectorError::Escape(text.to_string())),
            },
            ',' | '=' => return Err(FieldSelectorError::Escape(text.to_string())),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | ',' | '=') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::registry::by_kind;

    fn parse(kind: &str, text: &str) -> Result<FieldSelector, FieldSelectorError> {
        FieldSelector::parse(text, by_kind("v1", kind).unwrap())
    }

    #[test]
    fn fields_select() {
        let pod = json!({"metadata": {"name": "web-1", "namespace": "default"}, "spec": {"nodeName": "n2"}});
        for yes in [
            "",
            "metadata.name=web-1",
            "spec.nodeName==n2,metadata.namespace!=kube-system",
            "status.phase=",
        ] {
            assert!(parse("Pod", yes).unwrap().matches(&pod), "{yes}");
        }
        for no in [
            "metadata.name=web",
            "spec.nodeName!=n2",
            "status.phase=Running",
            "status.podIP!=",
        ] {
            assert!(!parse("Pod", no).unwrap().matches(&pod), "{no}");
        }
        assert!(parse("Pod", "spec.hostNetwork=false").unwrap().matches(&pod));
        assert_eq!(
            parse("Pod", "metadata.name=web-1")
                .unwrap()
                .required("metadata.name"),
            Some("web-1")
        );
    }

    #[test]
    fn events_are_found_by_what_they_are_about() {
        let event = json!({
            "involvedObject": {"kind": "Service", "name": "nginx", "namespace": "default", "uid": "1"},
            "type": "Warning", "source": {"component": "svcnet"},
        });
        let text = "involvedObject.name=nginx,involvedObject.namespace=default,involvedObject.kind=Service,source=svcnet";
        assert!(parse("Event", text).unwrap().matches(&event));
    }

    #[test]
    fn errors_are_the_real_ones() {
        for (kind, text, words) in [
            ("Pod", "spec.foo=1", "field label not supported: spec.foo"),
            (
                "Namespace",
                "metadata.namespace=a",
                "field label not supported: metadata.namespace",
            ),
            (
                "ConfigMap",
                "data.a=1",
                "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            (
                "Pod",
                "status.phase",
                "invalid selector: 'status.phase'; can't understand 'status.phase'",
            ),
        ] {
            assert_eq!(parse(kind, text).unwrap_err().to_string(), words);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(value in "[a-z,=\\\\!.]{0,8}", equal: bool) {
            let selector = FieldSelector { terms: vec![Term { field: "status.phase".into(), equal, value }] };
            prop_assert_eq!(parse("Pod", &selector.to_string()).unwrap(), selector);
        }
    }
}
