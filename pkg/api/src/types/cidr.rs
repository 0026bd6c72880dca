//! Address ranges: for services, for the cluster's pods, for one node's pods.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::ParseError;

/// The pods of one node: host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PodCidr(IpNet);

/// The addresses that ClusterIPs come from: host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceCidr(IpNet);

macro_rules! cidr {
    ($name:ident, $wanted:literal) => {
        impl $name {
            /// The network.
            pub fn net(self) -> IpNet {
                self.0
            }

            /// Whether the address is one of the range.
            pub fn contains(self, address: IpAddr) -> bool {
                self.0.contains(&address)
            }
        }

        impl TryFrom<IpNet> for $name {
            type Error = ParseError;

            fn try_from(net: IpNet) -> Result<Self, ParseError> {
                if net.trunc() == net {
                    Ok(Self(net))
                } else {
                    Err(ParseError::new(net, $wanted))
                }
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let net: IpNet = text
                    .trim()
                    .parse()
                    .map_err(|_| ParseError::new(text, $wanted))?;
                Self::try_from(net).map_err(|_| ParseError {
                    value: text.to_string(),
                    wanted: format!(
                        "a network: host bits are set (did you mean {}?)",
                        net.trunc()
                    ),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

cidr!(PodCidr, "a network like 10.244.1.0/24");
cidr!(ServiceCidr, "a network like 10.96.0.0/12");

/// The host of a network with this number, counted from 1 and alike in both families; none beyond the network. (The
/// first of [`IpNet::hosts`] is the network's own address for IPv6.)
pub fn nth_host(net: IpNet, number: u32) -> Option<IpAddr> {
    let address: IpAddr = match net.network() {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_add(number)
            .map(|bits| IpAddr::V4(bits.into()))?,
        IpAddr::V6(a) => a
            .to_bits()
            .checked_add(number.into())
            .map(|bits| IpAddr::V6(bits.into()))?,
    };
    net.contains(&address).then_some(address)
}

impl PodCidr {
    /// The address of the bridge that the node's pods hang on, their gateway: the first host of the range.
    pub fn gateway(self) -> IpAddr {
        match self.0.network() {
            IpAddr::V4(a) => IpAddr::V4(u32::from(a).saturating_add(1).into()),
            IpAddr::V6(a) => IpAddr::V6(u128::from(a).saturating_add(1).into()),
        }
    }

    /// The address from which the node's relays connect to pods of other nodes: the last of the range, which no pod ever
    /// has. None in a range too small for that.
    pub fn relay(self) -> Option<IpAddr> {
        let last = self.0.broadcast();
        (last != self.0.network() && last != self.gateway()).then_some(last)
    }
}

/// One network, or two of different families separated by a comma (dual stack); the first is the primary one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrList {
    primary: IpNet,
    secondary: Option<IpNet>,
}

impl CidrList {
    /// The network that single-stack objects use.
    pub fn primary(&self) -> IpNet {
        self.primary
    }

    /// Both networks, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        [Some(self.primary), self.secondary].into_iter().flatten()
    }

    /// Whether any of the networks holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|net| net.contains(&address))
    }

    /// The network of the address family, if there is one.
    pub fn of_family(&self, v6: bool) -> Option<IpNet> {
        self.iter().find(|net| matches!(net, IpNet::V6(_)) == v6)
    }

    /// The first pair of networks, one of each list, that share addresses.
    pub fn overlap(&self, other: &Self) -> Option<(IpNet, IpNet)> {
        self.iter().find_map(|a| {
            other
                .iter()
                .find(|b| a.contains(b) || b.contains(&a))
                .map(|b| (a, b))
        })
    }
}

impl FromStr for CidrList {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut nets = text
            .split(',')
            .map(|part| part.parse::<PodCidr>().map(PodCidr::net));
        let primary = nets
            .next()
            .ok_or_else(|| ParseError::new(text, "a network like 10.244.0.0/16"))??;
        let secondary = nets.next().transpose()?;
        let same_family =
            secondary.is_some_and(|s| matches!(s, IpNet::V6(_)) == matches!(primary, IpNet::V6(_)));
        if same_family || nets.next().is_some() {
            return Err(ParseError::new(
                text,
                "one network, or one IPv4 and one IPv6 network",
            ));
        }
        Ok(Self { primary, secondary })
    }
}

impl fmt::Display for CidrList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.primary.fmt(f)?;
        self.secondary.map_or(Ok(()), |net| write!(f, ",{net}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_a_hint() {
        let error = "10.244.1.7/24".parse::<PodCidr>().unwrap_err();
        assert!(
            error.to_string().contains("did you mean 10.244.1.0/24?"),
            "{error}"
        );
    }

    #[test]
    fn hosts_are_counted_alike_in_both_families() {
        let nth = |net: &str, number| nth_host(net.parse().unwrap(), number).map(|host| host.to_string());
        assert_eq!(nth("10.96.0.0/12", 10).as_deref(), Some("10.96.0.10"));
        assert_eq!(nth("fd00:10:96::/112", 10).as_deref(), Some("fd00:10:96::a"));
        assert_eq!(nth("fd00:10:96::/112", 1).as_deref(), Some("fd00:10:96::1"));
        assert_eq!(nth("10.96.0.0/30", 4), None);
    }

    #[test]
    fn relays_have_the_last_address() {
        let relay = |net: &str| net.parse::<PodCidr>().unwrap().relay().map(|ip| ip.to_string());
        assert_eq!(relay("10.244.1.0/24").as_deref(), Some("10.244.1.255"));
        assert_eq!(
            relay("fd00:10:244:1::/64").as_deref(),
            Some("fd00:10:244:1:ffff:ffff:ffff:ffff")
        );
        assert_eq!(relay("10.244.1.0/31"), None);
        assert_eq!(relay("10.244.1.0/32"), None);
    }

    #[test]
    fn lists_hold_one_network_of_a_family() {
        let list: CidrList = "10.96.0.0/12,fd00:96::/108".parse().unwrap();
        assert_eq!(list.iter().count(), 2);
        assert!("10.96.0.0/12,10.244.0.0/16".parse::<CidrList>().is_err());
        let pods: CidrList = "10.100.0.0/16".parse().unwrap();
        assert!(list.overlap(&pods).is_some());
    }
}
