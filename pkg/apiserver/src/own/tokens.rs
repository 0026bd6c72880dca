//! `svcnet token create|list|revoke`.

use std::sync::Arc;

use http::Request;
use serde_json::json;
use svcnet_api::ApiError;

use crate::auth::{Caller, NewToken};
use crate::decode;
use crate::reply::Reply;
use crate::server::Server;
use crate::upload::Upload;

/// `POST /svcnet/v1/tokens`: the id of the new one, and the answer.
pub(super) async fn create(
    server: &Arc<Server>,
    caller: &Caller,
    request: Request<Upload>,
) -> Result<(String, Reply), ApiError> {
    let body = decode::read(request.into_body()).await?;
    let wanted: NewToken = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("this asks for no token: {e}")))?;
    let answer = server.tokens.create(wanted, &server.authority).await?;
    tracing::info!(token = %answer["id"], role = %answer["role"], by = caller.user.name, "a token was made");
    let id = answer["id"].as_str().unwrap_or_default().to_string();
    Ok((id, Reply::json(201, &answer)))
}

/// `DELETE /svcnet/v1/tokens/ID`
pub(super) async fn revoke(server: &Arc<Server>, caller: &Caller, id: &str) -> Result<Reply, ApiError> {
    server.tokens.revoke(id, &server.authority).await?;
    tracing::info!(token = id, by = caller.user.name, "a token was revoked");
    Ok(revoked("tokens", id))
}

/// `DELETE /svcnet/v1/tokens/nodes/NAME`
pub(super) async fn revoke_node(
    server: &Arc<Server>,
    caller: &Caller,
    node: &str,
) -> Result<Reply, ApiError> {
    server.tokens.revoke_node(node, &server.authority).await?;
    tracing::info!(
        node,
        by = caller.user.name,
        "certificates and tokens of a node were revoked"
    );
    Ok(revoked("nodes", node))
}

fn revoked(kind: &str, name: &str) -> Reply {
    let details = json!({"name": name, "kind": kind});
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Reply::json(200, &status)
}
