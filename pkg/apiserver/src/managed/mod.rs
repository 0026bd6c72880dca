//! Who owns which field of an object: `metadata.managedFields`, and server-side apply on top of it. Pure functions, after
//! k8s.io/apimachinery, pkg/util/managedfields, and sigs.k8s.io/structured-merge-diff.
//!
//! Each write has a manager: the `fieldManager` of the request, else the first word of its `User-Agent`. A write gives it
//! the fields that it adds and changes, and takes them from others. An apply gives it the fields of the applied
//! configuration, and refuses to change others' unless it is forced. Fields are told apart by the schema: lists whose items
//! have keys item by item, atomic ones as a whole.
//!
//! In the terms of structured-merge-diff: a `Set` is what `fieldsV1` holds, `walk` says what counts as one field,
//! `merge` compares, merges and removes, `updater` decides. Owners are settled between defaults and admissions, so
//! defaults are the writer's and what is allocated is nobody's; what the strategies of the real server fill in
//! (`Traits::filled_in`) is left out. An object without owners (of a former version, or reset) has none until it is
//! applied to.

mod last_applied;
mod merge;
mod owners;
mod path;
mod set;
mod updater;
mod walk;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use svcnet_api::schema::SchemaNode;
use svcnet_api::{ApiError, Kind, Reason};

use self::owners::{Conflict, Manager, Operation, Owned, Owners};
use self::path::Path;
use self::set::Set;
use self::updater::Updater;
use crate::traits;

/// Managers of updates that one object remembers by name; older ones become [`ANCIENT`] (DefaultMaxUpdateManagers).
const UPDATERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// Whose the fields are of an object that had no owners when it was first applied to.
const BEFORE_APPLY: &str = "before-first-apply";
/// Whose apply also keeps up the annotation of client-side apply.
const KUBECTL: &str = "kubectl";

/// One write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) kind: &'static Kind,
    pub(crate) subresource: &'a str,
    /// The manager; empty when nobody knows.
    pub(crate) manager: &'a str,
    /// The time of the write, as metadata has it.
    pub(crate) now: &'a str,
}

pub(crate) use self::owners::same_but_times;
pub(crate) use self::walk::shown as go_value;

/// An object without anything in it, as the real server's decoder makes one: fields that its types always have are there.
/// What an object has beyond these is added, and owned, by whoever creates it.
pub(crate) fn empty(kind: &Kind) -> Value {
    let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {}});
    if traits::is_custom(kind) {
        return object;
    }
    for name in ["spec", "status", "source", "involvedObject"] {
        if SchemaNode::root(kind).is_some_and(|root| root.property(name).is_some()) {
            object[name] = json!({});
        }
    }
    match kind.kind {
        "Pod" => object["spec"]["containers"] = Value::Null,
        "EndpointSlice" => {
            object["addressType"] = "".into();
            object["endpoints"] = Value::Null;
            object["ports"] = Value::Null;
        }
        "Event" => {
            for name in ["firstTimestamp", "lastTimestamp", "eventTime"] {
                object[name] = Value::Null;
            }
            object["reportingComponent"] = "".into();
            object["reportingInstance"] = "".into();
        }
        "NetworkPolicy" => object["spec"]["podSelector"] = json!({}),
        _ => {}
    }
    object
}

/// The owners of a new object. What the server itself fills in on creation is nobody's.
pub(crate) fn create(writer: Writer<'_>, given: &Value, new: &mut Value) {
    let unowned = traits::of(writer.kind).filled_in.iter();
    let unowned = unowned
        .map(|path| Path::fields(path))
        .filter(|path| !is_there(given, path))
        .collect();
    let owners = if owners::is_reset(given) {
        Owners::default()
    } else {
        Owners::of(given).unwrap_or_default()
    };
    let live = empty(writer.kind);
    let owners = writer.updated(&live, new, owners, writer.manager, &unowned);
    owners.write(new);
}

/// The owners of an object that an update or a patch makes of another. `new` comes with the managed fields that the writer
/// has sent, and leaves with those that are stored.
pub(crate) fn update(writer: Writer<'_>, live: &Value, new: &mut Value) {
    let stored = || Owners::of(live).unwrap_or_default();
    let owners = match () {
        () if !writer.subresource.is_empty() => stored(),
        () if owners::is_reset(new) => Owners::default(),
        // Whoever knows nothing of managed fields, or writes nonsense, takes nothing away.
        () => Owners::of(new)
            .ok()
            .filter(|o| !o.is_empty())
            .unwrap_or_else(stored),
    };
    // An object without owners stays one until it is applied to.
    let owners = if owners.is_empty() {
        owners
    } else {
        writer.updated(live, new, owners, writer.manager, &Set::default())
    };
    owners.write(new);
}

/// The object that an applied configuration makes of another (of an [`empty`] one, where there is none), with its owners.
///
/// # Errors
/// 409 with the fields that belong to others, 400 and 500 for configurations that are none, in the real server's words.
pub(crate) fn apply(
    writer: Writer<'_>,
    live: &Value,
    applied: &Value,
    force: bool,
) -> Result<Value, ApiError> {
    let schema = SchemaNode::root(writer.kind);
    if owners::managed_fields(applied).is_some_and(|given| !given.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let errors = walk::validate(applied, schema);
    if !errors.is_empty() {
        return Err(not_typed(writer.kind, applied, &errors));
    }
    let mut owners =
        Owners::of(live).map_err(|e| ApiError::internal(format!("failed to decode managed fields: {e}")))?;
    if owners.is_empty() {
        owners = writer.updated(&empty(writer.kind), live, owners, BEFORE_APPLY, &Set::default());
    }
    let manager = writer.manager(writer.manager, Operation::Apply);
    let api_version = writer.kind.api_version();
    let updater = writer.updater(&api_version);
    let done = updater.apply(live, applied, owners.clone(), &manager, force);
    let done = match done {
        Err(conflicts) if writer.manager == KUBECTL => {
            // Fields that client-side apply has put there, and that are as it has put them, are kubectl's own.
            let own = last_applied::fields(live, &api_version, schema);
            let others: Vec<Conflict> = conflicts.into_iter().filter(|c| !own.has_path(&c.path)).collect();
            if others.is_empty() {
                updater.apply(live, applied, owners, &manager, true)
            } else {
                Err(others)
            }
        }
        done => done,
    };
    let mut done = done.map_err(|conflicts| conflicting(&conflicts))?;
    strip(&mut done.owners, &manager);
    let mut new = match done.object {
        Some(object) => {
            if let Some(owned) = done.owners.0.get_mut(&manager) {
                owned.time = Some(writer.now.to_string());
            }
            object
        }
        None => live.clone(),
    };
    if writer.manager == KUBECTL {
        last_applied::keep_up(&mut new, applied);
    }
    done.owners.write(&mut new);
    Ok(new)
}

impl Writer<'_> {
    fn manager(&self, name: &str, operation: Operation) -> Manager {
        let name = if name.is_empty() { "unknown" } else { name };
        Manager::new(name, operation, &self.kind.api_version(), self.subresource)
    }

    fn updater<'a>(&self, api_version: &'a str) -> Updater<'a> {
        Updater {
            schema: SchemaNode::root(self.kind),
            api_version,
            reset: reset_fields(self.kind, self.subresource),
        }
    }

    fn updated(&self, live: &Value, new: &Value, owners: Owners, name: &str, unowned: &Set) -> Owners {
        let manager = self.manager(name, Operation::Update);
        let api_version = self.kind.api_version();
        let mut updater = self.updater(&api_version);
        updater.reset = updater.reset.union(unowned);
        // Whether this write has taken anything shows when it is somebody by itself.
        let itself = Manager::new("", Operation::Update, &api_version, self.subresource);
        let (mut owners, _) = updater.update(live, new, owners, &itself);
        strip(&mut owners, &itself);
        if let Some(taken) = owners.0.remove(&itself) {
            let before = owners
                .0
                .get(&manager)
                .map(|o| o.fields.clone())
                .unwrap_or_default();
            let owned = Owned {
                fields: before.union(&taken.fields),
                time: Some(self.now.to_string()),
                ..taken
            };
            owners.0.insert(manager, owned);
        }
        forget_ancient(&mut owners);
        owners
    }
}

/// Fields that are there in every object, and nobody's (`stripMetaManager`).
fn strip(owners: &mut Owners, manager: &Manager) {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let mut nobodys: Set = ["apiVersion", "kind", "metadata"]
        .iter()
        .map(|name| Path::fields(&[name]))
        .collect();
    metadata
        .iter()
        .for_each(|name| nobodys.insert(&Path::fields(&["metadata", name])));
    if let Some(owned) = owners.0.get_mut(manager) {
        owned.fields = owned.fields.difference(&nobodys);
        if owned.fields.is_empty() {
            owners.0.remove(manager);
        }
    }
}

/// What the strategies of the real server reset (`GetResetFields`): a plain write does not change the status, one of the
/// status not the rest.
fn reset_fields(kind: &Kind, subresource: &str) -> Set {
    let names: &[&str] = match subresource {
        "" if kind.status => &["status"],
        "" => &[],
        "status" if traits::is_custom(kind) => &["metadata", "spec"],
        "status" => &["spec"],
        _ => &["status"],
    };
    names.iter().map(|name| Path::fields(&[name])).collect()
}

fn is_there(object: &Value, path: &Path) -> bool {
    let found = path.0.iter().try_fold(object, |value, step| match step {
        path::Step::Field(name) => value.get(name),
        _ => None,
    });
    found.is_some_and(|v| !v.is_null())
}

/// Joins the oldest updaters when there are too many of them (`capManagersManager`).
fn forget_ancient(owners: &mut Owners) {
    let mut updaters: Vec<(Option<String>, Manager)> = owners
        .0
        .iter()
        .filter(|(manager, _)| manager.operation == Operation::Update)
        .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
        .collect();
    let mut count = updaters.len();
    // RFC 3339 in UTC sorts as text.
    updaters.sort();
    let mut firsts: Vec<Manager> = Vec::new();
    for (time, manager) in updaters {
        if count <= UPDATERS_MAX {
            return;
        }
        let bucket = Manager::new(ANCIENT, Operation::Update, &manager.api_version, "");
        let Some(first) = firsts
            .iter()
            .find(|f| f.api_version == manager.api_version)
            .cloned()
        else {
            firsts.push(manager);
            continue;
        };
        if !owners.0.contains_key(&bucket)
            && let Some(owned) = owners.0.remove(&first)
        {
            owners.0.insert(bucket.clone(), owned);
        }
        if let (Some(old), Some(all)) = (owners.0.remove(&manager), owners.0.get_mut(&bucket)) {
            all.fields = all.fields.union(&old.fields);
            all.time = time;
            count -= 1;
        }
    }
}

fn not_typed(kind: &Kind, applied: &Value, errors: &[String]) -> ApiError {
    let meta = |name: &str| crate::object::meta_text(applied, name);
    let text = match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let why = format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {text}",
        meta("namespace"),
        meta("name"),
        go_group_version(kind),
        kind.kind
    );
    ApiError::new(Reason::Unknown, why)
}

/// As Go prints a GroupVersion: the core group's has its slash too.
pub(crate) fn go_group_version(kind: &Kind) -> String {
    format!("{}/{}", kind.group, kind.version)
}

fn conflicting(conflicts: &[Conflict]) -> ApiError {
    let message = match conflicts {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        ),
        many => {
            let mut lines = Vec::new();
            let mut last = None;
            for conflict in many {
                if last != Some(&conflict.manager) {
                    lines.push(format!("conflicts with {}:", conflict.manager));
                    last = Some(&conflict.manager);
                }
                lines.push(format!("- {}", conflict.path));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    let causes = conflicts.iter().map(|conflict| {
        json!({
            "reason": "FieldManagerConflict", "message": format!("conflict with {}", conflict.manager),
            "field": conflict.path.to_string(),
        })
    });
    let mut error = ApiError::new(Reason::Conflict, message);
    error.details = Some(json!({"causes": causes.collect::<Vec<Value>>()}));
    error
}
