//! Owners that an object names twice are taken for one, and its writer is warned (kube-apiserver,
//! `endpoints/handlers/rest.go`, `dedupOwnerReferencesAndAddWarning`).

use serde_json::Value;

/// When the real server looks for them: patches are looked at behind the admissions alone, and that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    InRequest,
    InPatched,
}

/// Takes repetitions out of an object, and gives the warning if there were some. Those that name the same object and say
/// something else of it stay.
pub(crate) fn dedup(object: &mut Value, found: Found) -> Option<String> {
    let owners = object.get_mut("metadata")?.get_mut("ownerReferences")?;
    let owners = owners.as_array_mut()?;
    let (mut kept, mut twice): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for owner in owners.drain(..) {
        if kept.contains(&owner) {
            twice.push(owner["uid"].as_str().unwrap_or_default().to_string());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    let moment = match found {
        Found::InRequest => "",
        Found::InPatched => " after mutating admission happens",
    };
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries{moment}; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_owner_counts_once_and_another_word_on_it_stays() {
        let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": uid});
        let mut controlling = owner("1");
        controlling["controller"] = true.into();
        let list = json!([owner("1"), owner("2"), owner("1"), controlling, owner("2")]);
        let mut object = json!({"metadata": {"ownerReferences": list}});
        let warning = dedup(&mut object, Found::InRequest).unwrap();
        assert_eq!(
            warning,
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such \
             requests as early as 1.24; please fix your requests; duplicate UID(s) observed: 1, 2"
        );
        assert_eq!(
            object["metadata"]["ownerReferences"],
            json!([owner("1"), owner("2"), controlling])
        );
        assert_eq!(dedup(&mut object, Found::InRequest), None);
        assert_eq!(dedup(&mut json!({"metadata": {}}), Found::InPatched), None);
    }
}
