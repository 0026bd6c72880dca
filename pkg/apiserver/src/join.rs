//! How a node becomes one: its token and a certificate request against a certificate in its name.

use std::sync::Arc;

use http::{Method, Request};
use hyper::body::Incoming;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue};
use serde::Deserialize;
use serde_json::json;
use svcnet_api::{ApiError, Reason, names};

use crate::auth::User;
use crate::decode;
use crate::pki::ClientName;
use crate::reply::Reply;
use crate::server::Server;

pub(crate) const WRONG_TOKEN: &str =
    "Unauthorized: the token is wrong; `cat DATA-DIR/token` on the server shows the right one";

#[derive(Debug, Deserialize)]
struct JoinRequest {
    node: String,
    csr: String,
}

/// `POST /svcnet/v1/join`
pub(crate) async fn join(
    server: Arc<Server>,
    user: User,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::new(Reason::MethodNotAllowed, "joining is a POST"));
    }
    if user != User::bootstrapper() {
        return Err(ApiError::new(Reason::Unauthorized, WRONG_TOKEN));
    }
    let body = decode::read(request.into_body()).await?;
    let wanted: JoinRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("this is no request to join: {e}")))?;
    let answer = sign(&server, &wanted)?;
    tracing::info!(node = wanted.node, "a node has joined");
    Ok(answer)
}

fn sign(server: &Server, wanted: &JoinRequest) -> Result<Reply, ApiError> {
    let problems = names::dns_subdomain(&wanted.node);
    if let Some(problem) = problems.first() {
        return Err(ApiError::bad_request(format!(
            "node name {:?}: {problem} (--node-name)",
            wanted.node
        )));
    }
    let user = format!("system:node:{}", wanted.node);
    // Parsing verifies the request's own signature: the caller has the key.
    let request = CertificateSigningRequestParams::from_pem(&wanted.csr)
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
    let certificate = server
        .authority
        .sign_node(&request, name)
        .map_err(ApiError::internal)?;
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
    Ok(Reply::json(200, &answer))
}
