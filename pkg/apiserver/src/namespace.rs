//! New objects need a namespace that is there and stays.

use serde_json::json;
use svcnet_api::{ApiError, registry};
use svcnet_store::Key;

use crate::object;
use crate::server::Server;
use crate::write::Place;

/// What a new object relies on: its namespace, at the revision at which it was looked at.
pub(crate) fn guard(server: &Server, place: &Place) -> Result<Vec<(Key, u64)>, ApiError> {
    if place.namespace.is_empty() {
        return Ok(Vec::new());
    }
    let Some(kind) = registry::by_resource("", "v1", "namespaces") else {
        return Ok(Vec::new());
    };
    let key = server.key(kind, "", &place.namespace);
    let Some(entry) = server.store.get(&key) else {
        return Err(ApiError::not_found(kind, &place.namespace));
    };
    if object::is_terminating(&object::parse(&entry)?) {
        let namespace = &place.namespace;
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(place.kind, &place.name, &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {namespace} is being terminated"),
            }]);
        }
        return Err(error);
    }
    Ok(vec![(key, entry.revision)])
}
