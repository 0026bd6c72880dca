//! Node ports and their range.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// A port of a [`NodePortRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort(u16);

impl NodePort {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `--service-node-port-range`: inclusive at both ends, never empty, never with port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePortRange {
    first: u16,
    last: u16,
}

impl NodePortRange {
    /// A range of ports, both ends included.
    ///
    /// # Errors
    /// When it is empty or begins at port 0.
    pub fn new(first: u16, last: u16) -> Result<Self, ParseError> {
        if first == 0 || last < first {
            return Err(ParseError::new(
                format!("{first}-{last}"),
                "a port range like 30000-32767",
            ));
        }
        Ok(Self { first, last })
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports there are, at least 1.
    pub fn size(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// The port, if it is one of the range.
    pub fn port(self, number: u16) -> Option<NodePort> {
        (self.first..=self.last)
            .contains(&number)
            .then_some(NodePort(number))
    }
}

impl fmt::Display for NodePortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for NodePortRange {
    type Err = ParseError;

    /// `30000-32767`, or `30000:32767` as kube-apiserver also takes it, or a single port.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a port range like 30000-32767");
        let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
        let first = first.trim().parse().map_err(|_| wrong())?;
        let last = last.trim().parse().map_err(|_| wrong())?;
        Self::new(first, last).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_both_ways_and_refuse_nonsense() {
        let range: NodePortRange = "30000-32767".parse().unwrap();
        assert_eq!("30000:32767".parse(), Ok(range));
        assert_eq!(range.size(), 2768);
        assert!(range.port(30000).is_some() && range.port(32767).is_some());
        assert!(range.port(29999).is_none() && range.port(32768).is_none());
        for bad in ["", "x", "32767-30000", "0-10", "30000-99999", "1-2-3"] {
            assert!(bad.parse::<NodePortRange>().is_err(), "{bad}");
        }
    }
}
