//! Sets, maps and their elements.

use serde_json::{Value, json};

use super::super::attr::{Reader, be32, be64, text as name_of};
use super::super::dump::ObservedElement;
use super::super::object::{Family, Verdict};
use super::super::userdata::{self, TypeOf};
use super::{address, class_id, hex, protocol};

/// `NFT_SET_…`
const FLAGS: [(u32, &str); 5] = [
    (0x1, "anonymous"),
    (0x2, "constant"),
    (0x4, "interval"),
    (0x10, "timeout"),
    (0x20, "dynamic"),
];
/// `NFT_SET_MAP`
const IS_MAP: u32 = 0x8;
/// `NFT_DATA_VERDICT`
const VERDICT: u32 = 0xffff_ff00;

/// Types of fields as nft numbers them (`enum datatypes`), with the bytes that each has.
const TYPES: [(u32, &str, usize); 7] = [
    (4, "integer", 4),
    (7, "ipv4_addr", 4),
    (8, "ipv6_addr", 16),
    (12, "inet_proto", 1),
    (13, "inet_service", 2),
    (19, "mark", 4),
    (23, "classid", 4),
];

/// One field of a key or value.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    bytes: usize,
}

/// A set or map without its elements.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) elements: Vec<Value>,
    object: Value,
    is_map: bool,
    key: Vec<Field>,
    data: Vec<Field>,
}

impl Header {
    pub(super) fn read(family: Family, attributes: &Reader<'_>) -> Option<Self> {
        let name = attributes.find(2).map(name_of)?.to_string();
        let flags = attributes.find(3).and_then(be32).unwrap_or_default();
        let key = fields(attributes.find(4).and_then(be32)?);
        let data_type = attributes.find(6).and_then(be32);
        let data = data_type
            .filter(|kind| *kind != VERDICT)
            .map(fields)
            .unwrap_or_default();
        let user = attributes.find(13).unwrap_or_default();
        let mut object = json!({
            "family": family.to_string(),
            "name": name,
            "table": attributes.find(1).map(name_of).unwrap_or_default(),
            "type": names(&key),
            "handle": attributes.find(16).and_then(be64).unwrap_or_default(),
        });
        if let Some(comment) = userdata::read_set_comment(user) {
            object["comment"] = json!(comment);
        }
        if let Some((key, data)) = typeof_text(user) {
            object["typeof"] = json!(match data {
                Some(data) => format!("{key} : {data}"),
                None => key,
            });
        }
        match data_type {
            Some(VERDICT) => object["map"] = json!("verdict"),
            Some(_) => {
                let names: Vec<&str> = data.iter().map(|field| field.name).collect();
                object["map"] = json!(names.join(" . "));
            }
            None => {}
        }
        let size = attributes
            .find(9)
            .and_then(|description| Reader::new(description).find(1))
            .and_then(be32);
        if let Some(size) = size.filter(|size| *size > 0) {
            object["size"] = json!(size);
        }
        let flags: Vec<&str> = FLAGS
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        if !flags.is_empty() {
            object["flags"] = json!(flags);
        }
        Some(Self {
            name,
            elements: Vec::new(),
            object,
            is_map: attributes.find(3).and_then(be32).unwrap_or_default() & IS_MAP != 0,
            key,
            data,
        })
    }

    /// An element as nft's JSON has it.
    pub(super) fn element(&self, element: &ObservedElement<'_>) -> Value {
        let key = match element.key_end.filter(|end| *end != element.key) {
            Some(end) => ranges(&self.key, element.key, end),
            None => values(&self.key, element.key),
        };
        let mut detailed = json!({ "val": key });
        if let Some(comment) = element.comment {
            detailed["comment"] = json!(comment);
        }
        if let Some(expires) = element.expires_ms {
            detailed["expires"] = json!(expires / 1000);
        }
        let plain = detailed.as_object().is_some_and(|object| object.len() == 1);
        let key = if plain {
            detailed["val"].take()
        } else {
            json!({ "elem": detailed })
        };
        if !self.is_map {
            return key;
        }
        let value = match (element.verdict(), element.value) {
            (Some(verdict), _) => verdict_json(&verdict),
            (None, Some(value)) => values(&self.data, value),
            (None, None) => Value::Null,
        };
        json!([key, value])
    }

    pub(super) fn into_json(mut self) -> Value {
        if !self.elements.is_empty() {
            // The kernel's order is that of hashes.
            self.elements.sort_by_cached_key(Value::to_string);
            self.object["elem"] = Value::Array(self.elements);
        }
        if self.is_map {
            json!({ "map": self.object })
        } else {
            json!({ "set": self.object })
        }
    }
}

/// Six bits for each field.
fn fields(kind: u32) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut rest = kind;
    while rest != 0 {
        let number = rest & 0x3f;
        let known = TYPES.iter().find(|(there, _, _)| *there == number);
        fields.push(known.map_or(
            Field {
                name: "unknown",
                bytes: 4,
            },
            |(_, name, bytes)| Field { name, bytes: *bytes },
        ));
        rest >>= 6;
    }
    fields.reverse();
    fields
}

fn names(fields: &[Field]) -> Value {
    match fields {
        [field] => json!(field.name),
        all => json!(all.iter().map(|field| field.name).collect::<Vec<_>>()),
    }
}

/// Each field of a concatenation fills whole words.
fn split<'a>(fields: &'a [Field], mut bytes: &'a [u8]) -> impl Iterator<Item = (Field, &'a [u8])> {
    fields.iter().map(move |field| {
        let value = bytes.get(..field.bytes).unwrap_or_default();
        bytes = bytes.get(field.bytes.next_multiple_of(4)..).unwrap_or_default();
        (*field, value)
    })
}

fn values(fields: &[Field], bytes: &[u8]) -> Value {
    let mut values: Vec<Value> = split(fields, bytes)
        .map(|(field, bytes)| value(field, bytes))
        .collect();
    match values.as_mut_slice() {
        [only] => only.take(),
        _ => json!({ "concat": values }),
    }
}

fn ranges(fields: &[Field], first: &[u8], last: &[u8]) -> Value {
    let both = split(fields, first).zip(split(fields, last));
    let mut values: Vec<Value> = both
        .map(|((field, first), (_, last))| {
            if first == last {
                value(field, first)
            } else {
                prefix(field, first, last)
                    .unwrap_or_else(|| json!({ "range": [value(field, first), value(field, last)] }))
            }
        })
        .collect();
    match values.as_mut_slice() {
        [only] => only.take(),
        _ => json!({ "concat": values }),
    }
}

/// A range that is all the addresses of a network.
fn prefix(field: Field, first: &[u8], last: &[u8]) -> Option<Value> {
    if !field.name.ends_with("_addr") {
        return None;
    }
    let differs: Vec<u8> = first.iter().zip(last).map(|(a, b)| a ^ b).collect();
    let mut common = 0;
    for byte in &differs {
        common += byte.leading_zeros();
        if *byte != 0 {
            break;
        }
    }
    let host_bits = |bytes: &[u8], set: bool| {
        (common..u32::try_from(bytes.len() * 8).unwrap_or_default()).all(|bit| {
            let byte = bytes.get((bit / 8) as usize).copied().unwrap_or_default();
            (byte >> (7 - bit % 8) & 1 == 1) == set
        })
    };
    (host_bits(first, false) && host_bits(last, true))
        .then(|| json!({"prefix": {"addr": value(field, first), "len": common}}))
}

fn value(field: Field, bytes: &[u8]) -> Value {
    let word = <[u8; 4]>::try_from(bytes).map(u32::from_ne_bytes);
    match (field.name, bytes) {
        ("ipv4_addr", _) => address(Family::Ip, bytes),
        ("ipv6_addr", _) => address(Family::Ip6, bytes),
        ("inet_proto", [number]) => protocol(*number),
        ("inet_service", [high, low]) => json!(u16::from_be_bytes([*high, *low])),
        ("classid", _) => word.map_or_else(|_| hex(bytes), class_id),
        ("integer" | "mark", _) => word.map_or_else(|_| hex(bytes), |number| json!(number)),
        _ => hex(bytes),
    }
}

pub(super) fn verdict_json(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Accept => json!({ "accept": null }),
        Verdict::Drop => json!({ "drop": null }),
        Verdict::Return => json!({ "return": null }),
        Verdict::Jump(chain) => json!({"jump": {"target": chain}}),
        Verdict::Goto(chain) => json!({"goto": {"target": chain}}),
    }
}

/// What the fields print as, where the set says it.
fn typeof_text(user: &[u8]) -> Option<(String, Option<String>)> {
    let (key, data) = userdata::read_typeof(user)?;
    let joined = |fields: Vec<TypeOf>| {
        let words: Vec<String> = fields.iter().map(TypeOf::to_string).collect();
        words.join(" . ")
    };
    Some((joined(key), data.map(joined)))
}
