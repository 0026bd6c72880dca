//! The documents behind `/openapi/v3`, as kubectl reads them: `explain` prints the descriptions, `apply` and `edit`
//! take the merge keys, and both look in the operations for the query parameters that the server understands. For older
//! ones there is `/openapi/v2` too.

mod paths;
mod v2;

use std::io::Write;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::{SOURCES, Source, inflate};
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
        paths::add(source.group_version(), &mut paths);
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

    #[expect(clippy::expect_used, reason = "the input is part of the binary")]
    fn document(&self) -> Document {
        let definitions = String::from_utf8(self.inflate()).expect("invariant: own schemas are text");
        let mut paths = Map::new();
        paths::add(self.group_version(), &mut paths);
        let info = json!({"title": "Kubernetes", "version": VERSION});
        let paths = Value::Object(paths);
        let text = format!(
            "{{\"openapi\":\"3.0.0\",\"info\":{info},\"paths\":{paths},\"components\":{{\"schemas\":{definitions}}}}}"
        );
        Document::of(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::paths::definition;
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
