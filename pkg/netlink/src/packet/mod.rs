//! Raw frames on one link: ARP (RFC 826, RFC 5227) and IPv6 neighbour discovery (RFC 4861), for who answers in place
//! of the kernel. The socket hands over only frames of its protocol that were meant for this host.

pub mod arp;
pub mod echo;
pub mod ndp;
mod socket;

pub use socket::{Error, LinkSocket, Protocol};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Every host on the link.
pub const BROADCAST: Mac = [0xff; 6];

/// Bytes of an Ethernet header.
const ETHERNET_LENGTH: usize = 14;

/// N bytes at an offset, if the frame is long enough.
fn bytes<const N: usize>(frame: &[u8], offset: usize) -> Option<[u8; N]> {
    frame.get(offset..offset + N)?.try_into().ok()
}
