//! From a request to its answer.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use svcnet_api::{ApiError, Reason};

use crate::auth::{self, Attributes, User};
use crate::body::Body;
use crate::decode::{self, FieldValidation};
use crate::negotiate::{self, Form};
use crate::reply::Reply;
use crate::server::Server;
use crate::url::{self, Path, Query, Target};
use crate::write::{Outcome, Place, Written};
use crate::{join, object, patch, read, root, traits, watch, write};

/// A request for objects, its body apart.
struct Call {
    server: Arc<Server>,
    user: User,
    target: Target,
    query: Query,
    headers: HeaderMap,
    form: Form,
    verb: &'static str,
}

/// Answers a request. `peer` is the caller as far as the connection tells.
pub(crate) async fn handle(server: Arc<Server>, peer: User, request: Request<Incoming>) -> Response<Body> {
    let gzip = negotiate::gzip(request.headers());
    let head_only = request.method() == Method::HEAD;
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let started = Instant::now();
    let reply = match route(server, peer, request).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(%method, path, reason = %error, "refused");
            error.into()
        }
    };
    metrics::counter!("svcnet_apiserver_requests_total", "code" => reply.code.to_string(), "verb" => method.to_string())
        .increment(1);
    metrics::histogram!("svcnet_apiserver_request_duration_seconds", "verb" => method.to_string())
        .record(started.elapsed().as_secs_f64());
    let mut response = reply.into_response(gzip);
    if head_only {
        *response.body_mut() = Body::pieces([]);
    }
    response
}

async fn route(server: Arc<Server>, peer: User, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let user = authenticate(&server, peer, request.headers())?;
    let query = Query::parse(request.uri().query());
    let Some(path) = url::parse(request.uri().path()) else {
        // Strangers learn nothing about what is served.
        auth::may_root(&user, &["apis".to_string()], "get")?;
        return Err(ApiError::new(
            Reason::NotFound,
            "the server could not find the requested resource",
        ));
    };
    match path {
        Path::Root(segments) => {
            if segments == ["svcnet", "v1", "join"] {
                return join::join(server, user, request).await;
            }
            let method = request.method().as_str().to_lowercase();
            auth::may_root(&user, &segments, &method)?;
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(method_not_allowed());
            }
            root::answer(&server, &segments, &query, request.headers())
        }
        Path::Resource(target) => {
            let verb = verb(request.method(), &target, &query)?;
            let call = Call {
                form: negotiate::form(request.headers()),
                headers: request.headers().clone(),
                server,
                user,
                target: *target,
                query,
                verb,
            };
            call.answer(request.into_body()).await
        }
    }
}

fn method_not_allowed() -> ApiError {
    ApiError::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

/// Who calls: what the connection says, or else the bearer token. A wrong token is refused even where none is needed.
fn authenticate(server: &Server, peer: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let given = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|a| a.to_str().ok());
    let token = given.and_then(|g| g.strip_prefix("Bearer ")).map(str::trim);
    match token {
        None => Ok(peer),
        Some(_) if peer != User::anonymous() => Ok(peer),
        Some(token) if server.token.is(token) => Ok(User::bootstrapper()),
        Some(_) => Err(ApiError::new(Reason::Unauthorized, join::WRONG_TOKEN)),
    }
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

impl Call {
    async fn answer(self, body: Incoming) -> Result<Reply, ApiError> {
        let Target {
            kind,
            namespace,
            name,
            subresource,
        } = &self.target;
        let wanted = Attributes {
            verb: self.verb,
            kind,
            namespace,
            name,
            subresource,
        };
        auth::may(&self.user, &wanted)?;
        if !traits::has_subresource(kind, subresource) {
            return Err(ApiError::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            ));
        }
        match self.verb {
            "get" => return read::get(&self.server, &self.target, &self.query, self.form),
            "list" => return read::list(&self.server, &self.target, &self.query, self.form),
            "watch" => return watch::watch(&self.server, &self.target, &self.query, self.form),
            // A subresource is changed, never made.
            "create" if !name.is_empty() => return Err(method_not_allowed()),
            _ => {}
        }
        if kind.namespaced && namespace.is_empty() {
            return Err(method_not_allowed());
        }
        if !subresource.is_empty() && matches!(self.verb, "delete" | "deletecollection") {
            return Err(method_not_allowed());
        }
        let body = decode::read(body).await?;
        // A write goes on when its client hangs up: its hooks must learn what has become of it.
        let done = tokio::spawn(async move { self.write(&body).await });
        done.await
            .unwrap_or_else(|_| Err(ApiError::internal("the request handler failed")))
    }

    async fn write(self, body: &[u8]) -> Result<Reply, ApiError> {
        match self.verb {
            "create" => self.create(body).await,
            "update" => self.update(body).await,
            "patch" => self.patch(body).await,
            "delete" => self.delete(body).await,
            _ => self.delete_collection(body).await,
        }
    }

    fn place(&self) -> Result<Place, ApiError> {
        let dry_run = match self.query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
                )));
            }
        };
        Ok(Place {
            user: self.user.clone(),
            verb: self.verb,
            kind: self.target.kind,
            namespace: self.target.namespace.clone(),
            name: self.target.name.clone(),
            subresource: self.target.subresource.clone(),
            dry_run,
        })
    }

    fn written(&self, done: &Written, warnings: Vec<String>) -> Result<Reply, ApiError> {
        let code = if done.outcome == Outcome::Created {
            201
        } else {
            200
        };
        let mut reply = read::shown(self.target.kind, code, &done.object, &self.query, self.form)?;
        reply.warnings = warnings;
        Ok(reply)
    }

    async fn create(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let validation = FieldValidation::of(&self.query)?;
        let media = decode::media_type(&self.headers);
        let (object, warnings) = decode::object(self.target.kind, media, body, validation)?;
        let done = self.server.create(self.place()?, object).await?;
        self.written(&done, warnings)
    }

    async fn update(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let validation = FieldValidation::of(&self.query)?;
        let media = decode::media_type(&self.headers);
        let (object, warnings) = decode::object(self.target.kind, media, body, validation)?;
        let place = self.place()?;
        // Whoever names a revision means an object that was there: such a one is told that it is gone.
        let creates = traits::of(place.kind).create_on_update
            && place.subresource.is_empty()
            && object::meta_text(&object, "resourceVersion").is_empty();
        let done = match self.server.modify(place.clone(), |_| Ok(object.clone())).await {
            Err(error) if error.reason == Reason::NotFound && creates => {
                self.server.create(place, object).await?
            }
            done => done?,
        };
        self.written(&done, warnings)
    }

    async fn patch(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let validation = FieldValidation::of(&self.query)?;
        let (kind, place) = (self.target.kind, self.place()?);
        let media = decode::media_type(&self.headers);
        let how = patch::PatchKind::of(media)?;
        let patch = patch::parse(how, body)?;
        let mut warnings = Vec::new();
        if how == patch::PatchKind::Apply {
            patch::check_apply(kind, &self.query, &patch)?;
            if self.server.get(kind, &place.namespace, &place.name).is_none() && place.subresource.is_empty()
            {
                let mut object = patch;
                let warnings = decode::checked(kind, &mut object, &[], validation)?;
                let done = self.server.create(place, object).await?;
                return self.written(&done, warnings);
            }
        }
        let done = self.server.modify(place, |current| {
            let mut new = patch::apply(kind, how, &patch, current)?;
            warnings = decode::checked(kind, &mut new, &[], validation)?;
            Ok(new)
        });
        let done = done.await?;
        self.written(&done, warnings)
    }

    async fn delete(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let options = decode::delete_options(decode::media_type(&self.headers), body)?;
        let mut place = self.place()?;
        place.dry_run |= options.get("dryRun").is_some_and(|d| d.get(0).is_some());
        let done = self.server.delete(place, &options).await?;
        if done.outcome == Outcome::Terminating {
            return self.written(&done, Vec::new());
        }
        let status = write::deletion_status(self.target.kind, &self.target.name, &done.object);
        Ok(Reply::json(200, &status))
    }

    async fn delete_collection(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let options = decode::delete_options(decode::media_type(&self.headers), body)?;
        let names = read::names(&self.server, &self.target, &self.query)?;
        let mut deleted = Vec::new();
        for name in names {
            let mut place = self.place()?;
            place.name = name;
            match self.server.delete(place, &options).await {
                Ok(done) => deleted.push(done.object),
                // Somebody else was faster.
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read::list_of(
            self.target.kind,
            deleted,
            self.server.store.revision(),
        ))
    }
}
