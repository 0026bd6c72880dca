//! Who may match: names by namespace and label, so that a pod finds its Services and a Service its pods without
//! looking at all of them.

use std::collections::{HashMap, HashSet};

#[derive(Debug, Default)]
pub(super) struct LabelIndex {
    /// Namespace, then `key=value` (a label holds no `=`), then names.
    namespaces: HashMap<String, HashMap<String, HashSet<String>>>,
}

type Pair<'a> = (&'a String, &'a String);

impl LabelIndex {
    pub(super) fn insert<'a>(
        &mut self,
        namespace: &str,
        name: &str,
        labels: impl IntoIterator<Item = Pair<'a>>,
    ) {
        for pair in labels {
            let lists = self.namespaces.entry(namespace.to_string()).or_default();
            lists.entry(entry(pair)).or_default().insert(name.to_string());
        }
    }

    pub(super) fn remove<'a>(
        &mut self,
        namespace: &str,
        name: &str,
        labels: impl IntoIterator<Item = Pair<'a>>,
    ) {
        let Some(lists) = self.namespaces.get_mut(namespace) else {
            return;
        };
        for pair in labels {
            let key = entry(pair);
            let Some(names) = lists.get_mut(&key) else {
                continue;
            };
            names.remove(name);
            if names.is_empty() {
                lists.remove(&key);
            }
        }
        if lists.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The label that the fewest names have.
    pub(super) fn least_common<'a>(
        &self,
        namespace: &str,
        labels: impl IntoIterator<Item = Pair<'a>>,
    ) -> Option<Pair<'a>> {
        let lists = self.namespaces.get(namespace);
        let length = |pair: &Pair<'_>| {
            lists
                .and_then(|lists| lists.get(&entry(*pair)))
                .map_or(0, HashSet::len)
        };
        labels.into_iter().min_by_key(length)
    }

    /// Names that have at least one of the labels.
    pub(super) fn any<'a>(
        &self,
        namespace: &str,
        labels: impl IntoIterator<Item = Pair<'a>>,
    ) -> HashSet<&str> {
        let Some(lists) = self.namespaces.get(namespace) else {
            return HashSet::new();
        };
        let lists = labels.into_iter().filter_map(|pair| lists.get(&entry(pair)));
        lists.flatten().map(String::as_str).collect()
    }

    /// Names that may have all of the labels: those with the rarest of them.
    pub(super) fn rarest<'a>(
        &self,
        namespace: &str,
        labels: impl IntoIterator<Item = Pair<'a>>,
    ) -> impl Iterator<Item = &str> {
        let lists = self.namespaces.get(namespace);
        let found: Option<Vec<&HashSet<String>>> =
            labels.into_iter().map(|pair| lists?.get(&entry(pair))).collect();
        let rarest = found.and_then(|lists| lists.into_iter().min_by_key(|names| names.len()));
        rarest.into_iter().flatten().map(String::as_str)
    }
}

fn entry((key, value): Pair<'_>) -> String {
    format!("{key}={value}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn the_rarest_label_leads_to_few_candidates() {
        let mut index = LabelIndex::default();
        for name in ["a", "b", "c"] {
            index.insert("ns", name, &labels(&[("tier", "front"), ("app", name)]));
        }
        let found: Vec<&str> = index
            .rarest("ns", &labels(&[("tier", "front"), ("app", "b")]))
            .collect();
        assert_eq!(found, ["b"]);
        assert_eq!(
            index
                .rarest("ns", &labels(&[("tier", "front"), ("app", "x")]))
                .count(),
            0
        );
        assert_eq!(index.rarest("other", &labels(&[("tier", "front")])).count(), 0);
        assert_eq!(
            index
                .any("ns", &labels(&[("app", "a"), ("app2", "b"), ("tier", "front")]))
                .len(),
            3
        );
        let both = labels(&[("app", "new"), ("tier", "front")]);
        assert_eq!(
            index.least_common("ns", &both).map(|(key, _)| key.as_str()),
            Some("app")
        );
        for name in ["a", "b", "c"] {
            index.remove("ns", name, &labels(&[("tier", "front"), ("app", name)]));
        }
        assert!(index.namespaces.is_empty());
    }
}
