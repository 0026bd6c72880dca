//! Elements of the sets of our tables.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_netlink::ipvs::Virtual;
use svcnet_netlink::nft::{Concat, Family, Fields, ObservedElement};

/// A set that is keyed by frontends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// All there are. It also says which virtual services are ours.
    Frontends,
    /// Without endpoints.
    Refused,
    /// With endpoints only elsewhere, for everyone.
    Dropped,
    /// With endpoints only elsewhere, for those outside.
    DroppedOutside,
    /// Sources are replaced, but pods'.
    Masquerade,
    /// Only clients from some networks are let in.
    Restricted,
}

impl List {
    pub(crate) const ALL: [Self; 6] = [
        Self::Frontends,
        Self::Refused,
        Self::Dropped,
        Self::DroppedOutside,
        Self::Masquerade,
        Self::Restricted,
    ];

    /// Name of its set.
    pub(crate) const fn set(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::DroppedOutside => "dropped-outside",
            Self::Masquerade => "masquerade-all",
            Self::Restricted => "restricted",
        }
    }
}

/// Local endpoints, each with itself.
pub(crate) const HAIRPIN: &str = "hairpin";
/// Addresses on our link.
pub(crate) const BOUND: &str = "bound";
/// The networks that restricted frontends let in.
pub(crate) const SOURCES: &str = "sources";

/// A place for an element. The order groups elements of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// A frontend in a list.
    Frontend(List, Virtual),
    /// A local endpoint that may reach itself.
    Hairpin(IpAddr),
    /// An address on our link, of whatever port.
    Bound(IpAddr),
    /// A network that a restricted frontend lets in.
    Source(Virtual, IpNet),
}

impl Slot {
    /// The family of its table.
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Frontend(_, at) | Self::Source(at, _) => Family::of(at.ip),
            Self::Hairpin(ip) | Self::Bound(ip) => Family::of(ip),
        }
    }

    /// Whether frontends share it, so that no name belongs to it.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Hairpin(_) | Self::Bound(_))
    }

    /// Its set.
    pub(crate) fn set(self) -> &'static str {
        match self {
            Self::Frontend(list, _) => list.set(),
            Self::Hairpin(_) => HAIRPIN,
            Self::Bound(_) => BOUND,
            Self::Source(..) => SOURCES,
        }
    }

    /// Its key there.
    pub(crate) fn key(self) -> Concat {
        match self {
            Self::Frontend(_, at) => concat(at),
            Self::Hairpin(ip) => Concat::new().ip(ip).ip(ip),
            Self::Bound(ip) => Concat::new().ip(ip),
            Self::Source(at, net) => concat(at).ip(net.network()),
        }
    }

    /// The last key of a range.
    pub(crate) fn key_end(self) -> Option<Concat> {
        match self {
            Self::Source(at, net) => Some(concat(at).ip(net.broadcast())),
            _ => None,
        }
    }
}

fn concat(at: Virtual) -> Concat {
    Concat::new().ip(at.ip).proto(at.protocol).port(at.port)
}

fn read_virtual(fields: &mut Fields<'_>, family: Family) -> Option<Virtual> {
    Some(Virtual {
        ip: fields.ip(family == Family::Ip6)?,
        protocol: fields.proto()?,
        port: fields.port()?,
    })
}

/// Reads an element of a list back.
pub(crate) fn read_frontend(list: List, family: Family, element: &ObservedElement<'_>) -> Option<Slot> {
    Some(Slot::Frontend(
        list,
        read_virtual(&mut Fields(element.key), family)?,
    ))
}

/// Reads a hairpin pair back.
pub(crate) fn read_hairpin(family: Family, element: &ObservedElement<'_>) -> Option<Slot> {
    Some(Slot::Hairpin(Fields(element.key).ip(family == Family::Ip6)?))
}

/// Reads an address back.
pub(crate) fn read_bound(family: Family, element: &ObservedElement<'_>) -> Option<Slot> {
    Some(Slot::Bound(Fields(element.key).ip(family == Family::Ip6)?))
}

/// Reads a network back that a frontend lets in.
pub(crate) fn read_source(family: Family, element: &ObservedElement<'_>) -> Option<Slot> {
    let read = |bytes| {
        let mut fields = Fields(bytes);
        let at = read_virtual(&mut fields, family)?;
        Some((at, fields.ip(family == Family::Ip6)?))
    };
    let ((at, first), (_, last)) = (read(element.key)?, read(element.key_end.unwrap_or(element.key))?);
    let common = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    Some(Slot::Source(
        at,
        IpNet::new(first, u8::try_from(common).ok()?).ok()?,
    ))
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.set())?;
        match self {
            Self::Frontend(_, at) => at.fmt(f),
            Self::Hairpin(ip) | Self::Bound(ip) => ip.fmt(f),
            Self::Source(at, net) => write!(f, "{at} from {net}"),
        }
    }
}
