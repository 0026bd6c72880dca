//! The three things that are done with objects whose fields have owners: comparing two, merging an applied configuration
//! into one, and taking fields out of one (structured-merge-diff, typed/compare.go, merge.go, remove.go).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};
use svcnet_api::schema::SchemaNode;

use super::path::{Path, Step};
use super::set::Set;
use super::walk::{Shape, entries, indexed, items, shape, step_to};

/// How two objects differ. No field is in more than one of the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) removed: Set,
    pub(crate) modified: Set,
    pub(crate) added: Set,
}

impl Comparison {
    pub(crate) fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// What is left when these fields, and all in them, do not count.
    #[must_use]
    pub(crate) fn excluding(&self, fields: &Set) -> Self {
        Self {
            removed: self.removed.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            added: self.added.recursive_difference(fields),
        }
    }
}

/// What has to be done to one object to make it the other.
pub(crate) fn compare(old: &Value, new: &Value, schema: Option<SchemaNode>) -> Comparison {
    let mut found = Comparison::default();
    compare_at([Some(old), Some(new)], schema, &mut Path::default(), &mut found);
    found
}

fn compare_at(both: [Option<&Value>; 2], schema: Option<SchemaNode>, at: &mut Path, found: &mut Comparison) {
    let [old, new] = both;
    let leaf = match shape(schema, both) {
        Shape::Leaf => true,
        // Nothing in them on either side: what is left to tell apart is whether they are there.
        Shape::Map => entries(old).is_none() && entries(new).is_none(),
        Shape::List => items(old).is_empty() && items(new).is_empty(),
    };
    match (old, new) {
        (None, Some(_)) => found.added.insert(at),
        (Some(_), None) => found.removed.insert(at),
        (Some(old), Some(new)) if leaf && old != new => found.modified.insert(at),
        _ => {}
    }
    if leaf {
        return;
    }
    if shape(schema, both) == Shape::Map {
        let names: BTreeSet<&String> = both
            .into_iter()
            .flat_map(|v| entries(v).into_iter().flatten())
            .map(|(k, _)| k)
            .collect();
        for name in names {
            let children = both.map(|v| v.and_then(|v| v.get(name)));
            let below = schema.and_then(|s| s.child(name));
            at.within(Step::Field(name.clone()), |at| {
                compare_at(children, below, at, found)
            });
        }
        return;
    }
    let (old, new) = (indexed(schema, items(old)), indexed(schema, items(new)));
    let steps: BTreeSet<&Step> = old.keys().chain(new.keys()).collect();
    for step in steps {
        let [old, new] = [&old, &new].map(|side| side.get(step).map(Vec::as_slice).unwrap_or_default());
        at.within(step.clone(), |at| match (old, new) {
            ([] | [_], [] | [_]) => {
                let children = [old.first().copied(), new.first().copied()];
                compare_at(children, schema.and_then(SchemaNode::items), at, found);
            }
            // Several of one key are compared as a whole.
            ([], _) => found.added.insert(at),
            (_, []) => found.removed.insert(at),
            (old, new) if old != new => found.modified.insert(at),
            _ => {}
        });
    }
}

/// The object that an applied configuration makes of another: nothing goes away, what both say is as the configuration
/// says. The configuration has been checked by [`validate`](super::walk::validate).
pub(crate) fn merge(live: &Value, applied: &Value, schema: Option<SchemaNode>) -> Value {
    merge_at(Some(live), Some(applied), schema).unwrap_or_default()
}

fn merge_at(live: Option<&Value>, applied: Option<&Value>, schema: Option<SchemaNode>) -> Option<Value> {
    let both = [live, applied];
    let whole = || applied.or(live).cloned();
    match shape(schema, both) {
        Shape::Leaf => whole(),
        Shape::Map if entries(live).is_none() && entries(applied).is_none() => whole(),
        Shape::List if items(live).is_empty() && items(applied).is_empty() => whole(),
        Shape::Map => {
            let mut out = Map::new();
            let names: BTreeSet<&String> = both
                .into_iter()
                .flat_map(|v| entries(v).into_iter().flatten())
                .map(|(k, _)| k)
                .collect();
            for name in names {
                let [live, applied] = both.map(|v| v.and_then(|v| v.get(name)));
                let merged = merge_at(live, applied, schema.and_then(|s| s.child(name)));
                out.extend(merged.map(|merged| (name.clone(), merged)));
            }
            Some(Value::Object(out)).filter(|v| entries(Some(v)).is_some())
        }
        Shape::List => {
            let out = merge_lists(items(live), items(applied), schema);
            Some(Value::Array(out)).filter(|v| !items(Some(v)).is_empty())
        }
    }
}

/// Items of both lists in the order of the applied one, those of the other at the place that they had among them.
fn merge_lists(live: &[Value], applied: &[Value], schema: Option<SchemaNode>) -> Vec<Value> {
    let below = schema.and_then(SchemaNode::items);
    let named = |list: &[Value]| -> Vec<(Step, Value)> {
        let steps = list
            .iter()
            .filter_map(|item| Some((step_to(schema, item).ok()?, item.clone())));
        steps.collect()
    };
    let (live, applied) = (named(live), named(applied));
    let wanted: BTreeMap<&Step, &Value> = applied.iter().map(|(s, v)| (s, v)).collect();
    let mut had: BTreeMap<&Step, Option<&Value>> = BTreeMap::new();
    for (step, item) in &live {
        // Of several with one key nothing is taken over.
        had.entry(step)
            .and_modify(|slot| *slot = None)
            .or_insert(Some(item));
    }
    let mut shared: VecDeque<&Step> = applied
        .iter()
        .map(|(s, _)| s)
        .filter(|s| had.contains_key(s))
        .collect();
    let mut next = shared.pop_front();
    let (mut out, mut done) = (Vec::new(), BTreeSet::new());
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < applied.len() {
        if let (Some((mine, _)), Some((theirs, item))) = (live.get(l), applied.get(r)) {
            if mine == theirs {
                done.insert(mine);
                out.extend(merge_at(had.get(mine).copied().flatten(), Some(item), below));
                (l, r) = (l + 1, r + 1);
                next = shared.pop_front();
                continue;
            }
            if wanted.contains_key(mine) && next.is_some_and(|next| next != mine) {
                l += 1;
                continue;
            }
        }
        if let Some((mine, item)) = live.get(l) {
            if !wanted.contains_key(mine) {
                out.extend(merge_at(Some(item), None, below));
                l += 1;
                continue;
            }
            if done.contains(mine) {
                l += 1;
            }
        }
        if let Some((theirs, item)) = applied.get(r) {
            done.insert(theirs);
            out.extend(merge_at(had.get(theirs).copied().flatten(), Some(item), below));
            r += 1;
            if next == Some(theirs) {
                next = shared.pop_front();
            }
        }
    }
    out
}

/// The object without these fields. What is empty then is null: a decoder drops it.
pub(crate) fn remove(object: &Value, gone: &Set, schema: Option<SchemaNode>) -> Value {
    match shape(schema, [Some(object), None]) {
        Shape::Leaf if object.is_object() || object.is_array() => Value::Null,
        Shape::Leaf => object.clone(),
        Shape::Map => {
            let kept = entries(Some(object))
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| {
                    let step = Step::Field(name.clone());
                    if gone.has(&step) {
                        return None;
                    }
                    let value = match gone.below(&step) {
                        Some(gone) => remove(value, gone, schema.and_then(|s| s.child(name))),
                        None => value.clone(),
                    };
                    Some((name.clone(), value))
                });
            let kept: Map<String, Value> = kept.collect();
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Object(kept)
            }
        }
        Shape::List => {
            let kept = items(Some(object)).iter().filter_map(|item| {
                let Ok(step) = step_to(schema, item) else {
                    return Some(item.clone());
                };
                if gone.has(&step) {
                    return None;
                }
                Some(match gone.below(&step) {
                    Some(gone) => remove(item, gone, schema.and_then(SchemaNode::items)),
                    None => item.clone(),
                })
            });
            let kept: Vec<Value> = kept.collect();
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Array(kept)
            }
        }
    }
}
