//! Deletion: at once, after a grace period, or when nothing holds the object any more (apiserver, registry/rest/delete.go,
//! registry/core/pod/strategy.go).
//!
//! A pod that its node has begun to run is marked first, and goes when its node has ended it and deletes it with a grace period of
//! zero. One that nobody has begun (`status.startTime`, which a kubelet sets first) goes at once, other than in kube-apiserver: nodes here
//! run containers of others, and a pod that somebody wrote by hand would wait for nobody. Where nobody ends a pod (the node is no more, or whoever ran the pod is), the server does, [`OVERDUE`] after the period.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use svcnet_api::{ApiError, Kind, Operation, Reason, registry};
use svcnet_store::{Change, Range, Write};

use crate::auth::{self, User};
use crate::collect::Propagation;
use crate::server::Server;
use crate::traits::Traits;
use crate::write::{GUARD_TRIES, MANAGER, Outcome, Place, Stop, Stored, Written};
use crate::{carry, object, options, traits};

/// How long a node has, beyond the grace period, to say that a pod has ended.
const OVERDUE: SignedDuration = SignedDuration::from_secs(15);

/// What a deletion asks for, out of its body or, where it has none, its query.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation: Propagation,
    /// `uid` and `resourceVersion` that the object must have; empty where any will do.
    pub(crate) uid: String,
    pub(crate) revision: String,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    /// Reads `metav1.DeleteOptions`.
    ///
    /// # Errors
    /// 422 for what is none of the real server's.
    pub(crate) fn of(given: &Value) -> Result<Self, ApiError> {
        let precondition = |name: &str| {
            let value = given.get("preconditions").and_then(|p| p.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_string()
        };
        let dry_runs = given.get("dryRun").and_then(Value::as_array);
        let dry_runs: Vec<&str> = dry_runs.into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(error) = options::dry_run_error(&dry_runs) {
            return Err(options::invalid("DeleteOptions", &[error]));
        }
        // What is below zero is taken for a second.
        let seconds = given.get("gracePeriodSeconds").and_then(Value::as_i64);
        Ok(Self {
            grace_period_seconds: seconds.map(|s| if s < 0 { 1 } else { s }),
            propagation: Propagation::of(given)?,
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            dry_run: !dry_runs.is_empty(),
        })
    }
}

/// What becomes of an object that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Grace {
    /// Nobody has to be waited for.
    Over,
    /// It is waited for already, and for no longer than is asked now.
    Pending,
    /// So many seconds, up to a time.
    Until(Timestamp, i64),
}

/// How long an object that is being deleted is waited for.
pub(crate) fn grace_period(object: &Value) -> i64 {
    let seconds = object
        .get("metadata")
        .and_then(|m| m.get("deletionGracePeriodSeconds"));
    seconds.and_then(Value::as_i64).unwrap_or_default()
}

/// Whether an object goes with the write that has made it so: nothing holds it any more, and nobody is waited for.
pub(crate) fn is_done(object: &Value, traits: &Traits) -> bool {
    object::is_terminating(object) && grace_period(object) == 0 && !object::is_held(object, traits.finalize)
}

fn deletion_time(object: &Value) -> Option<Timestamp> {
    object::meta_text(object, "deletionTimestamp").parse().ok()
}

fn grace(traits: &Traits, object: &Value, asked: Option<i64>, now: Timestamp) -> Grace {
    if !traits.graceful {
        return Grace::Over;
    }
    if object::is_terminating(object) {
        let is = grace_period(object);
        let ends = deletion_time(object).unwrap_or(now);
        return match asked {
            _ if is == 0 => Grace::Over,
            // It can only be made shorter.
            Some(0) => Grace::Over,
            Some(asked) if asked < is => Grace::Until(ends + SignedDuration::from_secs(asked - is), asked),
            _ => Grace::Pending,
        };
    }
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let own = object
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_i64);
    let over = text("/spec/nodeName").is_empty()
        || text("/status/startTime").is_empty()
        || matches!(text("/status/phase"), "Failed" | "Succeeded");
    match asked.or(own).unwrap_or_default() {
        _ if over => Grace::Over,
        0 => Grace::Over,
        seconds => {
            let seconds = if seconds < 0 { 1 } else { seconds };
            Grace::Until(now + SignedDuration::from_secs(seconds), seconds)
        }
    }
}

/// The object as it waits for its end.
fn marked(mut object: Value, traits: &Traits, grace: &Grace, now: Timestamp) -> Value {
    let first = !object::is_terminating(&object);
    let (at, seconds) = match grace {
        Grace::Until(at, seconds) => (*at, *seconds),
        Grace::Over if first || traits.graceful => (now, 0),
        _ => return object,
    };
    let metadata = object::metadata(&mut object);
    metadata.insert("deletionTimestamp".to_string(), object::time(at).into());
    if traits.finalize {
        object["status"]["phase"] = "Terminating".into();
    } else {
        metadata.insert("deletionGracePeriodSeconds".to_string(), seconds.into());
    }
    if first && carry::metadata_generation(&object).is_some() {
        carry::bump_generation(&mut object);
    }
    object
}

impl Server {
    /// Deletes an object, or marks it for deletion while its node or a finalizer holds it.
    pub(crate) async fn delete(&self, place: Place, options: &DeleteOptions) -> Result<Written, ApiError> {
        for _ in 0..GUARD_TRIES {
            match self.delete_once(&place, options).await {
                Err(Stop::Overtaken) => self.catch_up().await?,
                done => return done.map_err(Stop::into_error),
            }
        }
        Err(Stop::Overtaken.into_error())
    }

    async fn delete_once(&self, place: &Place, options: &DeleteOptions) -> Result<Written, Stop> {
        let key = self.key(place.kind, &place.namespace, &place.name);
        let _lock = self.lock(&key).await;
        let Some(entry) = self.store.get(&key) else {
            return Err(ApiError::not_found(place.kind, &place.name).into());
        };
        let stored = Stored {
            object: object::parse(&entry)?,
            entry,
        };
        auth::may_object(&place.user, &place.attributes(), Some(&stored.object), None)?;
        let traits = traits::of(place.kind);
        if traits.immortal.contains(&place.name.as_str()) {
            let why = format!("this {} may not be deleted", place.kind.singular);
            return Err(ApiError::forbidden(place.kind, &place.name, &why).into());
        }
        carry::preconditions(place, &stored, options)?;
        let now = Timestamp::now();
        let grace = grace(traits, &stored.object, options.grace_period_seconds, now);
        let mut new = stored.object.clone();
        if !object::is_terminating(&new) {
            options.propagation.mark(&mut new);
        }
        if grace == Grace::Over && !object::is_held(&new, traits.finalize) {
            return self.remove(place, stored, key).await;
        }
        let new = marked(new, traits, &grace, now);
        let outcome = Outcome::Terminating;
        if place.dry_run || new == stored.object {
            let object = new.to_string().into();
            return Ok(Written { object, outcome });
        }
        // Nothing that a hook or a check looks at has changed.
        let write = Write {
            key,
            change: Change::Put(object::template(&new)),
            expect: Some(stored.entry.revision),
            guards: Vec::new(),
        };
        let object = self.commit(place, Operation::Update, write, Vec::new()).await?;
        Ok(Written { object, outcome })
    }

    /// Deletes what nobody has ended in time.
    pub(crate) async fn end_overdue(&self) {
        for kind in registry::kinds().iter().filter(|kind| traits::of(kind).graceful) {
            let snapshot = self.store.list(self.collection(kind), &Range::default(), None);
            for (_, entry) in snapshot.map(|s| s.entries).unwrap_or_default() {
                if !mentions(&entry.value, b"\"deletionTimestamp\"") {
                    continue;
                }
                if let Ok(object) = object::parse(&entry)
                    && self.is_overdue(&object, Timestamp::now())
                {
                    self.end(kind, &object).await;
                }
            }
        }
    }

    /// Whether the node of an object has had its time, or is no more.
    fn is_overdue(&self, object: &Value, now: Timestamp) -> bool {
        let Some(ends) = deletion_time(object).filter(|_| grace_period(object) > 0) else {
            return false;
        };
        let node = object
            .pointer("/spec/nodeName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let nodes = registry::by_resource("", "v1", "nodes");
        let orphaned = nodes.is_some_and(|kind| self.get(kind, "", node).is_none());
        orphaned || now > ends + OVERDUE
    }

    async fn end(&self, kind: &'static Kind, object: &Value) {
        let place = Place {
            user: User::apiserver(),
            verb: "delete",
            kind,
            namespace: object::meta_text(object, "namespace").to_string(),
            name: object::meta_text(object, "name").to_string(),
            subresource: String::new(),
            dry_run: false,
            manager: MANAGER.to_string(),
            applies: false,
        };
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: object::meta_text(object, "uid").to_string(),
            ..DeleteOptions::default()
        };
        let (namespace, name) = (place.namespace.clone(), place.name.clone());
        match self.delete(place, &options).await {
            Ok(_) => {
                tracing::info!(
                    object.kind = kind.kind,
                    object.ns = namespace,
                    object.name = name,
                    "deleted, as its node has not in time"
                );
            }
            Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => {}
            Err(error) => {
                tracing::warn!(object.kind = kind.kind, object.ns = namespace, object.name = name, reason = %error, "cannot delete what its node has not");
            }
        }
    }
}

/// Whether bytes hold others. Cheaper than parsing, for what few objects have.
fn mentions(bytes: &Bytes, wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What a deletion answers when the object is gone.
pub(crate) fn deletion_status(kind: &Kind, name: &str, object: &Bytes) -> Value {
    let uid = serde_json::from_slice::<Value>(object).ok();
    let uid = uid
        .as_ref()
        .map(|o| object::meta_text(o, "uid"))
        .unwrap_or_default();
    let mut details = json!({"name": name, "kind": kind.plural, "uid": uid});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running", "startTime": "2026-11-27T00:00:00Z"}})
    }

    #[test]
    fn pods_of_nodes_are_waited_for() {
        let pods = traits::of(registry::by_kind("v1", "Pod").unwrap());
        let now: Timestamp = "2026-11-27T00:00:00Z".parse().unwrap();
        let until = |seconds: i64| Grace::Until(now + SignedDuration::from_secs(seconds), seconds);
        let bound = pod(json!({"nodeName": "n1", "terminationGracePeriodSeconds": 30}));
        for (object, asked, expect) in [
            (&bound, None, until(30)),
            (&bound, Some(5), until(5)),
            (&bound, Some(0), Grace::Over),
            (
                &pod(json!({"terminationGracePeriodSeconds": 30})),
                None,
                Grace::Over,
            ),
            (&pod(json!({"nodeName": "n1"})), None, Grace::Over),
        ] {
            assert_eq!(grace(pods, object, asked, now), expect, "{object} {asked:?}");
        }
        let mut by_hand = bound.clone();
        by_hand["status"] = json!({"phase": "Running"});
        assert_eq!(grace(pods, &by_hand, None, now), Grace::Over);
        let mut done = bound.clone();
        done["status"]["phase"] = "Succeeded".into();
        assert_eq!(grace(pods, &done, None, now), Grace::Over);
        let dying = marked(bound.clone(), pods, &until(30), now);
        assert_eq!(
            dying["metadata"],
            json!({"name": "p", "deletionTimestamp": "2026-11-27T00:00:30Z", "deletionGracePeriodSeconds": 30})
        );
        let later = now + SignedDuration::from_secs(10);
        assert_eq!(grace(pods, &dying, None, later), Grace::Pending);
        assert_eq!(grace(pods, &dying, Some(60), later), Grace::Pending);
        assert_eq!(grace(pods, &dying, Some(0), later), Grace::Over);
        assert_eq!(
            grace(pods, &dying, Some(20), later),
            until(20),
            "counted from the first deletion"
        );
        let services = traits::of(registry::by_kind("v1", "Service").unwrap());
        assert_eq!(grace(services, &bound, Some(30), now), Grace::Over);
    }

    #[test]
    fn finalizers_hold_an_object_until_the_last_one_goes() {
        let traits = traits::of(registry::by_kind("v1", "ConfigMap").unwrap());
        let now: Timestamp = "2026-11-27T00:00:00Z".parse().unwrap();
        let held = json!({"metadata": {"name": "a", "finalizers": ["example.com/a", "example.com/b"]}});
        assert!(object::is_held(&held, false));
        assert!(!is_done(&held, traits), "nobody has deleted it");
        let mut dying = marked(held, traits, &Grace::Over, now);
        assert_eq!(
            dying["metadata"],
            json!({
                "name": "a", "finalizers": ["example.com/a", "example.com/b"],
                "deletionTimestamp": "2026-11-27T00:00:00Z", "deletionGracePeriodSeconds": 0,
            })
        );
        let later = now + SignedDuration::from_secs(10);
        assert_eq!(
            marked(dying.clone(), traits, &Grace::Over, later),
            dying,
            "marked once"
        );
        assert!(!is_done(&dying, traits));
        dying["metadata"]["finalizers"] = json!(["example.com/b"]);
        assert!(!is_done(&dying, traits));
        dying["metadata"]["finalizers"] = json!([]);
        assert!(is_done(&dying, traits));
    }

    #[test]
    fn a_namespace_is_held_by_the_finalizers_of_its_spec_too() {
        let traits = traits::of(registry::by_kind("v1", "Namespace").unwrap());
        let now: Timestamp = "2026-11-27T00:00:00Z".parse().unwrap();
        let namespace = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let mut dying = marked(namespace, traits, &Grace::Over, now);
        assert_eq!(dying["status"]["phase"], "Terminating");
        assert!(!is_done(&dying, traits));
        dying["spec"]["finalizers"] = json!([]);
        assert!(is_done(&dying, traits));
    }
}
