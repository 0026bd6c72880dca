//! What the objects of each kind may hold: Kubernetes' own OpenAPI descriptions, which clients read (`openapi`), which
//! guide strategic merge patches (`model`), and by which what clients send is checked (`check`, `decode`).
//!
//! The descriptions lie in `openapi/` as `openapi/regenerate` makes them of published packages, are compressed into the binary by
//! `build.rs`, and are inflated when first needed.

mod check;
mod decode;
mod model;
mod openapi;

pub use check::{Check, check, prune};
pub use decode::{decode, encode_error};
pub use model::{SchemaNode, Type};
pub use openapi::{Document, V2_PROTOBUF, document, index, v2_document, v2_protobuf};

use std::io::Read;

use flate2::read::GzDecoder;

/// The definitions of one group version.
struct Source {
    group: &'static str,
    version: &'static str,
    /// Gzipped JSON: name of the definition to its schema.
    definitions: &'static [u8],
}

macro_rules! source {
    ($group:literal, $version:literal, $file:literal) => {
        Source {
            group: $group,
            version: $version,
            definitions: include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".json.gz")),
        }
    };
}

static SOURCES: [Source; 7] = [
    source!("", "v1", "core.v1"),
    source!("discovery.k8s.io", "v1", "discovery.k8s.io.v1"),
    source!("coordination.k8s.io", "v1", "coordination.k8s.io.v1"),
    source!("networking.k8s.io", "v1", "networking.k8s.io.v1"),
    source!("metallb.io", "v1beta1", "metallb.io.v1beta1"),
    source!("authentication.k8s.io", "v1", "authentication.k8s.io.v1"),
    source!("authorization.k8s.io", "v1", "authorization.k8s.io.v1"),
];

impl Source {
    fn inflate(&self) -> Vec<u8> {
        inflate(self.definitions)
    }
}

#[expect(
    clippy::expect_used,
    reason = "the input is part of the binary, or was compressed by this process"
)]
fn inflate(compressed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(compressed)
        .read_to_end(&mut plain)
        .expect("invariant: own data inflates");
    plain
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::registry::{group_versions, kinds};

    #[test]
    fn every_kind_and_group_version_is_described() {
        for kind in kinds() {
            let root = SchemaNode::root(kind).unwrap();
            assert!(
                root.property("metadata")
                    .and_then(|m| m.property("labels"))
                    .is_some(),
                "{}",
                kind.kind
            );
            assert_eq!(root.property("status").is_some(), kind.status, "{}", kind.kind);
        }
        for gv in group_versions() {
            assert!(
                SOURCES
                    .iter()
                    .any(|s| s.group == gv.group && s.version == gv.version),
                "{gv:?}"
            );
        }
        // And the two groups of questions.
        assert_eq!(SOURCES.len(), group_versions().len() + 2);
    }

    /// Nobody has changed by hand what the generator wrote.
    #[test]
    fn schemas_are_as_generated() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi");
        let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
        assert_eq!(sums.lines().count(), SOURCES.len());
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let text = std::fs::read(folder.join(name)).unwrap();
            let is: String = Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(is, sum, "{name}: run pkg/api/openapi/regenerate");
        }
    }
}
