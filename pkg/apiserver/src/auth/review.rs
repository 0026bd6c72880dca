//! Questions about rights, answered and not stored: authorization.k8s.io and authentication.k8s.io, which stand behind
//! `kubectl auth can-i` and `auth whoami`. The answers come out of the functions by which requests are judged.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use svcnet_api::{ApiError, Kind, Reason, registry};

use super::authenticate::Caller;
use super::identity::{Role, User};
use super::related::needs_secret;
use super::rules::{
    self, Attributes, DISCOVERY_PATHS, Extent, LOOK_PATHS, NODE_RIGHTS, OPEN_PATHS, READS, cannot,
};
use super::tokens::Shown;
use crate::server::Server;
use crate::{object, own, traits};

/// One kind of question.
#[derive(Debug)]
pub(crate) struct Review {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) namespaced: bool,
    /// About the one who asks: everybody may who has said who they are.
    pub(crate) own: bool,
    answer: fn(&Server, &Caller, &Value) -> Result<Value, Problem>,
}

/// Why a question is none.
#[derive(Debug)]
enum Problem {
    /// 400.
    Request(String),
    /// 422: a field, its value, what is wrong.
    Field(&'static str, String),
}

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

static REVIEWS: [Review; 7] = [
    Review {
        group: AUTHENTICATION,
        version: "v1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        namespaced: false,
        own: true,
        answer: self_subject,
    },
    Review {
        group: AUTHENTICATION,
        version: "v1",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        namespaced: false,
        own: false,
        answer: token,
    },
    // kubectl 1.27 asks for this one.
    Review {
        group: AUTHENTICATION,
        version: "v1beta1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        namespaced: false,
        own: true,
        answer: self_subject,
    },
    Review {
        group: AUTHORIZATION,
        version: "v1",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        own: false,
        answer: subject_access,
    },
    Review {
        group: AUTHORIZATION,
        version: "v1",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        namespaced: false,
        own: true,
        answer: self_access,
    },
    Review {
        group: AUTHORIZATION,
        version: "v1",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        namespaced: false,
        own: true,
        answer: self_rules,
    },
    Review {
        group: AUTHORIZATION,
        version: "v1",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        namespaced: false,
        own: false,
        answer: subject_access,
    },
];

/// Every kind of question.
pub(crate) fn reviews() -> &'static [Review] {
    &REVIEWS
}

/// Those of one group version.
pub(crate) fn reviews_of(group: &str, version: &str) -> impl Iterator<Item = &'static Review> {
    REVIEWS
        .iter()
        .filter(move |r| r.group == group && r.version == version)
}

impl Review {
    pub(crate) fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// Whether the caller may ask at all.
    pub(crate) fn may_ask(&self, caller: &Caller, namespace: &str) -> Result<(), ApiError> {
        let user = &caller.user;
        match &user.role {
            Role::Anonymous => Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
            Role::Admin | Role::Controller => Ok(()),
            _ if self.own => Ok(()),
            _ => {
                let why = cannot(user, "create", self.plural, self.group, namespace);
                let resource = format!("{}.{}", self.plural, self.group);
                let mut error = ApiError::new(Reason::Forbidden, format!("{resource} is forbidden: {why}"));
                error.details = Some(json!({"group": self.group, "kind": self.plural}));
                Err(error)
            }
        }
    }

    /// The question with its answer.
    pub(crate) fn answer(
        &self,
        server: &Server,
        caller: &Caller,
        namespace: &str,
        mut question: Value,
    ) -> Result<Value, ApiError> {
        let said = |field: &str| {
            question
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let (version, kind) = (said("apiVersion"), said("kind"));
        if !question.is_object()
            || !version.is_empty() && version != self.api_version()
            || !kind.is_empty() && kind != self.kind
        {
            return Err(ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): {kind} of {version}",
                self.kind
            )));
        }
        if self.namespaced {
            let asked = text(&question, "/spec/resourceAttributes/namespace");
            if asked != namespace {
                return Err(ApiError::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {namespace}"
                )));
            }
        }
        let status = (self.answer)(server, caller, &question).map_err(|problem| self.refusal(problem))?;
        question["apiVersion"] = self.api_version().into();
        question["kind"] = self.kind.into();
        question["metadata"] = json!({"creationTimestamp": object::now()});
        question["status"] = status;
        Ok(question)
    }

    fn refusal(&self, problem: Problem) -> ApiError {
        match problem {
            Problem::Request(why) => ApiError::bad_request(why),
            Problem::Field(field, why) => {
                let head = format!("{}.{}", self.kind, self.group);
                let mut error = ApiError::new(
                    Reason::Invalid,
                    format!("{head} \"\" is invalid: {field}: Invalid value: {why}"),
                );
                let cause = json!({"reason": "FieldValueInvalid", "message": format!("Invalid value: {why}"), "field": field});
                error.details = Some(json!({"group": self.group, "kind": self.kind, "causes": [cause]}));
                error
            }
        }
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if let Some(held) = &user.token {
        info["extra"] = json!({"authentication.kubernetes.io/credential-id": [format!("TOKEN={}", held.id)]});
    }
    info
}

fn self_subject(_: &Server, caller: &Caller, _: &Value) -> Result<Value, Problem> {
    Ok(json!({"userInfo": user_info(&caller.user)}))
}

fn token(server: &Server, _: &Caller, question: &Value) -> Result<Value, Problem> {
    let token = text(question, "/spec/token");
    if token.is_empty() {
        return Err(Problem::Request(
            "token is required for TokenReview in authentication".to_string(),
        ));
    }
    Ok(match server.tokens.holder(token) {
        Shown::Good(user) => json!({"authenticated": true, "user": user_info(&user)}),
        Shown::Expired(..) => json!({"user": {}, "error": "[invalid bearer token, token has expired]"}),
        Shown::Unknown => json!({"user": {}, "error": "invalid bearer token"}),
    })
}

fn self_access(server: &Server, caller: &Caller, question: &Value) -> Result<Value, Problem> {
    access(server, &caller.user, question)
}

fn subject_access(server: &Server, _: &Caller, question: &Value) -> Result<Value, Problem> {
    let user = text(question, "/spec/user");
    let groups = question.pointer("/spec/groups").and_then(Value::as_array);
    let groups: Vec<String> = groups
        .into_iter()
        .flatten()
        .filter_map(|g| g.as_str().map(str::to_string))
        .collect();
    if user.is_empty() && groups.is_empty() {
        return Err(Problem::Field(
            "spec.user",
            "\"\": at least one of user or group must be specified".to_string(),
        ));
    }
    access(server, &User::new(user, groups), question)
}

fn access(server: &Server, user: &User, question: &Value) -> Result<Value, Problem> {
    let of = |name: &str| question.pointer(name).filter(|v| v.is_object());
    let (resource, path) = (of("/spec/resourceAttributes"), of("/spec/nonResourceAttributes"));
    let judged = match (resource, path) {
        (Some(_), Some(_)) => {
            return Err(Problem::Field(
                "spec.nonResourceAttributes",
                "cannot be specified in combination with resourceAttributes".to_string(),
            ));
        }
        (None, None) => {
            return Err(Problem::Field(
                "spec.resourceAttributes",
                "null: exactly one of nonResourceAttributes or resourceAttributes must be specified"
                    .to_string(),
            ));
        }
        (Some(resource), None) => may_resource(server, user, resource),
        (None, Some(path)) => may_path(user, text(path, "/path"), text(path, "/verb")),
    };
    Ok(match judged {
        Ok(()) => json!({"allowed": true}),
        Err(why) if why.is_empty() => json!({"allowed": false}),
        Err(why) => json!({"allowed": false, "reason": why}),
    })
}

/// A refusal's reason is empty where the role is all there is to say.
fn may_path(user: &User, path: &str, verb: &str) -> Result<(), String> {
    let segments: Vec<String> = path.trim_matches('/').split('/').map(str::to_string).collect();
    if segments[0] == own::ROOT {
        return if own::may(user, &segments, verb) {
            Ok(())
        } else {
            Err(String::new())
        };
    }
    let reads = matches!(verb, "get" | "head");
    let allowed = rules::may_root(user, &segments, verb).is_ok();
    if allowed && (reads || user.role == Role::Admin) {
        Ok(())
    } else {
        Err(String::new())
    }
}

fn may_resource(server: &Server, user: &User, asked: &Value) -> Result<(), String> {
    let (verb, group, resource) = (
        text(asked, "/verb"),
        text(asked, "/group"),
        text(asked, "/resource"),
    );
    let (namespace, name, subresource) = (
        text(asked, "/namespace"),
        text(asked, "/name"),
        text(asked, "/subresource"),
    );
    if matches!(user.role, Role::Admin | Role::Controller) {
        return Ok(());
    }
    let is_own_review = |r: &Review| r.own && r.group == group && r.plural == resource;
    if verb == "create" && !user.is_anonymous() && REVIEWS.iter().any(is_own_review) {
        return Ok(());
    }
    let kind = registry::kinds()
        .iter()
        .find(|k| k.group == group && k.plural == resource);
    let Some(kind) = kind.filter(|kind| traits::has_subresource(kind, subresource)) else {
        return Err(String::new());
    };
    let wanted = Attributes {
        verb,
        kind,
        namespace,
        name,
        subresource,
    };
    let related = |node: &str| needs_secret(server, node, namespace, name);
    rules::may(user, &wanted, related).map_err(|_| String::new())?;
    match &user.role {
        Role::Node(node) if !READS.contains(&verb) => may_write_as_node(server, user, node, &wanted),
        _ => Ok(()),
    }
}

/// What a node may do to the object of that name; without a name, to all of them.
fn may_write_as_node(
    server: &Server,
    user: &User,
    node: &str,
    wanted: &Attributes<'_>,
) -> Result<(), String> {
    let Some(right) = rules::right(wanted) else {
        return Err(String::new());
    };
    if wanted.name.is_empty() {
        let elsewhere = right.extent == Extent::Lease
            && !matches!(wanted.namespace, svcnet_api::wellknown::NAMESPACE_NODE_LEASE);
        return match wanted.verb {
            "create" if !elsewhere => Ok(()),
            _ => Err(format!(
                "node \"{node}\" may do that to its own {} alone",
                wanted.kind.plural
            )),
        };
    }
    let stored = server.get(wanted.kind, wanted.namespace, wanted.name);
    let stored = stored.and_then(|entry| object::parse(&entry).ok());
    // What a new object will hold is not asked about.
    let old = stored.as_ref().filter(|_| wanted.verb != "create");
    rules::may_object(user, wanted, old, None).map_err(|error| error.message)
}

fn self_rules(_: &Server, caller: &Caller, question: &Value) -> Result<Value, Problem> {
    if text(question, "/spec/namespace").is_empty() {
        return Err(Problem::Request("no namespace on request".to_string()));
    }
    let user = &caller.user;
    let mut resources = Vec::new();
    let mut paths: Vec<&str> = OPEN_PATHS.to_vec();
    if !user.is_anonymous() {
        paths.extend(DISCOVERY_PATHS);
        let mut own: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for review in REVIEWS.iter().filter(|r| r.own) {
            let plurals = own.entry(review.group).or_default();
            if !plurals.contains(&review.plural) {
                plurals.push(review.plural);
            }
        }
        let rule = |(group, plurals): (&str, Vec<&str>)| json!({"verbs": ["create"], "apiGroups": [group], "resources": plurals});
        resources.extend(own.into_iter().map(rule));
    }
    match &user.role {
        Role::Admin | Role::Controller => {
            let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
            let everywhere = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
            return Ok(
                json!({"resourceRules": [all], "nonResourceRules": [everywhere], "incomplete": false}),
            );
        }
        Role::Node(node) => {
            resources.extend(read_rules());
            resources.extend(NODE_RIGHTS.iter().map(|right| node_rule(right, node)));
            paths.extend(LOOK_PATHS);
        }
        Role::Viewer => {
            resources.extend(read_rules());
            paths.extend(LOOK_PATHS);
        }
        Role::Bootstrapper(_) | Role::Nobody | Role::Anonymous => {}
    }
    let urls: Vec<String> = paths
        .into_iter()
        .flat_map(|p| {
            if p.is_empty() {
                vec!["/".to_string()]
            } else {
                vec![format!("/{p}"), format!("/{p}/*")]
            }
        })
        .collect();
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": urls}],
        "incomplete": false,
    });
    if let Role::Node(node) = &user.role {
        status["incomplete"] = true.into();
        status["evaluationError"] = format!(
            "of pods and events, a node may write those of its own alone; of secrets, it may read those that pods on \
             {node} name"
        )
        .into();
    }
    Ok(status)
}

fn read_rules() -> Vec<Value> {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let open = |kind: &&Kind| !rules::is_confidential(kind);
    for kind in registry::kinds().iter().filter(open) {
        let resources = groups.entry(kind.group).or_default();
        resources.push(kind.plural.to_string());
        for subresource in ["status", "finalize"]
            .iter()
            .filter(|s| traits::has_subresource(kind, s))
        {
            resources.push(format!("{}/{subresource}", kind.plural));
        }
    }
    let rule = |(group, resources): (&str, Vec<String>)| json!({"verbs": READS, "apiGroups": [group], "resources": resources});
    groups.into_iter().map(rule).collect()
}

fn node_rule(right: &rules::NodeRight, node: &str) -> Value {
    let resources: Vec<String> = right
        .subresources
        .iter()
        .map(|s| {
            if s.is_empty() {
                right.plural.to_string()
            } else {
                format!("{}/{s}", right.plural)
            }
        })
        .collect();
    let mut rule = Map::new();
    rule.insert("verbs".to_string(), json!(right.verbs));
    rule.insert("apiGroups".to_string(), json!([right.group]));
    rule.insert("resources".to_string(), json!(resources));
    if matches!(right.extent, Extent::Name | Extent::Lease) {
        rule.insert("resourceNames".to_string(), json!([node]));
    }
    Value::Object(rule)
}
