//! Reading: one object, or a list of them.

use std::collections::{BTreeMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use svcnet_api::selector::{FieldSelector, LabelSelector};
use svcnet_api::{ApiError, Kind, Reason};
use svcnet_store::{Entry, ListError, Range, Snapshot};

use crate::body::Body;
use crate::negotiate::Form;
use crate::reply::Reply;
use crate::server::Server;
use crate::url::{Query, Target};
use crate::{object, table};

/// The real server's words.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
    without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
    Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted \
    between the time the first chunk was returned and now may show up in the list.";

/// Which objects are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    pub(crate) fn of(kind: &Kind, query: &Query) -> Result<Self, ApiError> {
        let labels = match query.get("labelSelector") {
            Some(text) => text
                .parse::<LabelSelector>()
                .map_err(|e| ApiError::bad_request(e.to_string()))?,
            None => LabelSelector::everything(),
        };
        let fields = match query.get("fieldSelector") {
            Some(text) => {
                FieldSelector::parse(text, kind).map_err(|e| ApiError::bad_request(e.to_string()))?
            }
            None => FieldSelector::everything(),
        };
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.matches_object(object) && self.fields.matches(object)
    }

    /// Whether the stored bytes are selected. Labels, by which most selections go, are read without building the rest.
    pub(crate) fn matches_bytes(&self, bytes: &Bytes) -> bool {
        if self.is_everything() {
            return true;
        }
        if self.fields.is_everything() {
            let labels = serde_json::from_slice::<Labelled>(bytes);
            return labels.is_ok_and(|object| self.labels.matches_labels(object.metadata.labels.as_ref()));
        }
        serde_json::from_slice(bytes).is_ok_and(|object| self.matches(&object))
    }
}

/// The labels of an object, and nothing else of it.
#[derive(Debug, Deserialize)]
struct Labelled {
    metadata: Labels,
}

#[derive(Debug, Deserialize)]
struct Labels {
    labels: Option<BTreeMap<String, String>>,
}

/// Where a chunked list goes on: at which revision (0: at the present one), after which path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Continue {
    revision: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(json!({"v": "svcnet/v1", "rv": self.revision, "after": self.after}).to_string())
    }

    fn decode(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        Some(Self {
            revision: value.get("rv")?.as_u64()?,
            after: value.get("after")?.as_str()?.to_string(),
        })
    }
}

/// The one name that a list selects, if it does.
pub(crate) fn selected_name(kind: &Kind, query: &Query) -> Option<String> {
    let fields = FieldSelector::parse(query.get("fieldSelector")?, kind).ok()?;
    fields.required("metadata.name").map(str::to_string)
}

/// One object, not older than a revision that is named.
pub(crate) fn get(server: &Server, target: &Target, query: &Query, form: Form) -> Result<Reply, ApiError> {
    reached_revision(server, query)?;
    let entry = server.get(target.kind, &target.namespace, &target.name);
    let entry = entry.ok_or_else(|| ApiError::not_found(target.kind, &target.name))?;
    shown(target.kind, 200, &entry.value, query, form)
}

/// One object in the form that is asked for.
pub(crate) fn shown(
    kind: &Kind,
    code: u16,
    bytes: &Bytes,
    query: &Query,
    form: Form,
) -> Result<Reply, ApiError> {
    if form == Form::Plain && !query.flag("pretty") {
        return Ok(Reply::raw_json(code, bytes.clone()));
    }
    let object: Value = serde_json::from_slice(bytes).map_err(ApiError::internal)?;
    let value = match form {
        Form::Plain => object,
        Form::Metadata => table::metadata_only(&object),
        Form::Table => {
            let revision = object::meta_text(&object, "resourceVersion").to_string();
            table::table(
                kind,
                &[object],
                table::include(query)?,
                &json!({"resourceVersion": revision}),
            )
        }
    };
    Ok(json_reply(code, &value, query))
}

fn json_reply(code: u16, value: &Value, query: &Query) -> Reply {
    if query.flag("pretty") {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        return Reply::new(code, "application/json", text + "\n");
    }
    Reply::json(code, value)
}

/// A list.
pub(crate) fn list(server: &Server, target: &Target, query: &Query, form: Form) -> Result<Reply, ApiError> {
    let selection = Selection::of(target.kind, query)?;
    let (entries, meta) = page(server, target, query, &selection)?;
    let kind = target.kind;
    if form == Form::Plain && !query.flag("pretty") {
        let values = entries.into_iter().map(|e| e.value);
        return Ok(Reply::new(
            200,
            "application/json",
            plain_list(kind, values, &meta),
        ));
    }
    let objects: Result<Vec<Value>, ApiError> = entries.iter().map(object::parse).collect();
    let objects = objects?;
    let value = match form {
        Form::Plain => json!({
            "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": meta, "items": objects,
        }),
        Form::Table => table::table(kind, &objects, table::include(query)?, &meta),
        Form::Metadata => {
            let items: Vec<Value> = objects.iter().map(table::metadata_only).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items,
            })
        }
    };
    Ok(json_reply(200, &value, query))
}

/// The objects as they lie in the store, one after another: nothing is parsed.
fn plain_list(kind: &Kind, values: impl ExactSizeIterator<Item = Bytes>, meta: &Value) -> Body {
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
        kind.kind,
        kind.api_version()
    );
    let mut pieces = VecDeque::with_capacity(2 * values.len() + 2);
    pieces.push_back(Bytes::from(head));
    for (index, value) in values.enumerate() {
        if index > 0 {
            pieces.push_back(Bytes::from_static(b","));
        }
        pieces.push_back(value);
    }
    pieces.push_back(Bytes::from_static(b"]}"));
    Body::pieces(pieces)
}

/// A list of objects that are no longer in the store.
pub(crate) fn list_of(kind: &Kind, values: Vec<Bytes>, revision: u64) -> Reply {
    let meta = json!({"resourceVersion": revision.to_string()});
    Reply::new(
        200,
        "application/json",
        plain_list(kind, values.into_iter(), &meta),
    )
}

/// The names of the selected objects of a namespace (or of a kind without).
pub(crate) fn names(server: &Server, target: &Target, query: &Query) -> Result<Vec<String>, ApiError> {
    let selection = Selection::of(target.kind, query)?;
    let (entries, _) = page(server, target, query, &selection)?;
    let name = |entry: &Entry| Ok(object::meta_text(&object::parse(entry)?, "name").to_string());
    entries.iter().map(name).collect()
}

/// The selected objects of one page, and the list's metadata.
fn page(
    server: &Server,
    target: &Target,
    query: &Query,
    selection: &Selection,
) -> Result<(Vec<Entry>, Value), ApiError> {
    let limit = number(query, "limit")?
        .and_then(|l| usize::try_from(l).ok())
        .filter(|l| *l > 0);
    if query.get("continue").is_some() && query.get("resourceVersion").is_some_and(|r| r != "0") {
        let why = "specifying resource version is not allowed when using continue";
        return Err(ApiError::bad_request(why));
    }
    let token = query.get("continue").map(|text| {
        Continue::decode(text).ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: it was not given by this server")
        })
    });
    let token = token.transpose()?;
    let at = match &token {
        Some(token) => Some(token.revision).filter(|r| *r > 0),
        None => exact_revision(server, query)?,
    };
    let collection = server.collection(target.kind);
    let all = selection.is_everything();
    let mut range = Range {
        namespace: Some(target.namespace.clone()).filter(|n| !n.is_empty()),
        after: token.map(|t| t.after),
        limit: limit.filter(|_| all),
    };
    // A list of one name, as `kubectl get -w NAME` asks for, is a look-up.
    if let Some(name) = selection.fields.required("metadata.name")
        && let Some(namespace) = range
            .namespace
            .clone()
            .or((!target.kind.namespaced).then(String::new))
        && at.is_none()
    {
        return Ok(one(server, target.kind, (&namespace, name), selection));
    }
    let Snapshot {
        revision,
        entries,
        remaining,
    } = server
        .store
        .list(collection, &range, at)
        .map_err(|e| list_error(e, range.after.as_deref()))?;
    range.after = None;
    let mut meta = json!({"resourceVersion": revision.to_string()});
    let mut taken = Vec::new();
    let mut last = None;
    for (path, entry) in entries {
        if !all && !selection.matches_bytes(&entry.value) {
            continue;
        }
        if limit.is_some_and(|l| taken.len() == l) {
            let after = last.take().unwrap_or_default();
            meta["continue"] = Continue { revision, after }.encode().into();
            break;
        }
        if limit.is_some() {
            last = Some(path.to_string());
        }
        taken.push(entry);
    }
    if let Some(after) = last.filter(|_| remaining > 0) {
        meta["continue"] = Continue { revision, after }.encode().into();
        // Told of lists without selectors alone: of others the real server does not know it (etcd3/store.go, GetList).
        meta["remainingItemCount"] = remaining.into();
    }
    Ok((taken, meta))
}

/// The object of that namespace and name, if it is there and selected, as a list.
fn one(
    server: &Server,
    kind: &Kind,
    (namespace, name): (&str, &str),
    selection: &Selection,
) -> (Vec<Entry>, Value) {
    let revision = server.store.revision();
    let found = server
        .get(kind, namespace, name)
        .filter(|e| selection.matches_bytes(&e.value));
    (
        found.into_iter().collect(),
        json!({"resourceVersion": revision.to_string()}),
    )
}

/// A whole number among the parameters.
pub(crate) fn number(query: &Query, name: &str) -> Result<Option<u64>, ApiError> {
    let parse = |text: &str| {
        let why = || {
            ApiError::bad_request(format!(
                "{name}: Invalid value: \"{text}\": must be a non-negative integer"
            ))
        };
        text.parse().map_err(|_| why())
    };
    query.get(name).map(parse).transpose()
}

/// The revision that the list must have ("Resource versions", Kubernetes API concepts). A list that need not have one is of
/// the present, which is not older than any revision that a client has seen.
fn exact_revision(server: &Server, query: &Query) -> Result<Option<u64>, ApiError> {
    let revision = reached_revision(server, query)?;
    // A page of a list means the revision that is named, unless it says otherwise.
    let pages = number(query, "limit")?.is_some_and(|limit| limit > 0);
    let exact = match query.get("resourceVersionMatch") {
        Some(matching) => matching == "Exact",
        None => pages,
    };
    Ok(revision.filter(|_| exact))
}

/// The revision that is named, if one is. It must have been.
fn reached_revision(server: &Server, query: &Query) -> Result<Option<u64>, ApiError> {
    let revision = number(query, "resourceVersion")?.filter(|r| *r > 0);
    let current = server.store.revision();
    match revision.filter(|asked| *asked > current) {
        Some(asked) => Err(list_error(ListError::Future { asked, current }, None)),
        None => Ok(revision),
    }
}

/// Why there is no list; `after` is where one was to go on.
pub(crate) fn list_error(error: ListError, after: Option<&str>) -> ApiError {
    match (error, after) {
        (ListError::Compacted(_), Some(after)) => {
            let mut expired = ApiError::new(Reason::Expired, CONTINUE_EXPIRED);
            let here = Continue {
                revision: 0,
                after: after.to_string(),
            };
            expired.continue_at = Some(here.encode());
            expired
        }
        (ListError::Compacted(compacted), None) => ApiError::new(Reason::Expired, compacted.to_string()),
        (error @ ListError::Future { .. }, _) => {
            let mut timeout = ApiError::new(Reason::Timeout, error.to_string());
            let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
            timeout.details = Some(json!({"causes": [cause], "retryAfterSeconds": 1}));
            timeout
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_come_back_and_foreign_ones_are_refused() {
        let token = Continue {
            revision: 7,
            after: "default/web".to_string(),
        };
        assert_eq!(Continue::decode(&token.encode()), Some(token));
        for foreign in ["", "x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ", "////"] {
            assert_eq!(Continue::decode(foreign), None, "{foreign}");
        }
    }
}
