//! Patches: what a client wants changed, put on the stored object. Pure functions.

mod strategic;

#[cfg(test)]
mod tests;

use json_patch::PatchOperation;
use serde_json::Value;
use svcnet_api::schema::SchemaNode;
use svcnet_api::{ApiError, FieldError, FieldPath, Kind, Reason};

use crate::{decode, managed, object, traits};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// How many operations a JSON patch may have (the real server's limit).
const OPERATIONS_MAX: usize = 10_000;
/// How much a JSON patch may copy and move in all, in bytes (the real server's `AccumulatedCopySizeLimit`).
const CARRIED_MAX: usize = 3 << 20;

/// The kinds of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' own, which knows lists whose items have keys.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    pub(crate) fn of(media: &str) -> Result<Self, ApiError> {
        match media {
            JSON => Ok(Self::Json),
            MERGE => Ok(Self::Merge),
            STRATEGIC => Ok(Self::Strategic),
            APPLY => Ok(Self::Apply),
            _ => Err(decode::unsupported(&[JSON, MERGE, STRATEGIC, APPLY])),
        }
    }
}

/// The patch in a body, with what a strict decoder would say of it.
pub(crate) fn parse(how: PatchKind, body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let media = if how == PatchKind::Apply {
        APPLY
    } else {
        "application/json"
    };
    let (patch, doubts) = decode::value(media, body)?;
    let right = if how == PatchKind::Json {
        patch.is_array()
    } else {
        patch.is_object()
    };
    if !right {
        return Err(ApiError::bad_request(
            "the patch is not of the form that its content type says",
        ));
    }
    Ok((patch, doubts))
}

/// 422 for a patch that leaves nothing that can be read as the kind. The real server shows what it has tried to read: of
/// strategic patches the patch, as Go prints it, of others the patched object.
pub(crate) fn unreadable(how: PatchKind, patch: &Value, new: &Value, why: &str) -> ApiError {
    let shown = match how {
        PatchKind::Strategic => managed::go_value(patch),
        _ => new.to_string(),
    };
    let error = FieldError::invalid(FieldPath::new("patch"), shown, why);
    let mut refused = ApiError::new(Reason::Invalid, format!(" \"\" is invalid: {error}"));
    refused.details = Some(serde_json::json!({"causes": [error.to_cause()]}));
    refused
}

/// What is applied must say what it is.
pub(crate) fn check_applied(kind: &Kind, patch: &Value) -> Result<(), ApiError> {
    let said = |name: &str| patch.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, name) = (said("apiVersion"), said("kind"));
    if name.is_empty() {
        return Err(ApiError::bad_request(
            "Object 'Kind' is missing in applied configuration",
        ));
    }
    if name == kind.kind && version == kind.api_version() {
        return Ok(());
    }
    // As Go prints it: the core group's versions have a slash too.
    let version = if version.contains('/') {
        version.to_string()
    } else {
        format!("/{version}")
    };
    Err(ApiError::bad_request(format!(
        "invalid object type: {version}, Kind={name}"
    )))
}

/// The object that the patch makes of the current one.
pub(crate) fn apply(kind: &Kind, how: PatchKind, patch: &Value, current: &Value) -> Result<Value, ApiError> {
    let mut new = current.clone();
    match how {
        PatchKind::Json => json(patch, &mut new)?,
        PatchKind::Merge => json_patch::merge(&mut new, patch),
        // Such lists have no keys there (the real server's word on custom resources).
        PatchKind::Strategic if traits::is_custom(kind) => {
            return Err(decode::unsupported(&[JSON, MERGE, APPLY]));
        }
        PatchKind::Strategic => {
            new = strategic::merge(new, patch.clone(), SchemaNode::root(kind))
                .map_err(|e| ApiError::bad_request(e.to_string()))?;
        }
        // Knows who owns what: `managed::apply`.
        PatchKind::Apply => {}
    }
    if new.is_object() {
        Ok(new)
    } else {
        Err(ApiError::bad_request("the patch leaves no object"))
    }
}

fn json(patch: &Value, document: &mut Value) -> Result<(), ApiError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    if operations.0.len() > OPERATIONS_MAX {
        let why = format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.0.len()
        );
        return Err(ApiError::new(Reason::RequestEntityTooLarge, why));
    }
    // Not which operation it is: the real server has no more to say (errors.NewGenericServerResponse of 422).
    let refused = || {
        let why = "the server rejected our request due to an error in our request";
        ApiError::new(Reason::Invalid, why)
    };
    let mut carried = 0;
    for operation in &operations.0 {
        let value = match operation {
            PatchOperation::Add(add) => Some(&add.value),
            PatchOperation::Replace(replace) => Some(&replace.value),
            PatchOperation::Copy(copy) => document.pointer(copy.from.as_str()),
            PatchOperation::Move(from) => document.pointer(from.from.as_str()),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
        };
        if let Some(value) = value {
            // A few operations that put an object into itself would build what no stack and no memory holds.
            let levels = object::DEPTH_MAX.checked_sub(operation.path().count());
            if levels.is_none_or(|levels| object::nests_deeper(value, levels)) {
                return Err(refused());
            }
            if matches!(operation, PatchOperation::Copy(_) | PatchOperation::Move(_)) {
                carried += value.to_string().len();
            }
            if carried > CARRIED_MAX {
                return Err(refused());
            }
        }
        // The object is thrown away when one fails. `patch`, which would undo the others, panics where it cannot.
        json_patch::patch_unsafe(document, std::slice::from_ref(operation)).map_err(|_| refused())?;
    }
    Ok(())
}
