//! `metadata`, which every kind has, and what may not change in it (k8s.io/apimachinery, pkg/api/validation).

use serde_json::Value;

use crate::field::{FieldError, FieldPath};
use crate::kind::Kind;
use crate::names;
use crate::rules::{Fields, each, immutable, labels};

/// 256 KiB, over all keys and values (TotalAnnotationSizeLimitB).
const ANNOTATIONS_SIZE_MAX: usize = 256 * 1024;

/// Everything wrong with the metadata of an object of the kind.
pub(crate) fn validate(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let path = FieldPath::new("metadata");
    let metadata = &new["metadata"];
    let mut errors = names_of(kind, metadata, &path);
    errors.extend(labels(&path.child("labels"), metadata, "labels"));
    errors.extend(annotations(metadata, &path.child("annotations")));
    errors.extend(owners(metadata, &path.child("ownerReferences")));
    errors.extend(finalizers(
        metadata,
        old.map(|o| &o["metadata"]),
        &path.child("finalizers"),
        kind.is_custom(),
    ));
    if let Some(old) = old {
        errors.extend(changes(metadata, &old["metadata"], &path));
    }
    errors
}

fn names_of(kind: &Kind, metadata: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, prefix) = (metadata.text("name"), metadata.text("generateName"));
    if !prefix.is_empty() {
        let path = path.child("generateName");
        errors.extend(each(
            &path,
            prefix,
            names::object_name(kind.name_rule, prefix, true),
        ));
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            path.child("name"),
            "name or generateName is required",
        ));
    } else {
        errors.extend(each(
            &path.child("name"),
            name,
            names::object_name(kind.name_rule, name, false),
        ));
    }
    let (namespace, path) = (metadata.text("namespace"), path.child("namespace"));
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(path, "")),
        (true, false) => errors.extend(each(&path, namespace, names::dns_label(namespace))),
        (false, false) => errors.push(FieldError::forbidden(path, "not allowed on this type")),
        (false, true) => {}
    }
    errors
}

fn annotations(metadata: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in metadata.entries("annotations") {
        // Upper-case prefixes are let through here, unlike in labels.
        errors.extend(each(path, key, names::qualified_name(&key.to_lowercase())));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_SIZE_MAX {
        errors.push(FieldError::too_long(path.clone(), ANNOTATIONS_SIZE_MAX));
    }
    errors
}

fn owners(metadata: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, owner) in metadata.list("ownerReferences").iter().enumerate() {
        for (field, what) in [
            ("apiVersion", "version must not be empty"),
            ("kind", ""),
            ("name", ""),
            ("uid", ""),
        ] {
            if owner.text(field).is_empty() {
                let detail = if what.is_empty() {
                    "must not be empty"
                } else {
                    what
                };
                errors.push(FieldError::invalid(path.index(index).child(field), "", detail));
            }
        }
    }
    let controllers = metadata
        .list("ownerReferences")
        .iter()
        .filter(|o| o.flag("controller"))
        .count();
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid(
            path.clone(),
            metadata["ownerReferences"].clone(),
            detail,
        ));
    }
    errors
}

/// Two rules are told of the whole list, and that names have a domain of each item; custom resources are only warned of the last.
fn finalizers(metadata: &Value, old: Option<&Value>, path: &FieldPath, is_custom: bool) -> Vec<FieldError> {
    const STANDARD: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
    let list = metadata.list("finalizers");
    let named = || list.iter().map(|f| f.as_str().unwrap_or_default());
    let mut errors: Vec<FieldError> = named()
        .flat_map(|name| each(path, name, names::qualified_name(name)))
        .collect();
    if named().any(|n| n == "orphan") && named().any(|n| n == "foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path.clone(), Value::from(list), detail));
    }
    if !is_custom {
        let bare = named()
            .enumerate()
            .filter(|(_, name)| !name.contains('/') && !STANDARD.contains(name));
        errors.extend(bare.map(|(index, name)| {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            FieldError::invalid(path.index(index), name, detail)
        }));
    }
    let Some(old) = old.filter(|old| old.has("deletionTimestamp")) else {
        return errors;
    };
    let known = old.list("finalizers");
    let added: Vec<String> = metadata
        .list("finalizers")
        .iter()
        .filter(|f| !known.contains(f))
        .map(Value::to_string)
        .collect();
    if !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        errors.push(FieldError::forbidden(path.clone(), detail));
    }
    errors
}

fn changes(metadata: &Value, old: &Value, path: &FieldPath) -> Vec<FieldError> {
    // What the writer left out, the server fills in from the stored object; only a different value is refused.
    let fields = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    let given = fields.into_iter().filter(|field| metadata.has(field));
    given
        .filter_map(|field| immutable(path.child(field), &metadata[field], &old[field]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_kind;

    fn words(kind: &str, new: Value, old: Option<Value>) -> Vec<String> {
        let kind = by_kind("v1", kind).unwrap();
        validate(kind, &new, old.as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn names_follow_the_rule_of_the_kind() {
        let named = |name: &str| json!({"metadata": {"name": name, "namespace": "default"}});
        assert!(words("ConfigMap", named("kube-root-ca.crt"), None).is_empty());
        assert_eq!(
            words("Service", named("1a"), None),
            [
                "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of lower case alphanumeric \
              characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
              'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            words("Pod", json!({"metadata": {"namespace": "default"}}), None),
            ["metadata.name: Required value: name or generateName is required"]
        );
        assert_eq!(
            words("Node", named("n1"), None),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
    }

    #[test]
    fn labels_annotations_and_owners_are_checked() {
        let object = json!({"metadata": {
            "name": "a", "namespace": "default", "labels": {"a/b/c": "x", "ok": "-"},
            "annotations": {"Example.com/Ok": "any thing", "not ok": ""},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}],
        }});
        let found = words("Pod", object, None);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(
            found[0]
                .starts_with("metadata.labels: Invalid value: \"a/b/c\": a qualified name must consist of")
        );
        assert!(found[1].starts_with("metadata.labels: Invalid value: \"-\": a valid label must be"));
        assert!(
            found[2]
                .starts_with("metadata.annotations: Invalid value: \"not ok\": name part must consist of")
        );
        assert_eq!(
            found[3],
            "metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty"
        );
    }

    #[test]
    fn what_identifies_an_object_does_not_change() {
        let object = |name: &str| json!({"metadata": {"name": name, "namespace": "default", "uid": "1"}});
        assert_eq!(
            words("Pod", object("b"), Some(object("a"))),
            ["metadata.name: Invalid value: \"b\": field is immutable"]
        );
        let dying = json!({"metadata": {"name": "a", "namespace": "default", "deletionTimestamp": "x"}});
        let mut new = dying.clone();
        new["metadata"]["finalizers"] = json!(["example.com/x"]);
        assert_eq!(
            words("Pod", new, Some(dying)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found \
              new finalizers []string{\"example.com/x\"}"
            ]
        );
    }
}
