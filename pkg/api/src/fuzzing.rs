//! What `fuzz/` runs over any bytes, and the tests over the seeds of `fuzz/seeds`: what is read may be refused, but never
//! brings the process down, and what is accepted keeps its promises.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a broken promise is what is looked for"
)]

use serde_json::Value;

use crate::Kind;
use crate::metallb::LegacyConfig;
use crate::registry::kinds;
use crate::selector::{FieldSelector, LabelSelector};

/// The first line of an input, and the rest.
fn line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// The kind of that plural; some kind for any other word, so that no input is lost.
fn kind_named(word: &str) -> &'static Kind {
    let named = kinds().iter().find(|kind| kind.plural == word);
    let sum: usize = word.bytes().map(usize::from).sum();
    named.unwrap_or(&kinds()[sum % kinds().len()])
}

/// Lines: plural of a kind; an object, in JSON; the selector.
pub fn selectors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (kind, rest) = line(text);
    let (object, selector) = line(rest);
    let kind = kind_named(kind);
    let object: Value = serde_json::from_str(object).unwrap_or_default();
    if let Ok(labels) = selector.parse::<LabelSelector>() {
        let again = labels.to_string().parse::<LabelSelector>();
        assert_eq!(again.as_ref(), Ok(&labels), "{labels}");
        assert!(!labels.is_everything() || labels.matches_object(&object));
    }
    if let Ok(fields) = FieldSelector::parse(selector, kind) {
        let again = FieldSelector::parse(&fields.to_string(), kind);
        assert_eq!(again.as_ref(), Ok(&fields), "{fields}");
        if let Some(name) = fields.required("metadata.name")
            && fields.matches(&object)
        {
            assert_eq!(
                object
                    .pointer("/metadata/name")
                    .and_then(Value::as_str)
                    .unwrap_or_default(),
                name
            );
        }
    }
}

/// The older form of MetalLB's configuration: YAML out of a ConfigMap.
pub fn metallb(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        _ = LegacyConfig::parse(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/over_seeds.rs"));

    #[test]
    fn seeds_keep_the_promises() {
        for (target, run) in [("selectors", selectors as fn(&[u8])), ("metallb", metallb)] {
            over_seeds(target, run);
        }
    }
}
