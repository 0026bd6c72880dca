//! What a write makes of the owners of an object's fields (structured-merge-diff, merge/update.go).

use serde_json::Value;
use svcnet_api::schema::SchemaNode;

use super::merge::{Comparison, compare, merge, remove};
use super::owners::{Conflict, Manager, Owned, Owners};
use super::set::Set;
use super::walk::fields_of;

/// What all operations on one kind's objects need.
pub(crate) struct Updater<'a> {
    pub(crate) schema: Option<SchemaNode>,
    pub(crate) api_version: &'a str,
    /// Fields that a write through this (sub)resource does not change, whatever it says.
    pub(crate) reset: Set,
}

/// What an apply makes.
pub(crate) struct Applied {
    /// Nothing when the object stays as it is.
    pub(crate) object: Option<Value>,
    pub(crate) owners: Owners,
}

impl Updater<'_> {
    /// The owners after a write that is no apply: the manager gets what it has added and changed, everybody loses what it
    /// has changed (if another's) and what is gone.
    pub(crate) fn update(
        &self,
        live: &Value,
        new: &Value,
        mut owners: Owners,
        manager: &Manager,
    ) -> (Owners, Comparison) {
        let comparison = compare(live, new, self.schema).excluding(&self.reset);
        owners.lose(&comparison.modified.union(&comparison.added), Some(manager));
        owners.lose(&comparison.removed, None);
        let taken = comparison.modified.union(&comparison.added);
        if !taken.is_empty() {
            let owned = owners.0.entry(manager.clone()).or_insert_with(|| Owned {
                fields: Set::default(),
                api_version: self.api_version.to_string(),
                time: None,
            });
            owned.fields = owned.fields.union(&taken);
        }
        (owners, comparison)
    }

    /// Merges an applied configuration into an object. What the manager applied before and does not now goes away, unless
    /// somebody else owns it too.
    ///
    /// # Errors
    /// The fields that are another's and would change, unless `force` says to take them.
    pub(crate) fn apply(
        &self,
        live: &Value,
        applied: &Value,
        mut owners: Owners,
        manager: &Manager,
        force: bool,
    ) -> Result<Applied, Vec<Conflict>> {
        let merged = merge(live, applied, self.schema);
        let fields = fields_of(applied, self.schema).recursive_difference(&self.reset);
        let time = owners.0.get(manager).and_then(|o| o.time.clone());
        let owned = Owned {
            fields,
            api_version: self.api_version.to_string(),
            time,
        };
        let last = owners.0.insert(manager.clone(), owned);
        let new = match last.filter(|last| !last.fields.is_empty()) {
            Some(last) => self.prune(&merged, &owners, &last),
            None => merged,
        };
        let comparison = compare(live, &new, self.schema).excluding(&self.reset);
        let taken = comparison.modified.union(&comparison.added);
        let conflicts = owners.conflicts(manager, &taken);
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        owners.lose(&taken, Some(manager));
        owners.lose(&comparison.removed, Some(manager));
        let object = (!comparison.is_same()).then_some(new);
        Ok(Applied { object, owners })
    }

    /// Takes away what the manager applied last time and nobody owns any more.
    fn prune(&self, merged: &Value, owners: &Owners, last: &Owned) -> Value {
        let named = |set: Set| set.with_named_members(self.schema);
        let all = || named(fields_of(merged, self.schema));
        let last = last.named(self.schema);
        let pruned = remove(merged, &last, self.schema);
        // What others own, or the manager still applies, comes back …
        let kept = named(fields_of(&pruned, self.schema)).union(&named(owners.fields()));
        let pruned = remove(merged, &all().difference(&kept), self.schema);
        // … and so does what was taken along, and was never the manager's.
        let left = named(fields_of(&pruned, self.schema));
        remove(merged, &all().difference(&left).intersection(&last), self.schema)
    }
}
