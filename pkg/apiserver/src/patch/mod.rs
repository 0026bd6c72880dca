//! The three kinds of patch: what changes what, without a store.

mod directives;
mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;
use svcnet_api::schema::SchemaNode;
use svcnet_api::{ApiError, Kind, Reason};

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// A list of operations (RFC 6902).
    Json,
    /// An object whose fields replace, and whose nulls remove (RFC 7386).
    Merge,
    /// A merge that knows the keys of lists (sig-api-machinery, strategic-merge-patch.md).
    Strategic,
}

impl PatchKind {
    /// From the content type of the request, without its parameters.
    pub(crate) fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// The object as it is after the patch.
///
/// # Errors
/// 400 for a patch that makes no sense, 422 for JSON operations that do not fit the object, 415 for a strategic merge of
/// a kind without Go types (`metallb.io`), as the real server answers for custom resources.
pub(crate) fn apply(kind: &Kind, how: PatchKind, patch: &Value, current: &Value) -> Result<Value, ApiError> {
    match how {
        PatchKind::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            let mut patched = current.clone();
            json_patch::patch(&mut patched, &operations).map_err(|error| {
                let message =
                    format!("the server rejected our request due to an error in our request: {error}");
                ApiError::new(Reason::Invalid, message)
            })?;
            Ok(patched)
        }
        PatchKind::Merge => {
            let mut patched = current.clone();
            json_patch::merge(&mut patched, object_of(patch)?);
            Ok(patched)
        }
        PatchKind::Strategic => {
            if kind.group == "metallb.io" {
                let message = "the body of the request was in an unknown format - accepted media types include: \
                               application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
                return Err(ApiError::new(Reason::UnsupportedMediaType, message));
            }
            strategic::merge(SchemaNode::root(kind), object_of(patch)?, current)
        }
    }
}

fn object_of(patch: &Value) -> Result<&Value, ApiError> {
    if patch.is_object() {
        Ok(patch)
    } else {
        Err(ApiError::bad_request("error decoding patch: it is no object"))
    }
}
