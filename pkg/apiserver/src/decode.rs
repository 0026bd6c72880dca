//! Bodies of requests.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde_json::{Map, Value, json};
use serde_saphyr::options::DuplicateKeyPolicy;
use svcnet_api::{ApiError, Kind, Reason, registry, schema};

use crate::protobuf;
use crate::upload::Upload;
use crate::url::Query;

/// The real server's limit, for JSON.
const BODY_MAX: usize = 3 << 20;

/// What of an object's metadata is not there when it is empty (`omitempty` of k8s.io/apimachinery's `ObjectMeta`). An empty
/// `managedFields` is a wish to begin anew, and is gone once that is done.
const OMITTED_EMPTY: [&str; 4] = ["annotations", "finalizers", "labels", "ownerReferences"];

/// How long a client may take to send it.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// What `fieldValidation` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Reads a body, up to the limit.
pub(crate) async fn read(body: Upload) -> Result<Bytes, ApiError> {
    // Whoever tells the length is not made to send it.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, BODY_MAX).collect()).await;
    let collected =
        collected.map_err(|_| ApiError::new(Reason::Timeout, "the body did not arrive in time"))?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Err(error) => Err(ApiError::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}

/// The real server's words.
fn too_large() -> ApiError {
    ApiError::new(
        Reason::RequestEntityTooLarge,
        format!("Request entity too large: limit is {BODY_MAX}"),
    )
}

/// The media type of a body, without parameters; JSON where none is named.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|c| c.to_str().ok())
        .unwrap_or_default();
    let media = given.split(';').next().unwrap_or_default().trim();
    if media.is_empty() {
        "application/json"
    } else {
        media
    }
}

/// A body as JSON, with what a strict decoder would say of it.
pub(crate) fn value(media: &str, body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    match media {
        "application/json" => schema::decode(body).map_err(|error| {
            ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        }),
        "application/yaml" | "application/apply-patch+yaml" | "application/x-yaml" => yaml(body),
        "application/vnd.kubernetes.protobuf" => Ok((protobuf::decode(body)?, Vec::new())),
        _ => Err(unsupported(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// YAML as Go's decoder takes it: of keys that stand twice the last counts. What it says of the first of them comes along.
fn yaml(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the body is not UTF-8"))?;
    let wrong = |error: serde_saphyr::Error| ApiError::bad_request(format!("error decoding YAML: {error}"));
    match serde_saphyr::from_str(text) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) => {
            let Some(doubt) = key_twice(&error) else {
                return Err(wrong(error));
            };
            let lenient = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
            let value = serde_saphyr::from_str_with_options(text, lenient).map_err(wrong)?;
            Ok((value, vec![doubt]))
        }
    }
}

/// Go's words on a key that stands twice.
fn key_twice(error: &serde_saphyr::Error) -> Option<String> {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().unwrap_or_default();
            let line = location.line();
            Some(format!(
                "yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"
            ))
        }
        _ => None,
    }
}

/// 415 in the real words.
pub(crate) fn unsupported(known: &[&str]) -> ApiError {
    ApiError::new(
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            known.join(", ")
        ),
    )
}

/// An object of a kind out of a body: checked against the schema, unknown fields dropped. Gives back warnings too.
pub(crate) fn object(
    kind: &'static Kind,
    media: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad_request("the request has no body"));
    }
    let unrecognized = |why: &str| {
        let (kind, summary) = (kind.kind, summary(body));
        let why = format!("the object provided is unrecognized (must be of type {kind}): {why} ({summary})");
        ApiError::bad_request(why)
    };
    let (mut value, doubts) = value(media, body).map_err(|error| match error.reason {
        Reason::BadRequest => unrecognized(&error.message),
        _ => error,
    })?;
    let Some(fields) = value.as_object_mut() else {
        return Err(unrecognized(
            "couldn't get version/kind; json parse error: it is no object",
        ));
    };
    let said = |fields: &Map<String, Value>, name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    };
    let (version, name) = (said(fields, "apiVersion"), said(fields, "kind"));
    if !version.is_empty() && version != kind.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            kind.api_version()
        )));
    }
    if !name.is_empty() && name != kind.kind {
        return Err(ApiError::bad_request(other_kind(kind, &version, &name)));
    }
    fields.insert("apiVersion".to_string(), kind.api_version().into());
    fields.insert("kind".to_string(), kind.kind.into());
    let warnings = checked(kind, &mut value, &doubts, validation)?;
    Ok((value, warnings))
}

/// What the real server says of an object of another kind than the URL's (its types are converted into each other).
fn other_kind(kind: &Kind, version: &str, name: &str) -> String {
    let version = if version.is_empty() { kind.version } else { version };
    let why = match registry::by_kind(version, name) {
        Some(other) => {
            let group = |kind: &Kind| {
                if kind.group.is_empty() {
                    "core"
                } else {
                    kind.group.split('.').next().unwrap_or_default()
                }
                .to_string()
            };
            let (from, to) = (
                format!("({}.{name})", other.version),
                format!("({}.{})", group(kind), kind.kind),
            );
            format!("converting {from} to {to}: unknown conversion")
        }
        None => format!("no kind {name:?} is registered for version {version:?}"),
    };
    let version = version.rsplit('/').next().unwrap_or_default();
    format!(
        "{name} in version {version:?} cannot be handled as a {}: {why}",
        kind.kind
    )
}

/// The first 30 bytes of a body: as they are when they look like JSON, else in hexadecimal digits.
fn summary(body: &[u8]) -> String {
    let (head, more) = body.split_at_checked(30).map_or((body, ""), |(head, rest)| {
        (head, if rest.is_empty() { "" } else { " ..." })
    });
    let text = if head.first() == Some(&b'{') {
        String::from_utf8_lossy(head).into_owned()
    } else {
        head.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    text + more
}

/// Checks an object against the schema of its kind and drops what the kind does not know. `doubts` are those of its decoder.
pub(crate) fn checked(
    kind: &'static Kind,
    value: &mut Value,
    doubts: &[String],
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    examined(kind, value, doubts, validation).map_err(|why| schema::encode_error(kind, &why))
}

/// As [`checked`], with the bare reason of a refusal.
pub(crate) fn examined(
    kind: &'static Kind,
    value: &mut Value,
    doubts: &[String],
    validation: FieldValidation,
) -> Result<Vec<String>, String> {
    let check = schema::check(kind, value);
    if let Some(error) = check.type_error {
        return Err(error);
    }
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => check.warnings(doubts),
        FieldValidation::Strict => check.strict_error(doubts).map_or(Ok(Vec::new()), Err)?,
    };
    schema::prune(kind, value);
    match value.get_mut("metadata") {
        Some(Value::Object(metadata)) => metadata.retain(|name, value| {
            let is_empty =
                value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
            !(is_empty && OMITTED_EMPTY.contains(&name.as_str()))
        }),
        _ => value["metadata"] = Value::Object(Map::new()),
    }
    Ok(warnings)
}

/// The options of a deletion: `DeleteOptions` in JSON, YAML or protobuf, or parameters where there is no body.
pub(crate) fn delete_options(media: &str, body: &[u8], query: &Query) -> Result<Value, ApiError> {
    if !body.is_empty() {
        let (value, _) = value(media, body)?;
        return Ok(value);
    }
    let mut options = json!({});
    if let Some(seconds) = query.get("gracePeriodSeconds") {
        let seconds: i64 = seconds.parse().map_err(|_| {
            let why = format!("strconv.ParseInt: parsing {seconds:?}: invalid syntax");
            ApiError::bad_request(why)
        })?;
        options["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = query.get("propagationPolicy") {
        options["propagationPolicy"] = policy.into();
    }
    if query.get("orphanDependents").is_some() {
        options["orphanDependents"] = query.flag("orphanDependents").into();
    }
    Ok(options)
}
