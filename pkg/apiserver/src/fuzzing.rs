//! What `fuzz/` runs over any bytes, and the tests over the seeds of `fuzz/seeds`: bodies, paths and tokens may be refused,
//! but never bring the server down, and what is accepted keeps its promises.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a broken promise is what is looked for"
)]

use std::path::Path;
use std::sync::Arc;

use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::CertificateSigningRequestParams;
use serde_json::{Value, json};
use svcnet_api::columns::IncludeObject;
use svcnet_api::selector::field_value;
use svcnet_api::{Kind, registry, schema};
use svcnet_store::{Keyring, Store};

use crate::auth::{self, Role, User};
use crate::decode::{self, FieldValidation};
use crate::options::Options;
use crate::patch::{self, PatchKind};
use crate::pki::{Authority, Serving, Token};
use crate::server::{self, Server};
use crate::url::{self, Query, Target};
use crate::{
    CERTIFICATES_LAST, Config, Limits, bootstrap, negotiate, object, pki, protobuf, read, readable, root,
    table,
};

/// The first line of an input, and the rest.
fn line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// The kind of that plural; some kind for any other word, so that no input is lost.
fn kind_named(word: &str) -> &'static Kind {
    let named = registry::kinds().iter().find(|kind| kind.plural == word);
    let sum: usize = word.bytes().map(usize::from).sum();
    named.unwrap_or(&registry::kinds()[sum % registry::kinds().len()])
}

/// Line 1: plural of a kind, form of the patch; line 2: the stored object, in JSON; then the patch.
pub fn patch(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (head, rest) = line(text);
    let (current, body) = line(rest);
    let (kind, form) = head.split_once(' ').unwrap_or((head, ""));
    let kind = kind_named(kind);
    let media = match form {
        "json" => "application/json-patch+json",
        "merge" => "application/merge-patch+json",
        _ => "application/strategic-merge-patch+json",
    };
    let how = PatchKind::of(media).expect("a form that is served");
    let current = match serde_json::from_str::<Value>(current) {
        Ok(current) if current.is_object() => current,
        _ => json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"ports": [{"port": 80}]}}),
    };
    // What is stored has been through all this.
    let mut current = current;
    if decode::checked(kind, &mut current, &[], FieldValidation::Warn).is_err() {
        return;
    }
    (kind.default)(&mut current, None);
    let Ok((patch, _)) = patch::parse(how, body.as_bytes()) else {
        return;
    };
    let Ok(new) = patch::apply(kind, how, &patch, &current) else {
        return;
    };
    assert!(new.is_object());
    if how == PatchKind::Json && object::check_depth(&current).is_ok() {
        object::check_depth(&new).expect("no operation goes beyond");
    }
    if how == PatchKind::Merge {
        let again = patch::apply(kind, how, &patch, &new).expect("RFC 7396 refuses nothing");
        assert_eq!(again, new, "a merge patch that is applied twice");
    }
    if how == PatchKind::Strategic {
        let same = patch::apply(kind, how, &json!({}), &new).expect("nothing to refuse");
        assert_eq!(same, new, "an empty patch");
    }
    let mut new = new;
    if decode::checked(kind, &mut new, &[], FieldValidation::Strict).is_ok() {
        through(kind, new, Some(&current));
    }
}

/// Line 1: plural of a kind, `json`, `yaml` or `protobuf`, and `Strict`, `Warn` or `Ignore`; then the body.
pub fn manifest(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (head, body) = data.split_at(end);
    let head = String::from_utf8_lossy(head);
    let mut words = head.split(' ');
    let kind = kind_named(words.next().unwrap_or_default());
    let media = match words.next() {
        Some("yaml") => "application/yaml",
        Some("protobuf") => "application/vnd.kubernetes.protobuf",
        _ => "application/json",
    };
    let validation = match words.next() {
        Some("Strict") => FieldValidation::Strict,
        Some("Ignore") => FieldValidation::Ignore,
        _ => FieldValidation::Warn,
    };
    let body = body.get(1..).unwrap_or_default();
    if let Ok((object, _)) = decode::object(kind, media, body, validation) {
        through(kind, object, None);
    }
}

/// Defaults, checks and columns, as a write and a `kubectl get` go through them.
fn through(kind: &'static Kind, mut object: Value, old: Option<&Value>) {
    (kind.default)(&mut object, old);
    let checked = schema::check(kind, &object);
    assert_eq!(checked.type_error, None, "what defaulting made of {object}");
    assert_eq!(
        checked.unknown,
        Vec::<String>::new(),
        "what defaulting made of {object}"
    );
    let mut again = object.clone();
    (kind.default)(&mut again, old);
    assert_eq!(again, object, "defaulting twice");
    let errors = (kind.validate)(&object, old);
    let causes: Vec<Value> = errors.iter().map(svcnet_api::FieldError::to_cause).collect();
    assert_eq!(causes.len(), errors.len());
    if errors.is_empty() {
        readable::read(kind, &object).unwrap_or_else(|why| panic!("clients cannot read {object}: {why}"));
    }
    if errors.is_empty() && old.is_none() {
        let again = (kind.validate)(&object, Some(&object));
        assert!(
            again.is_empty(),
            "writing back what was created is refused: {object}: {again:?}"
        );
        let mut updated = object.clone();
        (kind.default)(&mut updated, Some(&object));
        assert_eq!(updated, object, "writing back what was created changes it");
    }
    table::table(kind, &[object.clone()], IncludeObject::Metadata, &json!({}));
    for field in kind.selectable_fields {
        field_value(&object, field);
    }
}

/// A body in protobuf.
pub fn protobuf(data: &[u8]) {
    let Ok(object) = protobuf::decode(data) else {
        return;
    };
    let text = object.to_string();
    assert_eq!(
        serde_json::from_str::<Value>(&text).expect("JSON"),
        object,
        "through JSON and back"
    );
    let said = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    if let Some(kind) = registry::by_kind(said("apiVersion"), said("kind")) {
        let media = "application/vnd.kubernetes.protobuf";
        if let Ok((object, _)) = decode::object(kind, media, data, FieldValidation::Warn) {
            through(kind, object, None);
        }
    }
}

/// A server without ports, with what every cluster has.
pub struct Bench(Arc<Server>);

impl Bench {
    /// With its data below `dir`.
    pub fn new(dir: &Path) -> Self {
        let config = Config {
            listen: Vec::new(),
            listen_plain: None,
            advertise_address: "127.0.0.1".parse().unwrap(),
            data_dir: dir.to_path_buf(),
            admin_kubeconfig: dir.join("kubeconfig.yaml"),
            node_name: "n1".to_string(),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            cluster_cidr: "10.244.0.0/16".to_string(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".to_string(),
            tls_sans: Vec::new(),
            admissions: Vec::new(),
            limits: Limits::default(),
            audit: None,
            certificates_last: CERTIFICATES_LAST,
            metrics: None,
            datastore: None,
            token: None,
        };
        std::fs::create_dir_all(dir).unwrap();
        let keyring = Keyring::open_or_make(&dir.join("encryption.key")).unwrap();
        let store = Store::open_encrypted(&dir.join("store"), &server::collection_specs(), keyring).unwrap();
        let authority = Authority::open(&dir.join("pki"), CERTIFICATES_LAST).unwrap();
        let serving = Serving::open(&authority, &pki::sans(&config, config.advertise_address)).unwrap();
        let token = Token::open(&dir.join("token"), &authority).unwrap();
        let server = Arc::new(Server::new(config, store, authority, serving, token, None).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { _ = bootstrap::repair(&server, 6443).await });
        Self(server)
    }

    /// Line 1: path and query; line 2: the `Accept` header. Reads are answered.
    pub fn url(&self, data: &[u8]) {
        let Ok(text) = std::str::from_utf8(data) else {
            return;
        };
        let (uri, accept) = line(text);
        let (path, query) = uri
            .split_once('?')
            .map_or((uri, None), |(path, query)| (path, Some(query)));
        let query = Query::parse(query);
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(line(accept).0) {
            headers.insert(ACCEPT_ENCODING, accept.clone());
            headers.insert(ACCEPT, accept);
        }
        let form = negotiate::form(&headers);
        negotiate::gzip(&headers);
        match url::parse(path) {
            Some(url::Path::Resource(target)) => {
                same_way_back(&target);
                let attributes = auth::Attributes {
                    verb: "get",
                    kind: target.kind,
                    namespace: &target.namespace,
                    name: &target.name,
                    subresource: &target.subresource,
                };
                let anonymous = auth::may(&User::anonymous(), &attributes, |_| false);
                assert!(anonymous.is_err(), "nobody reads {path}");
                _ = Options::of("create", false, &query, &headers);
                _ = Options::of("patch", true, &query, &headers);
                let reply = if target.name.is_empty() {
                    read::list(&self.0, &target, &query, form)
                } else {
                    read::get(&self.0, &target, &query, form)
                };
                if let Ok(reply) = reply {
                    reply.into_response(negotiate::gzip(&headers));
                }
            }
            Some(url::Path::Root(segments)) => {
                _ = auth::may_root(&User::anonymous(), &segments, "get");
                _ = root::answer(&self.0, &segments, &query, &headers);
            }
            Some(url::Path::Review(..)) | None => {}
        }
        _ = path.parse::<http::Uri>();
    }

    /// Lines of headers, `NAME: VALUE`; behind an empty line, a request for a certificate in PEM.
    pub fn token(&self, data: &[u8]) {
        let Ok(text) = std::str::from_utf8(data) else {
            return;
        };
        let (head, request) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut headers = HeaderMap::new();
        for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        if let Ok(caller) = auth::authenticate(&self.0.tokens, User::anonymous(), &headers) {
            assert_eq!(caller.user.role, Role::Anonymous, "{head}");
        }
        let viewer = User::new("alice", ["svcnet:viewers".to_string()]);
        if let Ok(caller) = auth::authenticate(&self.0.tokens, viewer.clone(), &headers) {
            assert_eq!(caller.user, viewer, "{head}");
        }
        _ = auth::authenticate(&self.0.tokens, User::apiserver(), &headers);
        for value in headers.values() {
            _ = serde_json::from_slice::<auth::NewToken>(value.as_bytes());
        }
        _ = CertificateSigningRequestParams::from_pem(request);
    }
}

/// A target's own path leads to it.
fn same_way_back(target: &Target) {
    let Target {
        kind,
        namespace,
        name,
        subresource,
    } = target;
    let segment = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    for part in [namespace, name, subresource] {
        assert!(!part.contains(['/', '\0']) && part != "..", "{target:?}");
    }
    let root = if kind.group.is_empty() {
        "api".to_string()
    } else {
        format!("apis/{}", kind.group)
    };
    let mut path = format!("/{root}/{}", kind.version);
    if !namespace.is_empty() {
        path += &format!("/namespaces/{}", segment(namespace));
    }
    path += &format!("/{}", kind.plural);
    for part in [name, subresource] {
        if !part.is_empty() {
            path += &format!("/{}", segment(part));
        }
    }
    let again = url::parse(&path);
    assert!(
        matches!(&again, Some(url::Path::Resource(again)) if **again == *target),
        "{path} leads to {again:?}, not to {target:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/over_seeds.rs"));

    #[test]
    fn seeds_keep_the_promises() {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::new(dir.path());
        type Target<'a> = (&'a str, &'a dyn Fn(&[u8]));
        let targets: [Target<'_>; 5] = [
            ("patch", &patch),
            ("manifest", &manifest),
            ("protobuf", &protobuf),
            ("url", &|data| bench.url(data)),
            ("token", &|data| bench.token(data)),
        ];
        for (target, run) in targets {
            over_seeds(target, run);
        }
    }
}
