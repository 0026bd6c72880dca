//! The class of objects that are made without one: the class that an annotation marks as the default (kube-apiserver's
//! admission plugin `DefaultIngressClass`).

use std::cmp::Reverse;

use serde_json::Value;
use svcnet_api::{Kind, registry};
use svcnet_store::Range;

use crate::server::Server;
use crate::{object, traits};

/// Where a kind's objects say their class, and where the classes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClassRule {
    /// Kind of the classes.
    pub(crate) class: (&'static str, &'static str),
    /// The annotation by which a class is the default, with the value `true`.
    pub(crate) marked_by: &'static str,
    /// The field of `spec` that names the class.
    pub(crate) field: &'static str,
    /// An older place: an annotation of the object.
    pub(crate) annotation: &'static str,
}

/// Gives a new object the default class, if it names none and there is one. Of several the newest is it, and of those the first by name.
pub(crate) fn fill_in(server: &Server, kind: &Kind, new: &mut Value) {
    let Some(rule) = traits::of(kind).class else {
        return;
    };
    let named = new
        .get("spec")
        .is_some_and(|s| s.get(rule.field).is_some_and(|c| !c.is_null()));
    if named || annotation(new, rule.annotation).is_some() {
        return;
    }
    let Some(classes) = registry::by_kind(rule.class.0, rule.class.1) else {
        return;
    };
    let all = server
        .store
        .list(server.collection(classes), &Range::default(), None);
    let parsed = all.into_iter().flat_map(|all| all.entries);
    let parsed = parsed.filter_map(|(_, entry)| object::parse(&entry).ok());
    if let Some(name) = newest(parsed.filter(|c| annotation(c, rule.marked_by) == Some("true"))) {
        new["spec"][rule.field] = name.into();
    }
}

fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// Times in metadata are in one form, so that their texts are in the order of time.
fn newest(classes: impl Iterator<Item = Value>) -> Option<String> {
    let text = |class: &Value, field| object::meta_text(class, field).to_string();
    let all = classes.map(|class| (Reverse(text(&class, "creationTimestamp")), text(&class, "name")));
    all.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_goes_before_the_first_by_name() {
        let class = |name: &str, at: &str| json!({"metadata": {"name": name, "creationTimestamp": at}});
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let all = [class("a", old), class("c", new), class("b", new)];
        assert_eq!(newest(all.into_iter()).as_deref(), Some("b"));
        assert_eq!(newest(std::iter::empty()), None);
    }
}
