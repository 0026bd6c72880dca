//! Objects as etcd holds them.
//!
//! An object carries its revision, which etcd gives only with the write. So what is put is the [`Template`]: a byte for the
//! format (1), the place of the revision (4 bytes, big endian), and the bytes around it. Readers fill in the revision that
//! etcd tells with each value. Objects of encrypted collections are encrypted whole, bound to their key.

use std::sync::Arc;

use bytes::Bytes;

use super::revisions::Revisions;
use crate::key::{Collection, CollectionSpec, Key, object_path};
use crate::keyring::{self, Keyring, Sealed};
use crate::value::Template;

const FORMAT: u8 = 1;
const HEAD_LEN: usize = 5;

/// Names and values of a store in etcd.
#[derive(Debug)]
pub(crate) struct Codec {
    prefix: String,
    specs: Vec<CollectionSpec>,
    keyring: Option<Arc<Keyring>>,
    /// How its revisions are counted.
    pub(crate) revisions: Revisions,
}

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// A key is missing: its fingerprint.
    Key(String),
    Damaged(&'static str),
}

impl Codec {
    pub(crate) fn new(prefix: &str, specs: &[CollectionSpec], keyring: Option<Arc<Keyring>>) -> Self {
        Self {
            prefix: prefix.trim_end_matches('/').to_string(),
            specs: specs.to_vec(),
            keyring,
            revisions: Revisions::default(),
        }
    }

    /// The same, of a store whose revisions are counted so.
    pub(crate) fn counting(self, revisions: Revisions) -> Self {
        Self { revisions, ..self }
    }

    pub(crate) fn collections(&self) -> usize {
        self.specs.len()
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn keys(&self) -> Option<std::path::PathBuf> {
        self.keyring.as_ref().map(|k| k.path().to_path_buf())
    }

    /// The first key of all, and the one behind the last.
    pub(crate) fn everything(&self) -> (Bytes, Bytes) {
        between(format!("{}/", self.prefix))
    }

    /// The first key of all objects, and the one behind the last.
    pub(crate) fn objects(&self) -> (Bytes, Bytes) {
        between(format!("{}/o/", self.prefix))
    }

    pub(crate) fn key(&self, key: &Key) -> Bytes {
        let name = &self.specs[usize::from(key.collection.0)].name;
        format!("{}/o/{name}/{}", self.prefix, key.path()).into()
    }

    pub(crate) fn value_key(&self, name: &str) -> Bytes {
        format!("{}/m/{name}", self.prefix).into()
    }

    /// Which object a key of etcd is; nothing for what is none of ours, or of no collection that is known.
    pub(crate) fn place<'a>(&self, key: &'a [u8]) -> Option<(Collection, &'a str)> {
        let text = std::str::from_utf8(key).ok()?;
        let (name, path) = text
            .strip_prefix(&self.prefix)?
            .strip_prefix("/o/")?
            .split_once('/')?;
        let index = self.specs.iter().position(|s| s.name == name)?;
        Some((Collection(u16::try_from(index).ok()?), object_path(path)?))
    }

    pub(crate) fn encode(&self, key: &Key, template: &Template) -> Result<Bytes, String> {
        let (before, after) = template.parts();
        let mut value = Vec::with_capacity(HEAD_LEN + before.len() + after.len());
        value.push(FORMAT);
        let hole = u32::try_from(before.len()).map_err(|_| "the object is too long".to_string())?;
        value.extend_from_slice(&hole.to_be_bytes());
        value.extend_from_slice(before);
        value.extend_from_slice(after);
        match &self.keyring {
            Some(keyring) if self.specs[usize::from(key.collection.0)].encrypted => {
                keyring.seal(&self.key(key), &value).map(Bytes::from)
            }
            _ => Ok(value.into()),
        }
    }

    /// The object, as it is at a revision.
    pub(crate) fn decode(&self, key: &[u8], stored: &[u8], revision: u64) -> Result<Bytes, DecodeError> {
        if !keyring::is_sealed(stored) {
            return fill(stored, revision);
        }
        let Some(keyring) = &self.keyring else {
            return Err(DecodeError::Key("any".to_string()));
        };
        match keyring.unseal(key, stored) {
            Ok(plain) => fill(&plain, revision),
            Err(Sealed::Unknown(id)) => Err(DecodeError::Key(id)),
            Err(Sealed::Broken) => Err(DecodeError::Damaged("it cannot be decrypted")),
        }
    }
}

fn fill(value: &[u8], revision: u64) -> Result<Bytes, DecodeError> {
    let damaged = DecodeError::Damaged("it was not written by svcnet");
    let Some((head, text)) = value.split_at_checked(HEAD_LEN) else {
        return Err(damaged);
    };
    let hole = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    match text.split_at_checked(hole) {
        Some((before, after)) if head[0] == FORMAT => {
            Ok(Template::new(before.to_vec(), after.to_vec()).fill(revision))
        }
        _ => Err(damaged),
    }
}

/// Everything that begins with a text: it, and the first text behind.
fn between(first: String) -> (Bytes, Bytes) {
    let mut end = first.clone().into_bytes();
    // It ends with a slash, which has a successor.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (first.into(), end.into())
}

/// Names of objects as the store has them in memory.
pub(crate) type Path = Arc<str>;

#[cfg(test)]
mod tests {
    use super::*;

    fn codec() -> Codec {
        let spec = |name: &str| CollectionSpec {
            name: name.to_string(),
            ..CollectionSpec::default()
        };
        Codec::new("/svcnet/", &[spec("nodes"), spec("services")], None)
    }

    #[test]
    fn keys_come_back_and_foreign_ones_are_left_alone() {
        let codec = codec();
        for (collection, namespace) in [(1, "default"), (0, "")] {
            let key = Key::new(Collection(collection), namespace, "a");
            let there = codec.key(&key);
            assert_eq!(codec.place(&there), Some((key.collection, key.path().as_ref())));
            let (first, end) = codec.everything();
            assert!(first <= there && there < end);
        }
        for foreign in [
            "",
            "/svcnet",
            "/svcnet/o/",
            "/svcnet/o/pods/a/b",
            "/svcnet2/o/nodes//a",
            "/svcnet/m/x",
            "/svcnet/o/nodes/a",
        ] {
            assert_eq!(codec.place(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn values_carry_their_revision_and_foreign_ones_are_refused() {
        let codec = codec();
        let key = Key::new(Collection(1), "default", "a");
        let template = Template::new(b"{\"rv\":\"".to_vec(), b"\"}".to_vec());
        let stored = codec.encode(&key, &template).unwrap();
        assert_eq!(codec.decode(b"k", &stored, 42).unwrap(), "{\"rv\":\"42\"}");
        for at in 0..HEAD_LEN {
            assert!(codec.decode(b"k", &stored[..at], 1).is_err());
        }
        assert!(codec.decode(b"k", b"{\"kind\":\"Service\"}", 1).is_err());
    }
}
