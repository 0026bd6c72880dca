//! One item of `spec.addresses`: a network or a range with both ends.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// Addresses from the first to the last, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why an item is no range, in MetalLB's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RangeError {
    #[error("invalid CIDR {0:?}")]
    Cidr(String),
    #[error("invalid IP range {item:?}: invalid start IP {start:?}")]
    Start { item: String, start: String },
    #[error("invalid IP range {item:?}: invalid end IP {end:?}")]
    End { item: String, end: String },
    #[error("invalid IP range {item:?}: start IP \"{first}\" is after the end IP \"{last}\"")]
    Order {
        item: String,
        first: IpAddr,
        last: IpAddr,
    },
    #[error("invalid IP range {item:?}: start and end IP are of different families")]
    Families { item: String },
}

impl AddressRange {
    /// The lowest address.
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(self) -> IpAddr {
        self.last
    }

    /// Whether the addresses are IPv6 ones.
    pub fn is_v6(self) -> bool {
        self.first.is_ipv6()
    }

    /// Whether the address lies in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        // IpAddr orders all of IPv4 before IPv6, so a foreign family is never in between.
        self.first <= address && address <= self.last
    }

    /// Whether the ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.is_v6() == other.is_v6() && self.first <= other.last && other.first <= self.last
    }

    /// How many addresses there are, at most `u128::MAX`.
    pub fn size(self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Every address from the lowest up. Lazy: an IPv6 range may be beyond counting.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.is_v6();
        (number(self.first)..=number(self.last)).map(move |n| address(n, v6))
    }
}

impl From<IpNet> for AddressRange {
    /// The whole network, its first and last address included, as MetalLB takes them.
    fn from(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(item: &str) -> Result<Self, RangeError> {
        let Some((start, end)) = item.split_once('-') else {
            let net: IpNet = item
                .trim()
                .parse()
                .map_err(|_| RangeError::Cidr(item.to_string()))?;
            return Ok(Self::from(net));
        };
        let first: IpAddr = start.trim().parse().map_err(|_| RangeError::Start {
            item: item.to_string(),
            start: start.to_string(),
        })?;
        let last: IpAddr = end.trim().parse().map_err(|_| RangeError::End {
            item: item.to_string(),
            end: end.to_string(),
        })?;
        if first.is_ipv4() != last.is_ipv4() {
            return Err(RangeError::Families {
                item: item.to_string(),
            });
        }
        if first > last {
            return Err(RangeError::Order {
                item: item.to_string(),
                first,
                last,
            });
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(bits) if !v6 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_and_ranges_parse() {
        let range: AddressRange = "172.30.0.240-172.30.0.250".parse().unwrap();
        assert_eq!(
            (range.size(), range.to_string().as_str()),
            (11, "172.30.0.240-172.30.0.250")
        );
        assert_eq!(range.iter().count(), 11);
        let spaced: AddressRange = "172.30.0.240 - 172.30.0.250".parse().unwrap();
        assert_eq!(spaced, range);
        let net: AddressRange = "192.168.10.7/24".parse().unwrap();
        assert_eq!(net.to_string(), "192.168.10.0-192.168.10.255");
        let v6: AddressRange = "fc00:f853:0ccd:e799::/124".parse().unwrap();
        assert_eq!(v6.size(), 16);
        assert_eq!("::/0".parse::<AddressRange>().unwrap().size(), u128::MAX);
    }

    #[test]
    fn nonsense_is_refused_in_metallbs_words() {
        for (item, words) in [
            ("10.0.0.1", "invalid CIDR \"10.0.0.1\""),
            ("10.0.0.0/33", "invalid CIDR \"10.0.0.0/33\""),
            (
                "x-10.0.0.1",
                "invalid IP range \"x-10.0.0.1\": invalid start IP \"x\"",
            ),
            ("10.0.0.1-", "invalid IP range \"10.0.0.1-\": invalid end IP \"\""),
            (
                "10.0.0.9-10.0.0.1",
                "invalid IP range \"10.0.0.9-10.0.0.1\": start IP \"10.0.0.9\" is after the end IP \"10.0.0.1\"",
            ),
        ] {
            assert_eq!(item.parse::<AddressRange>().unwrap_err().to_string(), words);
        }
        assert!("10.0.0.1-fd00::1".parse::<AddressRange>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_iterated_is_contained(a: u32, length in 0u32..300) {
            let last = a.saturating_add(length);
            let text = format!("{}-{}", Ipv4Addr::from_bits(a), Ipv4Addr::from_bits(last));
            let range: AddressRange = text.parse().unwrap();
            prop_assert_eq!(range.size(), range.iter().count() as u128);
            prop_assert!(range.iter().all(|address| range.contains(address)));
            prop_assert_eq!(range.to_string().parse::<AddressRange>().unwrap(), range);
            prop_assert!(range.overlaps(range));
        }
    }
}
