//! Values that are messages in protobuf and plain text or numbers in JSON.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::Value;
use svcnet_api::ApiError;

use super::{Content, for_each, malformed};

pub(super) fn text(bytes: &[u8]) -> Result<String, ApiError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a text is not UTF-8"))
}

pub(super) fn base64(bytes: &[u8]) -> Value {
    base64::engine::general_purpose::STANDARD.encode(bytes).into()
}

/// `Time` and `MicroTime`: seconds and nanoseconds since the epoch; both absent is no time at all.
pub(super) fn time(bytes: &[u8], micro: bool) -> Result<Value, ApiError> {
    let (mut seconds, mut nanos) = (0, 0);
    for_each(bytes, |number, content| {
        match (number, content) {
            (1, Content::Varint(bits)) => seconds = bits.cast_signed(),
            (2, Content::Varint(bits)) => nanos = bits.cast_signed(),
            _ => {}
        }
        Ok(())
    })?;
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| malformed("a time is out of range"))?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| malformed("a time is out of range"))?;
    let form = if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Ok(time.strftime(form).to_string().into())
}

/// `IntOrString`: type 0 is a number, type 1 a name.
pub(super) fn int_or_string(bytes: &[u8]) -> Result<Value, ApiError> {
    let (mut kind, mut number_value, mut text_value) = (0, 0, String::new());
    for_each(bytes, |number, content| {
        match (number, content) {
            (1, Content::Varint(bits)) => kind = bits,
            (2, Content::Varint(bits)) => number_value = bits.cast_signed(),
            (3, Content::Bytes(bytes)) => text_value = text(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(match kind {
        0 => number_value.into(),
        _ => text_value.into(),
    })
}

/// `Quantity`: its text.
pub(super) fn quantity(bytes: &[u8]) -> Result<Value, ApiError> {
    let mut value = String::new();
    for_each(bytes, |number, content| {
        if let (1, Content::Bytes(bytes)) = (number, content) {
            value = text(bytes)?;
        }
        Ok(())
    })?;
    Ok(value.into())
}

/// `FieldsV1` and `RawExtension`: JSON in field 1.
pub(super) fn json(bytes: &[u8]) -> Result<Value, ApiError> {
    let mut value = Value::Null;
    for_each(bytes, |number, content| {
        if let (1, Content::Bytes(bytes)) = (number, content) {
            value = serde_json::from_slice(bytes).map_err(|_| malformed("an embedded object is not JSON"))?;
        }
        Ok(())
    })?;
    Ok(value)
}
