//! What `fuzz/` runs over any bytes, and the tests over the seeds of `fuzz/seeds`: frames of strangers, and messages of a
//! kernel that may be newer than this program.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a broken promise is what is looked for"
)]

use crate::packet::arp::Arp;
use crate::packet::ndp::Ndp;
use crate::{conntrack, exchange, ipvs, monitor, nft};

/// An Ethernet frame.
pub fn frame(data: &[u8]) {
    if let Some(arp) = Arp::parse(data) {
        let again = Arp::parse(&arp.encode()).expect("what is sent is read");
        assert_eq!(
            (again.sender, again.target, again.operation),
            (arp.sender, arp.target, arp.operation)
        );
        arp.answer([2; 6]).encode();
    }
    if let Some(ndp) = Ndp::parse(data) {
        let again = Ndp::parse(&ndp.encode()).expect("what is sent is read");
        assert_eq!((again.target, again.link_address), (ndp.target, ndp.link_address));
        ndp.answer([2; 6]).encode();
    }
    // The checksum is not to keep the rest from being looked at.
    let mut whole = data.to_vec();
    let length = data
        .get(18..20)
        .map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
    if length >= 24 && whole.len() >= 54 + length {
        whole[56..58].fill(0);
        let sum = checksum(&whole[22..54 + length], length);
        whole[56..58].copy_from_slice(&sum.to_be_bytes());
        _ = Ndp::parse(&whole);
    }
}

/// The sum that ICMPv6 wants over addresses and message (RFC 8200, section 8.1).
fn checksum(bytes: &[u8], length: usize) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| usize::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, usize::from));
    let mut sum = words.sum::<usize>() + length + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// What a netlink socket gave: messages, and bodies of messages.
pub fn netlink(data: &[u8]) {
    exchange::messages(data).for_each(drop);
    monitor::events(data);
    conntrack::read(data);
    nft::read_any(data);
    ipvs::read_any(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/over_seeds.rs"));

    #[test]
    fn seeds_keep_the_promises() {
        for (target, run) in [("frame", frame as fn(&[u8])), ("netlink", netlink)] {
            over_seeds(target, run);
        }
    }
}
