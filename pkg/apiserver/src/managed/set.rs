//! Sets of fields: what `fieldsV1` holds (structured-merge-diff, fieldpath/set.go, serialize.go).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use svcnet_api::schema::SchemaNode;

use super::path::{Path, Step};

/// A set of paths, as a tree. A path and one further in are two members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set(BTreeMap<Step, Node>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: Set,
}

/// Text that is no set of fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a set of fields: {0}")]
pub(crate) struct SetError(String);

impl Node {
    fn kept(self) -> Option<Self> {
        (self.member || !self.below.is_empty()).then_some(self)
    }
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a path in. The empty one stands for the whole object, which nobody owns.
    pub(crate) fn insert(&mut self, path: &Path) {
        self.insert_steps(&path.0);
    }

    fn insert_steps(&mut self, steps: &[Step]) {
        let Some((first, rest)) = steps.split_first() else {
            return;
        };
        let node = self.0.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert_steps(rest);
        }
    }

    /// Whether the path of this one step is in it.
    pub(crate) fn has(&self, step: &Step) -> bool {
        self.0.get(step).is_some_and(|node| node.member)
    }

    pub(crate) fn has_path(&self, path: &Path) -> bool {
        let Some((last, before)) = path.0.split_last() else {
            return false;
        };
        let parent = before
            .iter()
            .try_fold(self, |set, step| set.0.get(step).map(|n| &n.below));
        parent.is_some_and(|set| set.has(last))
    }

    /// What is in it behind this step.
    pub(crate) fn below(&self, step: &Step) -> Option<&Self> {
        self.0
            .get(step)
            .map(|node| &node.below)
            .filter(|below| !below.is_empty())
    }

    #[must_use]
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (step, theirs) in &other.0 {
            let node = all.0.entry(step.clone()).or_default();
            node.member |= theirs.member;
            node.below = node.below.union(&theirs.below);
        }
        all
    }

    #[must_use]
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let both = self.0.iter().filter_map(|(step, ours)| {
            let theirs = other.0.get(step)?;
            let node = Node {
                member: ours.member && theirs.member,
                below: ours.below.intersection(&theirs.below),
            };
            Some((step.clone(), node.kept()?))
        });
        Self(both.collect())
    }

    /// The members that the other has not.
    #[must_use]
    pub(crate) fn difference(&self, other: &Self) -> Self {
        self.without(other, false)
    }

    /// The members that are neither members of the other nor further in than one.
    #[must_use]
    pub(crate) fn recursive_difference(&self, other: &Self) -> Self {
        self.without(other, true)
    }

    fn without(&self, other: &Self, recursive: bool) -> Self {
        let left = self.0.iter().filter_map(|(step, ours)| {
            let Some(theirs) = other.0.get(step) else {
                return Some((step.clone(), ours.clone()));
            };
            if recursive && theirs.member {
                return None;
            }
            let node = Node {
                member: ours.member && !theirs.member,
                below: ours.below.without(&theirs.below, recursive),
            };
            Some((step.clone(), node.kept()?))
        });
        Self(left.collect())
    }

    /// The set with all fields of objects that something in it is further in than (`EnsureNamedFieldsAreMembers`): whoever
    /// owns `.spec.type` is taken to own `.spec`, but not the map of labels of which he owns one.
    #[must_use]
    pub(crate) fn with_named_members(&self, schema: Option<SchemaNode>) -> Self {
        let all = self.0.iter().map(|(step, node)| {
            let (named, below) = match step {
                Step::Field(name) => (
                    schema.and_then(|s| s.property(name)).is_some(),
                    schema.and_then(|s| s.child(name)),
                ),
                _ => (false, schema.and_then(SchemaNode::items)),
            };
            let node = Node {
                member: node.member || named,
                below: node.below.with_named_members(below),
            };
            (step.clone(), node)
        });
        Self(all.collect())
    }

    /// All members, in order.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let mut found = Vec::new();
        self.collect(&mut Path::default(), &mut found);
        found
    }

    fn collect(&self, at: &mut Path, found: &mut Vec<Path>) {
        for (step, node) in &self.0 {
            at.within(step.clone(), |at| {
                if node.member {
                    found.push(at.clone());
                }
                node.below.collect(at, found);
            });
        }
    }

    /// `fieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        let fields = self.0.iter().map(|(step, node)| {
            let mut below = node.below.encode();
            if node.member && !node.below.is_empty() {
                below["."] = json!({});
            }
            (step.encode(), below)
        });
        Value::Object(fields.collect())
    }

    /// Reads `fieldsV1`.
    ///
    /// # Errors
    /// What is no such thing.
    pub(crate) fn decode(fields: &Value) -> Result<Self, SetError> {
        let object = |value: &Value| -> Result<Map<String, Value>, SetError> {
            value
                .as_object()
                .cloned()
                .ok_or_else(|| SetError(value.to_string()))
        };
        let mut set = Self::default();
        for (name, value) in object(fields)? {
            if name == "." {
                continue;
            }
            let step = Step::decode(&name).ok_or_else(|| SetError(name.clone()))?;
            let inside = object(&value)?;
            let node = Node {
                member: inside.is_empty() || inside.contains_key("."),
                below: Self::decode(&value)?,
            };
            set.0.extend(node.kept().map(|node| (step, node)));
        }
        Ok(set)
    }
}

impl FromIterator<Path> for Set {
    fn from_iter<T: IntoIterator<Item = Path>>(paths: T) -> Self {
        let mut set = Self::default();
        paths.into_iter().for_each(|path| set.insert(&path));
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![
            "[a-c]".prop_map(Step::Field),
            (1..3_i64).prop_map(|n| Step::Key(json!({"port": n}).to_string())),
            "[a-b]".prop_map(|v| Step::Value(json!(v).to_string())),
        ];
        let path = prop::collection::vec(step, 1..4).prop_map(Path);
        prop::collection::vec(path, 0..8).prop_map(Set::from_iter)
    }

    fn has(set: &Set, path: &Path) -> bool {
        set.paths().contains(path)
    }

    #[test]
    fn a_set_reads_as_kubernetes_writes_it() {
        let written = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:type": {}},
        });
        let set = Set::decode(&written).unwrap();
        let paths: Vec<String> = set.paths().iter().map(ToString::to_string).collect();
        assert_eq!(
            paths,
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
                ".spec.type",
            ]
        );
        assert_eq!(set.encode(), written);
        assert!(Set::decode(&json!({"spec": {}})).is_err() && Set::decode(&json!({"f:spec": 1})).is_err());
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in any_set(), b in any_set()) {
            prop_assert_eq!(&Set::decode(&a.encode()).unwrap(), &a);
            let (all, both, left) = (a.union(&b), a.intersection(&b), a.difference(&b));
            let deep = a.recursive_difference(&b);
            for path in all.paths() {
                let (in_a, in_b) = (has(&a, &path), has(&b, &path));
                prop_assert!(in_a || in_b);
                prop_assert_eq!(all.has_path(&path), true);
                prop_assert_eq!(has(&both, &path), in_a && in_b);
                prop_assert_eq!(has(&left, &path), in_a && !in_b);
                let covered = (1..=path.0.len()).any(|n| has(&b, &Path(path.0[..n].to_vec())));
                prop_assert_eq!(has(&deep, &path), in_a && !covered);
            }
            prop_assert_eq!(left.union(&both), a);
            prop_assert_eq!(all.paths().is_empty(), all.is_empty());
        }
    }
}
