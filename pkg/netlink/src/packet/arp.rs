//! ARP for IPv4 over Ethernet.

use std::net::Ipv4Addr;

use super::{BROADCAST, ETHERNET_LENGTH, Mac, bytes};

/// Bytes of a frame: Ethernet header and ARP packet. Drivers pad it to Ethernet's minimum.
pub const FRAME_LENGTH: usize = ETHERNET_LENGTH + 28;

const ETHERTYPE: u16 = 0x0806;
/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0x00, 0x01, 0x08, 0x00, 6, 4];
const NO_MAC: Mac = [0; 6];

/// What an ARP packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Ethernet destination. The source is always the sender's.
    pub destination: Mac,
    /// What it does.
    pub operation: Operation,
    /// Link address of the sender.
    pub sender_mac: Mac,
    /// Address of the sender: what the packet claims. Unspecified in a probe, which claims nothing.
    pub sender: Ipv4Addr,
    /// Link address of the target, zero in requests.
    pub target_mac: Mac,
    /// Address that is asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Asks whether anybody has the address without claiming it, so that no cache learns from the question (RFC 5227,
    /// section 2.1.1).
    pub fn probe(address: Ipv4Addr, mac: Mac) -> Self {
        Self {
            destination: BROADCAST,
            operation: Operation::Request,
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: NO_MAC,
            target: address,
        }
    }

    /// Tells everybody who has the address. Some hosts learn from requests only, some from replies only: send both.
    pub fn gratuitous(operation: Operation, address: Ipv4Addr, mac: Mac) -> Self {
        Self {
            destination: BROADCAST,
            operation,
            sender_mac: mac,
            sender: address,
            target_mac: if operation == Operation::Reply {
                BROADCAST
            } else {
                NO_MAC
            },
            target: address,
        }
    }

    /// The answer to this request.
    pub fn answer(&self, mac: Mac) -> Self {
        Self {
            destination: self.sender_mac,
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Reads a frame. `None` for whatever is no ARP for IPv4 over Ethernet.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        if bytes(frame, 12)? != ETHERTYPE.to_be_bytes() || bytes(frame, 14)? != ETHERNET_IPV4 {
            return None;
        }
        let operation = match u16::from_be_bytes(bytes(frame, 20)?) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            destination: bytes(frame, 0)?,
            operation,
            sender_mac: bytes(frame, 22)?,
            sender: Ipv4Addr::from(bytes::<4>(frame, 28)?),
            target_mac: bytes(frame, 32)?,
            target: Ipv4Addr::from(bytes::<4>(frame, 38)?),
        })
    }

    /// The frame's bytes.
    pub fn encode(&self) -> [u8; FRAME_LENGTH] {
        let operation: u16 = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let mut frame = [0; FRAME_LENGTH];
        let mut rest = frame.as_mut_slice();
        for part in [
            self.destination.as_slice(),
            &self.sender_mac,
            &ETHERTYPE.to_be_bytes(),
            &ETHERNET_IPV4,
            &operation.to_be_bytes(),
            &self.sender_mac,
            &self.sender.octets(),
            &self.target_mac,
            &self.target.octets(),
        ] {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn the_bytes_are_those_of_rfc_826() {
        let frame = Arp::probe(Ipv4Addr::new(10, 0, 0, 7), MAC).encode();
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
            0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn an_answer_goes_to_who_asked() {
        let asker = [2, 0, 0, 0, 0, 9];
        let request = Arp {
            sender: Ipv4Addr::new(10, 0, 0, 1),
            ..Arp::probe(Ipv4Addr::new(10, 0, 0, 7), asker)
        };
        let answer = request.answer(MAC);
        assert_eq!((answer.destination, answer.target_mac), (asker, asker));
        assert_eq!((answer.sender, answer.sender_mac), (request.target, MAC));
        assert_eq!(answer.target, request.sender);
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire_and_noise_does_not_panic(
            sender: u32, target: u32, reply: bool, sender_mac: Mac, target_mac: Mac, destination: Mac,
            noise in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..FRAME_LENGTH,
        ) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let arp = Arp {
                destination, operation, sender_mac, target_mac,
                sender: sender.into(), target: target.into(),
            };
            prop_assert_eq!(Arp::parse(&arp.encode()), Some(arp));
            prop_assert_eq!(Arp::parse(&arp.encode()[..cut]), None);
            _ = Arp::parse(&noise);
        }
    }
}
