//! Checks that several kinds share, as field errors in the real words; and the reading of JSON that all checks do.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::field::{FieldError, FieldPath};
use crate::names;
use crate::types::legacy;

/// Reads fields that may be missing. Types are right: the schema was checked before.
pub(crate) trait Fields {
    /// The text of a field, empty where there is none.
    fn text(&self, name: &str) -> &str;
    /// The items of a list, none where there is none.
    fn list(&self, name: &str) -> &[Value];
    /// The number of a field, 0 where there is none (as Go's zero value).
    fn number(&self, name: &str) -> i64;
    /// Whether a field is there and true.
    fn flag(&self, name: &str) -> bool;
    /// Whether a field is there and not null.
    fn has(&self, name: &str) -> bool;
    /// The entries of a map of strings.
    fn entries(&self, name: &str) -> impl Iterator<Item = (&String, &str)>;
}

impl Fields for Value {
    fn text(&self, name: &str) -> &str {
        self[name].as_str().unwrap_or_default()
    }

    fn list(&self, name: &str) -> &[Value] {
        self[name].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn number(&self, name: &str) -> i64 {
        self[name].as_i64().unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        self[name] == Value::Bool(true)
    }

    fn has(&self, name: &str) -> bool {
        !self[name].is_null()
    }

    fn entries(&self, name: &str) -> impl Iterator<Item = (&String, &str)> {
        let map = self[name].as_object().into_iter().flatten();
        map.map(|(key, value)| (key, value.as_str().unwrap_or_default()))
    }
}

/// The object in a field, made where there is none.
pub(crate) fn object_in<'a>(value: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let field = &mut value[name];
    if !field.is_object() {
        *field = Value::Object(Map::new());
    }
    match field {
        Value::Object(map) => map,
        // Made an object just above.
        _ => unreachable!("invariant: the field is an object"),
    }
}

/// Sets a field that is missing, null or the empty text: what Go's defaulting calls unset.
pub(crate) fn set_default(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    if is_unset(map.get(name)) {
        map.insert(name.to_string(), value.into());
    }
}

/// Whether a field is missing, null or the empty text.
pub(crate) fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || v == "")
}

/// One error for each message about a text.
pub(crate) fn each<'a>(
    path: &'a FieldPath,
    value: &'a str,
    messages: Vec<String>,
) -> impl Iterator<Item = FieldError> + use<'a> {
    messages
        .into_iter()
        .map(move |message| FieldError::invalid(path.clone(), value, message))
}

/// One error for each message about a port number.
pub(crate) fn port_number(path: &FieldPath, value: i64) -> impl Iterator<Item = FieldError> + use<'_> {
    let messages = names::port_number(value).into_iter();
    messages.map(move |message| FieldError::invalid(path.clone(), value, message))
}

/// TCP, UDP or SCTP.
pub(crate) fn protocol(path: FieldPath, value: &str) -> Option<FieldError> {
    match value {
        "TCP" | "UDP" | "SCTP" => None,
        "" => Some(FieldError::required(path, "")),
        other => Some(FieldError::not_supported(path, other, &["SCTP", "TCP", "UDP"])),
    }
}

/// Labels, also a selector made of them.
pub(crate) fn labels(path: &FieldPath, object: &Value, name: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in object.entries(name) {
        errors.extend(each(path, key, names::qualified_name(key)));
        errors.extend(each(path, value, names::label_value(value)));
    }
    errors
}

/// Addresses that name one endpoint wherever they are used: no loopback, no link-local, and the like
/// (`ValidateNonSpecialIP`).
pub(crate) fn endpoint_address(path: &FieldPath, value: &str) -> Vec<FieldError> {
    let Some(address) = legacy::address(value) else {
        return vec![FieldError::invalid(
            path.clone(),
            value,
            "must be a valid IP address",
        )];
    };
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets().starts_with(&[224, 0, 0])),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    let unspecified = format!("may not be unspecified ({value})");
    [
        (address.is_unspecified(), unspecified.as_str()),
        (
            address.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, message)| FieldError::invalid(path.clone(), value, message))
    .collect()
}

/// A required name that can be a part of a URL's path.
pub(crate) fn path_segment(path: FieldPath, value: &str) -> Vec<FieldError> {
    if value.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    each(&path, value, names::path_segment(value)).collect()
}

/// A reference to an object of any kind: group, kind and name (`validateIngressTypedLocalObjectReference`).
pub(crate) fn typed_reference(path: &FieldPath, reference: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(group) = reference["apiGroup"].as_str() {
        errors.extend(each(&path.child("apiGroup"), group, names::dns_subdomain(group)));
    }
    for field in ["kind", "name"] {
        errors.extend(path_segment(path.child(field), reference.text(field)));
    }
    errors
}

/// The error when a field has another value than before (`ValidateImmutableField`).
pub(crate) fn immutable(path: FieldPath, new: &Value, old: &Value) -> Option<FieldError> {
    (new != old).then(|| FieldError::invalid(path, new.clone(), "field is immutable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_refused_by_range() {
        let path = FieldPath::new("ip");
        for (address, words) in [
            ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
            ("127.0.0.1", "loopback range"),
            ("169.254.1.1", "link-local range"),
            ("224.0.0.5", "link-local multicast range"),
            ("fe80::1", "link-local range"),
            ("ff02::1", "link-local multicast range"),
            ("::1", "loopback range"),
        ] {
            let errors = endpoint_address(&path, address);
            assert!(
                errors.len() == 1 && errors[0].to_string().contains(words),
                "{errors:?}"
            );
        }
        assert!(
            endpoint_address(&path, "192.168.1.23").is_empty()
                && endpoint_address(&path, "2001:db8::1").is_empty()
        );
    }
}
