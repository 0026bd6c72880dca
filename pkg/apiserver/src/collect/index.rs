//! Who owns what.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use svcnet_api::{Kind, registry};
use svcnet_store::Event;

use super::FOREGROUND;
use crate::server::Server;

/// Where an object is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: &'static Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Place {
    fn key(&self) -> (&'static str, &'static str, &str, &str) {
        (self.kind.group, self.kind.plural, &self.namespace, &self.name)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// One of `metadata.ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    api_version: String,
    kind: String,
    name: String,
    pub(super) uid: String,
    #[serde(default)]
    pub(super) block_owner_deletion: bool,
}

/// What of an object matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    namespace: String,
    name: String,
    pub(super) uid: String,
    pub(super) terminating: bool,
    finalizers: Vec<String>,
    pub(super) owners: Vec<Reference>,
}

#[derive(Debug, Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<Reference>>,
}

impl Meta {
    /// Nothing for what does not parse: the server says so elsewhere.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let Object { metadata } = serde_json::from_slice(value).ok()?;
        Some(Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            terminating: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            owners: metadata.owner_references.unwrap_or_default(),
        })
    }

    /// Whether it is to go, and this finalizer holds it.
    pub(super) fn is_held_by(&self, finalizer: &str) -> bool {
        self.terminating && self.finalizers.iter().any(|f| f == finalizer)
    }

    /// Whether it has anything to do with garbage collection.
    fn is_of_interest(&self) -> bool {
        !self.owners.is_empty() || self.is_held_by(FOREGROUND) || self.is_held_by(super::ORPHAN)
    }

    fn at(&self, kind: &'static Kind) -> Place {
        Place {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// How it stands with an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Stays,
    /// Waits for its dependents to go first.
    Going,
    Gone,
}

/// Dependents by the uids of their owners, and what each of them was last seen to name.
#[derive(Debug, Default)]
pub(super) struct Index {
    dependents: HashMap<String, BTreeSet<Place>>,
    named: BTreeMap<Place, Vec<String>>,
    /// Owners that a finalizer of ours holds, by uid.
    held: HashMap<String, Place>,
}

impl Index {
    /// All objects of a kind, in place of what was known.
    pub(super) fn replace(&mut self, kind: &'static Kind, all: impl Iterator<Item = Meta>) {
        let is_of = |place: &Place| std::ptr::eq(place.kind, kind);
        let before: Vec<Place> = self.named.keys().filter(|p| is_of(p)).cloned().collect();
        for place in before {
            self.forget(&place);
        }
        self.held.retain(|_, place| !is_of(place));
        for meta in all.filter(Meta::is_of_interest) {
            self.put(kind, &meta);
        }
    }

    /// Takes a change in, and tells which objects are to be judged.
    pub(super) fn change(&mut self, kind: &'static Kind, event: &Event) -> Vec<Place> {
        let Some(meta) = Meta::parse(&event.value) else {
            return Vec::new();
        };
        let at = meta.at(kind);
        let mut touched: Vec<Place> = Vec::new();
        // Owners that wait may go on.
        let before = self.named.get(&at).into_iter().flatten();
        touched.extend(before.filter_map(|uid| self.held.get(uid).cloned()));
        self.forget(&at);
        self.held.remove(&meta.uid);
        if event.deleted {
            touched.extend(self.dependents(&meta.uid));
        } else if meta.is_of_interest() {
            self.put(kind, &meta);
            touched.push(at);
        }
        touched
    }

    /// Everything that might be due.
    pub(super) fn places(&self) -> Vec<Place> {
        self.named.keys().chain(self.held.values()).cloned().collect()
    }

    /// What names an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Place> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn put(&mut self, kind: &'static Kind, meta: &Meta) {
        let at = meta.at(kind);
        let uids: Vec<String> = meta.owners.iter().map(|o| o.uid.clone()).collect();
        for uid in &uids {
            self.dependents.entry(uid.clone()).or_default().insert(at.clone());
        }
        if meta.is_held_by(FOREGROUND) || meta.is_held_by(super::ORPHAN) {
            self.held.insert(meta.uid.clone(), at.clone());
        }
        if !uids.is_empty() {
            self.named.insert(at, uids);
        }
    }

    fn forget(&mut self, at: &Place) {
        for uid in self.named.remove(at).unwrap_or_default() {
            if let Some(dependents) = self.dependents.get_mut(&uid) {
                dependents.remove(at);
                if dependents.is_empty() {
                    self.dependents.remove(&uid);
                }
            }
        }
    }
}

/// How it stands with an owner. Kinds that are not served, and owners in another namespace than can be, are left alone.
pub(super) fn owner(server: &Server, of: &Place, owner: &Reference) -> Owner {
    let Some(kind) = registry::by_kind(&owner.api_version, &owner.kind) else {
        return Owner::Stays;
    };
    let namespace = match (kind.namespaced, of.namespace.as_str()) {
        (true, "") => return Owner::Stays,
        (true, namespace) => namespace,
        (false, _) => "",
    };
    let found = server.get(kind, namespace, &owner.name);
    let found = found
        .and_then(|entry| Meta::parse(&entry.value))
        .filter(|meta| meta.uid == owner.uid);
    match found {
        None => Owner::Gone,
        Some(meta) if meta.is_held_by(FOREGROUND) => Owner::Going,
        Some(_) => Owner::Stays,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    fn maps() -> &'static Kind {
        registry::by_resource("", "v1", "configmaps").unwrap()
    }

    fn map(name: &str, owners: &[&str]) -> Value {
        let owner = |uid: &&str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid});
        let owners: Vec<Value> = owners.iter().map(owner).collect();
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "ownerReferences": owners}})
    }

    fn event(object: &Value, deleted: bool) -> Event {
        Event {
            revision: 1,
            path: "default/x".into(),
            value: Bytes::from(object.to_string()),
            deleted,
            previous: None,
        }
    }

    fn names(places: &[Place]) -> Vec<&str> {
        places.iter().map(|p| p.name.as_str()).collect()
    }

    #[test]
    fn a_deletion_touches_what_named_the_object_and_nothing_else() {
        let mut index = Index::default();
        for (name, owners) in [("a", &[][..]), ("b", &["a"]), ("c", &["a", "b"])] {
            index.change(maps(), &event(&map(name, owners), false));
        }
        assert_eq!(
            names(&index.change(maps(), &event(&map("a", &[]), true))),
            ["b", "c"]
        );
        // One that names its owner no longer has nothing to do with it.
        index.change(maps(), &event(&map("c", &["b"]), false));
        assert_eq!(names(&index.change(maps(), &event(&map("a", &[]), true))), ["b"]);
        index.change(maps(), &event(&map("b", &["a"]), true));
        index.change(maps(), &event(&map("c", &[]), false));
        assert!(
            index.dependents.is_empty() && index.named.is_empty(),
            "nothing is left behind: {index:?}"
        );
    }

    #[test]
    fn an_owner_that_waits_is_touched_by_each_end_of_a_dependent() {
        let mut index = Index::default();
        let mut owner = map("a", &[]);
        owner["metadata"]["finalizers"] = json!([FOREGROUND]);
        owner["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        index.change(maps(), &event(&map("b", &["a"]), false));
        assert_eq!(names(&index.change(maps(), &event(&owner, false))), ["a"]);
        assert_eq!(
            names(&index.change(maps(), &event(&map("b", &["a"]), true))),
            ["a"]
        );
    }

    #[test]
    fn a_new_list_takes_the_place_of_the_old_one() {
        let mut index = Index::default();
        index.change(maps(), &event(&map("b", &["a"]), false));
        let meta = Meta::parse(map("c", &["a"]).to_string().as_bytes()).unwrap();
        index.replace(maps(), [meta].into_iter());
        assert_eq!(names(&index.dependents("a")), ["c"]);
    }
}
