//! A request for objects: what each verb does with it.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::Value;
use svcnet_api::{ApiError, Reason};
use tokio_util::sync::CancellationToken;

use crate::audit::Trail;
use crate::auth::{self, Attributes, User};
use crate::decode::{self, FieldValidation};
use crate::delete::DeleteOptions;
use crate::negotiate::Form;
use crate::options::Options;
use crate::owner_references::Found;
use crate::refusal::{method_not_allowed, not_served};
use crate::reply::Reply;
use crate::server::Server;
use crate::upload::Upload;
use crate::url::{Query, Target};
use crate::write::{Outcome, Place, Written};
use crate::{
    carry, delete, list_options, managed, object, owner_references, patch, read, traits, warnings, watch,
};

/// How often an apply may find that its object has come or gone meanwhile.
const APPLY_TRIES: usize = 4;

/// A request for objects, its body apart.
pub(crate) struct Call {
    pub(crate) server: Arc<Server>,
    pub(crate) user: User,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) form: Form,
    pub(crate) verb: &'static str,
    pub(crate) abort: CancellationToken,
    pub(crate) trail: Option<Arc<Trail>>,
}

impl Call {
    /// Whoever uses a kind that goes out of use hears it, also with a refusal.
    pub(crate) async fn answer_or_warn(self, body: Upload) -> Result<Reply, ApiError> {
        let deprecated = traits::of(self.target.kind).deprecated;
        let answered = self.answer(body).await;
        let Some(warning) = deprecated else {
            return answered;
        };
        let mut reply = answered.unwrap_or_else(Reply::from);
        reply.warnings.insert(0, warning.to_string());
        Ok(reply)
    }

    async fn answer(self, body: Upload) -> Result<Reply, ApiError> {
        let Target {
            kind,
            namespace,
            name,
            subresource,
        } = &self.target;
        // As the real server has it: whoever selects one name wants that object.
        let selected = match self.verb {
            "list" | "watch" => read::selected_name(kind, &self.query),
            _ => None,
        };
        let wanted = Attributes {
            verb: self.verb,
            kind,
            namespace,
            name: selected.as_deref().unwrap_or(name),
            subresource,
        };
        if let Some(trail) = &self.trail {
            trail.name(wanted.name);
        }
        let related = |node: &str| auth::needs_secret(&self.server, node, namespace, wanted.name);
        auth::may(&self.user, &wanted, related)?;
        let Some(verbs) = traits::verbs(kind, subresource) else {
            return Err(self.elsewhere());
        };
        if !verbs.contains(&self.verb) {
            return Err(method_not_allowed());
        }
        if matches!(self.verb, "list" | "watch") {
            list_options::check(&self.query, self.verb == "watch")?;
        }
        match self.verb {
            "get" => return read::get(&self.server, &self.target, &self.query, self.form),
            "list" => return read::list(&self.server, &self.target, &self.query, self.form),
            "watch" => {
                let reader = watch::Reader {
                    user: self.user.clone(),
                    form: self.form,
                    abort: self.abort.clone(),
                };
                return watch::watch(&self.server, &self.target, &self.query, reader);
            }
            _ => {}
        }
        if kind.namespaced && namespace.is_empty() {
            return Err(method_not_allowed());
        }
        let body = decode::read(body).await?;
        // A write goes on when its client hangs up: its hooks, and the audit log, must learn what has become of it.
        let done = tokio::spawn(async move {
            let trail = self.trail.clone();
            let done = self.write(&body).await;
            match (trail, done) {
                (Some(trail), Ok(reply)) => {
                    trail.end(&reply).await;
                    Ok(reply)
                }
                (Some(trail), Err(error)) => {
                    trail.end(&error.clone().into()).await;
                    Err(error)
                }
                (None, done) => done,
            }
        });
        done.await
            .unwrap_or_else(|_| Err(ApiError::internal("the request handler failed")))
    }

    /// Why a subresource is not served.
    fn elsewhere(&self) -> ApiError {
        let target = &self.target;
        match traits::elsewhere(target.kind, &target.subresource) {
            Some(_)
                if self
                    .server
                    .get(target.kind, &target.namespace, &target.name)
                    .is_none() =>
            {
                ApiError::not_found(target.kind, &target.name)
            }
            Some(why) => ApiError::new(Reason::MethodNotAllowed, why),
            // What looks like a subresource of a Namespace may be a kind that is not there.
            None => not_served(&format!(
                "/api/{}/{}/{}/{}",
                target.kind.version, target.kind.plural, target.name, target.subresource
            )),
        }
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

    fn options(&self, applies: bool) -> Result<Options, ApiError> {
        Options::of(self.verb, applies, &self.query, &self.headers)
    }

    fn place(&self, options: &Options) -> Place {
        Place {
            user: self.user.clone(),
            verb: self.verb,
            kind: self.target.kind,
            namespace: self.target.namespace.clone(),
            name: self.target.name.clone(),
            subresource: self.target.subresource.clone(),
            dry_run: options.dry_run,
            manager: options.manager.clone(),
            applies: false,
        }
    }

    fn written(&self, done: &Written, mut warnings: Vec<String>) -> Result<Reply, ApiError> {
        let creates = done.outcome == Outcome::Created;
        let code = if creates { 201 } else { 200 };
        // What is gone is not warned of.
        if creates || matches!(done.outcome, Outcome::Updated | Outcome::Unchanged) {
            let of = &self.target;
            warnings.extend(warnings::of(of.kind, &of.subresource, creates, &done.object));
        }
        let mut reply = read::shown(self.target.kind, code, &done.object, &self.query, self.form)?;
        reply.warnings = warnings;
        Ok(reply)
    }

    async fn create(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let options = self.options(false)?;
        let media = decode::media_type(&self.headers);
        let (mut object, mut warnings) = decode::object(self.target.kind, media, body, options.validation)?;
        warnings.extend(owner_references::dedup(&mut object, Found::InRequest));
        let name = object::meta_text(&object, "name").to_string();
        if let Some(trail) = &self.trail {
            trail.name(&name);
        }
        let done = self.server.create(self.place(&options), object).await?;
        if let Some(trail) = self.trail.as_ref().filter(|_| name.is_empty()) {
            let made: Value = serde_json::from_slice(&done.object).unwrap_or_default();
            trail.name(object::meta_text(&made, "name"));
        }
        self.written(&done, warnings)
    }

    async fn update(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let options = self.options(false)?;
        let media = decode::media_type(&self.headers);
        let (mut object, mut warnings) = decode::object(self.target.kind, media, body, options.validation)?;
        warnings.extend(owner_references::dedup(&mut object, Found::InRequest));
        let place = self.place(&options);
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
        let kind = self.target.kind;
        let how = patch::PatchKind::of(decode::media_type(&self.headers))?;
        let options = self.options(how == patch::PatchKind::Apply)?;
        let (patch, doubts) = patch::parse(how, body)?;
        if how == patch::PatchKind::Apply {
            return self.apply(&patch, &doubts, &options).await;
        }
        let mut warnings = Vec::new();
        let done = self.server.modify(self.place(&options), |current| {
            let mut new = patch::apply(kind, how, &patch, current)?;
            warnings = decode::examined(kind, &mut new, &doubts, options.validation)
                .map_err(|why| patch::unreadable(how, &patch, &new, &why))?;
            warnings.extend(owner_references::dedup(&mut new, Found::InPatched));
            Ok(new)
        });
        let done = done.await?;
        self.written(&done, warnings)
    }

    /// Server-side apply.
    async fn apply(&self, patch: &Value, doubts: &[String], options: &Options) -> Result<Reply, ApiError> {
        let kind = self.target.kind;
        patch::check_applied(kind, patch)?;
        let mut place = self.place(options);
        place.applies = true;
        let merge = |current: &Value| {
            let now = object::now();
            let writer = managed::Writer {
                kind,
                subresource: &self.target.subresource,
                manager: &options.manager,
                now: &now,
            };
            let mut new = managed::apply(writer, current, patch, options.force)?;
            decode::checked(kind, &mut new, &[], FieldValidation::Ignore)?;
            match doubts {
                [doubt, ..] if options.validation == FieldValidation::Strict => {
                    let why = format!("error strict decoding YAML: error converting YAML to JSON: {doubt}");
                    Err(ApiError::bad_request(why))
                }
                _ => Ok(new),
            }
        };
        let warns = options.validation == FieldValidation::Warn;
        let warnings = doubts.iter().filter(|_| warns);
        let warnings: Vec<String> = warnings
            .map(|d| format!("error converting YAML to JSON: {d}"))
            .collect();
        for _ in 0..APPLY_TRIES {
            let done = match self.server.modify(place.clone(), merge).await {
                Err(error) if error.reason == Reason::NotFound && self.target.subresource.is_empty() => {
                    let new = merge(&managed::empty(kind))?;
                    carry::no_uid(&place, &new)?;
                    self.server.create(place.clone(), new).await
                }
                done => done,
            };
            match done {
                // Somebody else has created it meanwhile.
                Err(error) if error.reason == Reason::AlreadyExists => {}
                done => return self.written(&done?, warnings),
            }
        }
        Err(ApiError::already_exists(kind, &self.target.name))
    }

    async fn delete(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let (place, options) = self.deletion(body)?;
        let done = self.server.delete(place, &options).await?;
        if done.outcome == Outcome::Terminating || traits::of(self.target.kind).returns_deleted {
            return self.written(&done, Vec::new());
        }
        let status = delete::deletion_status(self.target.kind, &self.target.name, &done.object);
        Ok(Reply::json(200, &status))
    }

    /// A deletion's options come in its body, or in the query.
    fn deletion(&self, body: &[u8]) -> Result<(Place, DeleteOptions), ApiError> {
        let mut place = self.place(&self.options(false)?);
        let given = decode::delete_options(decode::media_type(&self.headers), body, &self.query)?;
        let options = DeleteOptions::of(&given)?;
        place.dry_run |= options.dry_run;
        Ok((place, options))
    }

    async fn delete_collection(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let (place, options) = self.deletion(body)?;
        let names = read::names(&self.server, &self.target, &self.query)?;
        let mut deleted = Vec::new();
        for name in names {
            let place = Place {
                name,
                ..place.clone()
            };
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
