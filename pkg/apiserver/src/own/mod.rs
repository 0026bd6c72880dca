//! What the real server does not have: joining, renewing a node's certificate, tokens, the store as a whole. All below `/svcnet/v1`.

mod join;
mod store;
mod tokens;

use std::sync::Arc;

use http::{Method, Request};
use svcnet_api::{ApiError, Reason};

use crate::audit::{ObjectRef, Trail};
use crate::auth::{Caller, Role, User};
use crate::refusal::{method_not_allowed, not_found};
use crate::reply::Reply;
use crate::server::Server;
use crate::upload::Upload;

/// What their paths begin with.
pub(crate) const ROOT: &str = "svcnet";
/// The path of joining.
pub(crate) const JOIN: [&str; 3] = ["svcnet", "v1", "join"];

pub(crate) const WRONG_TOKEN: &str = "Unauthorized: the token is wrong; `cat DATA-DIR/token` on the server shows the right one, \
     `svcnet token create --role join` makes another";

/// Answers a request.
pub(crate) async fn answer(
    server: &Arc<Server>,
    caller: &Caller,
    segments: &[String],
    request: Request<Upload>,
    trail: Option<&Trail>,
) -> Result<Reply, ApiError> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let method = request.method().clone();
    let note = |verb: &str, resource: &str, name: &str| {
        if let Some(trail) = trail {
            trail.object(verb, ObjectRef::own(resource, name), false);
        }
    };
    match (&method, &words[..]) {
        (&Method::POST, ["svcnet", "v1", "join"]) => {
            let (node, answer) = join::join(server, caller, request).await;
            note("create", "nodes", &node);
            answer
        }
        (_, ["svcnet", "v1", "join"]) if caller.user.is_anonymous() => Err(unauthorized()),
        (&Method::POST, ["svcnet", "v1", "renew"]) => join::renew(server, caller, request).await,
        (_, ["svcnet", "v1", "tokens", rest @ ..]) => {
            administrators(caller, &method, &words)?;
            match (&method, rest) {
                (&Method::POST, []) => {
                    let made = tokens::create(server, caller, request).await;
                    note("create", "tokens", made.as_ref().map_or("", |(id, _)| id));
                    made.map(|(_, reply)| reply)
                }
                (&Method::GET, []) => Ok(Reply::json(200, &server.tokens.list())),
                (&Method::DELETE, ["nodes", node]) => {
                    note("delete", "nodes", node);
                    tokens::revoke_node(server, caller, node).await
                }
                (&Method::DELETE, [id]) => {
                    note("delete", "tokens", id);
                    tokens::revoke(server, caller, id).await
                }
                _ => Err(method_not_allowed()),
            }
        }
        (_, ["svcnet", "v1", "store", rest @ ..]) => {
            administrators(caller, &method, &words)?;
            match (&method, rest) {
                (&Method::GET, []) => Ok(store::contents(server)),
                (&Method::GET, ["snapshot"]) => {
                    note("get", "store", "snapshot");
                    store::snapshot(server)
                }
                _ => Err(method_not_allowed()),
            }
        }
        (_, ["svcnet", "v1", "join" | "renew"]) => Err(method_not_allowed()),
        _ if caller.user.is_anonymous() => Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
        _ => Err(not_found()),
    }
}

/// Whether a caller may use one of these paths: what [`answer`] comes to, for those who ask before.
pub(crate) fn may(user: &User, segments: &[String], verb: &str) -> bool {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (&user.role, &words[..]) {
        (Role::Bootstrapper(_), ["svcnet", "v1", "join"]) => verb == "post",
        (Role::Node(_), ["svcnet", "v1", "renew"]) => verb == "post" && user.token.is_none(),
        (Role::Admin, ["svcnet", "v1", "tokens" | "store", ..]) => true,
        _ => false,
    }
}

fn administrators(caller: &Caller, method: &Method, words: &[&str]) -> Result<(), ApiError> {
    match caller.user.role {
        Role::Admin => Ok(()),
        Role::Anonymous => Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
        _ => Err(forbidden(caller, method, &words.join("/"))),
    }
}

fn forbidden(caller: &Caller, method: &Method, path: &str) -> ApiError {
    let method = method.as_str().to_lowercase();
    let why = format!(
        "forbidden: User \"{}\" cannot {method} path \"/{path}\"",
        caller.user.name
    );
    ApiError::new(Reason::Forbidden, why)
}

fn unauthorized() -> ApiError {
    ApiError::new(Reason::Unauthorized, WRONG_TOKEN)
}
