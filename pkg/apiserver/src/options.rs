//! What a write asks for beside its body: `dryRun`, `fieldManager`, `fieldValidation`, `force` (metav1.CreateOptions and its
//! like; checks of apimachinery, pkg/apis/meta/v1/validation).

use http::HeaderMap;
use http::header::USER_AGENT;
use serde_json::{Value, json};
use svcnet_api::{ApiError, FieldError, FieldPath, Reason};

use crate::decode::FieldValidation;
use crate::url::Query;

/// Bytes of a manager's name (FieldManagerMaxLength).
const MANAGER_MAX: usize = 128;

/// The options of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) dry_run: bool,
    /// Who owns the fields that are written; empty when nobody can tell.
    pub(crate) manager: String,
    pub(crate) validation: FieldValidation,
    /// Whether an apply takes fields from others.
    pub(crate) force: bool,
}

impl Options {
    /// The options of a request for the verb; `applies` says that it is a server-side apply.
    ///
    /// # Errors
    /// 422 with everything that is wrong.
    pub(crate) fn of(
        verb: &str,
        applies: bool,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let manager = query.get("fieldManager").unwrap_or_default();
        let path = FieldPath::new("fieldManager");
        if applies && manager.is_empty() {
            errors.push(FieldError::required(path.clone(), "is required for apply patch"));
        }
        if verb == "patch" && !applies && query.has("force") {
            let path = FieldPath::new("force");
            errors.push(FieldError::forbidden(
                path,
                "may not be specified for non-apply patch",
            ));
        }
        if manager.len() > MANAGER_MAX {
            errors.push(FieldError::too_long(path.clone(), MANAGER_MAX));
        }
        for (at, letter) in manager
            .char_indices()
            .filter(|(_, letter)| !is_printable(*letter))
        {
            let detail = format!("invalid character {} (at position {at})", code_point(letter));
            errors.push(FieldError::invalid(path.clone(), manager, detail));
        }
        let dry_runs: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        errors.extend(dry_run_error(&dry_runs));
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported(
                    FieldPath::new("fieldValidation"),
                    other,
                    &known,
                ));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(invalid(kind_of(verb), &errors));
        }
        let agent = || {
            headers
                .get(USER_AGENT)
                .and_then(|a| a.to_str().ok())
                .unwrap_or_default()
        };
        Ok(Self {
            dry_run: !dry_runs.is_empty(),
            manager: if manager.is_empty() {
                of_agent(agent())
            } else {
                manager.to_string()
            },
            validation,
            force: query.flag("force"),
        })
    }
}

/// What `dryRun` may say, in a query or in the options of a deletion.
pub(crate) fn dry_run_error(given: &[&str]) -> Option<FieldError> {
    let wrong = given.iter().any(|v| *v != "All");
    wrong.then(|| FieldError::not_supported(FieldPath::new("dryRun"), json!(given), &["All"]))
}

/// 422 about options: `PatchOptions.meta.k8s.io "" is invalid: …`.
pub(crate) fn invalid(kind: &str, errors: &[FieldError]) -> ApiError {
    let text = FieldError::list(errors);
    let causes: Vec<Value> = errors.iter().map(FieldError::to_cause).collect();
    let mut refused = ApiError::new(
        Reason::Invalid,
        format!("{kind}.meta.k8s.io \"\" is invalid: {text}"),
    );
    refused.details = Some(json!({"group": "meta.k8s.io", "kind": kind, "causes": causes}));
    refused
}

fn kind_of(verb: &str) -> &'static str {
    match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        _ => "DeleteOptions",
    }
}

/// What precedes the first slash of a `User-Agent`, as far as it is printable (`prefixFromUserAgent`).
fn of_agent(agent: &str) -> String {
    let first = agent.split('/').next().unwrap_or_default();
    let mut name = String::new();
    for letter in first.chars().filter(|letter| is_printable(*letter)) {
        if name.len() + letter.len_utf8() > MANAGER_MAX {
            break;
        }
        name.push(letter);
    }
    name
}

/// Roughly Go's `unicode.IsPrint`: of white space, the plain blank alone.
fn is_printable(letter: char) -> bool {
    letter == ' ' || !(letter.is_control() || letter.is_whitespace())
}

/// Go's `%#U`.
fn code_point(letter: char) -> String {
    let number = format!("U+{:04X}", u32::from(letter));
    if is_printable(letter) {
        format!("{number} '{letter}'")
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(verb: &str, applies: bool, query: &str, agent: &str) -> Result<Options, String> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, agent.parse().unwrap());
        Options::of(verb, applies, &Query::parse(Some(query)), &headers).map_err(|e| e.message)
    }

    #[test]
    fn the_manager_is_named_or_known_by_its_program() {
        for (query, agent, manager) in [
            ("fieldManager=kubectl-edit", "x/1", "kubectl-edit"),
            ("", "kubectl/v1.33.0 (linux/amd64) kubernetes/60a317e", "kubectl"),
            ("fieldManager=", "Go-http-client/1.1", "Go-http-client"),
            ("", "", ""),
        ] {
            assert_eq!(of("update", false, query, agent).unwrap().manager, manager);
        }
        let long = "x".repeat(200);
        assert_eq!(of("update", false, "", &long).unwrap().manager.len(), MANAGER_MAX);
    }

    #[test]
    fn wrong_options_are_refused_in_the_real_words() {
        for (verb, applies, query, words) in [
            (
                "patch",
                true,
                "",
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ),
            (
                "patch",
                false,
                "force=true",
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ),
            (
                "create",
                false,
                "dryRun=Some",
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: []string{\"Some\"}: supported values: \"All\"",
            ),
            (
                "update",
                false,
                "fieldValidation=Loose",
                "UpdateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Loose\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
            ),
            (
                "create",
                false,
                "fieldManager=a%0Ab",
                "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
            ),
        ] {
            assert_eq!(of(verb, applies, query, "x").unwrap_err(), words);
        }
        let long = format!("fieldManager={}", "x".repeat(129));
        assert!(
            of("create", false, &long, "x")
                .unwrap_err()
                .contains("fieldManager: Too long")
        );
    }
}
