//! How an announcer is set up.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// UDP port of the heartbeats; MetalLB's speakers use the same one for theirs.
pub const DEFAULT_HEARTBEAT_PORT: u16 = 7946;
/// Time between two heartbeats to a peer.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(200);
/// Silence after which a peer is dead: three heartbeats may be lost, and clients still wait less than a second.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(700);

/// Links that are never announced on unless asked for by name: those of container runtimes, virtual machines and other
/// network systems (MetalLB's default list), and svcnet's own.
pub const DEFAULT_EXCLUDED: [&str; 15] = [
    "svcnet*",
    "docker*",
    "cbr*",
    "dummy*",
    "virbr*",
    "lxc*",
    "veth*",
    "cali*",
    "tunl*",
    "flannel*",
    "kube-ipvs*",
    "cni*",
    "podman*",
    "nodelocaldns*",
    "cilium*",
];

/// How an announcer is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's addresses; heartbeats leave from, and arrive at, the first one. None: those of its Node object.
    pub node_ips: Vec<IpAddr>,
    /// UDP port of the heartbeats, the same on all nodes.
    pub heartbeat_port: u16,
    /// Time between two heartbeats to a peer.
    pub interval: Duration,
    /// Silence after which a peer is dead.
    pub timeout: Duration,
    /// Announce on these links only. Empty: on all that can carry announcements.
    pub interfaces: Vec<LinkPattern>,
    /// Never announce on these links.
    pub excluded_interfaces: Vec<LinkPattern>,
    /// Announce Services with this `loadBalancerClass` instead of those with none.
    pub load_balancer_class: Option<String>,
    /// Ask the network whether an address is in use before claiming it.
    pub probe: bool,
    /// What heartbeats are authenticated with; the same on all nodes. Empty: they must come from an address of the node
    /// that they name, which keeps out who is not on the segment. Who is could answer ARP requests as well.
    pub key: Vec<u8>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_ips: Vec::new(),
            heartbeat_port: DEFAULT_HEARTBEAT_PORT,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_TIMEOUT,
            interfaces: Vec::new(),
            excluded_interfaces: DEFAULT_EXCLUDED.map(|p| LinkPattern(p.to_string())).into(),
            load_balancer_class: None,
            probe: true,
            key: Vec::new(),
        }
    }
}

/// A link's name, or the beginning of one followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPattern(String);

/// A pattern that no link's name can match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a link, nor the beginning of one followed by '*'")]
pub struct PatternError(String);

impl LinkPattern {
    /// Whether the pattern is for this link.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }
}

impl FromStr for LinkPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_suffix('*').unwrap_or(text);
        // 15 bytes: IFNAMSIZ without its terminator.
        let right = !text.is_empty() && name.len() <= 15 && !name.contains(['*', '/', ' ']);
        if right {
            Ok(Self(text.to_string()))
        } else {
            Err(PatternError(text.to_string()))
        }
    }
}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_beginnings() {
        let pattern = |text: &str| text.parse::<LinkPattern>().unwrap();
        assert!(pattern("eth0").matches("eth0") && !pattern("eth0").matches("eth01"));
        assert!(pattern("veth*").matches("veth12ab") && pattern("*").matches("x"));
        assert!(!pattern("veth*").matches("eth0"));
        for wrong in ["", "a*b", "et h0", "a-name-that-is-too-long"] {
            assert!(wrong.parse::<LinkPattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_exclusions_parse() {
        for text in DEFAULT_EXCLUDED {
            assert_eq!(text.parse::<LinkPattern>().unwrap().to_string(), text);
        }
        let config = Config::default();
        let excluded = |name: &str| config.excluded_interfaces.iter().any(|p| p.matches(name));
        assert!(excluded("svcnet0") && excluded("svcnet.1") && excluded("kube-ipvs0"));
        assert!(!excluded("eth0") && !excluded("br0") && !excluded("bond0"));
    }
}
