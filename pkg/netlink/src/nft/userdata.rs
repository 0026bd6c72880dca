//! User data: what the `nft` program stores beside objects so that it can print them. The kernel only keeps it.
//! Layout as in libnftnl's `udata.h`: type and length of one byte each, then the value.

const TABLE_COMMENT: u8 = 0;
const RULE_COMMENT: u8 = 0;
const ELEMENT_COMMENT: u8 = 0;
const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_COMMENT: u8 = 7;
const TYPEOF_EXPR: u8 = 0;
const TYPEOF_DATA: u8 = 1;

/// `nft` refuses longer ones (`NFTNL_UDATA_COMMENT_MAXLEN`), NUL included.
const COMMENT_LEN_MAX: usize = 127;

/// What `typeof` says about one field of a set's key or data, for `nft list` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TypeOf {
    /// `ip saddr`
    IpSaddr,
    /// `ip daddr`
    IpDaddr,
    /// `ip6 saddr`
    Ip6Saddr,
    /// `ip6 daddr`
    Ip6Daddr,
    /// `meta l4proto`
    L4Proto,
    /// `th dport`
    ThDport,
    /// `numgen random mod N`
    NumgenRandom(u32),
}

impl TypeOf {
    /// Expression number (`enum expr_types` of nft) and its own data.
    fn encode(self) -> Vec<u8> {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        // `enum proto_desc_id` of nft, and the index of the header field in that description.
        let payload = |description: u32, field: u32| (PAYLOAD, numbers(&[description, field]));
        let (expr, data) = match self {
            Self::IpSaddr => payload(12, 11),
            Self::IpDaddr => payload(12, 12),
            Self::Ip6Saddr => payload(13, 8),
            Self::Ip6Daddr => payload(13, 9),
            Self::ThDport => payload(11, 2),
            Self::L4Proto => (META, numbers(&[16])),
            Self::NumgenRandom(modulus) => (NUMGEN, numbers(&[1, modulus, 0])),
        };
        described(expr, &data)
    }
}

/// `typeof` of one field or of several in a row.
fn type_of(fields: &[TypeOf]) -> Vec<u8> {
    const CONCAT: u32 = 13;
    if let [field] = fields {
        return field.encode();
    }
    let mut list = Vec::new();
    for (index, field) in (0u8..).zip(fields) {
        put(&mut list, index, &field.encode());
    }
    described(CONCAT, &list)
}

fn described(expr: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, TYPEOF_EXPR, &expr.to_ne_bytes());
    put(&mut bytes, TYPEOF_DATA, data);
    bytes
}

fn numbers(values: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, value) in (0u8..).zip(values) {
        put(&mut bytes, index, &value.to_ne_bytes());
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.push(kind);
    bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(value);
}

/// Byte order of a set's keys or data, for printing (`enum byteorder` of nft).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum ByteOrder {
    Unspecified = 0,
    Host = 1,
    Big = 2,
}

/// The user data of a set.
pub(crate) fn set(
    key: (ByteOrder, &[TypeOf]),
    data: Option<(ByteOrder, &[TypeOf])>,
    comment: Option<&str>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, SET_KEY_BYTE_ORDER, &(key.0 as u32).to_ne_bytes());
    if let Some((order, _)) = data {
        put(&mut bytes, SET_DATA_BYTE_ORDER, &(order as u32).to_ne_bytes());
    }
    if !key.1.is_empty() {
        put(&mut bytes, SET_KEY_TYPEOF, &type_of(key.1));
    }
    if let Some((_, fields)) = data.filter(|(_, fields)| !fields.is_empty()) {
        put(&mut bytes, SET_DATA_TYPEOF, &type_of(fields));
    }
    if let Some(comment) = comment {
        put_comment(&mut bytes, SET_COMMENT, comment);
    }
    bytes
}

/// The user data of a table or rule that only carries a comment.
pub(crate) fn comment(text: &str) -> Vec<u8> {
    const _: () = assert!(TABLE_COMMENT == RULE_COMMENT && RULE_COMMENT == ELEMENT_COMMENT);
    let mut bytes = Vec::with_capacity(text.len() + 3);
    put_comment(&mut bytes, RULE_COMMENT, text);
    bytes
}

/// Appends an element's comment without a buffer of its own: there are many elements.
pub(crate) fn put_element_comment(bytes: &mut Vec<u8>, text: &str) {
    put_comment(bytes, ELEMENT_COMMENT, text);
}

/// How long [`put_element_comment`]'s result will be.
pub(crate) fn element_comment_len(text: &str) -> usize {
    shortened(text).len() + 3
}

fn put_comment(bytes: &mut Vec<u8>, kind: u8, text: &str) {
    let text = shortened(text);
    bytes.push(kind);
    bytes.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// What of a comment fits.
pub(crate) fn shortened(text: &str) -> &str {
    let mut end = text.len().min(COMMENT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The comment in the user data of a table, rule or element.
pub(crate) fn read_comment(mut bytes: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = bytes {
        let value = rest.get(..usize::from(*length))?;
        if *kind == RULE_COMMENT {
            return Some(super::attr::text(value));
        }
        bytes = &rest[usize::from(*length)..];
    }
    None
}

/// The comment in the user data of a set.
pub(crate) fn read_set_comment(bytes: &[u8]) -> Option<&str> {
    entries(bytes)
        .find(|(kind, _)| *kind == SET_COMMENT)
        .map(|(_, value)| super::attr::text(value))
}

/// What the key and the data of a set print as, where that is said and known here.
pub(crate) fn read_typeof(bytes: &[u8]) -> Option<(Vec<TypeOf>, Option<Vec<TypeOf>>)> {
    let of = |wanted| {
        entries(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let key = read_fields(of(SET_KEY_TYPEOF)?)?;
    let data = of(SET_DATA_TYPEOF).and_then(read_fields);
    Some((key, data))
}

fn read_fields(described: &[u8]) -> Option<Vec<TypeOf>> {
    const CONCAT: u32 = 13;
    let (expr, data) = read_described(described)?;
    if expr != CONCAT {
        return Some(vec![TypeOf::read(expr, data)?]);
    }
    entries(data)
        .map(|(_, field)| {
            let (expr, data) = read_described(field)?;
            TypeOf::read(expr, data)
        })
        .collect()
}

fn read_described(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let of = |wanted| {
        entries(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let expr = of(TYPEOF_EXPR)?.try_into().map(u32::from_ne_bytes).ok()?;
    Some((expr, of(TYPEOF_DATA)?))
}

fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [kind, length, rest @ ..] = bytes else {
            return None;
        };
        let value = rest.get(..usize::from(*length))?;
        bytes = rest.get(usize::from(*length)..)?;
        Some((*kind, value))
    })
}

impl TypeOf {
    /// All but the numbers.
    const FIXED: [Self; 6] = [
        Self::IpSaddr,
        Self::IpDaddr,
        Self::Ip6Saddr,
        Self::Ip6Daddr,
        Self::L4Proto,
        Self::ThDport,
    ];

    fn read(expr: u32, data: &[u8]) -> Option<Self> {
        const NUMGEN: u32 = 23;
        if expr == NUMGEN {
            let modulus = entries(data).find(|(kind, _)| *kind == 1)?.1;
            return Some(Self::NumgenRandom(u32::from_ne_bytes(modulus.try_into().ok()?)));
        }
        let wanted = described(expr, data);
        Self::FIXED.into_iter().find(|known| known.encode() == wanted)
    }
}

impl std::fmt::Display for TypeOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::L4Proto => "meta l4proto",
            Self::ThDport => "th dport",
            Self::NumgenRandom(modulus) => return write!(f, "numgen random mod {modulus}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Bytes that nft 1.0.6 wrote for
    /// `typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport`.
    #[test]
    fn typeof_is_what_nft_writes() {
        let key = [
            TypeOf::IpDaddr,
            TypeOf::L4Proto,
            TypeOf::ThDport,
            TypeOf::NumgenRandom(65536),
        ];
        let data = [TypeOf::IpDaddr, TypeOf::ThDport];
        let bytes = set(
            (ByteOrder::Unspecified, &key),
            Some((ByteOrder::Unspecified, &data)),
            None,
        );
        let wanted = "000400000000010400000000036000040d00000001580014000407000000010c00040c00000001040c000000\
                      010e00040900000001060004100000000214000407000000010c00040b000000010402000000031a0004170000\
                      000112000401000000010400000100020400000000043400040d000000012c0014000407000000010c00040c00\
                      000001040c0000000114000407000000010c00040b000000010402000000";
        assert!(
            wanted.replace(' ', "").starts_with(&hex(&bytes)),
            "{}",
            hex(&bytes)
        );
    }

    #[test]
    fn comments_read_back_and_are_cut_between_characters() {
        assert_eq!(
            read_comment(&comment("default/kubernetes:https")),
            Some("default/kubernetes:https")
        );
        let long = "ä".repeat(100);
        let bytes = comment(&long);
        assert_eq!(read_comment(&bytes).map(str::len), Some(126));
        assert_eq!(bytes.len(), element_comment_len(&long));
    }
}
