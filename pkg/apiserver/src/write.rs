//! The way of a write: defaults, hooks, checks, the store, and back.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use svcnet_api::{Admission, ApiError, Kind, Operation, Reason, Request, Reservation};
use svcnet_store::{Change, CommitError, Entry, Key, SyncError, Write};

use crate::auth::{self, Attributes, User};
use crate::server::Server;
use crate::{carry, default_class, delete, managed, namespace, object, traits};

/// How often a generated name may be taken already.
const GENERATE_TRIES: usize = 8;
/// Whose the fields are that the server itself writes.
pub(crate) const MANAGER: &str = "svcnet";
/// How often a write may be overtaken: by a change of its namespace, or by other servers' writes to the same object. Each time
/// another one has got its way, so that this many are a storm.
pub(crate) const GUARD_TRIES: usize = 100;
/// How long a write waits that another server has overtaken.
const OVERTAKEN_PAUSE_MAX: Duration = Duration::from_millis(5);
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Who writes what, where.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) user: User,
    pub(crate) verb: &'static str,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: String,
    /// Empty until a new object has its name.
    pub(crate) name: String,
    pub(crate) subresource: String,
    pub(crate) dry_run: bool,
    /// Whose the written fields are.
    pub(crate) manager: String,
    /// Whether the object comes with its managed fields settled, from a server-side apply.
    pub(crate) applies: bool,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// The object as it is now, or as it was last.
    pub(crate) object: Bytes,
    pub(crate) outcome: Outcome,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Updated,
    Unchanged,
    Deleted,
    /// Marked for deletion; finalizers hold it.
    Terminating,
}

/// A stored object on its way to something else.
pub(crate) struct Stored {
    pub(crate) entry: Entry,
    pub(crate) object: Value,
}

impl Place {
    pub(crate) fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: self.verb,
            kind: self.kind,
            namespace: &self.namespace,
            name: &self.name,
            subresource: &self.subresource,
        }
    }

    /// Settles who owns which field of an object on its way in. `given` is what the writer has sent of a new one.
    fn track(&self, old: Option<&Value>, given: &Value, new: &mut Value) {
        let now = object::now();
        let writer = managed::Writer {
            kind: self.kind,
            subresource: &self.subresource,
            manager: &self.manager,
            now: &now,
        };
        match old {
            _ if self.applies => {}
            Some(old) => managed::update(writer, old, new),
            None => managed::create(writer, given, new),
        }
    }
}

impl Server {
    /// Creates an object.
    pub(crate) async fn create(&self, mut place: Place, mut new: Value) -> Result<Written, ApiError> {
        carry::name_space(&place, &mut new)?;
        if !object::meta_text(&new, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let base = object::meta_text(&new, "generateName").to_string();
        let given = object::meta_text(&new, "name").to_string();
        if !place.name.is_empty() && !given.is_empty() && given != place.name {
            return Err(carry::name_mismatch(&given, &place.name));
        }
        let given = if given.is_empty() {
            place.name.clone()
        } else {
            given
        };
        for _ in 0..GENERATE_TRIES {
            place.name = match (given.is_empty(), base.is_empty()) {
                (true, false) => object::generated_name(&base),
                _ => given.clone(),
            };
            match self.create_named(&place, new.clone()).await {
                Err(error) if error.reason == Reason::AlreadyExists && given.is_empty() => {}
                done => return done,
            }
        }
        Err(ApiError::already_exists(place.kind, &place.name))
    }

    async fn create_named(&self, place: &Place, mut new: Value) -> Result<Written, ApiError> {
        let traits = traits::of(place.kind);
        let metadata = object::metadata(&mut new);
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "resourceVersion",
        ] {
            metadata.remove(field);
        }
        metadata.insert("name".to_string(), place.name.as_str().into());
        metadata.insert("uid".to_string(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".to_string(), object::now().into());
        metadata.remove("generation");
        if traits::has_generation(place.kind) {
            metadata.insert("generation".to_string(), 1.into());
        }
        if place.kind.status && !traits.status_on_create {
            new.as_object_mut().map(|o| o.remove("status"));
        }
        for _ in 0..GUARD_TRIES {
            let guards = namespace::guard(self, place)?;
            let key = self.key(place.kind, &place.namespace, &place.name);
            let _lock = self.lock(&key).await;
            if self.store.get(&key).is_some() {
                return Err(ApiError::already_exists(place.kind, &place.name));
            }
            match self.finish(place, None, new.clone(), key, guards).await {
                Err(Stop::Overtaken) => self.catch_up().await?,
                Err(Stop::Refused(error)) => return Err(error),
                Ok(done) => return Ok(done),
            }
        }
        Err(ApiError::new(
            Reason::ServiceUnavailable,
            "the namespace keeps changing; try again",
        ))
    }

    /// Changes an object: `change` makes the new one out of the stored one.
    pub(crate) async fn modify(
        &self,
        place: Place,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        for _ in 0..GUARD_TRIES {
            match self.modify_once(&place, &mut change).await {
                Err(Stop::Overtaken) => self.catch_up().await?,
                done => return done.map_err(Stop::into_error),
            }
        }
        Err(Stop::Overtaken.into_error())
    }

    async fn modify_once(
        &self,
        place: &Place,
        change: &mut impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, Stop> {
        let key = self.key(place.kind, &place.namespace, &place.name);
        let _lock = self.lock(&key).await;
        let Some(entry) = self.store.get(&key) else {
            return Err(ApiError::not_found(place.kind, &place.name).into());
        };
        let stored = Stored {
            object: object::parse(&entry)?,
            entry,
        };
        let wanted = change(&stored.object)?;
        let new = carry::carry_over(place, &stored, wanted)?;
        if delete::is_done(&new, traits::of(place.kind)) && !place.dry_run {
            self.remove(place, stored, key).await
        } else {
            self.finish(place, Some(stored), new, key, Vec::new()).await
        }
    }

    /// Defaults, hooks and checks; then the store. The caller holds the object's lock.
    async fn finish(
        &self,
        place: &Place,
        stored: Option<Stored>,
        mut new: Value,
        key: Key,
        guards: Vec<(Key, u64)>,
    ) -> Result<Written, Stop> {
        let old = stored.as_ref().map(|s| &s.object);
        auth::may_object(&place.user, &place.attributes(), old, Some(&new))?;
        self.follow_claims();
        let operation = if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        };
        let given = if old.is_none() { new.clone() } else { Value::Null };
        (place.kind.default)(&mut new, old);
        place.track(old, &given, &mut new);
        object::check_depth(&new)?;
        if old.is_none() {
            default_class::fill_in(self, place.kind, &mut new);
        }
        let request = request(place, operation, old);
        let reservations = admit(&self.config.admissions, &request, Some(&mut new))?;
        let errors = (place.kind.validate)(&new, old);
        if !errors.is_empty() {
            return Err(ApiError::invalid(place.kind, &place.name, &errors).into());
        }
        if let Some(stored) = &stored
            && object::same(&stored.object, &new)
        {
            return Ok(Written {
                object: stored.entry.value.clone(),
                outcome: Outcome::Unchanged,
            });
        }
        let outcome = if old.is_some() {
            Outcome::Updated
        } else {
            Outcome::Created
        };
        if place.dry_run {
            let object = Bytes::from(new.to_string());
            return Ok(Written { object, outcome });
        }
        let write = Write {
            key,
            change: Change::Put(object::template(&new)),
            expect: stored.as_ref().map(|s| s.entry.revision),
            guards,
        };
        let object = self.commit(place, operation, write, reservations).await?;
        Ok(Written { object, outcome })
    }

    /// The write itself, with what it takes and frees: kept when it stands, given back when it does not.
    pub(crate) async fn commit(
        &self,
        place: &Place,
        operation: Operation,
        write: Write,
        reservations: Vec<Box<dyn Reservation>>,
    ) -> Result<Bytes, Stop> {
        let claims = self.claim_writes(place, &reservations);
        let mut writes = vec![write];
        writes.extend(claims.iter().cloned());
        match self.store.commit_all(writes).await {
            Ok(committed) => {
                reservations.into_iter().for_each(Reservation::commit);
                let first = committed.into_iter().next();
                Ok(first.map(|c| c.value).unwrap_or_default())
            }
            Err(error) => {
                drop(reservations);
                self.claims_refused(&claims).await;
                Err(self.stop(place, operation, error))
            }
        }
    }

    /// Before another try: what other servers have written meanwhile is seen, and the one that was faster is let go on.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        if self.store.is_shared() {
            tokio::time::sleep(OVERTAKEN_PAUSE_MAX.mul_f64(rand::random())).await;
        }
        self.store.sync().await.map(|_| ()).map_err(unavailable)
    }

    /// Takes an object away. The caller holds its lock.
    pub(crate) async fn remove(&self, place: &Place, stored: Stored, key: Key) -> Result<Written, Stop> {
        let request = request(place, Operation::Delete, Some(&stored.object));
        let reservations = admit(&self.config.admissions, &request, None)?;
        let outcome = Outcome::Deleted;
        if place.dry_run {
            let object = stored.entry.value;
            return Ok(Written { object, outcome });
        }
        let write = Write {
            key,
            change: Change::Delete(object::template(&stored.object)),
            expect: Some(stored.entry.revision),
            guards: Vec::new(),
        };
        let object = self.commit(place, Operation::Delete, write, reservations).await?;
        Ok(Written { object, outcome })
    }

    fn stop(&self, place: &Place, operation: Operation, error: CommitError) -> Stop {
        let refused = match error {
            CommitError::Guard { .. } => return Stop::Overtaken,
            CommitError::Conflict { .. } if operation == Operation::Create => {
                ApiError::already_exists(place.kind, &place.name)
            }
            // By another server: this one's writers wait for each other.
            CommitError::Conflict { .. } if self.store.is_shared() => return Stop::Overtaken,
            CommitError::Conflict { .. } => ApiError::conflict(place.kind, &place.name, MODIFIED),
            CommitError::Disk(_) => ApiError::internal(error),
            CommitError::Unavailable(_) => ApiError::new(Reason::ServiceUnavailable, error.to_string()),
            CommitError::Unknown(_) => ApiError::new(Reason::Timeout, error.to_string()),
            CommitError::Closed => ApiError::new(Reason::ServiceUnavailable, "the server is shutting down"),
        };
        Stop::Refused(refused)
    }
}

/// The datastore that servers share does not answer.
pub(crate) fn unavailable(error: SyncError) -> ApiError {
    ApiError::new(Reason::ServiceUnavailable, error.to_string())
}

/// Why a write stops.
pub(crate) enum Stop {
    Refused(ApiError),
    /// What it relies on has changed: once more.
    Overtaken,
}

impl Stop {
    pub(crate) fn into_error(self) -> ApiError {
        match self {
            Self::Refused(error) => error,
            Self::Overtaken => ApiError::new(
                Reason::ServiceUnavailable,
                "overtaken by another write; try again",
            ),
        }
    }
}

impl From<Stop> for ApiError {
    fn from(stop: Stop) -> Self {
        stop.into_error()
    }
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

fn request<'a>(place: &'a Place, operation: Operation, old: Option<&'a Value>) -> Request<'a> {
    Request {
        operation,
        kind: place.kind,
        namespace: &place.namespace,
        name: &place.name,
        old,
        dry_run: place.dry_run,
    }
}

/// Asks every hook. The first refusal gives back what those before it took.
fn admit(
    admissions: &[std::sync::Arc<dyn Admission>],
    request: &Request<'_>,
    mut new: Option<&mut Value>,
) -> Result<Vec<Box<dyn Reservation>>, ApiError> {
    let mut reservations = Vec::new();
    for admission in admissions {
        reservations.extend(admission.admit(request, new.as_deref_mut())?);
    }
    Ok(reservations)
}
