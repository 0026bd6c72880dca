//! The operations of a description: which paths there are, what can be done there, and with which parameters.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::registry::GroupVersion;

/// Adds the paths of a group version: of its kinds, and of the questions that are asked there.
pub(super) fn add(version: GroupVersion, paths: &mut Map<String, Value>) {
    let root = version.path();
    for kind in version.kinds() {
        add_paths(paths, kind, &root);
    }
    for question in QUESTIONS.iter().filter(|q| q.group == version.group) {
        let in_namespace = if question.namespaced {
            "namespaces/{namespace}/"
        } else {
            ""
        };
        let plural = question.kind.to_lowercase();
        paths.insert(format!("/{root}/{in_namespace}{plural}s"), question.path());
    }
}

/// An object that is sent to be answered, and not kept (`create` is its only verb).
struct Question {
    group: &'static str,
    kind: &'static str,
    namespaced: bool,
}

const QUESTIONS: [Question; 6] = [
    Question::of("authentication.k8s.io", "SelfSubjectReview"),
    Question::of("authentication.k8s.io", "TokenReview"),
    Question {
        namespaced: true,
        ..Question::of("authorization.k8s.io", "LocalSubjectAccessReview")
    },
    Question::of("authorization.k8s.io", "SelfSubjectAccessReview"),
    Question::of("authorization.k8s.io", "SelfSubjectRulesReview"),
    Question::of("authorization.k8s.io", "SubjectAccessReview"),
];

impl Question {
    const fn of(group: &'static str, kind: &'static str) -> Self {
        Self {
            group,
            kind,
            namespaced: false,
        }
    }

    fn path(&self) -> Value {
        let Self {
            group,
            kind,
            namespaced,
        } = self;
        let shared: Vec<Value> = namespaced.then(namespace).into_iter().collect();
        let name = format!(
            "io.k8s.api.{}.v1.{kind}",
            group.split('.').next().unwrap_or_default()
        );
        let content =
            json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}});
        json!({"post": {
            "parameters": Verb::Create.parameters(),
            "requestBody": {"content": content, "required": true},
            "responses": {"201": {"description": "Created", "content": content}},
            "x-kubernetes-action": "post",
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": "v1"},
        }, "parameters": shared})
    }
}

fn namespace() -> Value {
    let what = "object name and auth scope, such as for teams and projects";
    parameter("namespace", "path", "string", what)
}

fn add_paths(paths: &mut Map<String, Value>, kind: &Kind, root: &str) {
    let all = format!("/{root}/{}", kind.plural);
    let collection = if kind.namespaced {
        format!("/{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        all.clone()
    };
    let shared = |named: bool| {
        let namespace = namespace();
        let name = parameter("name", "path", "string", &format!("name of the {}", kind.kind));
        let all = [named.then_some(name), kind.namespaced.then_some(namespace)];
        Value::Array(all.into_iter().flatten().collect())
    };
    if kind.namespaced {
        paths.insert(all, json!({"get": operation(kind, Verb::List)}));
    }
    paths.insert(
        collection.clone(),
        json!({
            "get": operation(kind, Verb::List), "post": operation(kind, Verb::Create),
            "delete": operation(kind, Verb::DeleteCollection), "parameters": shared(false),
        }),
    );
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({
            "get": operation(kind, Verb::Get), "put": operation(kind, Verb::Update),
            "patch": operation(kind, Verb::Patch), "delete": operation(kind, Verb::Delete),
            "parameters": shared(true),
        }),
    );
    if kind.status {
        paths.insert(
            format!("{collection}/{{name}}/status"),
            json!({
                "get": operation(kind, Verb::Get), "put": operation(kind, Verb::Update),
                "patch": operation(kind, Verb::Patch), "parameters": shared(true),
            }),
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Get,
    List,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    fn action(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "post",
            Self::Update => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    fn parameters(self) -> Vec<Value> {
        let listing: &[[&str; 3]] = match self {
            Self::List => &LIST_PARAMETERS,
            _ => &[],
        };
        let selecting: &[[&str; 3]] = match self {
            Self::List | Self::DeleteCollection => &SELECTOR_PARAMETERS,
            _ => &[],
        };
        let writing: &[[&str; 3]] = match self {
            Self::Get | Self::List => &[],
            Self::Delete | Self::DeleteCollection => &WRITE_PARAMETERS[..1],
            Self::Create | Self::Update => &WRITE_PARAMETERS[..3],
            Self::Patch => &WRITE_PARAMETERS,
        };
        let all = listing.iter().chain(selecting).chain(writing);
        all.map(|[name, type_, what]| parameter(name, "query", type_, what))
            .collect()
    }
}

const LIST_PARAMETERS: [[&str; 3]; 6] = [
    [
        "limit",
        "integer",
        "limit is a maximum number of responses to return for a list call.",
    ],
    ["continue", "string", "Where the next page of a list begins."],
    [
        "resourceVersion",
        "string",
        "Where a watch begins, or how old a list may be.",
    ],
    [
        "watch",
        "boolean",
        "Watch for changes to the described resources.",
    ],
    [
        "allowWatchBookmarks",
        "boolean",
        "Ask for watch events of type BOOKMARK.",
    ],
    ["timeoutSeconds", "integer", "Timeout for the list/watch call."],
];

const SELECTOR_PARAMETERS: [[&str; 3]; 2] = [
    [
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels.",
    ],
    [
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields.",
    ],
];

/// The first is for deletions too, the last for patches alone.
const WRITE_PARAMETERS: [[&str; 3]; 4] = [
    [
        "dryRun",
        "string",
        "When present, indicates that modifications should not be persisted.",
    ],
    [
        "fieldManager",
        "string",
        "fieldManager is a name associated with the actor.",
    ],
    [
        "fieldValidation",
        "string",
        "How to handle objects with unknown or duplicate fields. Valid values are: Ignore, Warn, Strict.",
    ],
    ["force", "boolean", "Force is going to \"force\" Apply requests."],
];

fn operation(kind: &Kind, verb: Verb) -> Value {
    let schema = |name: String| json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}});
    let meta = |name: &str| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}");
    let answer = match verb {
        Verb::List => format!("{}List", definition(kind)),
        Verb::Delete | Verb::DeleteCollection => meta("Status"),
        _ => definition(kind),
    };
    let mut operation = json!({
        "parameters": verb.parameters(),
        "responses": {"200": {"description": "OK", "content": schema(answer)}},
        "x-kubernetes-action": verb.action(),
        "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
    });
    operation["requestBody"] = match verb {
        Verb::Get | Verb::List => return without(operation, "requestBody"),
        Verb::Create | Verb::Update => json!({"content": schema(definition(kind)), "required": true}),
        Verb::Delete | Verb::DeleteCollection => json!({"content": schema(meta("DeleteOptions"))}),
        Verb::Patch => {
            let patch = json!({"schema": {"$ref": format!("#/components/schemas/{}", meta("Patch"))}});
            let mut content = json!({
                "application/json-patch+json": patch, "application/merge-patch+json": patch,
            });
            // Custom resources have no strategic merge patch.
            if kind.group != crate::metallb::GROUP {
                content["application/strategic-merge-patch+json"] = patch;
            }
            json!({"content": content, "required": true})
        }
    };
    operation
}

fn without(mut operation: Value, field: &str) -> Value {
    if let Value::Object(fields) = &mut operation {
        fields.remove(field);
    }
    operation
}

/// What the schema of a kind is called.
pub(super) fn definition(kind: &Kind) -> String {
    let package = match kind.group {
        "" => "io.k8s.api.core",
        "discovery.k8s.io" => "io.k8s.api.discovery",
        "coordination.k8s.io" => "io.k8s.api.coordination",
        "networking.k8s.io" => "io.k8s.api.networking",
        _ => "io.metallb",
    };
    format!("{package}.{}.{}", kind.version, kind.kind)
}

fn parameter(name: &str, place: &str, type_: &str, description: &str) -> Value {
    let mut parameter = json!({"name": name, "in": place, "schema": {"type": type_, "uniqueItems": true}, "description": description});
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}
