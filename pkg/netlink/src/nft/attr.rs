//! Netlink attributes: a writer that nests, and an iterator that reads.

/// Set in the type of an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// Mask over the flags in an attribute's type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Appends attributes to a message.
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// An attribute of raw bytes.
    pub(crate) fn raw(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.header(kind, HEADER + value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// A string with the NUL that the kernel's policies ask for.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.header(kind, HEADER + value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
        self
    }

    /// A number in network byte order, as nf_tables wants all of them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.raw(kind, &value.to_be_bytes())
    }

    /// A long number in network byte order.
    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.raw(kind, &value.to_be_bytes())
    }

    /// An attribute that holds what `inside` writes.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Writer<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.header(kind | NESTED, 0);
        inside(&mut Writer { bytes: self.bytes });
        close(self.bytes, start);
        self
    }

    fn header(&mut self, kind: u16, length: usize) {
        // Lengths over 64 KiB cannot occur: element lists, the only long attribute, are cut by the batch.
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

/// Begins a nested attribute that [`close`] ends; for those that are filled piece by piece.
pub(crate) fn open(bytes: &mut Vec<u8>, kind: u16) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&0u16.to_ne_bytes());
    bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    start
}

/// Writes the length of the attribute that begins at `start` and ends here.
pub(crate) fn close(bytes: &mut [u8], start: usize) {
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Reads attributes one after the other; ends at the first that is cut short.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The value of the first attribute of that type.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(k, value)| (k == kind).then_some(value))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes([*self.bytes.first()?, *self.bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*self.bytes.get(2)?, *self.bytes.get(3)?]);
        let value = self.bytes.get(HEADER..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & TYPE_MASK, value))
    }
}

/// A number in network byte order.
pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A long number in network byte order.
pub(crate) fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// A string up to its NUL.
pub(crate) fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).text(1, "svcnet").be32(2, 7).nest(3, |w| {
            w.raw(1, &[1, 2, 3]).be64(2, 9);
        });
        assert_eq!(bytes.len() % 4, 0);
        let reader = Reader::new(&bytes);
        assert_eq!(reader.find(1).map(text), Some("svcnet"));
        assert_eq!(reader.find(2).and_then(be32), Some(7));
        let inner = Reader::new(reader.find(3).unwrap());
        assert_eq!(inner.find(1), Some(&[1, 2, 3][..]));
        assert_eq!(inner.find(2).and_then(be64), Some(9));
    }

    #[test]
    fn garbage_ends_the_reading() {
        for cut in [&[][..], &[9][..], &[9, 0, 1, 0, 1][..], &[0, 0, 0, 0][..]] {
            assert_eq!(Reader::new(cut).count(), 0);
        }
    }
}
