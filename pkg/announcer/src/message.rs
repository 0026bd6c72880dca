//! What announcers say to each other, over UDP.
//!
//! A datagram is: `svca`, a version byte, a kind byte, the sender's name (length byte first), its incarnation and the
//! number of the message (8 bytes each), the body, and the first 16 bytes of an HMAC-SHA256 over all before it. Numbers
//! are big-endian. A datagram says everything anew, so any may be lost.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};
use svcnet_netlink::packet::Mac;

const MAGIC: &[u8; 4] = b"svca";
const VERSION: u8 = 1;
const KIND_BEAT: u8 = 0;
const KIND_PART: u8 = 1;
const TAG_LENGTH: usize = 16;
/// Datagrams are kept below what any link carries unfragmented: IPv6's least MTU without headers.
pub(crate) const DATAGRAM_LENGTH_MAX: usize = 1232;
/// IPv6 addresses in one part: with a family byte each they leave room for the rest of the datagram.
const PART_ADDRESSES: usize = 50;
/// Links that a beat tells of.
const MACS_MAX: usize = 64;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Name of the sender's node.
    pub(crate) node: Box<str>,
    /// Greater after each restart of the sender.
    pub(crate) incarnation: u64,
    /// Greater in each message of an incarnation.
    pub(crate) number: u64,
    pub(crate) body: Body,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Beat(Beat),
    Part(Part),
}

/// "I am alive", and what matters for elections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) phase: Phase,
    /// Version of the list of addresses that the sender is a candidate for.
    pub(crate) list: u64,
    /// Version of the receiver's list that the sender has.
    pub(crate) held: u64,
    /// Link addresses of the sender: an ARP answer from one of them comes from a node, not from a stranger.
    pub(crate) macs: Vec<Mac>,
}

/// Part of the list of addresses that the sender is a candidate for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) version: u64,
    pub(crate) index: u16,
    pub(crate) count: u16,
    pub(crate) addresses: Vec<IpAddr>,
}

/// What an announcer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It listens: not to be elected yet.
    Settling,
    /// It takes part.
    Active,
}

/// The addresses that an announcer is a candidate for. Equal lists have equal versions, whoever made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    version: u64,
    addresses: BTreeSet<IpAddr>,
}

/// Why a datagram is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("not of this protocol")]
    Foreign,
    #[error("authentication failed")]
    Tag,
    #[error("cut short or inconsistent")]
    Content,
}

impl Malformed {
    /// Its short name, for metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Tag => "authentication",
            Self::Content => "content",
        }
    }
}

impl List {
    pub(crate) fn new(addresses: BTreeSet<IpAddr>) -> Self {
        let mut digest = Sha256::new();
        for address in &addresses {
            digest.update(address_bytes(*address));
        }
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(digest.finalize());
        Self {
            version: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            addresses,
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The parts that carry it; at least one, also of an empty list.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let all: Vec<IpAddr> = self.addresses.iter().copied().collect();
        let mut chunks: Vec<Vec<IpAddr>> = all.chunks(PART_ADDRESSES).map(<[IpAddr]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        // 65,535 parts are three million addresses: more than ARP could ever announce.
        let count = u16::try_from(chunks.len()).unwrap_or(u16::MAX);
        let part = |(index, addresses)| Part {
            version: self.version,
            index,
            count,
            addresses,
        };
        (0..count).zip(chunks).map(part).collect()
    }
}

impl Message {
    /// The datagram, authenticated with the key.
    pub(crate) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(DATAGRAM_LENGTH_MAX);
        data.extend(MAGIC);
        data.push(VERSION);
        data.push(match self.body {
            Body::Beat(_) => KIND_BEAT,
            Body::Part(_) => KIND_PART,
        });
        // Names of nodes are at most 253 bytes long.
        data.push(u8::try_from(self.node.len()).unwrap_or(u8::MAX));
        data.extend(self.node.bytes().take(usize::from(u8::MAX)));
        data.extend(self.incarnation.to_be_bytes());
        data.extend(self.number.to_be_bytes());
        match &self.body {
            Body::Beat(beat) => {
                data.push(beat.phase.code());
                data.extend(beat.list.to_be_bytes());
                data.extend(beat.held.to_be_bytes());
                let macs = &beat.macs[..beat.macs.len().min(MACS_MAX)];
                data.push(u8::try_from(macs.len()).unwrap_or(u8::MAX));
                data.extend(macs.iter().flatten());
            }
            Body::Part(part) => {
                data.extend(part.version.to_be_bytes());
                data.extend(part.index.to_be_bytes());
                data.extend(part.count.to_be_bytes());
                data.push(u8::try_from(part.addresses.len()).unwrap_or(u8::MAX));
                data.extend(part.addresses.iter().flat_map(|a| address_bytes(*a)));
            }
        }
        data.extend(tag(key, &data));
        data
    }

    /// Reads a datagram that was authenticated with the key.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(data: &[u8], key: &[u8]) -> Result<Self, Malformed> {
        if !data.starts_with(MAGIC) || data.get(MAGIC.len()) != Some(&VERSION) {
            return Err(Malformed::Foreign);
        }
        let end = data.len().checked_sub(TAG_LENGTH).ok_or(Malformed::Content)?;
        let (signed, found) = data.split_at(end);
        // Compared without an early end: how long it takes does not tell how much was right.
        let differences = tag(key, signed)
            .iter()
            .zip(found)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        if differences != 0 {
            return Err(Malformed::Tag);
        }
        let mut reader = Reader(&signed[(MAGIC.len() + 1).min(signed.len())..]);
        let message = reader.message().ok_or(Malformed::Content)?;
        if reader.0.is_empty() {
            Ok(message)
        } else {
            Err(Malformed::Content)
        }
    }
}

impl Phase {
    fn code(self) -> u8 {
        match self {
            Self::Settling => 0,
            Self::Active => 1,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn message(&mut self) -> Option<Message> {
        let kind = self.byte()?;
        let length = usize::from(self.byte()?);
        let name = self.0.get(..length)?;
        let node = std::str::from_utf8(name).ok()?.into();
        self.0 = &self.0[length..];
        Some(Message {
            node,
            incarnation: u64::from_be_bytes(self.bytes()?),
            number: u64::from_be_bytes(self.bytes()?),
            body: match kind {
                KIND_BEAT => Body::Beat(self.beat()?),
                KIND_PART => Body::Part(self.part()?),
                _ => return None,
            },
        })
    }

    fn beat(&mut self) -> Option<Beat> {
        let phase = match self.byte()? {
            0 => Phase::Settling,
            1 => Phase::Active,
            _ => return None,
        };
        let list = u64::from_be_bytes(self.bytes()?);
        let held = u64::from_be_bytes(self.bytes()?);
        let count = self.byte()?;
        let macs: Option<Vec<Mac>> = (0..count).map(|_| self.bytes()).collect();
        Some(Beat {
            phase,
            list,
            held,
            macs: macs?,
        })
    }

    fn part(&mut self) -> Option<Part> {
        let version = u64::from_be_bytes(self.bytes()?);
        let index = u16::from_be_bytes(self.bytes()?);
        let count = u16::from_be_bytes(self.bytes()?);
        let length = self.byte()?;
        let addresses: Option<Vec<IpAddr>> = (0..length).map(|_| self.address()).collect();
        (index < count).then_some(())?;
        Some(Part {
            version,
            index,
            count,
            addresses: addresses?,
        })
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.bytes::<4>().map(IpAddr::from),
            6 => self.bytes::<16>().map(IpAddr::from),
            _ => None,
        }
    }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [4].into_iter().chain(v4.octets()).collect(),
        IpAddr::V6(v6) => [6].into_iter().chain(v6.octets()).collect(),
    }
}

/// HMAC-SHA256 (RFC 2104), cut to 16 bytes as RFC 4868 does.
fn tag(key: &[u8], data: &[u8]) -> [u8; TAG_LENGTH] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new()
        .chain_update(block.map(|b| b ^ 0x36))
        .chain_update(data)
        .finalize();
    let outer = Sha256::new()
        .chain_update(block.map(|b| b ^ 0x5c))
        .chain_update(inner)
        .finalize();
    std::array::from_fn(|i| outer[i])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(body: Body) -> Message {
        Message {
            node: "n1".into(),
            incarnation: 7,
            number: 8,
            body,
        }
    }

    fn beat() -> Message {
        message(Body::Beat(Beat {
            phase: Phase::Active,
            list: 3,
            held: 4,
            macs: vec![[2, 0, 0, 0, 0, 1]],
        }))
    }

    #[test]
    fn the_tag_is_that_of_rfc_4231() {
        // Test cases 2 and 6: a short key, and one that is longer than a block.
        let expected = [
            0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7,
        ];
        assert_eq!(tag(b"Jefe", b"what do ya want for nothing?"), expected);
        let expected = [
            0x60, 0xe4, 0x31, 0x59, 0x1e, 0xe0, 0xb6, 0x7f, 0x0d, 0x8a, 0x26, 0xaa, 0xcb, 0xf5, 0xb7, 0x7f,
        ];
        let data = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(tag(&[0xaa; 131], data), expected);
    }

    #[test]
    fn foreign_forged_and_damaged_datagrams_are_told_apart() {
        let data = beat().encode(b"key");
        assert_eq!(Message::decode(&data, b"key"), Ok(beat()));
        assert_eq!(Message::decode(&data, b"other"), Err(Malformed::Tag));
        assert_eq!(Message::decode(b"hello", b"key"), Err(Malformed::Foreign));
        assert_eq!(Message::decode(&data[..10], b"key"), Err(Malformed::Content));
        let mut longer = data[..data.len() - TAG_LENGTH].to_vec();
        longer.push(0);
        longer.extend(tag(b"key", &longer));
        assert_eq!(Message::decode(&longer, b"key"), Err(Malformed::Content));
    }

    #[test]
    fn an_empty_list_has_one_part() {
        let parts = List::new(BTreeSet::new()).parts();
        assert_eq!(parts.len(), 1);
        assert!(parts[0].addresses.is_empty());
    }

    proptest! {
        #[test]
        fn lists_survive_the_wire(
            v4 in proptest::collection::btree_set(any::<u32>(), 0..200),
            v6 in proptest::collection::btree_set(any::<u128>(), 0..200),
        ) {
            let v4 = v4.into_iter().map(|bits| IpAddr::V4(bits.into()));
            let v6 = v6.into_iter().map(|bits| IpAddr::V6(bits.into()));
            let list = List::new(v4.chain(v6).collect());
            let mut arrived = BTreeSet::new();
            for part in list.parts() {
                let sent = Message { node: "n".repeat(253).into(), ..message(Body::Part(part)) };
                let data = sent.encode(b"key");
                prop_assert!(data.len() <= DATAGRAM_LENGTH_MAX, "{} bytes", data.len());
                let received = Message::decode(&data, b"key").unwrap();
                prop_assert_eq!(&received, &sent);
                let Body::Part(part) = received.body else { panic!("a part") };
                arrived.extend(part.addresses);
            }
            prop_assert_eq!(List::new(arrived), list);
        }

        #[test]
        fn noise_does_not_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            _ = Message::decode(&noise, b"");
            let mut signed = MAGIC.to_vec();
            signed.push(VERSION);
            signed.append(&mut noise);
            signed.extend(tag(b"", &signed));
            _ = Message::decode(&signed, b"");
        }
    }
}
