//! `messages.txt`, read once.

use std::collections::HashMap;
use std::sync::OnceLock;

/// One field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) type_: Type,
    pub(super) repeated: bool,
    pub(super) map: bool,
    /// A struct that Go embeds: in JSON its fields belong to the parent.
    pub(super) embedded: bool,
}

/// What a field holds; for maps, what the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    String,
    Bytes,
    Int32,
    Int64,
    Double,
    Bool,
    /// A boolean whose `false` differs from its absence.
    BoolOrAbsent,
    Time,
    MicroTime,
    IntOrString,
    Quantity,
    /// JSON as bytes (`FieldsV1`, `RawExtension`).
    Json,
    Message(&'static str),
}

type Table = HashMap<&'static str, Vec<Field>>;

/// The fields of a kind's own message.
pub(super) fn root(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    let name = match (api_version, kind) {
        (_, "DeleteOptions") => "meta.DeleteOptions".to_string(),
        ("v1", kind) => kind.to_string(),
        ("discovery.k8s.io/v1", kind) => format!("discovery.{kind}"),
        ("coordination.k8s.io/v1", kind) => format!("coordination.{kind}"),
        ("networking.k8s.io/v1", kind) => format!("networking.{kind}"),
        ("authentication.k8s.io/v1" | "authentication.k8s.io/v1beta1", kind) => {
            format!("authentication.{kind}")
        }
        ("authorization.k8s.io/v1", kind) => format!("authorization.{kind}"),
        _ => return None,
    };
    table().get(name.as_str()).map(Vec::as_slice)
}

/// The fields of a message; none for one that is not in the table.
pub(super) fn message(name: &str) -> &'static [Field] {
    table().get(name).map_or(&[], Vec::as_slice)
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| include_str!("messages.txt").lines().filter_map(line).collect())
}

fn line(line: &'static str) -> Option<(&'static str, Vec<Field>)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.filter_map(field).collect()))
}

fn field(word: &'static str) -> Option<Field> {
    let mut parts = word.splitn(3, ':');
    let number = parts.next()?.parse().ok()?;
    let (name, type_) = (parts.next()?, parts.next()?);
    let (embedded, type_) = strip(type_, "~");
    let (repeated, type_) = strip(type_, "[]");
    let (map, type_) = strip(type_, "map:");
    Some(Field {
        number,
        name,
        type_: Type::parse(type_),
        repeated,
        map,
        embedded,
    })
}

fn strip(text: &'static str, prefix: &str) -> (bool, &'static str) {
    text.strip_prefix(prefix)
        .map_or((false, text), |rest| (true, rest))
}

impl Type {
    fn parse(name: &'static str) -> Self {
        match name {
            "string" => Self::String,
            "bytes" => Self::Bytes,
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "double" => Self::Double,
            "bool" => Self::Bool,
            "bool!" => Self::BoolOrAbsent,
            "Time" => Self::Time,
            "MicroTime" => Self::MicroTime,
            "IntOrString" => Self::IntOrString,
            "Quantity" => Self::Quantity,
            "FieldsV1" | "RawExtension" => Self::Json,
            name => Self::Message(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_that_is_named_is_there() {
        assert!(table().len() > 100);
        for (name, fields) in table() {
            assert!(
                !fields.is_empty() || name.ends_with("GCEPersistent"),
                "{name} has no fields"
            );
            for field in fields {
                if let Type::Message(inner) = field.type_ {
                    assert!(table().contains_key(inner), "{name}.{} names {inner}", field.name);
                }
            }
        }
    }
}
