//! Protocol buffers, as far as a handful of messages need them: fields by number, written and read one by one.

use std::collections::BTreeMap;

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A message in the making.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a number or a truth value.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        encode_key(field, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
        self
    }

    /// With a text.
    #[must_use]
    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// With a message.
    #[must_use]
    pub fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// With an entry of a map of texts.
    #[must_use]
    pub fn entry(self, field: u32, key: &str, value: &str) -> Self {
        self.message(field, &Self::new().text(1, key).text(2, value))
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        encode_varint(value.len() as u64, &mut self.0);
        self.0.extend_from_slice(value);
        self
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message that came.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The values of a field of texts, bytes or messages; as far as the message can be read.
    pub fn all(self, field: u32) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.0;
        std::iter::from_fn(move || next(&mut rest)).filter_map(move |(number, value)| match value {
            Value::Bytes(bytes) if number == field => Some(bytes),
            _ => None,
        })
    }

    /// The message in a field.
    pub fn message(self, field: u32) -> Option<Self> {
        self.all(field).last().map(Self)
    }

    /// The text in a field, if it is one; empty when there is none.
    pub fn text(self, field: u32) -> &'a str {
        let bytes = self.all(field).last().unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The number in a field; 0 when there is none.
    pub fn number(self, field: u32) -> u64 {
        let mut rest = self.0;
        let numbers = std::iter::from_fn(|| next(&mut rest)).filter_map(|(number, value)| match value {
            Value::Number(n) if number == field => Some(n),
            _ => None,
        });
        numbers.last().unwrap_or_default()
    }

    /// A map of texts.
    pub fn map(self, field: u32) -> BTreeMap<String, String> {
        let entries = self.all(field).map(Self);
        entries
            .map(|e| (e.text(1).to_string(), e.text(2).to_string()))
            .collect()
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    if rest.is_empty() {
        return None;
    }
    let (number, kind) = decode_key(rest).ok()?;
    let mut take = |len: usize| {
        let (taken, behind) = rest.split_at_checked(len)?;
        *rest = behind;
        Some(taken)
    };
    let value = match kind {
        WireType::Varint => Value::Number(decode_varint(rest).ok()?),
        WireType::LengthDelimited => {
            let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (taken, behind) = rest.split_at_checked(len)?;
            *rest = behind;
            Value::Bytes(taken)
        }
        WireType::SixtyFourBit => take(8).map(|_| Value::Other)?,
        WireType::ThirtyTwoBit => take(4).map(|_| Value::Other)?,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    Some((number, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Message::new().text(1, "web").number(4, 300);
        let message = Message::new()
            .message(1, &inner)
            .entry(7, "app", "web")
            .entry(7, "tier", "front");
        let reader = Reader(message.as_bytes());
        let read = reader.message(1).unwrap();
        assert_eq!((read.text(1), read.number(4), read.number(5)), ("web", 300, 0));
        assert_eq!(reader.map(7).len(), 2);
        assert_eq!(reader.map(7)["tier"], "front");
        // Cut short, it says what came before.
        let bytes = message.as_bytes();
        assert_eq!(Reader(&bytes[..bytes.len() - 1]).map(7).len(), 1);
    }
}
