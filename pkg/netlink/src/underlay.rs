//! Which of this node's links carries the traffic between nodes, with which address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use regex_automata::Input;
use regex_automata::dfa::Automaton;
use regex_automata::dfa::dense::{self, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;

use crate::addr::Address;
use crate::link::Link;
use crate::route::RouteFilter;
use crate::rt::{Error, Rtnl};

/// An expression that takes more to be made ready for is no choice of a link.
const DFA_BYTES_MAX: usize = 1 << 20;

/// The link between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Index of the link.
    pub link: u32,
    /// Name of the link.
    pub name: String,
    /// This node's address there.
    pub address: IpAddr,
    /// The largest packet there.
    pub mtu: u32,
}

/// What VXLAN puts around a packet towards a node with this address, in bytes: the outer IP header (20 or 40), UDP 8,
/// VXLAN 8, the inner Ethernet header 14 (RFC 7348, section 5).
pub fn vxlan_overhead(towards: IpAddr) -> u32 {
    if towards.is_ipv4() { 50 } else { 70 }
}

impl Underlay {
    /// The largest packet of a pod: what was asked for, else what fits in here when encapsulated as VXLAN.
    pub fn pod_mtu(&self, wanted: Option<u32>) -> u32 {
        wanted.unwrap_or(self.mtu.saturating_sub(vxlan_overhead(self.address)))
    }
}

/// A link by its name or by an address that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By an address.
    Address(IpAddr),
    /// By its name.
    Name(String),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        // IFNAMSIZ, and what the kernel refuses (dev_valid_name).
        let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            return Err(format!(
                "{text:?} is neither a link's name, as in eth0, nor an address"
            ));
        }
        Ok(Self::Name(text.to_string()))
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A regular expression for names or addresses of links. It matches anywhere unless anchored.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    dfa: DFA<Vec<u32>>,
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        matches!(self.dfa.try_search_fwd(&Input::new(text)), Ok(Some(_)))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of links and addresses are ASCII as good as always, and tables of Unicode would be large.
        let built = DFA::builder()
            .configure(dense::Config::new().determinize_size_limit(Some(DFA_BYTES_MAX)))
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false))
            .build(text);
        match built {
            Ok(dfa) => Ok(Self {
                text: text.to_string(),
                dfa,
            }),
            Err(error) => {
                let mut why = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    why = error.to_string();
                    cause = error.source();
                }
                Err(format!("{text:?} is not a regular expression: {why}"))
            }
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

/// What the operator says about it. The first that is given counts, in the order of the fields; without any it is the link
/// of the default route, else the only one with an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The node's address (`--node-ip`).
    pub address: Option<IpAddr>,
    /// The first of these that is there (`--iface`).
    pub interfaces: Vec<Which>,
    /// The first link whose name or address matches (`--iface-regex`).
    pub pattern: Option<Pattern>,
    /// The link that packets to this address take (`--iface-can-reach`).
    pub reach: Option<IpAddr>,
}

impl Choice {
    /// Whether the operator says nothing.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

/// Why there is none (yet). The text names the flag, and the links that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoUnderlay {
    /// No link has the address that was asked for.
    AddressNotHere {
        /// The address.
        address: IpAddr,
        /// The links that there are.
        there: Vec<String>,
    },
    /// No link is what was asked for.
    NoSuchLink {
        /// The flag, with what it says.
        asked: String,
        /// The links that there are.
        there: Vec<String>,
    },
    /// Packets to the address leave by no link that could be meant.
    NoWay {
        /// The address.
        to: IpAddr,
        /// The links that there are.
        there: Vec<String>,
    },
    /// The link has no address that others could reach.
    NoAddress(String),
    /// Nothing was asked for, there is no default route, and not exactly one link with an address.
    Ambiguous(Vec<String>),
}

impl fmt::Display for NoUnderlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressNotHere { address, there } => {
                write!(
                    f,
                    "no link has the node's address {address} (--node-ip); there {}",
                    Are(there)
                )
            }
            Self::NoSuchLink { asked, there } => {
                write!(f, "no link is what {asked} asks for; there {}", Are(there))
            }
            Self::NoWay { to, there } => write!(
                f,
                "no route leads to {to} (--iface-can-reach) by a link to other hosts; there {}",
                Are(there)
            ),
            Self::NoAddress(name) => write!(f, "link {name} has no address"),
            Self::Ambiguous(names) if names.is_empty() => f.write_str("no link has an address"),
            Self::Ambiguous(names) => write!(
                f,
                "there is no default route to choose among {}: give the node's address (--node-ip) or its link (--iface)",
                names.join(", ")
            ),
        }
    }
}

/// The links that there are, as the end of a sentence.
struct Are<'a>(&'a [String]);

impl fmt::Display for Are<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("are none"),
            [one] => write!(f, "is {one}"),
            several => write!(f, "are {}", several.join(", ")),
        }
    }
}

/// Finds the underlay. Links named in `ours` never count.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn find(rt: &mut Rtnl, choice: &Choice, ours: &[&str]) -> Result<Result<Underlay, NoUnderlay>, Error> {
    let mut links = rt.links()?;
    links.retain(|l| !ours.contains(&l.name.as_str()));
    let addresses = rt.addresses(None)?;
    let routed = match choice.reach {
        Some(there) => rt.route_to(there)?.map(|route| route.link),
        None if choice.is_open() => {
            let mut routes = rt.routes(RouteFilter::default())?;
            routes.retain(|r| r.destination.prefix_len() == 0 && links.iter().any(|l| l.index == r.link));
            let best = routes
                .iter()
                .min_by_key(|r| (r.destination.addr().is_ipv6(), r.metric));
            best.map(|r| r.link)
        }
        None => None,
    };
    Ok(Candidates {
        links: &links,
        addresses: &addresses,
    }
    .choose(choice, routed))
}

struct Candidates<'a> {
    links: &'a [Link],
    addresses: &'a [Address],
}

impl Candidates<'_> {
    /// `routed` is the link of the route that was looked for.
    fn choose(&self, choice: &Choice, routed: Option<u32>) -> Result<Underlay, NoUnderlay> {
        if let Some(address) = choice.address {
            let there = || self.there();
            let found = self.holder(address).map(|link| underlay(link, address));
            return found.ok_or_else(|| NoUnderlay::AddressNotHere {
                address,
                there: there(),
            });
        }
        let mut asked = Vec::new();
        for which in &choice.interfaces {
            asked.push(which.to_string());
            match which {
                Which::Address(address) => {
                    if let Some(link) = self.holder(*address) {
                        return Ok(underlay(link, *address));
                    }
                }
                Which::Name(name) => {
                    if let Some(link) = self.links.iter().find(|l| l.name == *name) {
                        return self.first_of(link);
                    }
                }
            }
        }
        if let Some(pattern) = &choice.pattern {
            let usable = self.links.iter().filter(|l| !l.loopback);
            for link in usable {
                if pattern.matches(&link.name) && self.addresses_of(link).next().is_some() {
                    return self.first_of(link);
                }
                let mut matching = self
                    .addresses_of(link)
                    .filter(|a| pattern.matches(&a.to_string()));
                if let Some(address) = matching.next() {
                    return Ok(underlay(link, address));
                }
            }
        }
        let there = || self.there();
        match choice {
            Choice { reach: Some(to), .. } => {
                let link = self.links.iter().find(|l| Some(l.index) == routed && !l.loopback);
                let link = link.ok_or_else(|| NoUnderlay::NoWay {
                    to: *to,
                    there: there(),
                })?;
                // An address of the family that is to be reached with.
                let same = self.addresses_of(link).find(|a| a.is_ipv4() == to.is_ipv4());
                same.map_or_else(|| self.first_of(link), |address| Ok(underlay(link, address)))
            }
            Choice {
                pattern: Some(pattern),
                ..
            } => Err(NoUnderlay::NoSuchLink {
                asked: format!("--iface-regex {}", pattern.text),
                there: there(),
            }),
            _ if !asked.is_empty() => Err(NoUnderlay::NoSuchLink {
                asked: format!("--iface {}", asked.join(",")),
                there: there(),
            }),
            _ => self.choose_freely(routed),
        }
    }

    /// The link of the default route, else the only one there is.
    fn choose_freely(&self, routed: Option<u32>) -> Result<Underlay, NoUnderlay> {
        if let Some(link) = self.links.iter().find(|l| Some(l.index) == routed) {
            return self.first_of(link);
        }
        let up = self.links.iter().filter(|l| l.up && !l.loopback);
        let candidates: Vec<_> = up.filter_map(|l| self.first_of(l).ok()).collect();
        match <[Underlay; 1]>::try_from(candidates) {
            Ok([only]) => Ok(only),
            Err(several) => Err(NoUnderlay::Ambiguous(
                several.into_iter().map(|u| u.name).collect(),
            )),
        }
    }

    fn holder(&self, address: IpAddr) -> Option<&Link> {
        let holder = self.addresses.iter().find(|a| a.net.addr() == address)?;
        self.links.iter().find(|l| l.index == holder.link)
    }

    /// Addresses of the link that others could reach, IPv4 first.
    fn addresses_of(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let of_link = self.addresses.iter().filter(move |a| a.link == link.index);
        let mut usable: Vec<IpAddr> = of_link
            .map(|a| a.net.addr())
            .filter(|a| is_reachable(*a))
            .collect();
        usable.sort_by_key(IpAddr::is_ipv6);
        usable.into_iter()
    }

    fn first_of(&self, link: &Link) -> Result<Underlay, NoUnderlay> {
        let first = self.addresses_of(link).next();
        let first = first.ok_or_else(|| NoUnderlay::NoAddress(link.name.clone()))?;
        Ok(underlay(link, first))
    }

    /// What there is to choose from, for the operator.
    fn there(&self) -> Vec<String> {
        let usable = self.links.iter().filter(|l| !l.loopback);
        usable
            .map(|link| {
                let addresses: Vec<String> = self.addresses_of(link).map(|a| a.to_string()).collect();
                if addresses.is_empty() {
                    format!("{} (no address)", link.name)
                } else {
                    format!("{} ({})", link.name, addresses.join(", "))
                }
            })
            .collect()
    }
}

fn underlay(link: &Link, address: IpAddr) -> Underlay {
    Underlay {
        link: link.index,
        name: link.name.clone(),
        address,
        mtu: link.mtu,
    }
}

/// Whether other nodes could send to the address.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Kind;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            lower_up: true,
            loopback: index == 1,
            no_arp: false,
            master: None,
            lower: None,
            peer_netns: None,
            kind: Kind::Device,
            port: None,
        }
    }

    /// What is chosen among `eth0` and `eth1`, when the route that is looked for leads over `routed`.
    fn pick(choice: &Choice, routed: Option<u32>) -> Result<(u32, String), String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1")];
        let address = |link, net: &str| Address {
            link,
            net: net.parse().unwrap(),
        };
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "fe80::1/64"),
            address(2, "fd00::2/64"),
            address(2, "172.30.0.11/24"),
            address(3, "192.168.1.5/24"),
        ];
        let all = Candidates {
            links: &links,
            addresses: &addresses,
        };
        let found = all.choose(choice, routed);
        found
            .map(|u| (u.link, u.address.to_string()))
            .map_err(|e| e.to_string())
    }

    fn eth0() -> Result<(u32, String), String> {
        Ok((2, "172.30.0.11".to_string()))
    }

    fn eth1() -> Result<(u32, String), String> {
        Ok((3, "192.168.1.5".to_string()))
    }

    #[test]
    fn an_address_then_the_default_route() {
        let by_address = |text: &str| Choice {
            address: Some(text.parse().unwrap()),
            ..Choice::default()
        };
        assert_eq!(pick(&by_address("192.168.1.5"), Some(2)), eth1());
        let absent = pick(&by_address("10.0.0.1"), None).unwrap_err();
        assert!(
            absent.starts_with("no link has the node's address 10.0.0.1 (--node-ip)"),
            "{absent}"
        );
        assert_eq!(pick(&Choice::default(), Some(3)), eth1());
        let none = pick(&Choice::default(), None).unwrap_err();
        assert!(
            none.contains("choose among eth0, eth1") && none.contains("--iface"),
            "{none}"
        );
        let only = [link(1, "lo"), link(2, "eth0")];
        let address = Address {
            link: 2,
            net: "172.30.0.11/24".parse().unwrap(),
        };
        let all = Candidates {
            links: &only,
            addresses: &[address],
        };
        assert_eq!(all.choose(&Choice::default(), None).unwrap().name, "eth0");
    }

    #[test]
    fn the_first_interface_that_is_there() {
        let by_interface = |text: &str| Choice {
            interfaces: text.split(',').map(|part| part.parse().unwrap()).collect(),
            ..Choice::default()
        };
        assert_eq!(pick(&by_interface("eth0"), None), eth0());
        assert_eq!(pick(&by_interface("wlan0,192.168.1.5,eth0"), None), eth1());
        assert_eq!(pick(&by_interface("fd00::2"), None), Ok((2, "fd00::2".into())));
        assert_eq!(
            pick(&by_interface("wlan0,10.1.1.1"), None).unwrap_err(),
            "no link is what --iface wlan0,10.1.1.1 asks for; there are eth0 (172.30.0.11, fd00::2), eth1 (192.168.1.5)"
        );
    }

    #[test]
    fn an_expression_or_what_leads_somewhere() {
        let by_pattern = |text: &str| Choice {
            pattern: Some(text.parse().unwrap()),
            ..Choice::default()
        };
        assert_eq!(pick(&by_pattern("^eth[1-9]$"), None), eth1());
        assert_eq!(pick(&by_pattern(r"^192\.168\."), None), eth1());
        assert_eq!(pick(&by_pattern(r"th\d"), None), eth0());
        let none = pick(&by_pattern("^th"), None).unwrap_err();
        assert!(
            none.starts_with("no link is what --iface-regex ^th asks for"),
            "{none}"
        );
        let by_reach = Choice {
            reach: Some("192.168.7.1".parse().unwrap()),
            ..Choice::default()
        };
        assert_eq!(pick(&by_reach, Some(3)), eth1());
        let none = pick(&by_reach, Some(1)).unwrap_err();
        assert!(none.starts_with("no route leads to 192.168.7.1"), "{none}");
    }

    #[test]
    fn what_is_no_link_and_no_expression_is_refused() {
        assert!(
            "a b"
                .parse::<Which>()
                .unwrap_err()
                .contains("neither a link's name")
        );
        assert!("much-too-long-for-a-link".parse::<Which>().is_err());
        let error = "eth(".parse::<Pattern>().unwrap_err();
        assert!(
            error.contains("is not a regular expression") && error.contains("unclosed group"),
            "{error}"
        );
    }
}
