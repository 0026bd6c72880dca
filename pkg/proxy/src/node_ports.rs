//! Which addresses of a node its node ports answer on (`--nodeport-addresses`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// As `--nodeport-addresses` says it: all, or those in some networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodePortAddresses {
    all: bool,
    primary: bool,
    networks: Vec<IpNet>,
}

/// A part of the list that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not all, primary, localhost or a network as in 192.168.0.0/16")]
pub struct BadNodePortAddresses(String);

impl NodePortAddresses {
    /// The networks whose addresses answer, if it is not just all of them; `node` are the node's own main addresses.
    pub fn networks(&self, node: &[IpAddr]) -> Option<Vec<IpNet>> {
        if self.all {
            return None;
        }
        let primary = node.iter().filter(|_| self.primary).map(|ip| IpNet::from(*ip));
        let mut networks: Vec<IpNet> = self.networks.iter().copied().chain(primary).collect();
        networks.sort();
        networks.dedup();
        Some(networks)
    }

    /// Whether they do on that address, whatever the node's own are.
    pub fn answers_on(&self, address: IpAddr) -> bool {
        self.all || self.networks.iter().any(|net| net.contains(&address))
    }
}

impl TryFrom<String> for NodePortAddresses {
    type Error = BadNodePortAddresses;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodePortAddresses> for String {
    fn from(addresses: NodePortAddresses) -> Self {
        addresses.to_string()
    }
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self {
            all: true,
            primary: false,
            networks: Vec::new(),
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = BadNodePortAddresses;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut found = Self {
            all: false,
            ..Self::default()
        };
        let mut parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .peekable();
        if parts.peek().is_none() {
            return Ok(Self::default());
        }
        for part in parts {
            match part {
                "all" => found.all = true,
                "primary" => found.primary = true,
                "localhost" => {
                    let loopback = [
                        IpNet::new_assert([127, 0, 0, 0].into(), 8),
                        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST).into(),
                    ];
                    found.networks.extend(loopback);
                }
                network => {
                    let parsed: IpNet = network
                        .parse()
                        .map_err(|_| BadNodePortAddresses(network.into()))?;
                    found.networks.push(parsed.trunc());
                }
            }
        }
        Ok(found)
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all {
            return f.write_str("all");
        }
        let primary = self.primary.then(|| "primary".to_string());
        let parts: Vec<String> = primary
            .into_iter()
            .chain(self.networks.iter().map(ToString::to_string))
            .collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_which_networks() {
        let networks = |text: &str| {
            let addresses: NodePortAddresses = text.parse().unwrap();
            let networks = addresses.networks(&["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
            networks.map(|nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(networks(""), None);
        assert_eq!(networks("all"), None);
        assert_eq!(networks("10.0.0.5/8,all"), None);
        assert_eq!(networks("primary").unwrap(), "192.0.2.1/32 fd00::1/128");
        assert_eq!(networks("localhost").unwrap(), "127.0.0.0/8 ::1/128");
        assert_eq!(
            networks("10.0.0.5/8, primary ,fd00::/16").unwrap(),
            "10.0.0.0/8 192.0.2.1/32 fd00::/16 fd00::1/128"
        );
        assert_eq!(networks("10.0.0.5/8").unwrap(), "10.0.0.0/8");
        let error = "eth0".parse::<NodePortAddresses>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"eth0\" is not all, primary, localhost or a network as in 192.168.0.0/16"
        );
    }
}
