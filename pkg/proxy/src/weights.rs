//! The annotation `svcnet.io/weights` of a Service: which endpoints take how many of its new connections.
//!
//! `web-0=3, node/n1=2, zone/a=0` gives the pod `web-0` (or the endpoint of that address) three shares, all others on the
//! node `n1` two, those elsewhere in the zone `a` none, and everyone else one.

use std::fmt;

/// What is given out at most to one endpoint; the kernel's IPVS has the same bound.
const SHARE_MAX: u16 = u16::MAX;

/// Shares by pod or address, by node, by zone; the narrowest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights(Box<[(Whose, u16)]>);

/// Whom a share is given to. The order is that in which they count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// The pod of that name, or the endpoint of that address.
    Endpoint(Box<str>),
    /// All on that node.
    Node(Box<str>),
    /// All in that zone.
    Zone(Box<str>),
}

/// What is wrong with an annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWeights {
    /// Not of the form.
    #[error("{0:?} is not POD=NUMBER, ADDRESS=NUMBER, node/NAME=NUMBER or zone/NAME=NUMBER")]
    Form(String),
    /// Not a share.
    #[error("{0:?} is no weight: a whole number from 0 to {SHARE_MAX}")]
    Number(String),
    /// Said twice.
    #[error("{0} has two weights")]
    Twice(String),
}

impl Weights {
    /// Reads the annotation.
    ///
    /// # Errors
    /// When any part of it makes no sense: half of it would be another wish than the one that was written.
    pub fn parse(text: &str) -> Result<Self, BadWeights> {
        let mut shares: Vec<(Whose, u16)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let form = || BadWeights::Form(part.into());
            let (whose, number) = part.split_once('=').ok_or_else(form)?;
            let number = number.trim();
            let share = number.parse().map_err(|_| BadWeights::Number(number.into()))?;
            let whose = match whose.trim().split_once('/') {
                None => Whose::Endpoint(whose.trim().into()),
                Some(("node", name)) => Whose::Node(name.into()),
                Some(("zone", name)) => Whose::Zone(name.into()),
                Some(_) => return Err(form()),
            };
            let (Whose::Endpoint(name) | Whose::Node(name) | Whose::Zone(name)) = &whose;
            if name.is_empty() {
                return Err(form());
            }
            shares.push((whose, share));
        }
        shares.sort();
        if let Some(pair) = shares.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(BadWeights::Twice(pair[0].0.to_string()));
        }
        Ok(Self(shares.into()))
    }

    /// The share of an endpoint.
    pub fn of(&self, pod: Option<&str>, address: &str, node: Option<&str>, zone: Option<&str>) -> u16 {
        let fits = |whose: &Whose| match whose {
            Whose::Endpoint(name) => Some(&**name) == pod || **name == *address,
            Whose::Node(name) => Some(&**name) == node,
            Whose::Zone(name) => Some(&**name) == zone,
        };
        let share = self.0.iter().find(|(whose, _)| fits(whose));
        share.map_or(1, |(_, share)| *share)
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(name) => f.write_str(name),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Zone(name) => write!(f, "zone/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_counts() {
        let weights = Weights::parse(" zone/a=0, node/n1=2,web-0=3,10.0.0.7=65535,").unwrap();
        assert_eq!(weights.of(Some("web-0"), "10.0.0.1", Some("n1"), Some("a")), 3);
        assert_eq!(weights.of(Some("web-1"), "10.0.0.2", Some("n1"), Some("a")), 2);
        assert_eq!(weights.of(Some("web-2"), "10.0.0.3", Some("n2"), Some("a")), 0);
        assert_eq!(weights.of(Some("web-3"), "10.0.0.4", Some("n3"), Some("b")), 1);
        assert_eq!(weights.of(None, "10.0.0.7", None, None), 65535);
    }

    #[test]
    fn what_makes_no_sense_says_what_would() {
        for (text, wanted) in [
            (
                "web",
                "\"web\" is not POD=NUMBER, ADDRESS=NUMBER, node/NAME=NUMBER or zone/NAME=NUMBER",
            ),
            (
                "a=1,b=many",
                "\"many\" is no weight: a whole number from 0 to 65535",
            ),
            ("a=-1", "\"-1\" is no weight: a whole number from 0 to 65535"),
            ("node/n1=1, node/n1=2", "node/n1 has two weights"),
            (
                "rack/x=1",
                "\"rack/x=1\" is not POD=NUMBER, ADDRESS=NUMBER, node/NAME=NUMBER or zone/NAME=NUMBER",
            ),
            (
                "=1",
                "\"=1\" is not POD=NUMBER, ADDRESS=NUMBER, node/NAME=NUMBER or zone/NAME=NUMBER",
            ),
        ] {
            assert_eq!(Weights::parse(text).unwrap_err().to_string(), wanted);
        }
    }
}
