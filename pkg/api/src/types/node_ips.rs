//! The addresses of a node.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::ParseError;

/// A node's address towards the others, or two of different families separated by a comma (dual stack); the first is
/// the primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIps {
    primary: IpAddr,
    secondary: Option<IpAddr>,
}

impl NodeIps {
    /// The address that other nodes use.
    pub fn primary(self) -> IpAddr {
        self.primary
    }

    /// Both addresses, the primary one first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        [Some(self.primary), self.secondary].into_iter().flatten()
    }
}

impl From<IpAddr> for NodeIps {
    fn from(primary: IpAddr) -> Self {
        Self {
            primary,
            secondary: None,
        }
    }
}

impl FromStr for NodeIps {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new(
                text,
                "an address like 192.0.2.11, or one IPv4 and one IPv6 address",
            )
        };
        let addresses: Result<Vec<IpAddr>, _> = text.split(',').map(|part| part.trim().parse()).collect();
        match addresses.map_err(|_| wrong())?.as_slice() {
            [primary] => Ok((*primary).into()),
            [primary, secondary] if primary.is_ipv4() != secondary.is_ipv4() => Ok(Self {
                primary: *primary,
                secondary: Some(*secondary),
            }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for NodeIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.primary.fmt(f)?;
        self.secondary.map_or(Ok(()), |address| write!(f, ",{address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_address_of_a_family() {
        for right in [
            "172.30.0.11",
            "fd00::11",
            "172.30.0.11,fd00::11",
            "fd00::11,172.30.0.11",
        ] {
            assert_eq!(right.parse::<NodeIps>().unwrap().to_string(), right);
        }
        let both: NodeIps = "fd00::11, 172.30.0.11".parse().unwrap();
        assert_eq!(both.iter().count(), 2);
        assert!(both.primary().is_ipv6());
        for wrong in [
            "",
            "n1",
            "172.30.0.11,172.30.0.12",
            "fd00::11,",
            "172.30.0.11,fd00::11,fd00::12",
        ] {
            assert!(wrong.parse::<NodeIps>().is_err(), "{wrong:?}");
        }
    }
}
