//! Labs and their members: names, namespaces, addresses.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The layer-2 segment that all members share.
pub const SEGMENT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 24);
/// The same in a dual-stack lab, for IPv6.
pub const SEGMENT_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0), 64);
/// The lab that commands mean when `--name` is not given.
pub const DEFAULT_LAB: &str = "lab";
/// Nodes of a lab, at most: their addresses end below the client's.
pub const NODES_MAX: u8 = 80;

const CLIENT_HOST: u8 = 100;
const NODE_HOST_BASE: u8 = 10;

/// A name that a lab or a member can not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a lab's name.
    #[error("{0:?} is not a name for a lab: 1 to 20 of a-z, 0-9 and '-', beginning with a letter")]
    Lab(String),
    /// Not a member.
    #[error(
        "{0:?} is not a member of a lab: n1, n2, …, client, lan, or the name of a pod (a-z, 0-9 and '-')"
    )]
    Member(String),
    /// Not a node.
    #[error("{0:?} is not a node of a lab: n1 to n{NODES_MAX}")]
    Node(String),
    /// A pod's name that is a node's, the client's or the segment's.
    #[error("a pod can not be called {0:?}: that is another member's name")]
    Taken(String),
    /// Too few or too many nodes.
    #[error("a lab has 1 to {NODES_MAX} nodes, not {0}")]
    Count(u32),
}

/// Name of a lab: the first part of its namespaces' names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabName(String);

impl LabName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of a member's network namespace.
    pub fn netns(&self, member: &Member) -> String {
        format!("{}-{member}", self.0)
    }
}

impl FromStr for LabName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let right = (1..=20).contains(&text.len()) && is_label(text) && text.starts_with(char::is_alphabetic);
        if right {
            Ok(Self(text.to_string()))
        } else {
            Err(NameError::Lab(text.to_string()))
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which address families a lab's segment and cluster have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stack {
    /// IPv4.
    #[default]
    Single,
    /// IPv4 and IPv6, IPv4 being the primary one.
    Dual,
}

impl Stack {
    /// A member's addresses on the segment, each with the segment's prefix length; none for who has no cable.
    pub fn segment_addresses(self, member: &Member) -> Vec<IpNet> {
        let Some(v4) = member.segment_address() else {
            return Vec::new();
        };
        let [.., number] = v4.octets();
        let v4 = Ipv4Net::new(v4, SEGMENT.prefix_len()).ok().map(IpNet::V4);
        let v6 = Ipv6Net::new(host_v6(number), SEGMENT_V6.prefix_len()).ok();
        let v6 = v6.filter(|_| self == Self::Dual).map(IpNet::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// A node's addresses as `--node-ip` takes them.
    pub fn node_ips(self, node: NodeId) -> String {
        let addresses = self.segment_addresses(&Member::Node(node));
        let texts: Vec<String> = addresses.iter().map(|net| net.addr().to_string()).collect();
        texts.join(",")
    }
}

/// A node, counted from 1. The server runs on the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u8);

impl NodeId {
    /// The node with the server.
    pub const SERVER: Self = Self(1);

    /// The first `count` nodes.
    ///
    /// # Errors
    /// When a lab can not have that many.
    pub fn first(count: u32) -> Result<Vec<Self>, NameError> {
        match u8::try_from(count) {
            Ok(count) if (1..=NODES_MAX).contains(&count) => Ok((1..=count).map(Self).collect()),
            _ => Err(NameError::Count(count)),
        }
    }

    /// Its address on the segment: n1 is .11.
    pub fn address(self) -> Ipv4Addr {
        host(NODE_HOST_BASE + self.0)
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let number = text
            .strip_prefix('n')
            .filter(|digits| !digits.starts_with(['0', '+']));
        match number.and_then(|digits| digits.parse().ok()) {
            Some(number) if (1..=NODES_MAX).contains(&number) => Ok(Self(number)),
            _ => Err(NameError::Node(text.to_string())),
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Name of a pod of a lab: one of its kind in the whole lab, whatever its namespace in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName(String);

impl PodName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse()? {
            Member::Pod(name) => Ok(name),
            _ => Err(NameError::Taken(text.to_string())),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a command of `lab exec` can run: each is a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// A node of the cluster.
    Node(NodeId),
    /// A host on the segment, outside the cluster.
    Client,
    /// The segment itself: the bridge that all cables end in.
    Lan,
    /// A pod.
    Pod(PodName),
}

impl Member {
    /// Its address on the segment, if it has a cable.
    pub fn segment_address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Node(node) => Some(node.address()),
            Self::Client => Some(host(CLIENT_HOST)),
            Self::Lan | Self::Pod(_) => None,
        }
    }
}

impl FromStr for Member {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "client" {
            return Ok(Self::Client);
        }
        if text == "lan" {
            return Ok(Self::Lan);
        }
        if let Ok(node) = text.parse() {
            return Ok(Self::Node(node));
        }
        // n0 or n999 would read like a node: more likely a mistake than a pod.
        let like_a_node = text
            .strip_prefix('n')
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()));
        if like_a_node {
            return Err(NameError::Node(text.to_string()));
        }
        if (1..=63).contains(&text.len()) && is_label(text) {
            Ok(Self::Pod(PodName(text.to_string())))
        } else {
            Err(NameError::Member(text.to_string()))
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Client => f.write_str("client"),
            Self::Lan => f.write_str("lan"),
            Self::Pod(name) => name.fmt(f),
        }
    }
}

/// Serde through the text form, so that what is read from a file is checked as what is typed.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(LabName, NodeId, PodName, Member);

fn host(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = SEGMENT.network().octets();
    Ipv4Addr::new(a, b, c, number)
}

/// The digits are those of the IPv4 address, so that both can be read alike: n1 is .11 and ::11.
fn host_v6(number: u8) -> Ipv6Addr {
    let digits = [number / 100, number / 10 % 10, number % 10];
    let as_hex = digits
        .iter()
        .fold(0, |value, digit| value << 4 | u128::from(*digit));
    Ipv6Addr::from_bits(SEGMENT_V6.network().to_bits() | as_hex)
}

/// A DNS label (RFC 1123), but for the length.
fn is_label(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_contract() {
        let nodes = NodeId::first(3).unwrap();
        assert_eq!(nodes[0].address(), Ipv4Addr::new(172, 30, 0, 11));
        assert_eq!(nodes[1].address(), Ipv4Addr::new(172, 30, 0, 12));
        assert_eq!(
            Member::Client.segment_address(),
            Some(Ipv4Addr::new(172, 30, 0, 100))
        );
        let lab: LabName = "lab".parse().unwrap();
        assert_eq!(lab.netns(&"n2".parse().unwrap()), "lab-n2");
        assert_eq!(lab.netns(&"web1".parse().unwrap()), "lab-web1");
    }

    #[test]
    fn a_dual_stack_lab_has_addresses_of_both_families() {
        let client: Vec<String> = Stack::Dual
            .segment_addresses(&Member::Client)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(client, ["172.30.0.100/24", "fd00:172:30::100/64"]);
        let n80: NodeId = "n80".parse().unwrap();
        assert_eq!(Stack::Dual.node_ips(n80), "172.30.0.90,fd00:172:30::90");
        assert_eq!(Stack::Single.node_ips(NodeId::SERVER), "172.30.0.11");
        assert!(Stack::Dual.segment_addresses(&Member::Lan).is_empty());
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "-a", "a-", "A", "a/b", "1lab", "a.b", &"a".repeat(21)] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?}");
        }
        for bad in ["", "n0", "n01", "n81", "n999", "Web", "a_b", &"a".repeat(64)] {
            assert!(bad.parse::<Member>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "client".parse::<PodName>(),
            Err(NameError::Taken("client".to_string()))
        );
        assert_eq!("n3".parse::<PodName>(), Err(NameError::Taken("n3".to_string())));
        assert_eq!("nginx".parse::<PodName>().unwrap().as_str(), "nginx");
        for count in [0, 81, 300] {
            assert!(NodeId::first(count).is_err(), "{count}");
        }
    }

    proptest! {
        #[test]
        fn members_print_as_they_parse(text in "[a-z][a-z0-9]{0,8}|n[1-9]|client|lan") {
            if let Ok(member) = text.parse::<Member>() {
                prop_assert_eq!(member.to_string(), text);
            }
        }

        #[test]
        fn no_two_nodes_share_an_address_or_take_the_clients(a in 1u32..=80, b in 1u32..=80) {
            let nodes = NodeId::first(80).unwrap();
            let (a, b) = (nodes[a as usize - 1], nodes[b as usize - 1]);
            prop_assert_eq!(a.address() == b.address(), a == b);
            prop_assert_ne!(Some(a.address()), Member::Client.segment_address());
            prop_assert!(SEGMENT.contains(&a.address()));
        }
    }
}
