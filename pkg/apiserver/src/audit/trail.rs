//! What is known of one request, from its head to its outcome.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use http::header::{HeaderName, USER_AGENT};
use http::{Method, Request};
use jiff::Timestamp;
use serde_json::{Value, json};
use svcnet_api::Kind;

use super::Audit;
use crate::auth::{Review, User};
use crate::reply::Reply;

/// The object of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ObjectRef {
    pub(crate) resource: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
}

/// What a request is called in the log: in answers always, and in a request that has a name already.
pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// How long a given name may be (the real server's limit).
const AUDIT_ID_MAX: usize = 64;

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Trail {
    audit: Audit,
    id: String,
    uri: String,
    from: Option<SocketAddr>,
    agent: Option<String>,
    begun: Timestamp,
    writes: bool,
    seen: Mutex<Seen>,
    recorded: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    verb: String,
    user: Option<User>,
    by: Option<User>,
    object: Option<ObjectRef>,
    why: Option<String>,
    /// Whether a success of this is of no interest.
    quiet: bool,
}

impl Trail {
    pub(crate) fn begin<B>(audit: Audit, from: Option<SocketAddr>, request: &Request<B>) -> Self {
        let agent = request.headers().get(USER_AGENT).and_then(|a| a.to_str().ok());
        let given = request.headers().get(AUDIT_ID).and_then(|id| id.to_str().ok());
        let given = given.filter(|id| (1..=AUDIT_ID_MAX).contains(&id.len()));
        Self {
            audit,
            id: given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_string),
            uri: request
                .uri()
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            from,
            agent: agent.map(str::to_string),
            begun: Timestamp::now(),
            writes: !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS),
            seen: Mutex::new(Seen {
                verb: request.method().as_str().to_lowercase(),
                ..Seen::default()
            }),
            recorded: AtomicBool::new(false),
        }
    }

    /// What the log calls this request.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn caller(&self, user: &User, by: Option<&User>) {
        self.with(|seen| {
            seen.user = Some(user.clone());
            seen.by = by.cloned();
        });
    }

    /// Why nobody got in.
    pub(crate) fn because(&self, why: &str) {
        self.with(|seen| seen.why = Some(why.to_string()));
    }

    pub(crate) fn object(&self, verb: &str, object: ObjectRef, quiet: bool) {
        self.with(|seen| {
            seen.verb = verb.to_string();
            seen.object = Some(object);
            seen.quiet = quiet;
        });
    }

    /// The name of a new object, which no URL tells.
    pub(crate) fn name(&self, name: &str) {
        self.with(|seen| {
            if let Some(object) = &mut seen.object
                && !name.is_empty()
            {
                object.name = name.to_string();
            }
        });
    }

    /// Writes the line, if one is due. Only the first outcome counts.
    pub(crate) async fn end(&self, reply: &Reply) {
        let refused = matches!(reply.code, 401 | 403 | 429);
        let due = refused || self.writes && (reply.code >= 400 || !self.with(|seen| seen.quiet));
        if due && !self.recorded.swap(true, Ordering::Relaxed) {
            self.audit.record(self.event(reply).to_string()).await;
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn event(&self, reply: &Reply) -> Value {
        let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let person = |user: &User| json!({"username": user.name, "groups": user.groups});
        let mut status = json!({"metadata": {}, "code": reply.code});
        if let Some(refusal) = &reply.refusal {
            status["status"] = "Failure".into();
            status["message"] = refusal.message.as_str().into();
            status["reason"] = format!("{:?}", refusal.reason).into();
        }
        let sources: Vec<String> = self.from.iter().map(|from| from.ip().to_string()).collect();
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "auditID": self.id, "requestURI": self.uri, "sourceIPs": sources,
            "responseStatus": status, "requestReceivedTimestamp": time(self.begun),
            "stageTimestamp": time(Timestamp::now()),
        });
        if let Some(agent) = &self.agent {
            event["userAgent"] = agent.as_str().into();
        }
        self.with(|seen| {
            event["verb"] = seen.verb.as_str().into();
            let anonymous = User::anonymous();
            let user = seen.user.as_ref().unwrap_or(&anonymous);
            event["user"] = person(seen.by.as_ref().unwrap_or(user));
            if seen.by.is_some() {
                event["impersonatedUser"] = person(user);
            }
            if let Some(object) = &seen.object {
                event["objectRef"] = object.to_value(reply);
            }
            let mut annotations = json!({
                "authorization.k8s.io/decision": if matches!(reply.code, 401 | 403) { "forbid" } else { "allow" },
            });
            if let Some(why) = &seen.why {
                annotations["svcnet.io/reason"] = why.as_str().into();
            }
            let held = seen.by.as_ref().unwrap_or(user).token.as_ref();
            if let Some(held) = held {
                annotations["svcnet.io/token"] = held.id.as_str().into();
            }
            event["annotations"] = annotations;
        });
        event
    }
}

impl ObjectRef {
    pub(crate) fn of(kind: &Kind, namespace: &str, name: &str, subresource: &str) -> Self {
        Self {
            resource: kind.plural.to_string(),
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            subresource: subresource.to_string(),
        }
    }

    /// What is no object of Kubernetes'.
    pub(crate) fn own(resource: &str, name: &str) -> Self {
        Self {
            resource: resource.to_string(),
            group: "svcnet.io".to_string(),
            version: "v1".to_string(),
            name: name.to_string(),
            ..Self::default()
        }
    }

    pub(crate) fn of_review(review: &Review, namespace: &str) -> Self {
        Self {
            resource: review.plural.to_string(),
            group: review.group.to_string(),
            version: review.version.to_string(),
            namespace: namespace.to_string(),
            ..Self::default()
        }
    }

    fn to_value(&self, reply: &Reply) -> Value {
        // A refusal often names what its URL does not.
        let told = reply
            .refusal
            .as_ref()
            .and_then(|r| r.details.as_ref()?.get("name")?.as_str());
        let name = if self.name.is_empty() {
            told.unwrap_or_default()
        } else {
            &self.name
        };
        let parts = [
            ("resource", self.resource.as_str()),
            ("namespace", &self.namespace),
            ("name", name),
            ("apiGroup", &self.group),
            ("apiVersion", &self.version),
            ("subresource", &self.subresource),
        ];
        let parts = parts.into_iter().filter(|(_, text)| !text.is_empty());
        parts
            .map(|(name, text)| (name.to_string(), Value::from(text)))
            .collect()
    }
}
