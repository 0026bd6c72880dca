//! What a list or a watch asks for, checked as the real server does (apimachinery, apis/meta/internalversion/validation).

use svcnet_api::{ApiError, FieldError, FieldPath};

use crate::options;
use crate::url::Query;

const MATCH: &str = "resourceVersionMatch";

/// Checks that parameters go together.
///
/// # Errors
/// 422 with everything that does not.
pub(crate) fn check(query: &Query, watches: bool) -> Result<(), ApiError> {
    let errors = if watches {
        watch_errors(query)
    } else {
        list_errors(query)
    };
    if errors.is_empty() {
        return Ok(());
    }
    Err(options::invalid("ListOptions", &errors))
}

fn forbidden(field: &str, detail: &str) -> FieldError {
    FieldError::forbidden(FieldPath::new(field), detail)
}

fn list_errors(query: &Query) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(matching) = query.get(MATCH) {
        if query.get("resourceVersion").is_none() {
            errors.push(forbidden(
                MATCH,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if query.get("continue").is_some() {
            errors.push(forbidden(
                MATCH,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            let known = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::not_supported(FieldPath::new(MATCH), matching, &known));
        }
        if matching == "Exact" && query.get("resourceVersion") == Some("0") {
            let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(forbidden(MATCH, detail));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        errors.push(forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ));
    }
    errors
}

fn watch_errors(query: &Query) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let initial = query.get("sendInitialEvents").is_some();
    let matching = query.get(MATCH);
    if initial && matching != Some("NotOlderThan") {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(forbidden(MATCH, detail));
    }
    if let Some(matching) = matching {
        if !initial {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(forbidden(MATCH, detail));
        }
        if matching != "NotOlderThan" {
            errors.push(FieldError::not_supported(
                FieldPath::new(MATCH),
                matching,
                &["NotOlderThan"],
            ));
        }
        if query.get("continue").is_some() {
            errors.push(forbidden(
                MATCH,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_do_not_go_together_are_refused_in_the_real_words() {
        let head = "ListOptions.meta.k8s.io \"\" is invalid: ";
        for (watches, query, words) in [
            (false, "resourceVersion=0", ""),
            (false, "resourceVersion=5&resourceVersionMatch=Exact", ""),
            (
                true,
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
                "",
            ),
            (true, "resourceVersion=0", ""),
            (
                false,
                "resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (
                false,
                "resourceVersion=0&resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (
                false,
                "resourceVersion=1&resourceVersionMatch=About",
                "resourceVersionMatch: Unsupported value: \"About\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ),
            (
                false,
                "sendInitialEvents=true",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ),
            (
                true,
                "sendInitialEvents=true",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                 NotOlderThan",
            ),
            (
                true,
                "resourceVersionMatch=NotOlderThan",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless \
                 sendInitialEvents is provided",
            ),
        ] {
            let said = check(&Query::parse(Some(query)), watches)
                .err()
                .map(|e| e.message);
            let expect = (!words.is_empty()).then(|| format!("{head}{words}"));
            assert_eq!(said, expect, "{query}");
        }
    }
}
