//! What a name of the zone stands for, whatever is asked of it (Kubernetes DNS specification 1.1.0, section 2).

use std::net::IpAddr;

use super::facts::{Kind, Protocol};
use super::{PodEntry, ServiceEntry, Zone};
use crate::name::{Labels, Name};
use crate::zone::table::Entry;

/// Labels below the apex that any name of the schema has at most: `_port._protocol.service.namespace.svc`.
const DEPTH: usize = 5;

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Node<'z> {
    /// The zone itself.
    Apex,
    /// `ns.dns`
    Server,
    /// `dns-version`
    Version,
    /// A name that only holds other names: no records of its own.
    Between,
    /// A Service with addresses of its own or of its endpoints.
    Service(&'z ServiceEntry),
    /// A Service that stands for another name.
    Alias(&'z Name),
    /// One endpoint, or several of one name; a pod's address.
    Addresses(Vec<IpAddr>),
    /// A named port of a Service.
    Port(&'z ServiceEntry, &'z str, Protocol),
}

/// Why a name does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The schema has no such name.
    NotInSchema,
    /// There is no such namespace.
    Namespace,
    /// The namespace has no such Service.
    Service,
    /// A headless Service without a ready endpoint.
    NoReadyEndpoint,
    /// No ready endpoint has that name.
    Endpoint,
    /// The Service has no port of that name and protocol.
    Port,
    /// No pod of the namespace has that address.
    Pod,
    /// Below an ExternalName Service there is nothing.
    BelowAlias,
    /// A Service whose `externalName` is no name.
    BrokenAlias,
}

impl Zone {
    /// Looks a name up; `None` when it is none of the zone's.
    pub(super) fn find(&self, name: &[u8]) -> Option<Result<Node<'_>, Missing>> {
        let apex = self.apex().wire();
        let below = name
            .len()
            .checked_sub(apex.len())
            .filter(|&at| &name[at..] == apex)?;
        let mut labels: [&[u8]; DEPTH + 1] = [&[]; DEPTH + 1];
        let mut count = 0;
        let mut at = 0;
        while at < below {
            let end = at + 1 + usize::from(name[at]);
            if count <= DEPTH {
                labels[count] = name.get(at + 1..end)?;
            }
            count += 1;
            at = end;
        }
        if at != below {
            // The bytes of the apex stood inside a label.
            return None;
        }
        if count > DEPTH {
            return Some(Err(Missing::NotInSchema));
        }
        Some(match labels[..count] {
            [] => Ok(Node::Apex),
            [.., b"svc"] => self.find_service(name, &labels[..count - 1]),
            [.., b"pod"] => self.find_pod(&labels[..count - 1]),
            [b"ns", b"dns"] => Ok(Node::Server),
            [b"dns"] => Ok(Node::Between),
            [b"dns-version"] => Ok(Node::Version),
            _ => Err(Missing::NotInSchema),
        })
    }

    fn find_service(&self, name: &[u8], labels: &[&[u8]]) -> Result<Node<'_>, Missing> {
        // How many labels stand before the Service's own.
        let before = match labels {
            [] => return Ok(Node::Between),
            [namespace] => return self.find_namespace(namespace),
            _ => labels.len() - 2,
        };
        let start: usize = labels[..before].iter().map(|label| label.len() + 1).sum();
        let length: usize = labels[before..].iter().map(|label| label.len() + 1).sum();
        let key = name.get(start..start + length).unwrap_or_default();
        let Some(entry) = self.services.get(key) else {
            let namespace = labels.last().copied().unwrap_or_default();
            return Err(self.find_namespace(namespace).err().unwrap_or(Missing::Service));
        };
        match (&entry.facts.kind, &labels[..before]) {
            (Kind::Unusable, _) => Err(Missing::BrokenAlias),
            (Kind::ExternalName(target), []) => Ok(Node::Alias(target)),
            (Kind::ExternalName(_), _) => Err(Missing::BelowAlias),
            (Kind::Headless, []) if entry.v4.is_empty() && entry.v6.is_empty() => {
                Err(Missing::NoReadyEndpoint)
            }
            (_, []) => Ok(Node::Service(entry)),
            (_, [label]) if label.starts_with(b"_") => entry.find_protocol(label),
            (_, [label]) => entry.find_endpoint(label),
            (_, [port, protocol]) => entry.find_port(port, protocol),
            _ => Err(Missing::NotInSchema),
        }
    }

    fn find_pod(&self, labels: &[&[u8]]) -> Result<Node<'_>, Missing> {
        match labels {
            [] => Ok(Node::Between),
            [namespace] => self.find_namespace(namespace),
            [address, namespace] => {
                if !self.settings.pods {
                    return Err(Missing::NotInSchema);
                }
                self.find_namespace(namespace)?;
                let address = parse_dashed(address).ok_or(Missing::Pod)?;
                let key = namespace_key(namespace).ok_or(Missing::Namespace)?;
                match self.pods.get(PodEntry::new(&key, address).key()) {
                    Some(_) => Ok(Node::Addresses(vec![address])),
                    None => Err(Missing::Pod),
                }
            }
            _ => Err(Missing::NotInSchema),
        }
    }

    fn find_namespace(&self, label: &[u8]) -> Result<Node<'_>, Missing> {
        let mut wire = [0; 64];
        let known = wire.get_mut(..=label.len()).is_some_and(|wire| {
            wire[0] = label.len() as u8;
            wire[1..].copy_from_slice(label);
            self.namespaces.get(wire).is_some()
        });
        if known {
            Ok(Node::Between)
        } else {
            Err(Missing::Namespace)
        }
    }

    /// The address that a name below `in-addr.arpa` or `ip6.arpa` means.
    pub(super) fn reverse_address(name: &[u8]) -> Option<IpAddr> {
        const V4: &[u8] = b"\x07in-addr\x04arpa\x00";
        const V6: &[u8] = b"\x03ip6\x04arpa\x00";
        if let Some(rest) = name.strip_suffix(V4) {
            let mut octets = [0_u8; 4];
            let mut labels = Labels::new(rest);
            for octet in octets.iter_mut().rev() {
                let text = std::str::from_utf8(labels.next()?).ok()?;
                *octet = text
                    .parse()
                    .ok()
                    .filter(|_| text == "0" || !text.starts_with(['0', '+']))?;
            }
            return labels.next().is_none().then(|| octets.into());
        }
        let rest = name.strip_suffix(V6)?;
        let mut bytes = [0_u8; 16];
        let mut labels = Labels::new(rest);
        for nibble in (0..32).rev() {
            let [digit] = labels.next()? else { return None };
            let value = char::from(*digit).to_digit(16)? as u8;
            bytes[nibble / 2] |= value << (4 * (1 - nibble % 2));
        }
        labels.next().is_none().then(|| bytes.into())
    }
}

impl ServiceEntry {
    /// `_tcp.SERVICE`: there is something below it or there is not.
    fn find_protocol(&self, label: &[u8]) -> Result<Node<'_>, Missing> {
        let protocol = Protocol::from_label(label).ok_or(Missing::Port)?;
        let below = self
            .ports()
            .any(|port| port.protocol == protocol && !port.name.is_empty());
        if below {
            Ok(Node::Between)
        } else {
            Err(Missing::Port)
        }
    }

    fn find_port(&self, port: &[u8], protocol: &[u8]) -> Result<Node<'_>, Missing> {
        let name = port
            .strip_prefix(b"_")
            .filter(|name| !name.is_empty())
            .ok_or(Missing::NotInSchema)?;
        let protocol = Protocol::from_label(protocol).ok_or(Missing::NotInSchema)?;
        let found = self
            .ports()
            .find(|p| p.protocol == protocol && p.name.as_bytes() == name);
        found
            .map(|p| Node::Port(self, &p.name, protocol))
            .ok_or(Missing::Port)
    }

    fn find_endpoint(&self, label: &[u8]) -> Result<Node<'_>, Missing> {
        let dashed = parse_dashed(label);
        let named = self.published().filter(|(endpoint, _)| match &endpoint.hostname {
            Some(hostname) => hostname.as_bytes() == label,
            None => Some(endpoint.address) == dashed,
        });
        let mut addresses: Vec<IpAddr> = named.map(|(endpoint, _)| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            Err(Missing::Endpoint)
        } else {
            Ok(Node::Addresses(addresses))
        }
    }

    /// The ports that have names here: the Service's own, or where it is headless, those of its ready endpoints.
    fn ports(&self) -> impl Iterator<Item = &super::Port> {
        let headless = matches!(self.facts.kind, Kind::Headless);
        let own = if headless { &[] } else { &*self.facts.ports };
        let of_endpoints = self.published().flat_map(|(_, ports)| ports);
        own.iter().chain(of_endpoints.filter(move |_| headless))
    }
}

fn namespace_key(label: &[u8]) -> Option<super::Key> {
    super::Key::namespace(std::str::from_utf8(label).ok()?)
}

/// `172-0-0-2` and `2001-db8--1`: an address that is a label.
fn parse_dashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let v4 = text.replace('-', ".").parse().ok().map(IpAddr::V4);
    v4.or_else(|| text.replace('-', ":").parse().ok().map(IpAddr::V6))
}
