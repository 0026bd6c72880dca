//! Addresses of links.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::rt::{Error, Rtnl, deleted};

/// An address of a link, with the prefix that it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address and its prefix length: host bits are kept.
    pub net: IpNet,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev #{}", self.net, self.link)
    }
}

impl Address {
    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = self.link;
        message.header.prefix_len = self.net.prefix_len();
        message.header.family = family(self.net.addr());
        message.header.scope = AddressScope::Universe;
        message
            .attributes
            .push(AddressAttribute::Address(self.net.addr()));
        message.attributes.push(AddressAttribute::Local(self.net.addr()));
        if let IpNet::V4(net) = self.net
            && net.prefix_len() < 31
        {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
        if let IpNet::V6(_) = self.net {
            // Its owner is known: nothing to detect, nothing to wait for.
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        message
    }

    pub(crate) fn from_message(message: &AddressMessage) -> Option<Self> {
        let pick =
            |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        // On a point-to-point link `Address` is the peer's; `Local` is missing for IPv6.
        let local = pick(|a| {
            if let AddressAttribute::Local(ip) = a {
                Some(*ip)
            } else {
                None
            }
        });
        let address = || {
            pick(|a| {
                if let AddressAttribute::Address(ip) = a {
                    Some(*ip)
                } else {
                    None
                }
            })
        };
        let net = IpNet::new(local.or_else(address)?, message.header.prefix_len).ok()?;
        Some(Self {
            link: message.header.index,
            net,
        })
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

impl Rtnl {
    /// The addresses of a link, or of all links, both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = link.unwrap_or(0);
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewAddress(m) => Address::from_message(&m),
            _ => None,
        };
        self.dump(&RouteNetlinkMessage::GetAddress(message), keep)
            .map_err(|e| {
                e.about(
                    "list addresses of",
                    link.map_or("all links".into(), |l| format!("dev #{l}")),
                )
            })
    }

    /// Gives a link an address; that it has it already is fine.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn replace_address(&mut self, address: Address) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(address.message());
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|e| e.about("set address", address))
    }

    /// Takes an address from a link; that it does not have it is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&mut self, address: Address) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address.message());
        deleted(
            self.request(message, 0)
                .map_err(|e| e.about("delete address", address)),
        )
    }
}
