//! Elements: one place in one set or map, and what it holds.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use svcnet_netlink::nft::{Concat, Family, Fields, ObservedElement};

use super::layout::{CLUSTER_IPS, HAIRPIN, RESTRICTED, SOURCES, stay_set};
use super::shape::{Place, Shape, index_code, index_of};
use crate::model::{FrontendKey, Protocol};

/// A list that has one element for a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// Its shape.
    Services,
    /// Its shape for clients from outside.
    External,
    /// Without endpoints.
    Refused,
    /// Sources are replaced, but pods'.
    Masquerade,
    /// Only this node's own source is replaced.
    MasqueradeOwn,
    /// Only clients from some networks are let in.
    Restricted,
    /// Clients stay so many seconds.
    Stay(u32),
}

/// A place for an element. The order groups elements of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// A frontend in a list.
    Frontend(List, FrontendKey),
    /// The endpoint of a frontend with that index.
    Endpoint(FrontendKey, u32),
    /// A local endpoint that may reach itself.
    Hairpin(IpAddr),
    /// A ClusterIP, of whatever port.
    ClusterIp(IpAddr),
    /// A network that a restricted frontend lets in.
    Source(FrontendKey, IpNet),
}

/// What an element holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value {
    /// Nothing: it is there.
    Member,
    /// A shape.
    Shape(Shape),
    /// An endpoint.
    Endpoint(SocketAddr),
}

impl FrontendKey {
    /// The maps that it belongs to.
    pub(crate) fn place(self) -> Place {
        match self {
            Self::Address { .. } => Place::Address,
            Self::NodePort { .. } => Place::NodePort,
        }
    }

    fn concat(self) -> Concat {
        let key = match self {
            Self::Address { ip, .. } => Concat::new().ip(ip),
            Self::NodePort { .. } => Concat::new(),
        };
        key.proto(self.protocol().number()).port(self.port())
    }

    fn read(fields: &mut Fields<'_>, family: Family, place: Place) -> Option<Self> {
        let ip = match place {
            Place::Address => Some(fields.ip(family == Family::Ip6)?),
            Place::NodePort => None,
        };
        let protocol = Protocol::from_number(fields.proto()?)?;
        let port = fields.port()?;
        Some(match ip {
            Some(ip) => Self::Address { ip, protocol, port },
            None => Self::NodePort {
                family,
                protocol,
                port,
            },
        })
    }
}

impl Slot {
    /// The family of its table.
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Frontend(_, key) | Self::Endpoint(key, _) | Self::Source(key, _) => key.family(),
            Self::Hairpin(ip) | Self::ClusterIp(ip) => Family::of(ip),
        }
    }

    /// Whether it is there for that frontend alone.
    pub(crate) fn is_of(self, frontend: FrontendKey) -> bool {
        match self {
            Self::Frontend(_, key) | Self::Endpoint(key, _) | Self::Source(key, _) => key == frontend,
            Self::Hairpin(_) | Self::ClusterIp(_) => false,
        }
    }

    /// Orders elements so that those of one set follow each other.
    pub(crate) fn group(self) -> (Family, u8, u32, Place) {
        let (kind, seconds, place) = match self {
            Self::Frontend(list, key) => {
                let (kind, seconds) = match list {
                    List::Services => (0, 0),
                    List::External => (1, 0),
                    List::Refused => (2, 0),
                    List::Masquerade => (3, 0),
                    List::MasqueradeOwn => (4, 0),
                    List::Restricted => (8, 0),
                    List::Stay(seconds) => (5, seconds),
                };
                (kind, seconds, key.place())
            }
            Self::Endpoint(key, _) => (6, 0, key.place()),
            Self::Hairpin(_) => (7, 0, Place::Address),
            Self::ClusterIp(_) => (9, 0, Place::Address),
            Self::Source(..) => (10, 0, Place::Address),
        };
        (self.family(), kind, seconds, place)
    }

    /// The set or map that it belongs to.
    pub(crate) fn set(self) -> std::borrow::Cow<'static, str> {
        match self {
            Self::Frontend(list, key) => list_set(list, key.place()),
            Self::Endpoint(key, _) => key.place().endpoints().into(),
            Self::Hairpin(_) => HAIRPIN.into(),
            Self::ClusterIp(_) => CLUSTER_IPS.into(),
            Self::Source(..) => SOURCES.into(),
        }
    }

    /// Its key there.
    pub(crate) fn key(self) -> Concat {
        match self {
            Self::Frontend(_, key) => key.concat(),
            Self::Endpoint(key, index) => key.concat().number(index_code(index)),
            Self::Hairpin(ip) => Concat::new().ip(ip).ip(ip),
            Self::ClusterIp(ip) => Concat::new().ip(ip),
            Self::Source(key, net) => key.concat().ip(net.network()),
        }
    }

    /// The last key of a range.
    pub(crate) fn key_end(self) -> Option<Concat> {
        match self {
            Self::Source(key, net) => Some(key.concat().ip(net.broadcast())),
            _ => None,
        }
    }
}

/// The set of a list.
pub(crate) fn list_set(list: List, place: Place) -> std::borrow::Cow<'static, str> {
    match list {
        List::Services => place.services().into(),
        List::External => place.external().into(),
        List::Refused => place.refused().into(),
        List::Masquerade => place.masquerade().into(),
        List::MasqueradeOwn => place.masquerade_own().into(),
        List::Restricted => RESTRICTED.into(),
        List::Stay(seconds) => stay_set(place, seconds).into(),
    }
}

impl Value {
    /// The bytes that a map holds for it.
    pub(crate) fn concat(self) -> Option<Concat> {
        match self {
            Self::Member => None,
            Self::Shape(shape) => Some(Concat::new().number(shape.code())),
            Self::Endpoint(at) => Some(Concat::new().ip(at.ip()).port(at.port())),
        }
    }
}

/// Reads the element of a list back.
pub(crate) fn read_list(
    list: List,
    place: Place,
    family: Family,
    element: &ObservedElement<'_>,
) -> Option<(Slot, Value)> {
    let key = FrontendKey::read(&mut Fields(element.key), family, place)?;
    let value = match element.value {
        Some(value) => Value::Shape(Shape::from_code(Fields(value).number()?)?),
        None => Value::Member,
    };
    Some((Slot::Frontend(list, key), value))
}

/// Reads an endpoint back.
pub(crate) fn read_endpoint(
    place: Place,
    family: Family,
    element: &ObservedElement<'_>,
) -> Option<(Slot, Value)> {
    let mut fields = Fields(element.key);
    let key = FrontendKey::read(&mut fields, family, place)?;
    let index = index_of(fields.number()?);
    Some((
        Slot::Endpoint(key, index),
        Value::Endpoint(read_address(element.value?, family)?),
    ))
}

/// Reads a hairpin pair back.
pub(crate) fn read_hairpin(family: Family, element: &ObservedElement<'_>) -> Option<(Slot, Value)> {
    let ip = Fields(element.key).ip(family == Family::Ip6)?;
    Some((Slot::Hairpin(ip), Value::Member))
}

/// Reads a ClusterIP back.
pub(crate) fn read_cluster_ip(family: Family, element: &ObservedElement<'_>) -> Option<(Slot, Value)> {
    let ip = Fields(element.key).ip(family == Family::Ip6)?;
    Some((Slot::ClusterIp(ip), Value::Member))
}

/// Reads a network back that a frontend lets in.
pub(crate) fn read_source(family: Family, element: &ObservedElement<'_>) -> Option<(Slot, Value)> {
    let read = |bytes| {
        let mut fields = Fields(bytes);
        let key = FrontendKey::read(&mut fields, family, Place::Address)?;
        Some((key, fields.ip(family == Family::Ip6)?))
    };
    let ((key, first), (_, last)) = (read(element.key)?, read(element.key_end.unwrap_or(element.key))?);
    let common = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    let net = IpNet::new(first, u8::try_from(common).ok()?).ok()?;
    Some((Slot::Source(key, net), Value::Member))
}

/// An address with a port, as maps hold endpoints.
pub(crate) fn read_address(bytes: &[u8], family: Family) -> Option<SocketAddr> {
    let mut fields = Fields(bytes);
    Some(SocketAddr::new(fields.ip(family == Family::Ip6)?, fields.port()?))
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.set())?;
        match self {
            Self::Frontend(_, key) => key.fmt(f),
            Self::Endpoint(key, index) => write!(f, "{key} #{index}"),
            Self::Hairpin(ip) | Self::ClusterIp(ip) => ip.fmt(f),
            Self::Source(key, net) => write!(f, "{key} from {net}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member => Ok(()),
            Self::Shape(shape) => write!(f, ": {shape}"),
            Self::Endpoint(at) => write!(f, ": {at}"),
        }
    }
}
