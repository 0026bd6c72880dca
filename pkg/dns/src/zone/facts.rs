//! What matters here about Services, EndpointSlices and Pods, and nothing else: a cluster has 100,000 of them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use svcnet_api::types::legacy;
use svcnet_api::wellknown::{ANNOTATION_ALIASES, LABEL_SERVICE_NAME};

use crate::name::{Name, push_label};

/// The part of a name that says which Service (`name.namespace`) or namespace: labels in wire format, without an end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The key of a Service, or `None` for names that are no labels (which the API does not let in).
    pub fn service(namespace: &str, name: &str) -> Option<Self> {
        Self::of([name, namespace])
    }

    /// The key of a namespace.
    pub fn namespace(namespace: &str) -> Option<Self> {
        Self::of([namespace])
    }

    fn of<const N: usize>(labels: [&str; N]) -> Option<Self> {
        let mut wire = Vec::with_capacity(labels.iter().map(|l| l.len() + 1).sum());
        for label in labels {
            push_label(&mut wire, label.as_bytes()).ok()?;
        }
        Some(Self(wire.into()))
    }

    /// The labels in wire format.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The namespace of a Service's key.
    pub(crate) fn parent(&self) -> Self {
        let first = usize::from(self.0.first().copied().unwrap_or_default()) + 1;
        Self(self.0.get(first..).unwrap_or_default().into())
    }
}

/// The transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `_tcp`
    Tcp,
    /// `_udp`
    Udp,
    /// `_sctp`
    Sctp,
}

impl Protocol {
    /// From a field of the API, where an absent one means TCP.
    fn from_field(field: Option<&str>) -> Self {
        match field {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    /// From the label of a question, `_tcp`.
    pub(crate) fn from_label(label: &[u8]) -> Option<Self> {
        match label {
            b"_tcp" => Some(Self::Tcp),
            b"_udp" => Some(Self::Udp),
            b"_sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, lower case; empty where it has none.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Its own addresses.
    ClusterIp(Box<[IpAddr]>),
    /// Its endpoints' addresses.
    Headless,
    /// Another name.
    ExternalName(Name),
    /// Nothing yet: an `externalName` that is no name.
    Unusable,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    /// What its name stands for.
    pub kind: Kind,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// Whether endpoints count that are not ready.
    pub publish_not_ready: bool,
}

impl ServiceFacts {
    /// Reads a Service.
    pub fn read(service: &Service) -> Self {
        let Some(spec) = &service.spec else {
            return Self {
                kind: Kind::ClusterIp([].into()),
                ports: [].into(),
                publish_not_ready: false,
            };
        };
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().unwrap_or_default().parse();
            target.map_or(Kind::Unusable, Kind::ExternalName)
        } else {
            let listed = spec.cluster_ips.as_deref().unwrap_or_default();
            let texts = if listed.is_empty() {
                spec.cluster_ip.as_slice()
            } else {
                listed
            };
            if texts.iter().any(|text| text == "None") {
                Kind::Headless
            } else {
                Kind::ClusterIp(texts.iter().filter_map(|text| legacy::address(text)).collect())
            }
        };
        let ports =
            spec.ports.iter().flatten().filter_map(|port| {
                read_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
            });
        Self {
            kind,
            ports: ports.collect(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        }
    }
}

/// One address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// Its name within the Service, lower case, if it was given one.
    pub hostname: Option<Box<str>>,
    /// Whether it takes connections; unknown counts as yes.
    pub ready: bool,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFacts {
    /// Its addresses.
    pub endpoints: Box<[Endpoint]>,
    /// The ports that all of them have.
    pub ports: Box<[Port]>,
}

impl SliceFacts {
    /// Reads an EndpointSlice, with the Service that it belongs to; `None` if it belongs to none or holds no addresses
    /// but names.
    pub fn read(slice: &EndpointSlice) -> Option<(Key, Self)> {
        let service = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
        let key = Key::service(slice.metadata.namespace.as_deref()?, service)?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let hostname = endpoint
                .hostname
                .as_deref()
                .filter(|h| !h.is_empty() && h.len() <= 63);
            let hostname = hostname.map(|h| Box::from(h.to_ascii_lowercase()));
            let addresses = endpoint.addresses.iter().filter_map(|text| legacy::address(text));
            addresses.map(move |address| Endpoint {
                address,
                hostname: hostname.clone(),
                ready,
            })
        });
        let ports = slice.ports.iter().flatten();
        let ports = ports.filter_map(|p| read_port(p.name.as_deref(), p.protocol.as_deref(), p.port));
        Some((
            key,
            Self {
                endpoints: endpoints.collect(),
                ports: ports.collect(),
            },
        ))
    }
}

/// The addresses that a Pod has while it runs: a finished one has given them back.
pub(super) fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> = listed
        .chain(status.pod_ip.as_deref())
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The further names that a Pod has in its namespace (CNI's capability `aliases`). What is no label can be nobody's name.
pub(super) fn pod_aliases(pod: &Pod) -> Box<[Key]> {
    let annotations = pod.metadata.annotations.as_ref();
    let (Some(list), Some(namespace)) = (
        annotations.and_then(|a| a.get(ANNOTATION_ALIASES)),
        pod.metadata.namespace.as_deref(),
    ) else {
        return [].into();
    };
    let names = list.split(',').map(|name| name.trim().to_ascii_lowercase());
    let labels = names.filter(|name| !name.is_empty() && !name.contains('.'));
    let mut keys: Vec<Key> = labels.filter_map(|name| Key::service(namespace, &name)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into()
}

fn read_port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase().into(),
        protocol: Protocol::from_field(protocol),
        number: u16::try_from(number?).ok()?,
    })
}
