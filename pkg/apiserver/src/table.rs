//! Objects as rows to print, or as their metadata alone.

use jiff::Timestamp;
use serde_json::{Value, json};
use svcnet_api::columns::{self, IncludeObject};
use svcnet_api::{ApiError, Kind};

use crate::url::Query;

/// What of each object goes along with its row.
pub(crate) fn include(query: &Query) -> Result<IncludeObject, ApiError> {
    let text = query.get("includeObject").unwrap_or_default();
    IncludeObject::parse(text).ok_or_else(|| {
        ApiError::bad_request(format!(
            "includeObject: Invalid value: \"{text}\": must be 'Metadata', 'Object', 'None', or empty"
        ))
    })
}

/// A `meta.k8s.io/v1` Table.
pub(crate) fn table(kind: &Kind, objects: &[Value], include: IncludeObject, meta: &Value) -> Value {
    columns::table(kind, objects, meta, include, Timestamp::now().as_second())
}

/// The object as `PartialObjectMetadata`.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata")})
}
