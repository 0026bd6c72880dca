//! From what was typed to who is meant.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_api::names;

use crate::cluster::{Cluster, key, name, namespace};
use crate::reason::NotReached;

/// How many names like it are told.
const NEAR_MAX: usize = 3;

/// A name taken apart as the resolver of a pod would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The Service's namespace.
    pub(crate) namespace: String,
    /// The Service.
    pub(crate) service: String,
    /// One of its endpoints, by host name.
    pub(crate) endpoint: Option<String>,
}

/// What a name with dots means: `web.shop`, `web.shop.svc`, or whole with the domain. Nothing for one without a dot.
///
/// # Errors
/// When it can be no name of a Service.
pub(crate) fn of_dns(text: &str, domain: &str) -> Result<Option<Named>, NotReached> {
    let lower = text.trim_end_matches('.').to_lowercase();
    if !lower.contains('.') {
        return Ok(None);
    }
    let wrong = |meant: Option<String>| NotReached::NotInZone {
        name: text.to_string(),
        domain: domain.to_string(),
        meant,
    };
    let rest = match lower.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) {
        // Whole names have `svc` before the domain.
        Some(rest) => match rest.strip_suffix(".svc") {
            Some(rest) => rest.to_string(),
            None => return Err(wrong(with_svc(rest, domain))),
        },
        None => lower.strip_suffix(".svc").unwrap_or(&lower).to_string(),
    };
    let labels: Vec<&str> = rest.split('.').collect();
    if !labels.iter().all(|label| names::dns_label(label).is_empty()) {
        return Err(wrong(None));
    }
    match labels.as_slice() {
        [service, namespace] => Ok(Some(Named {
            namespace: (*namespace).to_string(),
            service: (*service).to_string(),
            endpoint: None,
        })),
        [endpoint, service, namespace] => Ok(Some(Named {
            namespace: (*namespace).to_string(),
            service: (*service).to_string(),
            endpoint: Some((*endpoint).to_string()),
        })),
        [service, namespace, ..] => Err(wrong(Some(format!("{service}.{namespace}.svc.{domain}")))),
        _ => Err(wrong(None)),
    }
}

/// The whole name, where only `svc` is missing.
fn with_svc(rest: &str, domain: &str) -> Option<String> {
    let labels: Vec<&str> = rest.split('.').collect();
    match labels.as_slice() {
        [service, namespace] => Some(format!("{service}.{namespace}.svc.{domain}")),
        _ => None,
    }
}

/// Services that are called almost so: in that namespace, or so in another.
pub(crate) fn services_like(cluster: &Cluster, of_namespace: &str, called: &str) -> Vec<String> {
    let candidates = cluster
        .services
        .iter()
        .map(|service| candidate(&service.metadata, of_namespace, called));
    nearest(called, candidates)
}

/// Pods and nodes that are called almost so.
pub(crate) fn sources_like(cluster: &Cluster, of_namespace: &str, called: &str) -> Vec<String> {
    let pods = cluster
        .pods
        .iter()
        .map(|pod| candidate(&pod.metadata, of_namespace, called));
    let nodes = cluster.nodes.iter().map(|node| {
        let there = name(&node.metadata);
        (distance(there, called), 0, there.to_string())
    });
    nearest(called, pods.chain(nodes))
}

/// How far an object's name is from what was said, whether it is of another namespace (then 1), and how it is shown.
fn candidate(object: &ObjectMeta, of_namespace: &str, called: &str) -> (usize, usize, String) {
    let here = namespace(object) == of_namespace;
    let shown = if here {
        name(object).to_string()
    } else {
        key(object)
    };
    (distance(name(object), called), usize::from(!here), shown)
}

fn nearest(called: &str, candidates: impl Iterator<Item = (usize, usize, String)>) -> Vec<String> {
    let limit = 1 + called.chars().count() / 3;
    let mut near: Vec<_> = candidates.filter(|(far, _, _)| *far <= limit).collect();
    near.sort();
    near.into_iter()
        .take(NEAR_MAX)
        .map(|(_, _, shown)| shown)
        .collect()
}

/// Edits from one word to the other (Levenshtein).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Named>, NotReached> {
        of_dns(text, "cluster.local")
    }

    #[test]
    fn names_are_taken_apart_as_by_a_resolver() {
        let web = Named {
            namespace: "shop".into(),
            service: "web".into(),
            endpoint: None,
        };
        for text in [
            "web.shop",
            "web.shop.svc",
            "web.shop.svc.cluster.local",
            "WEB.shop.svc.cluster.local.",
        ] {
            assert_eq!(parsed(text), Ok(Some(web.clone())), "{text}");
        }
        let first = parsed("web-0.web.shop.svc.cluster.local").unwrap().unwrap();
        assert_eq!(first.endpoint.as_deref(), Some("web-0"));
        assert_eq!(parsed("web"), Ok(None));
    }

    #[test]
    fn a_wrong_name_is_told_with_what_was_meant() {
        let meant = |text: &str| match parsed(text) {
            Err(NotReached::NotInZone { meant, .. }) => meant,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            meant("web.shop.cluster.local").as_deref(),
            Some("web.shop.svc.cluster.local")
        );
        assert_eq!(
            meant("web.shop.svc.cluster.locl").as_deref(),
            Some("web.shop.svc.cluster.local")
        );
        assert_eq!(meant("a..b"), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("nginx", "ngnix"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
