//! What a URL asks for.

use percent_encoding::percent_decode_str;
use svcnet_api::{Kind, registry};

use crate::auth::{Review, reviews_of};

/// The thing behind a path.
#[derive(Debug, Clone)]
pub(crate) enum Path {
    /// `/version`, `/healthz/ping`, `/openapi/v3/api/v1`, `/apis`: the segments.
    Root(Vec<String>),
    /// Objects.
    Resource(Box<Target>),
    /// A question about rights, and the namespace that it is asked in.
    Review(&'static Review, String),
}

/// Objects, or one of them.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: &'static Kind,
    /// Empty for kinds without namespaces, and for all namespaces.
    pub(crate) namespace: String,
    /// Empty for the collection.
    pub(crate) name: String,
    /// `status`, or nothing.
    pub(crate) subresource: String,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kind, other.kind)
            && (&self.namespace, &self.name, &self.subresource)
                == (&other.namespace, &other.name, &other.subresource)
    }
}

impl Eq for Target {}

/// Takes a path apart; nothing where it is no path of ours.
pub(crate) fn parse(path: &str) -> Option<Path> {
    let mut segments = Vec::new();
    for segment in path.trim_matches('/').split('/') {
        let segment = percent_decode_str(segment).decode_utf8().ok()?;
        // What is no part of a name is no part of a path to it either: keys are built from these.
        if segment.contains('/') || segment.contains('\0') || segment == ".." {
            return None;
        }
        segments.push(segment.into_owned());
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words[..] {
        ["api", version, ref rest @ ..] if !rest.is_empty() => ("", version, rest),
        ["apis", group, version, ref rest @ ..] if !rest.is_empty() => (group, version, rest),
        _ => return Some(Path::Root(segments)),
    };
    if let Some((review, namespace)) = review(group, version, rest) {
        return Some(Path::Review(review, namespace.to_string()));
    }
    resource(group, version, rest).map(|t| Path::Resource(Box::new(t)))
}

fn review<'a>(group: &str, version: &str, rest: &[&'a str]) -> Option<(&'static Review, &'a str)> {
    let (namespace, plural) = match *rest {
        [plural] => ("", plural),
        ["namespaces", namespace, plural] => (namespace, plural),
        _ => return None,
    };
    let review = reviews_of(group, version).find(|r| r.plural == plural)?;
    (review.namespaced != namespace.is_empty()).then_some((review, namespace))
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Option<Target> {
    // `services//status` is no path to the status of all of them.
    if rest.contains(&"") {
        return None;
    }
    let (namespace, rest) = match *rest {
        // `/namespaces/x`, `/namespaces/x/status`: the Namespace itself, unless a kind of objects follows.
        ["namespaces", namespace, plural, ref more @ ..]
            if registry::by_resource(group, version, plural).is_some_and(|k| k.namespaced) =>
        {
            let mut all = vec![plural];
            all.extend_from_slice(more);
            (namespace, all)
        }
        _ => ("", rest.to_vec()),
    };
    let (plural, name, subresource) = match rest[..] {
        [plural] => (plural, "", ""),
        [plural, name] => (plural, name, ""),
        [plural, name, subresource] => (plural, name, subresource),
        _ => return None,
    };
    let kind = registry::by_resource(group, version, plural)?;
    if kind.namespaced && namespace.is_empty() && !name.is_empty() {
        return None;
    }
    Some(Target {
        kind,
        namespace: namespace.to_string(),
        name: name.to_string(),
        subresource: subresource.to_string(),
    })
}

/// Query parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The parameter, or nothing when it is absent or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name)?;
        Some(found.1.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of the parameter.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Whether the parameter is there, with whatever value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// Whether the parameter says yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> String {
        match parse(path) {
            Some(Path::Resource(t)) => {
                format!("{} {} {} {}", t.kind.plural, t.namespace, t.name, t.subresource)
                    .trim_end()
                    .to_string()
            }
            Some(Path::Root(words)) => format!("root {}", words.join(" ")),
            Some(Path::Review(review, namespace)) => format!("review {} {namespace}", review.kind)
                .trim_end()
                .to_string(),
            None => "none".to_string(),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        for (path, expect) in [
            ("/", "root "),
            ("/version", "root version"),
            ("/api", "root api"),
            ("/api/v1", "root api v1"),
            ("/apis/discovery.k8s.io/v1/", "root apis discovery.k8s.io v1"),
            ("/api/v1/services", "services"),
            ("/api/v1/namespaces/default/services", "services default"),
            (
                "/api/v1/namespaces/default/services/web/status",
                "services default web status",
            ),
            ("/api/v1/namespaces", "namespaces"),
            ("/api/v1/namespaces/default", "namespaces  default"),
            (
                "/api/v1/namespaces/default/finalize",
                "namespaces  default finalize",
            ),
            ("/api/v1/namespaces/services/services", "services services"),
            ("/api/v1/nodes/n1", "nodes  n1"),
            ("/api/v1/services/web", "none"),
            (
                "/api/v1/namespaces/default/gadgets",
                "namespaces  default gadgets",
            ),
            ("/api/v1/gadgets", "none"),
            (
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                "review SelfSubjectAccessReview",
            ),
            (
                "/apis/authorization.k8s.io/v1/namespaces/a/localsubjectaccessreviews",
                "review LocalSubjectAccessReview a",
            ),
            ("/apis/authorization.k8s.io/v1/localsubjectaccessreviews", "none"),
            ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x", "none"),
            ("/api/v1/namespaces/a%2Fb/services/x", "none"),
            ("/api/v1/namespaces//services", "none"),
            ("/api/v1/namespaces/default/services//status", "none"),
            ("/api/v1/namespaces/a/services/%ff", "none"),
        ] {
            assert_eq!(target(path), expect, "{path}");
        }
    }

    #[test]
    fn empty_parameters_are_absent_and_values_are_decoded() {
        let query = Query::parse(Some("a=&labelSelector=app%3Dx%2Cb+c&watch=1"));
        assert_eq!(query.get("a"), None);
        assert!(query.has("a") && query.flag("watch"));
        assert_eq!(query.get("labelSelector"), Some("app=x,b c"));
    }

    proptest::proptest! {
        /// Whatever is asked for, parts of paths hold nothing that could lead a key elsewhere.
        #[test]
        fn hostile_paths_do_no_harm(rest in "[a-z/%.0-9]{0,40}", any in ".{0,40}") {
            for path in [format!("/api/v1/namespaces/{rest}"), format!("/apis/{any}"), any] {
                if let Some(Path::Resource(target)) = parse(&path) {
                    let parts = [&target.namespace, &target.name, &target.subresource];
                    proptest::prop_assert!(parts.iter().all(|p| !p.contains('/') && !p.contains('\0')));
                }
            }
        }
    }
}
