//! Which addresses this node would announce, if it were alone. Who of several candidates does is the election's
//! business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use svcnet_netlink::packet::Mac;

use crate::view::{Configuration, Key, Labels, Node, Service, View};

/// What the API wants of this node, and who its peers are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Every LoadBalancer address there is.
    pub(crate) addresses: BTreeMap<IpAddr, Address>,
    /// The other nodes, with their addresses in order.
    pub(crate) peers: BTreeMap<Box<str>, Vec<IpAddr>>,
    /// This node's addresses, as its Node object gives them.
    pub(crate) own: Vec<IpAddr>,
}

/// A LoadBalancer address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The Services that have it.
    pub(crate) services: Vec<Target>,
    /// On which links this node may announce it, or why it may not.
    pub(crate) verdict: Result<Links, NotAnnounced>,
}

/// A Service that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) key: Key,
    pub(crate) uid: Box<str>,
}

/// Links to announce on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Links {
    /// All that can carry announcements.
    All,
    /// Those of these names.
    Named(BTreeSet<String>),
}

/// Why this node does not announce an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAnnounced {
    /// This node has no Node object.
    NodeUnknown,
    /// This node is labelled `node.kubernetes.io/exclude-from-external-load-balancers`.
    Excluded,
    /// The Service's `loadBalancerClass` is another implementation's.
    OtherClass,
    /// No Service has the address (any more).
    NoService,
    /// No pool holds the address.
    NoPool,
    /// No L2Advertisement speaks of its pool.
    NoAdvertisement,
    /// The advertisements select other nodes.
    NodeSelector,
    /// No endpoint of the Service is ready anywhere.
    NoReadyEndpoint,
    /// `externalTrafficPolicy` is Local and no ready endpoint is on this node.
    LocalPolicyNoLocalEndpoint,
    /// No link can carry the announcement: all that are meant are down, excluded, or cannot.
    NoLink,
    /// This node has just started, or its links have just come back: it listens for its peers first.
    Settling,
    /// Another node announces it.
    LostElection {
        /// That node.
        owner: String,
    },
    /// About to: nobody else may have it, which is being asked.
    Probing,
    /// Another host answers for it.
    AddressInUse {
        /// The host's link address.
        mac: Mac,
        /// Its node, if it is one.
        node: Option<String>,
    },
}

impl Desired {
    /// From what is known. `class` is the `loadBalancerClass` to serve.
    pub(crate) fn new(view: &View, class: Option<&str>) -> Self {
        let coverage = Coverage::new(view);
        let mut addresses: BTreeMap<IpAddr, Address> = BTreeMap::new();
        for (key, service) in &view.services {
            for &address in &service.addresses {
                let verdict = verdict(view, &coverage, class, key, service, address);
                let target = Target {
                    key: key.clone(),
                    uid: service.uid.clone(),
                };
                let entry = addresses.entry(address).or_insert_with(|| Address {
                    services: Vec::new(),
                    verdict: verdict.clone(),
                });
                // A shared address is announced if any of its Services can be served from here.
                if entry.verdict.is_err() && verdict.is_ok() {
                    entry.verdict = verdict;
                }
                entry.services.push(target);
            }
        }
        let own = view.nodes.get(&Key::new("", &view.me));
        let peers = view.nodes.iter().filter(|(key, _)| key.name != view.me);
        Self {
            addresses,
            peers: peers
                .map(|(k, n)| (k.name.clone(), n.addresses.clone()))
                .collect(),
            own: own.map(|n| n.addresses.clone()).unwrap_or_default(),
        }
    }
}

fn verdict(
    view: &View,
    coverage: &Coverage<'_>,
    class: Option<&str>,
    key: &Key,
    service: &Service,
    address: IpAddr,
) -> Result<Links, NotAnnounced> {
    let labels = view.labels.as_ref().ok_or(NotAnnounced::NodeUnknown)?;
    if service.class.as_deref() != class {
        return Err(NotAnnounced::OtherClass);
    }
    if Node::is_excluded(labels) {
        return Err(NotAnnounced::Excluded);
    }
    let links = coverage.links(labels, address)?;
    let reach = view.reach(key, address);
    match (reach.anywhere, reach.here) {
        (false, _) => Err(NotAnnounced::NoReadyEndpoint),
        (true, false) if service.local => Err(NotAnnounced::LocalPolicyNoLocalEndpoint),
        _ => Ok(links),
    }
}

/// The pools, each with the advertisements that speak of it.
struct Coverage<'a> {
    pools: Vec<(&'a crate::view::Pool, Vec<&'a crate::view::Advertisement>)>,
}

impl<'a> Coverage<'a> {
    fn new(view: &'a View) -> Self {
        let of = |configuration: &'a Configuration| {
            configuration.pools.iter().map(|(key, pool)| {
                let here = configuration
                    .advertisements
                    .iter()
                    .filter(|(k, a)| k.namespace == key.namespace && a.covers(&key.name, pool));
                (pool, here.map(|(_, a)| a).collect())
            })
        };
        Self {
            pools: view.configurations.iter().flat_map(of).collect(),
        }
    }

    fn links(&self, labels: &Labels, address: IpAddr) -> Result<Links, NotAnnounced> {
        let holding = |(pool, _): &&(&crate::view::Pool, _)| pool.ranges.iter().any(|r| r.contains(address));
        let mut pools = self.pools.iter().filter(holding).peekable();
        pools.peek().ok_or(NotAnnounced::NoPool)?;
        let mut advertisements = pools.flat_map(|(_, list)| list).peekable();
        advertisements.peek().ok_or(NotAnnounced::NoAdvertisement)?;
        let mut here = advertisements.filter(|a| a.takes(labels)).peekable();
        here.peek().ok_or(NotAnnounced::NodeSelector)?;
        let mut names = BTreeSet::new();
        for advertisement in here {
            if advertisement.interfaces.is_empty() {
                return Ok(Links::All);
            }
            names.extend(advertisement.interfaces.iter().cloned());
        }
        Ok(Links::Named(names))
    }
}

impl Links {
    /// Whether the link of this name is meant.
    pub(crate) fn take(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(name),
        }
    }
}

impl NotAnnounced {
    /// Every reason's short name, for metrics.
    pub const NAMES: [&'static str; 14] = [
        "node_unknown",
        "excluded",
        "other_class",
        "no_service",
        "no_pool",
        "no_advertisement",
        "node_selector",
        "no_ready_endpoint",
        "no_local_endpoint",
        "no_link",
        "settling",
        "lost_election",
        "probing",
        "address_in_use",
    ];

    /// Its short name, one of [`NAMES`](Self::NAMES).
    pub fn name(&self) -> &'static str {
        let [
            node,
            excluded,
            class,
            service,
            pool,
            advertisement,
            selector,
            ready,
            local,
            link,
            settling,
            lost,
            probing,
            in_use,
        ] = Self::NAMES;
        match self {
            Self::NodeUnknown => node,
            Self::Excluded => excluded,
            Self::OtherClass => class,
            Self::NoService => service,
            Self::NoPool => pool,
            Self::NoAdvertisement => advertisement,
            Self::NodeSelector => selector,
            Self::NoReadyEndpoint => ready,
            Self::LocalPolicyNoLocalEndpoint => local,
            Self::NoLink => link,
            Self::Settling => settling,
            Self::LostElection { .. } => lost,
            Self::Probing => probing,
            Self::AddressInUse { .. } => in_use,
        }
    }
}

impl fmt::Display for NotAnnounced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NodeUnknown => "this node has no Node object",
            Self::Excluded => "this node is excluded from external load balancers by its label",
            Self::OtherClass => "its loadBalancerClass is not ours",
            Self::NoService => "no Service has it",
            Self::NoPool => "no IPAddressPool holds it",
            Self::NoAdvertisement => "no L2Advertisement speaks of its pool",
            Self::NodeSelector => "its L2Advertisements select other nodes",
            Self::NoReadyEndpoint => "its Service has no ready endpoint",
            Self::LocalPolicyNoLocalEndpoint => {
                "externalTrafficPolicy is Local and this node has no ready endpoint"
            }
            Self::NoLink => "no link can carry the announcement",
            Self::Settling => "this node listens for its peers first",
            Self::LostElection { owner } => return write!(f, "node {owner} announces it"),
            Self::Probing => "asking whether the address is in use",
            Self::AddressInUse { mac, node } => {
                let mac = svcnet_api::types::MacAddr::new(*mac);
                return match node {
                    Some(node) => write!(f, "node {node} ({mac}) still answers for it"),
                    None => write!(f, "{mac}, which is no node of the cluster, answers for it"),
                };
            }
        };
        f.write_str(text)
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
