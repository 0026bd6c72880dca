//! What a writer may change of an object, and what stays as it was.

use serde_json::Value;
use svcnet_api::{ApiError, FieldError, FieldPath};

use crate::delete::DeleteOptions;
use crate::write::{MODIFIED, Place, Stored};
use crate::{object, traits};

/// The namespace in the URL is the object's.
pub(crate) fn name_space(place: &Place, new: &mut Value) -> Result<(), ApiError> {
    let given = object::meta_text(new, "namespace");
    if !given.is_empty() && given != place.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let metadata = object::metadata(new);
    if place.namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".to_string(), place.namespace.as_str().into());
    }
    Ok(())
}

pub(crate) fn name_mismatch(object: &str, url: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the name of the object ({object}) does not match the name on the URL ({url})"
    ))
}

/// The new object with all that a writer cannot change (through this subresource) as it was.
pub(crate) fn carry_over(place: &Place, stored: &Stored, mut wanted: Value) -> Result<Value, ApiError> {
    let old = &stored.object;
    name_space(place, &mut wanted)?;
    let name = object::meta_text(&wanted, "name");
    if !name.is_empty() && name != place.name {
        return Err(name_mismatch(name, &place.name));
    }
    let revision = object::meta_text(&wanted, "resourceVersion");
    if !revision.is_empty() && revision != stored.entry.revision.to_string() {
        return Err(ApiError::conflict(place.kind, &place.name, MODIFIED));
    }
    let (uid, old_uid) = (object::meta_text(&wanted, "uid"), object::meta_text(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        return Err(uid_conflict(place, uid, old_uid));
    }
    let metadata = object::metadata(&mut wanted);
    for field in [
        "name",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
        "selfLink",
    ] {
        match old.get("metadata").and_then(|m| m.get(field)) {
            Some(value) => metadata.insert(field.to_string(), value.clone()),
            None => metadata.remove(field),
        };
    }
    let mut new = match place.subresource.as_str() {
        "status" => {
            let mut new = old.clone();
            if traits::is_custom(place.kind) {
                // With the status of a custom resource only its owners are written.
                take(&mut new["metadata"], &mut wanted["metadata"], "managedFields");
            } else {
                new["metadata"] = wanted["metadata"].take();
            }
            take(&mut new, &mut wanted, "status");
            new
        }
        "finalize" => {
            let mut new = old.clone();
            new["metadata"] = wanted["metadata"].take();
            new["spec"]["finalizers"] = wanted["spec"]["finalizers"].take();
            new
        }
        _ => {
            if place.kind.status {
                take(&mut wanted, &mut old.clone(), "status");
            }
            if traits::of(place.kind).finalize
                && let Some(kept) = old.get("spec").and_then(|s| s.get("finalizers"))
            {
                wanted["spec"]["finalizers"] = kept.clone();
            }
            wanted
        }
    };
    for field in ["apiVersion", "kind"] {
        new[field] = old[field].clone();
    }
    new_finalizers(old, &new).map_err(|e| ApiError::invalid(place.kind, &place.name, &[e]))?;
    let labels = |object: &Value| object.get("metadata").and_then(|m| m.get("labels")).cloned();
    let relabelled = traits::of(place.kind).labels_count && labels(old) != labels(&new);
    if (relabelled || object::spec_differs(old, &new)) && metadata_generation(old).is_some() {
        bump_generation(&mut new);
    }
    Ok(new)
}

/// Gives `into` the field of `from`, or none.
fn take(into: &mut Value, from: &mut Value, field: &str) {
    let Some(into) = into.as_object_mut() else { return };
    match from.as_object_mut().and_then(|f| f.remove(field)) {
        Some(value) => into.insert(field.to_string(), value),
        None => into.remove(field),
    };
}

pub(crate) fn metadata_generation(object: &Value) -> Option<i64> {
    object.get("metadata")?.get("generation")?.as_i64()
}

pub(crate) fn bump_generation(object: &mut Value) {
    let next = metadata_generation(object).unwrap_or_default() + 1;
    object::metadata(object).insert("generation".to_string(), next.into());
}

/// What is being deleted takes no new finalizers.
fn new_finalizers(old: &Value, new: &Value) -> Result<(), FieldError> {
    if !object::is_terminating(old) {
        return Ok(());
    }
    let list = |object: &Value| {
        let list = object
            .get("metadata")
            .and_then(|m| m.get("finalizers"))
            .and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let before = list(old);
    let added: Vec<Value> = list(new).into_iter().filter(|f| !before.contains(f)).collect();
    if added.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = added.iter().map(Value::to_string).collect();
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        names.join(", ")
    );
    let path = FieldPath::new("metadata").child("finalizers");
    Err(FieldError::forbidden(path, detail))
}

/// Whoever applies with a uid means an object that is there.
pub(crate) fn no_uid(place: &Place, new: &Value) -> Result<(), ApiError> {
    let uid = object::meta_text(new, "uid");
    if uid.is_empty() {
        return Ok(());
    }
    let why =
        format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
    Err(ApiError::conflict(place.kind, &place.name, &why))
}

fn uid_conflict(place: &Place, wanted: &str, is: &str) -> ApiError {
    let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {is}");
    ApiError::conflict(place.kind, &place.name, &why)
}

pub(crate) fn preconditions(place: &Place, stored: &Stored, options: &DeleteOptions) -> Result<(), ApiError> {
    let is = object::meta_text(&stored.object, "uid");
    if !options.uid.is_empty() && options.uid != is {
        return Err(uid_conflict(place, &options.uid, is));
    }
    let (wanted, is) = (&options.revision, stored.entry.revision.to_string());
    if !wanted.is_empty() && *wanted != is {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {is}"
        );
        return Err(ApiError::conflict(place.kind, &place.name, &why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_being_deleted_takes_no_new_finalizers() {
        let object = |finalizers: &[&str]| json!({"metadata": {"finalizers": finalizers}});
        let mut dying = object(&["example.com/a", "example.com/b"]);
        assert_eq!(
            new_finalizers(&dying, &object(&["example.com/c"])),
            Ok(()),
            "it is not deleted"
        );
        dying["metadata"]["deletionTimestamp"] = "2026-11-27T00:00:00Z".into();
        for fewer in [&["example.com/b", "example.com/a"][..], &["example.com/b"], &[]] {
            assert_eq!(new_finalizers(&dying, &object(fewer)), Ok(()), "{fewer:?}");
        }
        let error = new_finalizers(&dying, &object(&["example.com/a", "example.com/c", "x"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers \
             []string{\"example.com/c\", \"x\"}"
        );
    }
}
