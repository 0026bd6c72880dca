//! What the kernel should hold, as entries that policies and pods contribute. An entry stays for as long as anybody
//! contributes it, so that the whole follows from any order of changes.
//!
//! - A policy contributes its chains, and the sets that their rules ask for.
//! - A pod contributes its address to the set of each selector that means it; and if it is a pod of this node, which
//!   chain judges it in each direction in which a policy isolates it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use svcnet_netlink::nft::Family;

use crate::model::{Direction, Namespaces, ObjectKey, Peer, PodSelector, Policy, PortMatch, Protocol, Rule};
use crate::ranges::{self, Range};
use crate::view::{PodFacts, View};

/// The name of a set or chain in the kernel. Names are made of what they name: they stay over a restart.
pub type Name = Arc<str>;

/// The longest name of a chain that is spelled out. The kernel takes 255 bytes.
const NAME_LENGTH_MAX: usize = 160;

/// A set that rules look things up in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetSpec {
    /// Its name.
    pub name: Name,
    /// What is in it.
    pub content: Content,
}

/// What is in a set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// The addresses of the pods that a selector means: they come and go.
    Pods,
    /// Addresses and ports of the pods that name a port so: they come and go.
    NamedPorts,
    /// Ranges of addresses, IPv4 and IPv6.
    Blocks(Vec<Range>, Vec<Range>),
    /// Ranges of ports.
    Ports(Vec<(u16, u16)>),
}

/// An element of a set whose elements come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// The address of a pod.
    pub address: IpAddr,
    /// One of its ports, in sets of named ports.
    pub port: Option<u16>,
}

/// A chain: the rules of a policy in a direction, or the policies of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainSpec {
    /// Its name.
    pub name: Name,
    /// Its rules.
    pub rules: Vec<RuleSpec>,
}

/// A rule of such a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleSpec {
    /// Whatever another chain allows.
    Jump(Name),
    /// What is from or to these at this port.
    Accept {
        /// Which end of the connection is asked about.
        direction: Direction,
        /// Who is there.
        peer: PeerMatch,
        /// At which port.
        port: PortsMatch,
        /// The same in the words of the policy.
        words: String,
    },
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerMatch {
    /// Anybody.
    Any,
    /// Somebody whose address is in a set.
    In(Name),
}

/// Which ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortsMatch {
    /// Any of any protocol.
    Any,
    /// Any of this protocol.
    Protocol(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
    /// Those in a set.
    In(Protocol, Name),
    /// Those that the pod which is connected to names so: a set of addresses and ports.
    Named(Protocol, Name),
}

/// One thing that the kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// A set.
    Set(Arc<SetSpec>),
    /// An element of one.
    Element(Name, Element),
    /// A chain.
    Chain(Arc<ChainSpec>),
    /// An address of a pod of this node that is isolated in a direction, and the chain that says what is allowed to it;
    /// nothing is, where there is none.
    Isolated(Direction, IpAddr, Option<Name>),
}

/// The peers and port names that policies ask for: what a pod contributes depends on them.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Selectors of the pods of one namespace, by namespace.
    pub own: HashMap<String, BTreeMap<Name, Arc<PodSelector>>>,
    /// Selectors of namespaces by label.
    pub wide: BTreeMap<Name, Arc<PodSelector>>,
    /// Names of ports.
    pub ports: BTreeMap<(Protocol, String), Name>,
    counts: HashMap<Name, usize>,
}

/// What a policy makes a pod be looked at for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Whether a selector means it.
    Pods(Name, Arc<PodSelector>),
    /// Whether it names a port so.
    Port(Name, Protocol, String),
}

impl Asked {
    /// The set that answers it.
    pub fn name(&self) -> &Name {
        match self {
            Self::Pods(name, _) | Self::Port(name, ..) => name,
        }
    }
}

impl InUse {
    /// Somebody asks. Whether nobody did before.
    pub fn add(&mut self, asked: &Asked) -> bool {
        let count = self.counts.entry(asked.name().clone()).or_default();
        *count += 1;
        if *count > 1 {
            return false;
        }
        match asked {
            Asked::Pods(name, selector) => match &selector.namespaces {
                Namespaces::Own(namespace) => {
                    let of = self.own.entry(namespace.clone()).or_default();
                    of.insert(name.clone(), Arc::clone(selector));
                }
                Namespaces::Labelled(_) => _ = self.wide.insert(name.clone(), Arc::clone(selector)),
            },
            Asked::Port(name, protocol, port) => {
                self.ports.insert((*protocol, port.clone()), name.clone());
            }
        }
        true
    }

    /// Somebody asks no more. Whether nobody does now.
    pub fn remove(&mut self, asked: &Asked) -> bool {
        match self.counts.get_mut(asked.name()) {
            Some(count) if *count > 1 => {
                *count -= 1;
                return false;
            }
            Some(_) => _ = self.counts.remove(asked.name()),
            None => return false,
        }
        match asked {
            Asked::Pods(name, selector) => match &selector.namespaces {
                Namespaces::Own(namespace) => {
                    if let Some(of) = self.own.get_mut(namespace) {
                        of.remove(name);
                        if of.is_empty() {
                            self.own.remove(namespace);
                        }
                    }
                }
                Namespaces::Labelled(_) => _ = self.wide.remove(name),
            },
            Asked::Port(_, protocol, port) => _ = self.ports.remove(&(*protocol, port.clone())),
        }
        true
    }
}

/// What all policies ask, from scratch.
pub fn in_use(view: &View) -> InUse {
    let mut in_use = InUse::default();
    for policy in view.policies.values() {
        for asked in asked(policy) {
            in_use.add(&asked);
        }
    }
    in_use
}

/// What a policy asks, each once.
pub fn asked(policy: &Policy) -> Vec<Asked> {
    let mut all = BTreeMap::new();
    let rules = Direction::BOTH
        .into_iter()
        .filter_map(|d| policy.rules(d))
        .flatten();
    for rule in rules {
        for peer in rule.peers.iter().flatten() {
            if let Peer::Pods(selector) = peer {
                let name = selector_name(selector);
                all.insert(name.clone(), Asked::Pods(name, Arc::new(selector.clone())));
            }
        }
        for port in rule.ports.iter().flatten() {
            if let PortMatch::Named(text) = &port.at {
                let name = port_name(port.protocol, text);
                all.insert(name.clone(), Asked::Port(name, port.protocol, text.clone()));
            }
        }
    }
    all.into_values().collect()
}

/// Everything, from scratch.
pub fn desired(view: &View, families: &[Family]) -> BTreeSet<Entry> {
    let in_use = in_use(view);
    let policies = view
        .policies
        .iter()
        .flat_map(|(key, policy)| policy_entries(key, policy));
    let pods = view
        .pods
        .iter()
        .flat_map(|(key, pod)| pod_entries(view, &in_use, key, pod));
    let ours = |entry: &Entry| match entry {
        Entry::Element(_, Element { address, .. }) | Entry::Isolated(_, address, _) => {
            families.contains(&Family::of(*address))
        }
        Entry::Set(_) | Entry::Chain(_) => true,
    };
    policies.chain(pods).filter(ours).collect()
}

/// What a policy contributes.
pub fn policy_entries(key: &ObjectKey, policy: &Policy) -> Vec<Entry> {
    let mut entries = BTreeSet::new();
    for asked in asked(policy) {
        let content = match asked {
            Asked::Pods(..) => Content::Pods,
            Asked::Port(..) => Content::NamedPorts,
        };
        let name = asked.name().clone();
        entries.insert(Entry::Set(Arc::new(SetSpec { name, content })));
    }
    for direction in Direction::BOTH {
        let Some(rules) = policy.rules(direction) else {
            continue;
        };
        let mut specs = Vec::new();
        for rule in rules {
            rule_specs(direction, rule, &mut specs, &mut entries);
        }
        specs.dedup();
        entries.insert(Entry::Chain(Arc::new(ChainSpec {
            name: chain_name(direction, key),
            rules: specs,
        })));
    }
    entries.into_iter().collect()
}

/// The kernel's rules for one of a policy's: one for each peer and kind of port, blocks and numbers being sets.
fn rule_specs(direction: Direction, rule: &Rule, specs: &mut Vec<RuleSpec>, entries: &mut BTreeSet<Entry>) {
    let peers = peer_matches(direction, rule, entries);
    let ports = port_matches(rule, entries);
    for (peer, who) in &peers {
        for (port, at) in &ports {
            specs.push(RuleSpec::Accept {
                direction,
                peer: peer.clone(),
                port: port.clone(),
                words: format!("{who}{at}"),
            });
        }
    }
}

fn peer_matches(
    direction: Direction,
    rule: &Rule,
    entries: &mut BTreeSet<Entry>,
) -> Vec<(PeerMatch, String)> {
    let word = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let Some(peers) = &rule.peers else {
        return vec![(PeerMatch::Any, format!("{word} anybody"))];
    };
    let (mut matches, mut blocks) = (Vec::new(), Vec::new());
    for peer in peers {
        match peer {
            Peer::Pods(selector) => {
                matches.push((
                    PeerMatch::In(selector_name(selector)),
                    format!("{word} {selector}"),
                ));
            }
            Peer::Block(block) => blocks.push(block),
        }
    }
    if !blocks.is_empty() {
        let (v4, v6) = (
            ranges::union(Family::Ip, &blocks),
            ranges::union(Family::Ip6, &blocks),
        );
        let name = hashed("blocks", &format!("{v4:?} {v6:?}"));
        let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        matches.push((
            PeerMatch::In(name.clone()),
            format!("{word} {}", texts.join(" or ")),
        ));
        let content = Content::Blocks(v4, v6);
        entries.insert(Entry::Set(Arc::new(SetSpec { name, content })));
    }
    matches
}

fn port_matches(rule: &Rule, entries: &mut BTreeSet<Entry>) -> Vec<(PortsMatch, String)> {
    let Some(ports) = &rule.ports else {
        return vec![(PortsMatch::Any, String::new())];
    };
    let mut matches = Vec::new();
    for protocol in Protocol::ALL {
        let of_protocol = || ports.iter().filter(|port| port.protocol == protocol);
        if of_protocol().any(|port| port.at == PortMatch::Any) {
            matches.push((PortsMatch::Protocol(protocol), format!(", {protocol}")));
            continue;
        }
        let mut numbers: Vec<Range> = of_protocol()
            .filter_map(|port| match port.at {
                PortMatch::Range(first, last) => Some((u128::from(first), u128::from(last))),
                _ => None,
            })
            .collect();
        ranges::merge(&mut numbers);
        let numbers: Vec<(u16, u16)> = numbers
            .into_iter()
            .filter_map(|(first, last)| Some((u16::try_from(first).ok()?, u16::try_from(last).ok()?)))
            .collect();
        match numbers.as_slice() {
            [] => {}
            [(first, last)] => {
                let words = format!(", {protocol} {}", spell(*first, *last));
                matches.push((PortsMatch::Range(protocol, *first, *last), words));
            }
            many => {
                let texts: Vec<String> = many.iter().map(|(first, last)| spell(*first, *last)).collect();
                let name = hashed("ports", &texts.join(","));
                matches.push((
                    PortsMatch::In(protocol, name.clone()),
                    format!(", {protocol} {}", texts.join(",")),
                ));
                let content = Content::Ports(many.to_vec());
                entries.insert(Entry::Set(Arc::new(SetSpec { name, content })));
            }
        }
        let names: BTreeSet<&String> = of_protocol()
            .filter_map(|port| match &port.at {
                PortMatch::Named(name) => Some(name),
                _ => None,
            })
            .collect();
        for name in names {
            matches.push((
                PortsMatch::Named(protocol, port_name(protocol, name)),
                format!(", {protocol} {name}"),
            ));
        }
    }
    matches
}

fn spell(first: u16, last: u16) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

/// What a pod contributes.
pub fn pod_entries(view: &View, in_use: &InUse, key: &ObjectKey, pod: &PodFacts) -> BTreeSet<Entry> {
    let mut entries = BTreeSet::new();
    if pod.addresses.is_empty() {
        return entries;
    }
    let own = in_use.own.get(&key.namespace).into_iter().flatten();
    for (name, selector) in own.chain(&in_use.wide) {
        if view.selects(selector, key, pod) {
            entries.extend(element_entries(name, pod, None));
        }
    }
    for port in &pod.ports {
        if let Some(name) = in_use.ports.get(&(port.protocol, port.name.clone())) {
            entries.extend(element_entries(name, pod, Some(port.number)));
        }
    }
    if pod.local {
        for direction in Direction::BOTH {
            isolate(view, direction, key, pod, &mut entries);
        }
    }
    entries
}

/// A pod's elements of a set.
pub fn element_entries<'a>(
    name: &'a Name,
    pod: &'a PodFacts,
    port: Option<u16>,
) -> impl Iterator<Item = Entry> + 'a {
    pod.addresses.iter().map(move |address| {
        Entry::Element(
            name.clone(),
            Element {
                address: *address,
                port,
            },
        )
    })
}

fn isolate(
    view: &View,
    direction: Direction,
    key: &ObjectKey,
    pod: &PodFacts,
    entries: &mut BTreeSet<Entry>,
) {
    let mut chains: Vec<Name> = view
        .isolating(key, pod, direction)
        .map(|(policy, _)| chain_name(direction, policy))
        .collect();
    let chain = match chains.as_slice() {
        [] => return,
        [one] => one.clone(),
        _ => {
            chains.sort();
            let name = hashed(&format!("{}-all", short(direction)), &chains.join(" "));
            let rules = chains.into_iter().map(RuleSpec::Jump).collect();
            let name_of_it = name.clone();
            entries.insert(Entry::Chain(Arc::new(ChainSpec { name, rules })));
            name_of_it
        }
    };
    let isolated = |address: &IpAddr| Entry::Isolated(direction, *address, Some(chain.clone()));
    entries.extend(pod.addresses.iter().map(isolated));
}

fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// The chain of a policy in a direction: `in/default/web`.
pub fn chain_name(direction: Direction, policy: &ObjectKey) -> Name {
    let full = format!("{}/{policy}", short(direction));
    if full.len() <= NAME_LENGTH_MAX {
        return full.into();
    }
    // Names of objects are ASCII, so that any cut is between characters.
    hashed(full.get(..NAME_LENGTH_MAX - 17).unwrap_or_default(), &full)
}

/// The set of a selector.
pub fn selector_name(selector: &PodSelector) -> Name {
    hashed("pods", &selector.to_string())
}

/// The set of a named port.
fn port_name(protocol: Protocol, name: &str) -> Name {
    format!("named-{protocol}-{name}").into()
}

/// `WHAT-` and 16 digits that follow from `of`.
fn hashed(what: &str, of: &str) -> Name {
    use fmt::Write as _;
    let digest = Sha256::digest(of.as_bytes());
    let mut name = format!("{what}-");
    for byte in digest.iter().take(8) {
        _ = write!(name, "{byte:02x}");
    }
    name.into()
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{} . {port}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "what {chain} allows"),
            Self::Accept { words, .. } => f.write_str(words),
        }
    }
}
