//! Addresses that the host answers for without any link having them: local routes, each to one address.
//!
//! A socket can be bound to such an address (an IPv6 one only with IPV6_FREEBIND). Unlike an address of a link, a route
//! carries the mark of who made it, so that ours are told from others' even after a crash.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::addr::family;
use crate::route::PROTOCOL_SVCNET;
use crate::rt::{Error, Rtnl, deleted};

/// Index of the loopback link, in every network namespace.
pub const LOOPBACK: u32 = 1;
/// `RT_TABLE_LOCAL`
const TABLE_LOCAL: u8 = 255;

/// What an address was made local for. The marks are apart, so that nobody takes back another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalFor {
    /// Relays listen on it.
    Relays,
    /// It stands for `::1` as the source of a packet.
    Loopback,
    /// The same for host ports.
    HostPorts,
    /// The same beside IPVS, and for 127.0.0.1 too.
    LoopbackByIpvs,
    /// Relays connect from it.
    RelaySource,
}

impl LocalFor {
    fn protocol(self) -> RouteProtocol {
        RouteProtocol::from(match self {
            Self::Relays => PROTOCOL_SVCNET,
            Self::Loopback => PROTOCOL_SVCNET + 1,
            Self::HostPorts => PROTOCOL_SVCNET + 2,
            Self::LoopbackByIpvs => PROTOCOL_SVCNET + 3,
            Self::RelaySource => PROTOCOL_SVCNET + 4,
        })
    }
}

fn message(purpose: LocalFor, address: IpAddr, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.header.table = TABLE_LOCAL;
    message.header.protocol = purpose.protocol();
    message.header.scope = if address.is_ipv4() {
        RouteScope::Host
    } else {
        RouteScope::Universe
    };
    message.header.kind = RouteType::Local;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(address)),
        RouteAttribute::Oif(LOOPBACK),
    ];
    let source = source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source)));
    message.attributes.extend(source);
    message
}

/// The address that a message makes local for that purpose, if it does.
pub(crate) fn address_of(purpose: LocalFor, message: &RouteMessage) -> Option<IpAddr> {
    let header = &message.header;
    let ours = header.kind == RouteType::Local && header.protocol == purpose.protocol();
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    destination.filter(|_| ours)
}

impl Rtnl {
    /// The addresses that were made local by svcnet, for that purpose.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn local_addresses(&mut self, purpose: LocalFor) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = TABLE_LOCAL;
            message.header.kind = RouteType::Local;
            message.header.protocol = purpose.protocol();
            let keep = |answer| match answer {
                RouteNetlinkMessage::NewRoute(m) => address_of(purpose, &m),
                _ => None,
            };
            let routes = self.dump(&RouteNetlinkMessage::GetRoute(message), keep);
            found.extend(routes.map_err(|e| e.about("list routes of", "the local table"))?);
        }
        Ok(found)
    }

    /// Makes an address local. One that is local already stays as it is. What this host sends there comes from `source`, if
    /// it is given, which must be an address of the host; else from the address itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_local_address(
        &mut self,
        purpose: LocalFor,
        address: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<(), Error> {
        self.add(purpose, address, source, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes local an address that is a link's broadcast address to the kernel: what comes to it is taken as to any other
    /// address then. Ours comes first, since the kernel puts its own behind what is there (`fib_magic`), and what nobody
    /// wants behind or alone before (`fib_table_insert`).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn claim_local_address(&mut self, purpose: LocalFor, address: IpAddr) -> Result<(), Error> {
        self.add(purpose, address, None, NLM_F_CREATE)
    }

    fn add(
        &mut self,
        purpose: LocalFor,
        address: IpAddr,
        source: Option<IpAddr>,
        flags: u16,
    ) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(message(purpose, address, source));
        match self.request(message, flags) {
            Ok(()) => Ok(()),
            Err(refusal) => match refusal.about("make local the address", address) {
                error if error.is_exists() => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Takes back what [`Self::add_local_address`] did; that it is not there is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_local_address(&mut self, purpose: LocalFor, address: IpAddr) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRoute(message(purpose, address, None));
        deleted(
            self.request(message, 0)
                .map_err(|e| e.about("take back the address", address)),
        )
    }
}
