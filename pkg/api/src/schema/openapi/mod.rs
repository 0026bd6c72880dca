//! The documents behind `/openapi/v3`, as kubectl reads them: `explain` prints the descriptions, `apply` and `edit`
//! take the merge keys, and both look in the operations for the query parameters that the server understands. For older
//! ones there is `/openapi/v2` too.

mod v2;

use std::io::Write;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::{SOURCES, Source, inflate};
use crate::kind::Kind;
use crate::registry::GroupVersion;

/// The Kubernetes version that the schemas are of.
const VERSION: &str = "v1.33.0";

/// The description of one group version. Kept compressed: it is asked for seldom.
#[derive(Debug)]
pub struct Document {
    gzip: Vec<u8>,
    hash: String,
}

impl Document {
    fn of(text: &str) -> Self {
        let hash = Sha512::digest(text)
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        Self {
            gzip: deflate(text.as_bytes()),
            hash,
        }
    }

    /// The JSON text.
    pub fn json(&self) -> Vec<u8> {
        inflate(&self.gzip)
    }

    /// The JSON text, gzipped, for clients that take it so.
    pub fn gzip(&self) -> &[u8] {
        &self.gzip
    }

    /// Digest of the text, for `ETag` and for the index: clients cache by it.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// What `/openapi/v3` answers: each group version with the address of its document.
pub fn index() -> &'static [u8] {
    static INDEX: OnceLock<Vec<u8>> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut paths = Map::new();
        for source in &SOURCES {
            let path = source.group_version().path();
            if let Some(document) = document(&path) {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash());
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
        json!({"paths": paths}).to_string().into_bytes()
    })
}

/// What `/openapi/v3/PATH` answers, with a path like `api/v1` or `apis/discovery.k8s.io/v1`.
pub fn document(path: &str) -> Option<&'static Document> {
    static DOCUMENTS: [OnceLock<Document>; SOURCES.len()] = [const { OnceLock::new() }; SOURCES.len()];
    let at = SOURCES.iter().position(|s| s.group_version().path() == path)?;
    let source = SOURCES.get(at)?;
    Some(DOCUMENTS.get(at)?.get_or_init(|| source.document()))
}

/// The type of [`v2_protobuf`], as the answer names it. kubectl up to 1.27 asks for it with an `@` in place of a dot, which
/// is no valid media type.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// What `/openapi/v2` answers: all group versions in one.
pub fn v2_document() -> &'static Document {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    DOCUMENT.get_or_init(|| Document::of(&v2_whole().to_string()))
}

/// The same in protobuf.
pub fn v2_protobuf() -> Vec<u8> {
    static DOCUMENT: OnceLock<Vec<u8>> = OnceLock::new();
    inflate(DOCUMENT.get_or_init(|| deflate(&v2::encode(&v2_whole()))))
}

fn v2_whole() -> Value {
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    for source in &SOURCES {
        if let Ok(Value::Object(own)) = serde_json::from_slice(&source.inflate()) {
            definitions.extend(own);
        }
        source.add_paths(&mut paths);
    }
    v2::document(&definitions, &paths)
}

#[expect(clippy::expect_used, reason = "memory does not refuse to be written")]
fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("invariant: memory takes it");
    encoder.finish().expect("invariant: memory takes it")
}

impl Source {
    fn group_version(&self) -> GroupVersion {
        GroupVersion {
            group: self.group,
            version: self.version,
        }
    }

    fn add_paths(&self, paths: &mut Map<String, Value>) {
        let root = self.group_version().path();
        for kind in self.group_version().kinds() {
            add_paths(paths, kind, &root);
        }
        for question in QUESTIONS.iter().filter(|q| q.group == self.group) {
            let in_namespace = if question.namespaced {
                "namespaces/{namespace}/"
            } else {
                ""
            };
            let plural = question.kind.to_lowercase();
            paths.insert(format!("/{root}/{in_namespace}{plural}s"), question.path());
        }
    }

    #[expect(clippy::expect_used, reason = "the input is part of the binary")]
    fn document(&self) -> Document {
        let definitions = String::from_utf8(self.inflate()).expect("invariant: own schemas are text");
        let mut paths = Map::new();
        self.add_paths(&mut paths);
        let info = json!({"title": "Kubernetes", "version": VERSION});
        let paths = Value::Object(paths);
        let text = format!(
            "{{\"openapi\":\"3.0.0\",\"info\":{info},\"paths\":{paths},\"components\":{{\"schemas\":{definitions}}}}}"
        );
        Document::of(&text)
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

fn definition(kind: &Kind) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::kinds;

    #[test]
    fn the_index_leads_to_documents_that_parse() {
        let index: Value = serde_json::from_slice(index()).unwrap();
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(paths.len(), SOURCES.len());
        for (path, entry) in paths {
            let document = document(path).unwrap();
            let url = entry["serverRelativeURL"].as_str().unwrap();
            assert_eq!(url, format!("/openapi/v3/{path}?hash={}", document.hash()));
            let text: Value = serde_json::from_slice(&document.json()).unwrap();
            assert_eq!(text["openapi"], "3.0.0");
        }
        assert!(document("apis/apps/v1").is_none());
    }

    #[test]
    fn operations_say_what_kubectl_looks_for() {
        for kind in kinds() {
            let root = GroupVersion {
                group: kind.group,
                version: kind.version,
            }
            .path();
            let text: Value = serde_json::from_slice(&document(&root).unwrap().json()).unwrap();
            let namespace = if kind.namespaced {
                "namespaces/{namespace}/"
            } else {
                ""
            };
            let item = &text["paths"][format!("/{root}/{namespace}{}/{{name}}", kind.plural)];
            let gvk = json!({"group": kind.group, "kind": kind.kind, "version": kind.version});
            assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], gvk);
            for wanted in ["fieldValidation", "dryRun"] {
                let parameters = item["patch"]["parameters"].as_array().unwrap();
                assert!(
                    parameters
                        .iter()
                        .any(|p| p["name"] == wanted && p["in"] == "query"),
                    "{wanted}"
                );
            }
            let schema = &text["components"]["schemas"][definition(kind)];
            assert_eq!(
                schema["x-kubernetes-group-version-kind"],
                json!([gvk]),
                "{}",
                kind.kind
            );
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|v| references(v, found));
                }
                Value::Array(items) => items.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        let each = SOURCES.iter().map(|source| {
            let path = source.group_version().path();
            (document(&path).unwrap(), "/components/schemas")
        });
        for (document, definitions) in each.chain([(v2_document(), "/definitions")]) {
            let text: Value = serde_json::from_slice(&document.json()).unwrap();
            let mut found = Vec::new();
            references(&text, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                let name = reference.strip_prefix(&format!("#{definitions}/"));
                let there = name.and_then(|name| text.pointer(definitions)?.get(name));
                assert!(there.is_some(), "{reference} in {definitions}");
            }
        }
    }
}
