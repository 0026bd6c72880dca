//! What is served beside objects: health, version, metrics, discovery, descriptions.

use std::fmt::Write as _;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ETAG, IF_NONE_MATCH};
use serde_json::json;
use svcnet_api::schema::{self, Document};
use svcnet_api::{ApiError, Reason};

use crate::negotiate;
use crate::refusal::not_found;
use crate::reply::Reply;
use crate::server::Server;
use crate::url::{Path, Query};
use crate::{body::Body, discovery, own};

/// The Kubernetes version that clients are told: kubectl's dispatchers choose by it.
pub const VERSION: &str = "v1.33.0+svcnet";

/// Answers a GET.
pub(crate) fn answer(
    server: &Server,
    segments: &[String],
    query: &Query,
    headers: &HeaderMap,
) -> Result<Reply, ApiError> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words[..] {
        ["version"] => Ok(Reply::json(200, &version())),
        ["healthz" | "livez" | "readyz", ref check @ ..] => health(server, words[0], check, query),
        ["metrics"] => {
            let render = server.config.metrics.as_ref();
            let text = render.map(|render| render()).unwrap_or_default();
            Ok(Reply::new(200, "text/plain; version=0.0.4", text))
        }
        ["openapi", "v2"] if negotiate::openapi_protobuf(headers) => Ok(Reply::new(
            200,
            schema::V2_PROTOBUF,
            Bytes::from(schema::v2_protobuf()),
        )),
        ["openapi", "v2"] => Ok(openapi(schema::v2_document(), headers)),
        ["openapi", "v3"] => Ok(Reply::raw_json(200, schema::index().into())),
        ["openapi", "v3", ref path @ ..] => {
            let document = schema::document(&path.join("/")).ok_or_else(not_found)?;
            Ok(openapi(document, headers))
        }
        ["api"] | ["apis"] if negotiate::aggregated_discovery(headers) => Ok(discovery::aggregated(words[0])),
        ["api"] => Ok(Reply::json(200, &discovery::api(server))),
        ["api", version] => discovery::resources("", version),
        ["apis"] => Ok(Reply::json(200, &discovery::groups())),
        ["apis", group] => discovery::group(group),
        ["apis", group, version] => discovery::resources(group, version),
        [""] => Ok(Reply::json(200, &paths())),
        _ => Err(not_found()),
    }
}

/// What those are told who do not get in: who wanted to join is told where the right token is.
pub(crate) fn refused(path: Option<&Path>, error: ApiError) -> ApiError {
    match path {
        Some(Path::Root(segments)) if segments == &own::JOIN && error.reason == Reason::Unauthorized => {
            ApiError::new(Reason::Unauthorized, own::WRONG_TOKEN)
        }
        _ => error,
    }
}

fn paths() -> serde_json::Value {
    let mut paths = vec!["/api".to_string(), "/apis".to_string()];
    paths.extend(
        discovery::group_versions()
            .iter()
            .map(|gv| format!("/{}", gv.path())),
    );
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(str::to_string),
    );
    json!({"paths": paths})
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// `ok`, or what is wrong; with `verbose`, each check on a line of its own.
fn health(server: &Server, which: &str, only: &[&str], query: &Query) -> Result<Reply, ApiError> {
    let mut checks: Vec<(&str, Option<String>)> = vec![("ping", None)];
    checks.push(("store", server.store.failure().map(|why| why.to_string())));
    if which == "readyz" {
        let stopping = server
            .shutdown
            .is_cancelled()
            .then(|| "the server is shutting down".to_string());
        checks.push(("shutdown", stopping));
    }
    if let [name] = only {
        checks.retain(|(check, _)| check == name);
    }
    if checks.is_empty() {
        return Err(ApiError::new(Reason::NotFound, "no such check"));
    }
    let failed = checks.iter().any(|(_, why)| why.is_some());
    if !failed && !query.has("verbose") {
        return Ok(Reply::text(200, "ok"));
    }
    let mut text = String::new();
    for (name, why) in &checks {
        _ = match why {
            None => writeln!(text, "[+]{name} ok"),
            Some(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
    }
    _ = writeln!(text, "{which} check {}", if failed { "failed" } else { "passed" });
    Ok(Reply::text(if failed { 500 } else { 200 }, text))
}

fn openapi(document: &Document, headers: &HeaderMap) -> Reply {
    let tag = format!("\"{}\"", document.hash());
    let known = headers.get(IF_NONE_MATCH).and_then(|h| h.to_str().ok());
    let mut reply = if known == Some(&tag) {
        Reply::new(304, "application/json", Body::pieces([]))
    } else if negotiate::gzip(headers) {
        let mut reply = Reply::raw_json(200, document.gzip().to_vec().into());
        reply
            .headers
            .push((http::header::CONTENT_ENCODING, "gzip".to_string()));
        reply
    } else {
        Reply::raw_json(200, document.json().into())
    };
    reply.headers.push((ETAG, tag));
    reply
}
