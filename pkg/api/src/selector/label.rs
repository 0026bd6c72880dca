//! Label selectors, as k8s.io/apimachinery, pkg/labels.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

use super::parse::parse;
use crate::names;

/// All requirements must hold; none at all selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// What a requirement asks of its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`, `==`: the label has the value.
    Equals,
    /// `!=`: the label is absent or has another value.
    NotEquals,
    /// `in`: the label has one of the values.
    In,
    /// `notin`: the label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// `!`: the label is not there.
    DoesNotExist,
    /// `gt`: the label is an integer above the value.
    GreaterThan,
    /// `lt`: the label is an integer below the value.
    LessThan,
}

/// Why a text, or a `metav1.LabelSelector`, is no selector; in the real words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(super) String);

impl LabelSelector {
    /// Selects every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects objects that have all of the labels, as `spec.selector` of a Service does. Note that there, an empty
    /// one means that the Service has no selector at all: the caller's affair.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self {
            requirements: labels.into_iter().map(requirement).collect(),
        }
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether the labels that `get` knows are selected.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether a map of labels is selected.
    pub fn matches_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// Whether an object held as JSON is selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.is_everything() || {
            let labels = object.get("metadata").and_then(|m| m.get("labels"));
            self.matches(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
        }
    }
}

impl Requirement {
    /// A condition.
    ///
    /// # Errors
    /// When the key or a value could not be a label, or the number of values does not fit the operator.
    pub fn new(key: &str, operator: Operator, values: &[String]) -> Result<Self, SelectorError> {
        check_key(key)?;
        let fault = |path: &str, value: String, why: &str| {
            Err(SelectorError(format!("{path}: Invalid value: {value}: {why}")))
        };
        let listed = || format!("[]string{{{}}}", quoted(values));
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return fault(
                    "values",
                    listed(),
                    "for 'in', 'notin' operators, values set can't be empty",
                );
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                return fault(
                    "values",
                    listed(),
                    "exact-match compatibility requires one single value",
                );
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return fault(
                    "values",
                    listed(),
                    "values set must be empty for exists and does not exist",
                );
            }
            Operator::GreaterThan | Operator::LessThan => {
                let [value] = values else {
                    return fault(
                        "values",
                        listed(),
                        "for 'Gt', 'Lt' operators, exactly one value is required",
                    );
                };
                if value.parse::<i64>().is_err() {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    return fault("values[0]", format!("\"{value}\""), why);
                }
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            if let Some(why) = names::label_value(value).first() {
                return fault(&format!("values[{index}][{key}]"), format!("\"{value}\""), why);
            }
        }
        let mut values = values.to_vec();
        values.sort();
        values.dedup();
        Ok(Self {
            key: key.to_string(),
            operator,
            values,
        })
    }

    /// The label asked about.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is asked.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values asked for, in order.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let among = |label: &str| self.values.iter().any(|v| v == label);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|v| number(v));
        match self.operator {
            Operator::Equals | Operator::In => label.is_some_and(among),
            Operator::NotEquals | Operator::NotIn => !label.is_some_and(among),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => label
                .and_then(number)
                .zip(bound())
                .is_some_and(|(label, bound)| label > bound),
            Operator::LessThan => label
                .and_then(number)
                .zip(bound())
                .is_some_and(|(label, bound)| label < bound),
        }
    }
}

pub(super) fn check_key(key: &str) -> Result<(), SelectorError> {
    match names::qualified_name(key).first() {
        Some(why) => Err(SelectorError(format!("key: Invalid value: \"{key}\": {why}"))),
        None => Ok(()),
    }
}

fn quoted(values: &[String]) -> String {
    values
        .iter()
        .map(|v| format!("\"{v}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    /// The syntax of `kubectl get -l` and of the query parameter `labelSelector`.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            requirements: parse(text)?,
        })
    }
}

impl TryFrom<&meta::LabelSelector> for LabelSelector {
    type Error = SelectorError;

    /// An empty `metav1.LabelSelector` selects everything; an absent one selects nothing, which the caller knows.
    fn try_from(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let labels = selector.match_labels.iter().flatten();
        let mut requirements = Vec::new();
        for (key, value) in labels {
            requirements.push(Requirement::new(
                key,
                Operator::Equals,
                std::slice::from_ref(value),
            )?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "\"{other}\" is not a valid label selector operator"
                    )));
                }
            };
            let values = expression.values.as_deref().unwrap_or_default();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        // As the real one prints them.
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            operator,
            values,
        } = self;
        let values = values.join(",");
        match operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: Value) -> bool {
        let object = json!({"metadata": {"labels": labels}});
        selector.parse::<LabelSelector>().unwrap().matches_object(&object)
    }

    #[test]
    fn every_operator_selects() {
        let labels = || json!({"app": "nginx", "n": "5"});
        for yes in [
            "",
            "app=nginx",
            "app==nginx",
            "app!=x",
            "app in (a, nginx)",
            "app notin (a,b)",
            "app",
            "!x",
        ] {
            assert!(selects(yes, labels()), "{yes}");
        }
        for yes in [
            "x!=1",
            "x notin (1)",
            "app=nginx,n",
            "n>4",
            "n lt 6",
            "n gt 4",
            " app = nginx , n = 5 ",
        ] {
            assert!(selects(yes, labels()), "{yes}");
        }
        for no in [
            "app=x",
            "app in (a)",
            "app notin (nginx)",
            "x",
            "!app",
            "x=",
            "n<5",
            "x>1",
            "app=nginx,x",
        ] {
            assert!(!selects(no, labels()), "{no}");
        }
        assert!(selects("x=", json!({"x": ""})));
    }

    #[test]
    fn words_of_the_grammar_may_be_keys_and_values() {
        assert!(selects("in in (in,notin)", json!({"in": "notin"})));
        assert!(selects("notin=in", json!({"notin": "in"})));
    }

    #[test]
    fn errors_are_the_real_ones() {
        for (text, words) in [
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            (
                "a ? b",
                "unable to parse requirement: found '?', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a=_b",
                "unable to parse requirement: values[0][a]: Invalid value: \"_b\": a valid label must be an empty \
                 string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ] {
            assert_eq!(
                text.parse::<LabelSelector>().unwrap_err().to_string(),
                words,
                "{text}"
            );
        }
    }

    #[test]
    fn typed_selectors_convert() {
        let typed: meta::LabelSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "nginx"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "x", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        let selector = LabelSelector::try_from(&typed).unwrap();
        assert_eq!(selector.to_string(), "app=nginx,tier in (a,b),!x");
        let wrong: meta::LabelSelector =
            serde_json::from_value(json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).unwrap();
        let error = LabelSelector::try_from(&wrong).unwrap_err().to_string();
        assert_eq!(error, "\"Is\" is not a valid label selector operator");
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let text = "[a-z]{1,4}";
        (text, 0usize..8, proptest::collection::vec(text, 1..3), 0i64..99).prop_map(|(key, op, values, n)| {
            let one = &values[..1];
            let (operator, values) = match op {
                0 => (Operator::Equals, one.to_vec()),
                1 => (Operator::NotEquals, one.to_vec()),
                2 => (Operator::In, values),
                3 => (Operator::NotIn, values),
                4 => (Operator::Exists, Vec::new()),
                5 => (Operator::DoesNotExist, Vec::new()),
                6 => (Operator::GreaterThan, vec![n.to_string()]),
                _ => (Operator::LessThan, vec![n.to_string()]),
            };
            Requirement::new(&key, operator, &values).unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(requirements in proptest::collection::vec(requirement(), 0..4)) {
            let selector = LabelSelector { requirements };
            prop_assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector);
        }

        #[test]
        fn no_text_breaks_the_parser(text in ".{0,40}") {
            let _ = text.parse::<LabelSelector>();
        }
    }
}
