//! Names and numbers of links.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// Name of a link: 1 to 15 bytes, no `/`, no white space, not `.` or `..` (`dev_valid_name` in net/core/dev.c).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let right = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if right {
            Ok(Self(text.to_string()))
        } else {
            Err(ParseError::new(
                text,
                "an interface name (1 to 15 bytes, no '/', ':' or space)",
            ))
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// VXLAN network identifier: 24 bits (RFC 7348).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vni(u32);

impl Vni {
    /// A network identifier.
    ///
    /// # Errors
    /// When it does not fit 24 bits.
    pub fn new(number: u32) -> Result<Self, ParseError> {
        if number < 1 << 24 {
            Ok(Self(number))
        } else {
            Err(ParseError::new(number, "a VNI (0 to 16777215)"))
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// From its six bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A locally administered unicast address made of the first bytes of a digest.
    pub fn local_from(digest: &[u8; 6]) -> Self {
        let mut bytes = *digest;
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Self(bytes)
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a MAC address like 02:00:00:00:00:01");
        let parts: Vec<&str> = text.split(':').collect();
        let parts: [&str; 6] = parts.try_into().map_err(|_| wrong())?;
        let mut bytes = [0; 6];
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}
