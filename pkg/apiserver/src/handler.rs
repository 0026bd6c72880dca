//! From a request to its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request, Response};
use svcnet_api::ApiError;
use tokio_util::sync::CancellationToken;

use crate::audit::{AUDIT_ID, ObjectRef, Trail};
use crate::auth::{self, Caller, User};
use crate::body::Body;
use crate::call::Call;
use crate::deadline::Deadline;
use crate::limits::{Permit, What};
use crate::refusal::{method_not_allowed, not_served};
use crate::reply::Reply;
use crate::server::Server;
use crate::upload::Upload;
use crate::url::{self, Path, Query, Target};
use crate::{decode, negotiate, own, root, write};

/// The connection that a request comes over.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Who is at the other end, as far as a certificate tells.
    pub(crate) user: User,
    pub(crate) from: Option<SocketAddr>,
    /// When that certificate ends, in seconds since 1970.
    pub(crate) until: Option<i64>,
    /// Ends the connection at once when cancelled.
    pub(crate) abort: CancellationToken,
}

/// Answers a request.
pub(crate) async fn handle(server: Arc<Server>, peer: Peer, request: Request<Upload>) -> Response<Body> {
    let gzip = negotiate::gzip(request.headers());
    let yaml = negotiate::yaml(request.headers());
    let head_only = request.method() == Method::HEAD;
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let started = Instant::now();
    let audit = server.audit.clone();
    let trail = audit.map(|audit| Arc::new(Trail::begin(audit, peer.from, &request)));
    let mut permit = None;
    let mut reply = match route(server, peer, request, trail.clone(), &mut permit).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(%method, path, reason = %error, "refused");
            error.into()
        }
    };
    if let Some(trail) = &trail {
        trail.end(&reply).await;
        reply.headers.push((AUDIT_ID, trail.id().to_string()));
    }
    let counted = counted(&method);
    metrics::counter!("svcnet_apiserver_requests_total", "code" => reply.code.to_string(), "verb" => counted)
        .increment(1);
    metrics::histogram!("svcnet_apiserver_request_duration_seconds", "verb" => counted)
        .record(started.elapsed().as_secs_f64());
    if yaml {
        reply = reply.into_yaml();
    }
    let mut response = reply.into_response(gzip).map(|body| body.holding(permit));
    if head_only {
        *response.body_mut() = Body::pieces([]);
    }
    response
}

/// A method as metrics name it: whoever makes methods up makes no metrics.
fn counted(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

async fn route(
    server: Arc<Server>,
    peer: Peer,
    request: Request<Upload>,
    trail: Option<Arc<Trail>>,
    permit: &mut Option<Permit>,
) -> Result<Reply, ApiError> {
    let path = url::parse(request.uri().path());
    let query = Query::parse(request.uri().query());
    if let (Some(trail), Some(path)) = (&trail, &path) {
        note(trail, path, request.method(), &query);
    }
    let deadline = Deadline::of(
        request.method(),
        path.as_ref(),
        &query,
        server.config.limits.request_max,
    )?;
    let answer = answer(server, peer, request, (path, query), trail, permit);
    deadline.within(answer).await
}

async fn answer(
    server: Arc<Server>,
    peer: Peer,
    request: Request<Upload>,
    (path, query): (Option<Path>, Query),
    trail: Option<Arc<Trail>>,
    permit: &mut Option<Permit>,
) -> Result<Reply, ApiError> {
    fresh(&server, path.as_ref(), request.method(), &query).await?;
    let caller = authenticate(&server, &peer, &request, path.as_ref(), trail.as_deref())?;
    let Some(path) = path else {
        // Strangers learn nothing about what is served.
        auth::may_root(&caller.user, &["apis".to_string()], "get")?;
        return Err(not_served(request.uri().path()));
    };
    let client = caller.by.as_ref().unwrap_or(&caller.user);
    let count = |what| {
        server
            .in_flight
            .enter(client, peer.from.map(|from| from.ip()), what)
            .map(Some)
    };
    match path {
        Path::Root(segments) if segments[0] == own::ROOT => {
            *permit = count(What::Request)?;
            own::answer(&server, &caller, &segments, request, trail.as_deref()).await
        }
        Path::Root(segments) => {
            let method = request.method().as_str().to_lowercase();
            auth::may_root(&caller.user, &segments, &method)?;
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(method_not_allowed());
            }
            root::answer(&server, &segments, &query, request.headers())
        }
        Path::Review(review, namespace) => {
            review.may_ask(&caller, &namespace)?;
            if request.method() != Method::POST {
                return Err(method_not_allowed());
            }
            *permit = count(What::Request)?;
            let media = decode::media_type(request.headers()).to_string();
            let body = decode::read(request.into_body()).await?;
            let (question, _) = decode::value(&media, &body)?;
            let answer = review.answer(&server, &caller, &namespace, question)?;
            Ok(Reply::json(201, &answer))
        }
        Path::Resource(target) => {
            let verb = verb(request.method(), &target, &query)?;
            let what = if verb == "watch" {
                What::Watch
            } else {
                What::Request
            };
            *permit = count(what)?;
            let call = Call {
                form: negotiate::form(request.headers()),
                headers: request.headers().clone(),
                server,
                user: caller.user,
                target: *target,
                query,
                verb,
                abort: peer.abort,
                trail,
            };
            call.answer_or_warn(request.into_body()).await
        }
    }
}

/// Waits until this server has seen what others were told is done, but for requests that say that anything will do
/// (`resourceVersion=0`), or something that this one has.
async fn fresh(server: &Server, path: Option<&Path>, method: &Method, query: &Query) -> Result<(), ApiError> {
    let wanted = match path {
        Some(Path::Resource(_)) if matches!(*method, Method::GET | Method::HEAD) => {
            match query.get("resourceVersion").and_then(|r| r.parse::<u64>().ok()) {
                Some(revision) if query.get("resourceVersionMatch") != Some("Exact") => {
                    revision > server.store.revision()
                }
                _ => true,
            }
        }
        Some(Path::Resource(_) | Path::Review(..)) => true,
        Some(Path::Root(segments)) => segments[0] == own::ROOT,
        None => false,
    };
    if wanted && server.store.is_shared() {
        server.store.sync().await.map_err(write::unavailable)?;
    }
    Ok(())
}

/// What the URL tells of a request, for the audit log.
fn note(trail: &Trail, path: &Path, method: &Method, query: &Query) {
    match path {
        Path::Resource(target) => {
            let Target {
                kind,
                namespace,
                name,
                subresource,
            } = target.as_ref();
            if let Ok(verb) = verb(method, target, query) {
                trail.object(
                    verb,
                    ObjectRef::of(kind, namespace, name, subresource),
                    kind.volatile,
                );
            }
        }
        // A question changes nothing.
        Path::Review(review, namespace) => {
            trail.object("create", ObjectRef::of_review(review, namespace), true);
        }
        Path::Root(_) => {}
    }
}

fn authenticate(
    server: &Server,
    peer: &Peer,
    request: &Request<Upload>,
    path: Option<&Path>,
    trail: Option<&Trail>,
) -> Result<Caller, ApiError> {
    let caller = auth::authenticate(&server.tokens, peer.user.clone(), request.headers());
    match (&caller, trail) {
        (Ok(caller), Some(trail)) => trail.caller(&caller.user, caller.by.as_ref()),
        (Err(refused), Some(trail)) => {
            trail.caller(&refused.user, None);
            trail.because(&refused.why);
        }
        (_, None) => {}
    }
    caller.map_err(|refused| root::refused(path, refused.error))
}

/// What Kubernetes calls a method on a target.
fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, ApiError> {
    let one = !target.name.is_empty();
    Ok(match *method {
        Method::GET | Method::HEAD if one => "get",
        Method::GET | Method::HEAD if query.flag("watch") => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST if !one || !target.subresource.is_empty() => "create",
        Method::PUT if one => "update",
        Method::PATCH if one => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(method_not_allowed()),
    })
}
