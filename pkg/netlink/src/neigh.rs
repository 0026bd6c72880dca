//! Neighbours (ARP and NDP entries) and the forwarding databases of bridges and VXLAN links.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::addr::family;
use crate::link::{Mac, mac_text};
use crate::rt::{Error, Rtnl, deleted};

/// An address on a link and the Ethernet address behind it, fixed: the kernel neither learns nor forgets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub mac: Mac,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lladdr {} dev #{}",
            self.address,
            mac_text(self.mac),
            self.link
        )
    }
}

/// Behind which tunnel endpoint an Ethernet address is: an entry of the link's own database (`self permanent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// Index of the VXLAN link.
    pub link: u32,
    /// The Ethernet address.
    pub mac: Mac,
    /// The tunnel endpoint.
    pub destination: IpAddr,
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dst {} dev #{}",
            mac_text(self.mac),
            self.destination,
            self.link
        )
    }
}

/// How far the kernel is with finding out who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// Somebody said it.
    Permanent(Mac),
    /// It was found out, of late or some time ago.
    Found(Mac),
    /// It is being asked for.
    Asking,
    /// Nobody answered.
    Failed,
    /// The link needs none.
    NotNeeded,
}

impl Resolution {
    fn of(message: &NeighbourMessage) -> Option<Self> {
        Some(match message.header.state {
            NeighbourState::Permanent => Self::Permanent(mac(message)?),
            NeighbourState::Incomplete => Self::Asking,
            NeighbourState::Failed => Self::Failed,
            NeighbourState::Noarp => Self::NotNeeded,
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe => Self::Found(mac(message)?),
            // An entry that was made and not asked for yet.
            _ => return None,
        })
    }
}

impl Neighbour {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.link;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(address_of(self.address)),
            NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()),
        ];
        message
    }

    /// The entry, if it is a permanent one.
    pub(crate) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        if message.header.state != NeighbourState::Permanent {
            return None;
        }
        let address = destination(message)?;
        Some(Self {
            link: message.header.ifindex,
            address,
            mac: mac(message)?,
        })
    }
}

impl FdbEntry {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.link;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()),
            NeighbourAttribute::Destination(address_of(self.destination)),
        ];
        message
    }

    /// The entry, if it has a tunnel endpoint.
    pub(crate) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        if message.header.family != AddressFamily::Bridge {
            return None;
        }
        let destination = destination(message)?;
        Some(Self {
            link: message.header.ifindex,
            mac: mac(message)?,
            destination,
        })
    }
}

fn address_of(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }
}

pub(crate) fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        // The message is of the bridge family, which does not say what the bytes are.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

impl Rtnl {
    /// The permanent neighbours of a link, both families.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>, Error> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(link));
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(m) => Neighbour::from_message(&m).filter(|n| n.link == link),
            _ => None,
        };
        self.dump(&RouteNetlinkMessage::GetNeighbour(message), keep)
            .map_err(|e| e.about("list neighbours of", format_args!("dev #{link}")))
    }

    /// What is known about who has an address on a link; nothing when it was not asked for of late.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn resolution(&mut self, link: u32, address: IpAddr) -> Result<Option<Resolution>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.attributes.push(NeighbourAttribute::IfIndex(link));
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(m)
                if m.header.ifindex == link && destination(&m) == Some(address) =>
            {
                Resolution::of(&m)
            }
            _ => None,
        };
        let found = self
            .dump(&RouteNetlinkMessage::GetNeighbour(message), keep)
            .map_err(|e| e.about("find neighbour", format_args!("{address} dev #{link}")))?;
        Ok(found.into_iter().next())
    }

    /// Sets a permanent neighbour.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn replace_neighbour(&mut self, neighbour: Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour.message());
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|e| e.about("set neighbour", neighbour))
    }

    /// Deletes a neighbour; that there is none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_neighbour(&mut self, neighbour: Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour.message());
        deleted(
            self.request(message, 0)
                .map_err(|e| e.about("delete neighbour", neighbour)),
        )
    }

    /// The entries of a VXLAN link's forwarding database that have a tunnel endpoint.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link;
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(m) => FdbEntry::from_message(&m).filter(|e| e.link == link),
            _ => None,
        };
        self.dump(&RouteNetlinkMessage::GetNeighbour(message), keep)
            .map_err(|e| e.about("list forwarding entries of", format_args!("dev #{link}")))
    }

    /// Sets where an Ethernet address is: whatever endpoint it had before is replaced.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses.
    pub fn replace_fdb(&mut self, entry: FdbEntry) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(entry.message());
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|e| e.about("set forwarding entry", entry))
    }

    /// Deletes a forwarding entry; that there is none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_fdb(&mut self, entry: FdbEntry) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(entry.message());
        deleted(
            self.request(message, 0)
                .map_err(|e| e.about("delete forwarding entry", entry)),
        )
    }
}
