//! Domain names in the form that everything here compares and looks up: wire format, lower case.
//!
//! DNS compares names without regard to ASCII case (RFC 4343). Names are therefore lowered once, where they enter, and
//! are plain byte strings from then on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name in wire format (RFC 1035, 2.3.4).
pub const NAME_MAX: usize = 255;
/// Longest label.
pub const LABEL_MAX: usize = 63;

/// A text that is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a domain name: {why}")]
pub struct NameError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A domain name: wire format, lower case, ending with the root label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self(Arc::new([0]))
    }

    /// From labels, the leftmost first, below a suffix.
    ///
    /// # Errors
    /// When a label is empty or too long, or the whole is.
    pub fn from_labels<'a>(
        labels: impl IntoIterator<Item = &'a [u8]>,
        suffix: &Self,
    ) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            push_label(&mut wire, label).map_err(|why| NameError {
                text: lossy(label),
                why,
            })?;
        }
        wire.extend_from_slice(&suffix.0);
        if wire.len() > NAME_MAX {
            return Err(NameError {
                text: lossy(&wire),
                why: "longer than 255 bytes",
            });
        }
        Ok(Self(wire.into()))
    }

    /// From bytes that are already lower-case wire format: parts of names that were checked when they came in.
    /// Anything else yields the root name, which no lookup finds.
    pub(crate) fn from_lower_wire(wire: Vec<u8>) -> Self {
        if well_formed(&wire) {
            Self(wire.into())
        } else {
            Self::root()
        }
    }

    /// Wire format, with the root label at the end.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The labels, the leftmost first, without the root.
    pub fn labels(&self) -> Labels<'_> {
        Labels(&self.0)
    }
}

/// Iterates over the labels of a name in wire format.
#[derive(Debug, Clone)]
pub struct Labels<'a>(&'a [u8]);

impl<'a> Labels<'a> {
    /// Over the labels of a wire-format name, or of a part of one without its root label.
    pub(crate) fn new(wire: &'a [u8]) -> Self {
        Self(wire)
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(label)
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// With or without the dot at the end. No escapes: names of Kubernetes need none.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why| NameError {
            text: text.to_string(),
            why,
        };
        let body = text.strip_suffix('.').unwrap_or(text);
        if body.is_empty() {
            return if text == "." {
                Ok(Self::root())
            } else {
                Err(wrong("empty"))
            };
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in body.split('.') {
            push_label(&mut wire, label.as_bytes()).map_err(wrong)?;
        }
        wire.push(0);
        if wire.len() > NAME_MAX {
            return Err(wrong("longer than 255 bytes"));
        }
        Ok(Self(wire.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_wire(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_wire(&self.0, f)
    }
}

/// Writes a wire-format name as text with a dot at the end; odd bytes as `\DDD` (RFC 1035, 5.1).
pub(crate) fn fmt_wire(wire: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut labels = Labels(wire).peekable();
    if labels.peek().is_none() {
        return f.write_str(".");
    }
    for label in labels {
        for &byte in label {
            match byte {
                b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                0x21..=0x7e => write!(f, "{}", char::from(byte))?,
                _ => write!(f, "\\{byte:03}")?,
            }
        }
        f.write_str(".")?;
    }
    Ok(())
}

/// Appends one label, lowered.
pub(crate) fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), &'static str> {
    let length = u8::try_from(label.len())
        .ok()
        .filter(|&l| usize::from(l) <= LABEL_MAX);
    match length {
        None => Err("a label is longer than 63 bytes"),
        Some(0) => Err("a label is empty"),
        Some(length) => {
            wire.push(length);
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
            Ok(())
        }
    }
}

/// Whether the bytes are one whole wire-format name.
fn well_formed(wire: &[u8]) -> bool {
    let mut at = 0;
    loop {
        match wire.get(at) {
            None => return false,
            Some(0) => return at + 1 == wire.len() && wire.len() <= NAME_MAX,
            Some(&length) if usize::from(length) > LABEL_MAX => return false,
            Some(&length) => at += 1 + usize::from(length),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lowered_and_print_with_a_dot() {
        let name: Name = "WWW.Example.com".parse().unwrap();
        assert_eq!(name.to_string(), "www.example.com.");
        assert_eq!(name.wire(), b"\x03www\x07example\x03com\x00");
        assert_eq!(name, "www.example.com.".parse().unwrap());
        assert_eq!(name.labels().count(), 3);
        assert_eq!(Name::root().to_string(), ".");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, why) in [
            ("", "empty"),
            ("a..b", "a label is empty"),
            (".a", "a label is empty"),
            (&"x".repeat(64), "a label is longer than 63 bytes"),
            (&"abcdefg.".repeat(33), "longer than 255 bytes"),
        ] {
            assert_eq!(text.parse::<Name>().unwrap_err().why, why, "{text}");
        }
    }

    #[test]
    fn only_whole_names_are_taken_as_wire() {
        assert_eq!(Name::from_lower_wire(b"\x01a\x00".to_vec()).to_string(), "a.");
        assert_eq!(Name::from_lower_wire(b"\x05a\x00".to_vec()), Name::root());
        assert_eq!(Name::from_lower_wire(b"\x01a\x00\x00".to_vec()), Name::root());
    }
}
