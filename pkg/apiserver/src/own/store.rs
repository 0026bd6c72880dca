//! `svcnet store snapshot|check` of a server that runs.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};
use svcnet_api::ApiError;
use svcnet_store::Contents;

use crate::body::Body;
use crate::reply::Reply;
use crate::server::Server;

/// `GET /svcnet/v1/store`: what the store holds, and whether it takes writes.
pub(super) fn contents(server: &Arc<Server>) -> Reply {
    let Contents {
        revision,
        collections,
    } = server.store.contents();
    let collections: Vec<Value> = collections
        .iter()
        .map(|(name, objects, bytes)| json!({"name": name, "objects": objects, "bytes": bytes}))
        .collect();
    Reply::json(
        200,
        &json!({
            "datastore": if server.store.is_shared() { "etcd" } else { "sled" },
            "revision": revision, "failure": server.store.failure().as_deref(), "collections": collections,
        }),
    )
}

/// `GET /svcnet/v1/store/snapshot`: all of it, at one revision.
pub(super) fn snapshot(server: &Arc<Server>) -> Result<Reply, ApiError> {
    let pieces = server.store.snapshot().map_err(ApiError::internal)?;
    let body = Body::pieces(VecDeque::from(pieces));
    Ok(Reply::new(200, "application/octet-stream", body))
}
