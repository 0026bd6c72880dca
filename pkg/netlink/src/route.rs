//! Routes of the main table.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::addr::family;
use crate::rt::{Error, Rtnl, deleted};

/// The protocol number on svcnet's routes: no registered one (`/etc/iproute2/rt_protos`), so that whoever lists or
/// cleans up knows whose they are. `ip route` prints `proto 115`.
pub const PROTOCOL_SVCNET: u8 = 115;

/// How far the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Scope {
    /// Behind a gateway, or anywhere.
    #[default]
    Universe,
    /// On the link.
    Link,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub link: u32,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The gateway counts as being on the link, whatever its address.
    pub onlink: bool,
    /// How far the destination is. IPv6 knows only [`Scope::Universe`].
    pub scope: Scope,
    /// Who made it: [`PROTOCOL_SVCNET`], or what the kernel says.
    pub protocol: u8,
    /// Lower is better. The kernel's own default is 0 for IPv4 and 1024 for IPv6.
    pub metric: u32,
    /// The largest packet, where it is not the link's.
    pub mtu: Option<u32>,
}

impl Route {
    /// A route of svcnet's to what lies directly on a link.
    pub fn on_link(destination: IpNet, link: u32) -> Self {
        Self {
            destination,
            gateway: None,
            link,
            source: None,
            onlink: false,
            scope: if matches!(destination, IpNet::V4(_)) {
                Scope::Link
            } else {
                Scope::Universe
            },
            protocol: PROTOCOL_SVCNET,
            metric: if matches!(destination, IpNet::V4(_)) {
                0
            } else {
                1024
            },
            mtu: None,
        }
    }

    /// A route of svcnet's through a gateway that is on the link whatever its address.
    pub fn via(destination: IpNet, gateway: IpAddr, link: u32) -> Self {
        Self {
            gateway: Some(gateway),
            onlink: true,
            scope: Scope::Universe,
            ..Self::on_link(destination, link)
        }
    }

    /// The same with a preferred source address.
    #[must_use]
    pub fn from_source(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.scope = if self.scope == Scope::Link {
            RouteScope::Link
        } else {
            RouteScope::Universe
        };
        message.header.kind = RouteType::Unicast;
        if self.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(RouteAddress::from(
                self.destination.network(),
            )));
        }
        attributes.push(RouteAttribute::Oif(self.link));
        attributes.extend(
            self.gateway
                .map(|g| RouteAttribute::Gateway(RouteAddress::from(g))),
        );
        attributes.extend(
            self.source
                .map(|s| RouteAttribute::PrefSource(RouteAddress::from(s))),
        );
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        let metrics = self.mtu.map(|mtu| vec![RouteMetric::Mtu(mtu)]);
        attributes.extend(metrics.map(RouteAttribute::Metrics));
        message
    }

    pub(crate) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let in_main = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Table(table) => Some(*table == u32::from(RouteHeader::RT_TABLE_MAIN)),
            _ => None,
        });
        if header.kind != RouteType::Unicast
            || !in_main.unwrap_or(header.table == RouteHeader::RT_TABLE_MAIN)
            || header.flags.contains(RouteFlags::Cloned)
        {
            return None;
        }
        let any: IpAddr = match header.address_family {
            AddressFamily::Inet => [0; 4].into(),
            AddressFamily::Inet6 => [0; 16].into(),
            _ => return None,
        };
        let mut route = Self {
            destination: IpNet::new(any, 0).ok()?,
            gateway: None,
            link: 0,
            source: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            scope: if header.scope == RouteScope::Link {
                Scope::Link
            } else {
                Scope::Universe
            },
            protocol: header.protocol.into(),
            metric: 0,
            mtu: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => {
                    route.destination = IpNet::new(address(a)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(a) => route.gateway = address(a),
                RouteAttribute::PrefSource(a) => route.source = address(a),
                RouteAttribute::Oif(link) => route.link = *link,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(route)
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.destination.fmt(f)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev #{}", self.link)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.onlink {
            f.write_str(" onlink")
        } else {
            Ok(())
        }
    }
}

/// A packet whose way is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes.
    pub destination: IpAddr,
    /// Who sends it; for one of this host, nothing lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Index of the link that it came in by; nothing for one of this host.
    pub in_link: Option<u32>,
    /// Its firewall mark, which rules may route by.
    pub mark: u32,
}

impl Packet {
    /// One that this host sends.
    pub fn to(destination: IpAddr) -> Self {
        Self {
            destination,
            source: None,
            in_link: None,
            mark: 0,
        }
    }

    /// One that comes in.
    pub fn through(source: IpAddr, in_link: u32, destination: IpAddr) -> Self {
        Self {
            source: Some(source),
            in_link: Some(in_link),
            ..Self::to(destination)
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.destination.fmt(f)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        self.in_link.map_or(Ok(()), |link| write!(f, " iif #{link}"))
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It takes this route.
    Along(Route),
    /// It is for this host itself.
    Here,
    /// There is no route for it.
    NoRoute,
    /// A route of another type swallows or refuses it (`blackhole`, `unreachable`, `prohibit`), or its source is not
    /// valid where it came in.
    Refused,
}

/// Which routes to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteFilter {
    /// Only those of a link.
    pub link: Option<u32>,
    /// Only those of a protocol, such as [`PROTOCOL_SVCNET`].
    pub protocol: Option<u8>,
}

impl Rtnl {
    /// The unicast routes of the main table, both families; those over several next hops have link 0.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>, Error> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.kind = RouteType::Unicast;
            message.header.protocol = filter.protocol.unwrap_or(0).into();
            message.attributes.extend(filter.link.map(RouteAttribute::Oif));
            let keep = |answer| match answer {
                RouteNetlinkMessage::NewRoute(m) => Route::from_message(&m),
                _ => None,
            };
            let routes = self.dump(&RouteNetlinkMessage::GetRoute(message), keep);
            found.extend(routes.map_err(|e| e.about("list routes of", "the main table"))?);
        }
        let wanted = |r: &Route| {
            filter.link.is_none_or(|l| r.link == l) && filter.protocol.is_none_or(|p| r.protocol == p)
        };
        found.retain(wanted);
        Ok(found)
    }

    /// The route that a packet to the address would take, with the source address it would carry; none when there is
    /// no route.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Option<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(destination)));
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewRoute(mut m) => {
                // The answer is the cached copy of whichever table matched.
                m.header.flags.remove(RouteFlags::Cloned);
                m.attributes.retain(|a| !matches!(a, RouteAttribute::Table(_)));
                m.header.table = RouteHeader::RT_TABLE_MAIN;
                m.header.kind = RouteType::Unicast;
                Route::from_message(&m)
            }
            _ => None,
        };
        match self.get(RouteNetlinkMessage::GetRoute(message), keep) {
            Ok(route) => Ok(route),
            Err(refusal) => {
                let error = refusal.about("find route to", destination);
                match error.source.kind() {
                    std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// What becomes of a packet: the kernel's own answer, rules and all tables included.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn way_of(&mut self, packet: Packet) -> Result<Way, Error> {
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(packet.destination);
        header.destination_prefix_length = bits(packet.destination);
        header.source_prefix_length = packet.source.map_or(0, bits);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(RouteAddress::from(
            packet.destination,
        )));
        let source = packet.source.map(RouteAddress::from);
        attributes.extend(source.map(RouteAttribute::Source));
        attributes.extend(packet.in_link.map(RouteAttribute::Iif));
        if packet.mark != 0 {
            attributes.push(RouteAttribute::Mark(packet.mark));
        }
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewRoute(mut m) => match m.header.kind {
                RouteType::Unicast => {
                    m.header.flags.remove(RouteFlags::Cloned);
                    m.attributes.retain(|a| !matches!(a, RouteAttribute::Table(_)));
                    m.header.table = RouteHeader::RT_TABLE_MAIN;
                    Route::from_message(&m).map(Way::Along)
                }
                RouteType::Local => Some(Way::Here),
                _ => Some(Way::Refused),
            },
            _ => None,
        };
        match self.get(RouteNetlinkMessage::GetRoute(message), keep) {
            Ok(way) => Ok(way.unwrap_or(Way::NoRoute)),
            Err(refusal) => {
                let error = refusal.about("find the way of a packet to", packet);
                match error.errno() {
                    // EHOSTUNREACH also is what forwarding without a route says.
                    Errno::ENETUNREACH | Errno::EHOSTUNREACH => Ok(Way::NoRoute),
                    Errno::EINVAL | Errno::EACCES | Errno::EXDEV => Ok(Way::Refused),
                    _ => Err(error),
                }
            }
        }
    }

    /// Sets a route: one to the same destination with the same metric is replaced.
    ///
    /// # Errors
    /// When the link is gone or down, or the kernel refuses.
    pub fn replace_route(&mut self, route: Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|e| e.about("set route", route))
    }

    /// Deletes a route; that there is none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_route(&mut self, route: Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRoute(route.message());
        deleted(
            self.request(message, 0)
                .map_err(|e| e.about("delete route", route)),
        )
    }
}
