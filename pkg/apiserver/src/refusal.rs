//! Refusals of requests whose address or method fits nothing here, in the real server's words.

use svcnet_api::{ApiError, Reason};

use crate::traits;

/// There is no such resource.
pub(crate) fn not_found() -> ApiError {
    ApiError::new(
        Reason::NotFound,
        "the server could not find the requested resource",
    )
}

/// 404 for kinds that are not here, and why for those that one might look for.
pub(crate) fn not_served(path: &str) -> ApiError {
    let mut error = not_found();
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let why = match words[..] {
        ["apis", group, ..] => traits::not_served(group),
        ["api", _, "namespaces", _, plural, ..] | ["api", _, plural, ..] => traits::not_served_core(plural),
        _ => None,
    };
    if let Some(why) = why {
        error.message = format!("{}: {why}", error.message);
    }
    error
}

/// Such a method is not for this resource.
pub(crate) fn method_not_allowed() -> ApiError {
    ApiError::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}
