//! What the overlay knows of the cluster: each node's address and pod networks, and what passes on the way there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use svcnet_api::types::PodCidr;

/// The part of a Node that concerns the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeNet {
    /// Its InternalIP addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pod networks.
    pub pod_cidrs: Vec<PodCidr>,
}

impl NodeNet {
    /// Reads a Node; what does not parse counts as not being there.
    pub fn of(node: &Node) -> Self {
        let status = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let internal = status.filter(|a| a.type_ == "InternalIP");
        let mut pod_cidrs = Vec::new();
        if let Some(spec) = &node.spec {
            let all = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.as_ref());
            for cidr in all.filter_map(|text| text.parse::<PodCidr>().ok()) {
                if !pod_cidrs.contains(&cidr) {
                    pod_cidrs.push(cidr);
                }
            }
        }
        Self {
            addresses: internal.filter_map(|a| a.address.parse().ok()).collect(),
            pod_cidrs,
        }
    }
}

/// The nodes by name, and who claims which pod network.
#[derive(Debug, Clone)]
pub struct View {
    own_name: String,
    nodes: BTreeMap<String, NodeNet>,
    /// Networks of each ServiceCIDR.
    service_cidrs: BTreeMap<String, Vec<IpNet>>,
    claims: HashMap<PodCidr, BTreeSet<String>>,
    paths: BTreeMap<String, u32>,
}

impl View {
    /// Knows no node.
    pub fn new(own_name: impl Into<String>) -> Self {
        Self {
            own_name: own_name.into(),
            nodes: BTreeMap::new(),
            service_cidrs: BTreeMap::new(),
            claims: HashMap::new(),
            paths: BTreeMap::new(),
        }
    }

    /// Sets a ServiceCIDR's networks, none when it is gone. Whether that changes anything.
    pub fn set_service_cidr(&mut self, name: &str, nets: Vec<IpNet>) -> bool {
        if nets.is_empty() {
            return self.service_cidrs.remove(name).is_some();
        }
        self.service_cidrs.insert(name.to_string(), nets.clone()) != Some(nets)
    }

    /// Forgets the ServiceCIDRs that are not among these. Whether there were any.
    pub fn retain_service_cidrs(&mut self, names: &BTreeSet<String>) -> bool {
        let before = self.service_cidrs.len();
        self.service_cidrs.retain(|name, _| names.contains(name));
        self.service_cidrs.len() != before
    }

    /// The networks of all ServiceCIDRs, each once.
    pub fn service_nets(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flatten().copied().collect()
    }

    /// The name of this node.
    pub fn own_name(&self) -> &str {
        &self.own_name
    }

    /// This node, once it is known.
    pub fn own(&self) -> Option<&NodeNet> {
        self.nodes.get(&self.own_name)
    }

    /// The other nodes.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.nodes
            .keys()
            .map(String::as_str)
            .filter(|name| *name != self.own_name)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&NodeNet> {
        self.nodes.get(name)
    }

    /// The largest packet, in bytes, that was seen to pass to a node, if that is less than the links say.
    pub fn path(&self, name: &str) -> Option<u32> {
        self.paths.get(name).copied()
    }

    /// All of them, by node.
    pub fn paths(&self) -> impl Iterator<Item = (&str, u32)> {
        self.paths.iter().map(|(name, path)| (name.as_str(), *path))
    }

    /// Takes what was seen to pass to a node.
    pub fn set_path(&mut self, name: &str, path: Option<u32>) {
        match path {
            Some(path) => _ = self.paths.insert(name.to_string(), path),
            None => _ = self.paths.remove(name),
        }
    }

    /// The node that a pod network belongs to. Two Nodes that claim the same one are a mistake, on which all nodes
    /// must still agree: this node keeps what is its own, otherwise the first by name has it.
    pub fn owner(&self, cidr: PodCidr) -> Option<&str> {
        let claimants = self.claims.get(&cidr)?;
        claimants
            .get(&self.own_name)
            .or_else(|| claimants.first())
            .map(String::as_str)
    }

    /// The nodes whose entries may change when this one becomes `next`: itself, and those that claim what it claims
    /// or claimed. As many as there are conflicts, not as there are nodes.
    pub fn affected(&self, name: &str, next: Option<&NodeNet>) -> BTreeSet<String> {
        let claimed = self
            .nodes
            .get(name)
            .into_iter()
            .chain(next)
            .flat_map(|n| &n.pod_cidrs);
        let rivals = claimed
            .filter_map(|cidr| self.claims.get(cidr))
            .flatten()
            .cloned();
        rivals.chain([name.to_string()]).collect()
    }

    /// Takes a node's new state; `None` when it is gone.
    pub fn set(&mut self, name: &str, next: Option<NodeNet>) {
        let former = match next {
            Some(next) => {
                for cidr in &next.pod_cidrs {
                    self.claims.entry(*cidr).or_default().insert(name.to_string());
                }
                self.nodes.insert(name.to_string(), next)
            }
            None => {
                self.paths.remove(name);
                self.nodes.remove(name)
            }
        };
        let kept = self.nodes.get(name);
        for cidr in former.into_iter().flat_map(|f| f.pod_cidrs) {
            if kept.is_some_and(|k| k.pod_cidrs.contains(&cidr)) {
                continue;
            }
            if let Some(claimants) = self.claims.get_mut(&cidr) {
                claimants.remove(name);
                if claimants.is_empty() {
                    self.claims.remove(&cidr);
                }
            }
        }
    }

    /// Takes the whole list: other nodes are gone.
    pub fn reset(&mut self, nodes: impl IntoIterator<Item = (String, NodeNet)>) {
        self.nodes.clear();
        self.claims.clear();
        for (name, node) in nodes {
            self.set(&name, Some(node));
        }
        self.paths.retain(|name, _| self.nodes.contains_key(name));
    }
}
