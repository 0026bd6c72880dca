//! How a node becomes one: its token and a certificate request against a certificate in its name. And how it stays one:
//! its certificate and another request against the next certificate.

use std::sync::Arc;

use http::{Method, Request};
use rcgen::{CertificateSigningRequestParams, DnType, DnValue};
use serde::Deserialize;
use serde_json::json;
use svcnet_api::{ApiError, Reason, names};

use super::{forbidden, unauthorized};
use crate::auth::{Caller, Role};
use crate::decode;
use crate::pki::ClientName;
use crate::reply::Reply;
use crate::server::Server;
use crate::upload::Upload;

#[derive(Debug, Deserialize)]
struct JoinRequest {
    node: String,
    csr: String,
}

#[derive(Debug, Deserialize)]
struct RenewRequest {
    csr: String,
}

/// `POST /svcnet/v1/join`: the name of the node, as far as it got, and the answer.
pub(super) async fn join(
    server: &Arc<Server>,
    caller: &Caller,
    request: Request<Upload>,
) -> (String, Result<Reply, ApiError>) {
    let wanted = match &caller.user.role {
        Role::Bootstrapper(_) => wanted(request).await,
        _ => Err(unauthorized()),
    };
    match wanted {
        Ok(wanted) => {
            let answer = joined(server, caller, &wanted);
            (wanted.node, answer)
        }
        Err(error) => (String::new(), Err(error)),
    }
}

async fn wanted(request: Request<Upload>) -> Result<JoinRequest, ApiError> {
    let body = decode::read(request.into_body()).await?;
    serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("this is no request to join: {e}")))
}

fn joined(server: &Server, caller: &Caller, wanted: &JoinRequest) -> Result<Reply, ApiError> {
    let Role::Bootstrapper(only) = &caller.user.role else {
        return Err(unauthorized());
    };
    if let Some(problem) = names::dns_subdomain(&wanted.node).first() {
        return Err(ApiError::bad_request(format!(
            "node name {:?}: {problem} (--node-name)",
            wanted.node
        )));
    }
    if only.as_ref().is_some_and(|only| *only != wanted.node) {
        let only = only.as_deref().unwrap_or_default();
        let why = format!(
            "this token lets the node {only:?} join, and not {:?} (--node-name)",
            wanted.node
        );
        return Err(ApiError::new(Reason::Forbidden, why));
    }
    let certificate = sign(server, &wanted.node, &wanted.csr)?;
    let config = &server.config;
    let list = |items: Vec<String>| items.join(",");
    let answer = json!({
        "ca": server.authority.pem(),
        "certificate": certificate,
        "clusterCIDR": config.cluster_cidr,
        "serviceCIDR": list(config.service_cidrs.iter().map(ToString::to_string).collect()),
        "clusterDNS": list(config.cluster_dns.iter().map(ToString::to_string).collect()),
        "clusterDomain": config.cluster_domain,
    });
    tracing::info!(node = wanted.node, by = caller.user.name, "a node has joined");
    Ok(Reply::json(200, &answer))
}

/// `POST /svcnet/v1/renew`: by a node, with the certificate that it has.
pub(super) async fn renew(
    server: &Arc<Server>,
    caller: &Caller,
    request: Request<Upload>,
) -> Result<Reply, ApiError> {
    // Not by a token, which would outlive its end, nor on behalf of another.
    let own = caller.by.is_none() && caller.user.token.is_none();
    let node = match &caller.user.role {
        Role::Node(node) if own => node,
        Role::Anonymous => return Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
        _ => return Err(forbidden(caller, &Method::POST, "svcnet/v1/renew")),
    };
    let body = decode::read(request.into_body()).await?;
    let wanted: RenewRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("this is no request for a certificate: {e}")))?;
    let certificate = sign(server, node, &wanted.csr)?;
    tracing::info!(node, "a node's certificate was renewed");
    Ok(Reply::json(200, &json!({"certificate": certificate})))
}

/// Everything but the key is decided here.
fn sign(server: &Server, node: &str, csr: &str) -> Result<String, ApiError> {
    let user = format!("system:node:{node}");
    // Parsing verifies the request's own signature: the caller has the key.
    let request = CertificateSigningRequestParams::from_pem(csr)
        .map_err(|e| ApiError::bad_request(format!("the certificate request cannot be read: {e}")))?;
    let named = match request.params.distinguished_name.get(&DnType::CommonName) {
        Some(DnValue::Utf8String(name)) => name.as_str() == user,
        Some(DnValue::PrintableString(name)) => name.as_str() == user,
        _ => false,
    };
    if !named {
        return Err(ApiError::bad_request(format!(
            "the certificate request must be for {user}"
        )));
    }
    let name = ClientName {
        user: &user,
        group: "system:nodes",
    };
    server
        .authority
        .sign_node(&request, name, server.tokens.revoked_until(node))
        .map_err(ApiError::internal)
}
