//! In which form the client wants objects: as they are, as a Table to print, or their metadata alone.

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects.
    Plain,
    /// A `meta.k8s.io/v1` Table.
    Table,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// What the client takes, as it says it.
fn ranges(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let accept = headers.get(ACCEPT).and_then(|a| a.to_str().ok());
    accept.unwrap_or_default().split(',')
}

/// The first form of the `Accept` header that is served; plain JSON where none is (clients that prefer protobuf).
pub(crate) fn form(headers: &HeaderMap) -> Form {
    ranges(headers).find_map(range).unwrap_or(Form::Plain)
}

fn range(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
        return None;
    }
    let (mut kind, mut group, mut version) = ("", "", "");
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        match name.trim() {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    if kind.is_empty() {
        return Some(Form::Plain);
    }
    if group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") {
        return None;
    }
    match kind {
        "Table" => Some(Form::Table),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Metadata),
        _ => None,
    }
}

/// Whether YAML is wanted more than JSON. It is served for what is no stream and no Table.
pub(crate) fn yaml(headers: &HeaderMap) -> bool {
    first(headers, &["application/yaml"])
}

/// Whether `/openapi/v2` is asked for in protobuf, by any of its names, before JSON.
pub(crate) fn openapi_protobuf(headers: &HeaderMap) -> bool {
    let names = [
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    ];
    first(headers, &names)
}

/// Whether one of these media types comes before JSON in the `Accept` header.
fn first(headers: &HeaderMap, wanted: &[&str]) -> bool {
    let known = ranges(headers).find_map(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        let json = matches!(media, "application/json" | "application/*" | "*/*");
        let wanted = wanted.contains(&media);
        (json || wanted).then_some(wanted)
    });
    known == Some(true)
}

/// Whether discovery is asked for in one document, in exactly the version that is served.
pub(crate) fn aggregated_discovery(headers: &HeaderMap) -> bool {
    ranges(headers).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        parts.next() == Some("application/json")
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
                .iter()
                .all(|want| range.split(';').any(|p| p.trim() == *want))
    })
}

/// Whether the client takes gzip.
pub(crate) fn gzip(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT_ENCODING).and_then(|a| a.to_str().ok());
    accept.is_some_and(|a| {
        a.split(',')
            .any(|e| matches!(e.trim(), "gzip") || e.trim().starts_with("gzip;q=1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_is_taken() {
        for (accept, expect) in [
            ("", Form::Plain),
            ("application/json, */*", Form::Plain),
            ("application/vnd.kubernetes.protobuf", Form::Plain),
            (
                "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1, application/json",
                Form::Plain,
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io",
                Form::Table,
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                 application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Form::Metadata,
            ),
            (
                "application/json;as=Chair;v=v1;g=meta.k8s.io,application/json",
                Form::Plain,
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(form(&headers), expect, "{accept}");
        }
    }

    #[test]
    fn yaml_is_for_who_wants_it_more_than_json() {
        for (accept, expect) in [
            ("", false),
            ("application/yaml", true),
            (
                "application/vnd.kubernetes.protobuf, application/yaml;q=0.9, */*",
                true,
            ),
            ("application/json, application/yaml", false),
            ("*/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(yaml(&headers), expect, "{accept}");
        }
    }

    #[test]
    fn aggregated_discovery_must_match_exactly() {
        for (accept, expect) in [
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                true,
            ),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
                false,
            ),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(aggregated_discovery(&headers), expect, "{accept}");
        }
    }
}
