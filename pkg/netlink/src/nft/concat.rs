//! Keys and values of sets, as registers hold them.

use std::net::IpAddr;

/// Longest key (`NFT_DATA_VALUE_MAXLEN`).
const LEN_MAX: usize = 64;

/// A concatenation: fields in a row, each padded to four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concat {
    bytes: [u8; LEN_MAX],
    len: u8,
}

impl Default for Concat {
    fn default() -> Self {
        Self::new()
    }
}

impl Concat {
    /// Without a field.
    pub const fn new() -> Self {
        Self {
            bytes: [0; LEN_MAX],
            len: 0,
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// With an address.
    #[must_use]
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.field(&address.octets()),
            IpAddr::V6(address) => self.field(&address.octets()),
        }
    }

    /// With the name of a link.
    #[must_use]
    pub fn link(self, name: &str) -> Self {
        self.field(&super::pods::link_name(name))
    }

    /// With an Ethernet address.
    #[must_use]
    pub fn ether(self, address: [u8; 6]) -> Self {
        self.field(&address)
    }

    /// With a protocol number.
    #[must_use]
    pub fn proto(self, protocol: u8) -> Self {
        self.field(&[protocol])
    }

    /// With a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// With a number in the host's byte order: marks, priorities, chosen numbers.
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        self.field(&number.to_ne_bytes())
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        let start = usize::from(self.len);
        let end = start + bytes.len().next_multiple_of(4);
        // The longest key in use, two IPv6 addresses with protocol and port, has 40 bytes.
        if end <= LEN_MAX {
            self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
            self.len = u8::try_from(end).unwrap_or(u8::MAX);
        }
        self
    }
}

/// Takes a concatenation apart again, field by field.
#[derive(Debug, Clone)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next field, of this many bytes.
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let field = self.0.get(..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(field)
    }

    /// An address.
    pub fn ip(&mut self, v6: bool) -> Option<IpAddr> {
        if v6 {
            Some(IpAddr::from(<[u8; 16]>::try_from(self.take(16)?).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 4]>::try_from(self.take(4)?).ok()?))
        }
    }

    /// A protocol number.
    pub fn proto(&mut self) -> Option<u8> {
        self.take(1).map(|field| field[0])
    }

    /// A port.
    pub fn port(&mut self) -> Option<u16> {
        self.take(2).map(|field| u16::from_be_bytes([field[0], field[1]]))
    }

    /// A number in the host's byte order.
    pub fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_apart_as_they_went_in() {
        for address in ["10.96.0.1", "fd00::1"] {
            let address: IpAddr = address.parse().unwrap();
            let key = Concat::new().ip(address).proto(6).port(443).number(7);
            let mut fields = Fields(key.as_bytes());
            assert_eq!(fields.ip(address.is_ipv6()), Some(address));
            assert_eq!(
                (fields.proto(), fields.port(), fields.number()),
                (Some(6), Some(443), Some(7))
            );
            assert_eq!(fields.number(), None);
        }
    }
}
