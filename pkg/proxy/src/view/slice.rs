//! What a proxy needs of an EndpointSlice, and of the Node that it runs on.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use svcnet_api::types::legacy;
use svcnet_api::wellknown::{LABEL_SERVICE_NAME, LABEL_ZONE};

use super::Name;
use crate::model::Protocol;

/// Label of the slices of headless Services (`v1.IsHeadlessService`).
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it is going away but still answers (KEP-1669).
    pub serving_terminating: bool,
    /// Whom it is for, by node.
    pub for_nodes: NodeHint,
    /// The zones that it is for; none where there is no hint.
    pub for_zones: Box<[Name]>,
    /// The zone that it is in.
    pub zone: Option<Name>,
    /// The node that it is on.
    pub node: Option<Name>,
    /// The pod that it is.
    pub pod: Option<Box<str>>,
}

/// What `hints.forNodes` of an endpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeHint {
    /// Nothing.
    None,
    /// This node is among them.
    Here,
    /// Others.
    Elsewhere,
}

/// What a proxy needs to know of the node that it is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<Box<str>>,
    /// Its main addresses, one or two (`InternalIP`).
    pub addresses: Box<[IpAddr]>,
}

impl NodeFacts {
    /// Those of a Node object.
    pub fn new(node: &core::Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let internal = addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP");
        Self {
            zone: labels
                .and_then(|labels| labels.get(LABEL_ZONE))
                .map(|zone| zone.as_str().into()),
            addresses: internal
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        }
    }
}

/// What a proxy needs of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to.
    pub service: Name,
    /// Name, protocol and number of each port.
    pub ports: Box<[(Name, Protocol, u16)]>,
    /// Its endpoints; those that can not be used are left out.
    pub endpoints: Box<[SliceEndpoint]>,
}

impl Slice {
    /// The compact form of a slice; nothing for those of no Service or a headless one, and those of names instead of addresses.
    pub fn new(slice: &discovery::EndpointSlice, node_name: &str, names: &mut Names) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels
            .get(LABEL_SERVICE_NAME)
            .filter(|_| !labels.contains_key(LABEL_HEADLESS))?;
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        if slice.address_type == "FQDN" {
            return None;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            let name = names.shared(port.name.as_deref().unwrap_or_default());
            Some((name, protocol, number))
        });
        let ports = ports.collect();
        let endpoints = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|e| slice_endpoint(e, node_name, names));
        Some(Self {
            service: format!("{namespace}/{service}").into(),
            ports,
            endpoints: endpoints.collect(),
        })
    }
}

fn slice_endpoint(
    endpoint: &discovery::Endpoint,
    node_name: &str,
    names: &mut Names,
) -> Option<SliceEndpoint> {
    // All addresses of an endpoint are the same pod; the first is the one to use.
    let ip = legacy::address(endpoint.addresses.first()?)?;
    let conditions = endpoint.conditions.as_ref();
    // Unknown means ready (the API says so), and serving is what ready would be if it were not terminating.
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let serving_terminating = serving && terminating;
    if !ready && !serving_terminating {
        return None;
    }
    let hints = endpoint.hints.as_ref();
    let nodes = hints
        .and_then(|hints| hints.for_nodes.as_deref())
        .unwrap_or_default();
    let zones = hints
        .and_then(|hints| hints.for_zones.as_deref())
        .unwrap_or_default();
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    Some(SliceEndpoint {
        ip,
        local: endpoint.node_name.as_deref() == Some(node_name),
        ready,
        serving_terminating,
        for_nodes: match nodes {
            [] => NodeHint::None,
            nodes if nodes.iter().any(|node| node.name == node_name) => NodeHint::Here,
            _ => NodeHint::Elsewhere,
        },
        for_zones: zones.iter().map(|zone| names.shared(&zone.name)).collect(),
        zone: endpoint.zone.as_deref().map(|zone| names.shared(zone)),
        node: endpoint.node_name.as_deref().map(|node| names.shared(node)),
        pod: target.and_then(|target| target.name.as_deref()).map(Into::into),
    })
}

/// One copy of each name that many endpoints have.
#[derive(Debug, Default)]
pub struct Names(HashSet<Name>);

impl Names {
    fn shared(&mut self, name: &str) -> Name {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Name = name.into();
        self.0.insert(name.clone());
        name
    }

    /// Drops those that no endpoint has any more.
    pub(super) fn forget_unused(&mut self) {
        self.0.retain(|name| Name::strong_count(name) > 1);
    }
}
