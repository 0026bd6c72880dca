//! Neighbour solicitations and advertisements of IPv6.

use std::net::Ipv6Addr;

use super::{ETHERNET_LENGTH, Mac, bytes};

const ETHERTYPE: u16 = 0x86dd;
const IPV6_LENGTH: usize = 40;
const ICMPV6: u8 = 58;
/// Type, code, checksum, flags, target address: the same for both messages.
const MESSAGE_LENGTH: usize = 24;
/// A link address option: type, length in units of 8 bytes, the address.
const OPTION_LENGTH: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Neighbour discovery is for one link: who receives it checks that no router has passed it on (RFC 4861, 7.1.1).
const HOP_LIMIT: u8 = 255;
const ICMP_AT: usize = ETHERNET_LENGTH + IPV6_LENGTH;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// Every node on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Who has the target address? From the unspecified address it is a probe that claims nothing.
    Solicitation,
    /// The sender has the target address.
    Advertisement {
        /// It answers a solicitation.
        solicited: bool,
    },
}

/// A neighbour discovery frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ndp {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// IPv6 source.
    pub source: Ipv6Addr,
    /// IPv6 destination.
    pub destination: Ipv6Addr,
    /// What it says.
    pub message: Message,
    /// The address in question.
    pub target: Ipv6Addr,
    /// The link address option, if there is one: of the source in a solicitation, of the target in an advertisement.
    pub link_address: Option<Mac>,
}

impl Ndp {
    /// Asks whether anybody has the address without claiming it (RFC 4862, section 5.4.2).
    pub fn probe(address: Ipv6Addr, mac: Mac) -> Self {
        let group = solicited_node(address);
        Self {
            source_mac: mac,
            destination_mac: multicast_mac(group),
            source: Ipv6Addr::UNSPECIFIED,
            destination: group,
            message: Message::Solicitation,
            target: address,
            link_address: None,
        }
    }

    /// Tells everybody who has the address, overriding what they knew.
    pub fn unsolicited(address: Ipv6Addr, mac: Mac) -> Self {
        Self {
            source_mac: mac,
            destination_mac: multicast_mac(ALL_NODES),
            source: address,
            destination: ALL_NODES,
            message: Message::Advertisement { solicited: false },
            target: address,
            link_address: Some(mac),
        }
    }

    /// The answer to this solicitation. A probe has no address to answer to: everybody is told (RFC 4861, 7.2.4).
    pub fn answer(&self, mac: Mac) -> Self {
        let announcement = Self::unsolicited(self.target, mac);
        if self.source.is_unspecified() {
            return announcement;
        }
        Self {
            destination_mac: self.link_address.unwrap_or(self.source_mac),
            destination: self.source,
            message: Message::Advertisement { solicited: true },
            ..announcement
        }
    }

    /// Reads a frame. `None` for whatever is no valid solicitation or advertisement.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes(bytes(frame, 18)?));
        let icmp = frame.get(ICMP_AT..ICMP_AT + length)?;
        let right = bytes(frame, 12)? == ETHERTYPE.to_be_bytes()
            && frame[14] >> 4 == 6
            && frame[20] == ICMPV6
            && frame[21] == HOP_LIMIT
            && length >= MESSAGE_LENGTH
            && icmp[1] == 0;
        let source = Ipv6Addr::from(bytes::<16>(frame, 22)?);
        let destination = Ipv6Addr::from(bytes::<16>(frame, 38)?);
        if !right || checksum(source, destination, icmp) != 0 {
            return None;
        }
        let (message, option) = match icmp[0] {
            SOLICITATION => (Message::Solicitation, 1),
            ADVERTISEMENT => {
                let solicited = icmp[4] & FLAG_SOLICITED != 0;
                (Message::Advertisement { solicited }, 2)
            }
            _ => return None,
        };
        Some(Self {
            source_mac: bytes(frame, 6)?,
            destination_mac: bytes(frame, 0)?,
            source,
            destination,
            message,
            target: Ipv6Addr::from(bytes::<16>(icmp, 8)?),
            link_address: link_address(&icmp[MESSAGE_LENGTH..], option),
        })
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, flags, option) = match self.message {
            Message::Solicitation => (SOLICITATION, 0, 1),
            Message::Advertisement { solicited: true } => (ADVERTISEMENT, FLAG_SOLICITED | FLAG_OVERRIDE, 2),
            Message::Advertisement { solicited: false } => (ADVERTISEMENT, FLAG_OVERRIDE, 2),
        };
        let mut icmp = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        icmp.extend(self.target.octets());
        if let Some(mac) = self.link_address {
            icmp.extend([option, 1]);
            icmp.extend(mac);
        }
        let sum = checksum(self.source, self.destination, &icmp).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);

        let mut frame = Vec::with_capacity(ICMP_AT + icmp.len());
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        frame.extend(ETHERTYPE.to_be_bytes());
        frame.extend([0x60, 0, 0, 0, 0]);
        // At most 32 bytes: a message and one option.
        frame.push(u8::try_from(icmp.len()).unwrap_or(u8::MAX));
        frame.extend([ICMPV6, HOP_LIMIT]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        frame.extend(icmp);
        frame
    }
}

/// The group that solicitations for an address go to: its last 24 bits under ff02::1:ff00:0 (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b)
}

/// The Ethernet address of an IPv6 group (RFC 2464, section 7).
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn link_address(mut options: &[u8], wanted: u8) -> Option<Mac> {
    loop {
        let &[kind, units, ..] = options else { return None };
        let length = usize::from(units) * OPTION_LENGTH;
        if length == 0 || length > options.len() {
            return None;
        }
        if kind == wanted {
            return bytes(options, 2);
        }
        options = &options[length..];
    }
}

/// ICMPv6's checksum with its pseudo header (RFC 8200, section 8.1); 0 over a message that holds the right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, icmp: &[u8]) -> u16 {
    let words = |data: &[u8]| -> u32 {
        data.chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
            .sum()
    };
    let length = u32::try_from(icmp.len()).unwrap_or(u32::MAX);
    let mut sum =
        words(&source.octets()) + words(&destination.octets()) + length + u32::from(ICMPV6) + words(icmp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn address() -> Ipv6Addr {
        "2001:db8::12:3456".parse().unwrap()
    }

    #[test]
    fn groups_and_their_ethernet_addresses() {
        let group = solicited_node(address());
        assert_eq!(group.to_string(), "ff02::1:ff12:3456");
        assert_eq!(multicast_mac(group), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn an_answer_goes_to_who_asked_and_a_probe_is_answered_to_all() {
        let asked = Ndp {
            source: "fe80::9".parse().unwrap(),
            link_address: Some([2, 0, 0, 0, 0, 9]),
            ..Ndp::probe(address(), [2, 0, 0, 0, 0, 8])
        };
        let answer = asked.answer(MAC);
        assert_eq!(answer.destination, asked.source);
        assert_eq!(answer.destination_mac, [2, 0, 0, 0, 0, 9]);
        assert_eq!(answer.message, Message::Advertisement { solicited: true });
        let to_probe = Ndp::probe(address(), [2, 0, 0, 0, 0, 8]).answer(MAC);
        assert_eq!(to_probe, Ndp::unsolicited(address(), MAC));
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(target: u128, asker: u128, mac: Mac, cut in 0usize..78, at in 14usize..78) {
            let probe = Ndp::probe(target.into(), mac);
            let asked = Ndp { source: asker.into(), link_address: Some(mac), ..probe };
            for ndp in [probe, asked, asked.answer(MAC), Ndp::unsolicited(target.into(), MAC)] {
                let mut frame = ndp.encode();
                prop_assert_eq!(Ndp::parse(&frame), Some(ndp));
                if cut < frame.len() {
                    prop_assert_eq!(Ndp::parse(&frame[..cut]), None);
                }
                // The checksum finds any single changed byte of the message.
                if (ICMP_AT..frame.len()).contains(&at) {
                    frame[at] ^= 0x5a;
                    prop_assert_eq!(Ndp::parse(&frame), None);
                }
            }
        }

        #[test]
        fn noise_does_not_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..120)) {
            _ = Ndp::parse(&noise);
            if noise.len() > 60 {
                noise[12] = 0x86;
                noise[13] = 0xdd;
                _ = Ndp::parse(&noise);
            }
            _ = link_address(&noise, 1);
        }
    }
}
