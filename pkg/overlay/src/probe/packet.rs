//! What is sent to a peer to see what passes: an echo request of a certain size, as pods' packets go there.

use std::net::IpAddr;

use svcnet_api::types::{MacAddr, Vni};
use svcnet_netlink::packet::echo::{self, TOKEN_LENGTH};
use svcnet_netlink::underlay::vxlan_overhead;

/// The way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// In VXLAN, to its VXLAN link.
    Encapsulated(Encapsulated),
    /// As it is, to the node.
    Direct {
        /// This node.
        from: IpAddr,
        /// The peer's.
        to: IpAddr,
    },
}

/// What the way over VXLAN is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encapsulated {
    /// This node's address and the peer's.
    pub(crate) nodes: (IpAddr, IpAddr),
    /// The UDP port.
    pub(crate) port: u16,
    /// The network identifier.
    pub(crate) vni: Vni,
    /// The Ethernet addresses of this node's VXLAN link and of the peer's.
    pub(crate) macs: (MacAddr, MacAddr),
    /// Their addresses.
    pub(crate) ends: (IpAddr, IpAddr),
}

impl Way {
    /// The smallest packet between nodes that is of interest: what every host takes (RFC 791, RFC 8200).
    pub(crate) fn floor(&self) -> u32 {
        let between = match self {
            Self::Encapsulated(way) => way.nodes.1,
            Self::Direct { to, .. } => *to,
        };
        if between.is_ipv4() { 576 } else { 1280 }
    }

    /// The echo request, with `size` bytes between the nodes in all.
    pub(crate) fn request(&self, id: u16, token: [u8; TOKEN_LENGTH], size: u32) -> Vec<u8> {
        let (ends, around) = match self {
            Self::Encapsulated(way) => (way.ends, vxlan_overhead(way.nodes.1)),
            Self::Direct { from, to } => ((*from, *to), 0),
        };
        let header = if ends.1.is_ipv4() { 20 } else { 40 };
        let length = usize::try_from(size.saturating_sub(around + header)).unwrap_or_default();
        echo::request(id, token, length, ends)
    }
}

impl Encapsulated {
    /// The VXLAN datagram around an echo request (RFC 7348, section 5).
    pub(crate) fn datagram(&self, request: &[u8]) -> Vec<u8> {
        const HAS_VNI: u8 = 8;
        let [_, a, b, c] = self.vni.get().to_be_bytes();
        let ethertype: [u8; 2] = if self.ends.0.is_ipv4() {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        let mut datagram = vec![HAS_VNI, 0, 0, 0, a, b, c, 0];
        datagram.extend(self.macs.1.octets());
        datagram.extend(self.macs.0.octets());
        datagram.extend(ethertype);
        datagram.extend(echo::packet(request, self.ends));
        datagram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::vxlan_mac;

    #[test]
    fn a_probe_has_the_size_that_it_is_to_have() {
        // Headers of IP and UDP around the datagram.
        for (nodes, outer) in [(("172.30.0.11", "172.30.0.12"), 28), (("fd00::1", "fd00::2"), 48)] {
            for ends in [("10.244.1.0", "10.244.2.0"), ("fd00:1::", "fd00:2::")] {
                let pair = |(a, b): (&str, &str)| (a.parse().unwrap(), b.parse().unwrap());
                let way = Encapsulated {
                    nodes: pair(nodes),
                    port: 8472,
                    vni: Vni::new(0x0001_0203).unwrap(),
                    macs: (vxlan_mac("n1"), vxlan_mac("n2")),
                    ends: pair(ends),
                };
                let request = Way::Encapsulated(way.clone()).request(7, [1; 8], 1500);
                let datagram = way.datagram(&request);
                assert_eq!(datagram.len() + outer, 1500, "{nodes:?} {ends:?}");
                assert_eq!(datagram[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
                assert_eq!(datagram[8..14], vxlan_mac("n2").octets());
            }
            let (from, to) = (nodes.0.parse().unwrap(), nodes.1.parse().unwrap());
            let way = Way::Direct { from, to };
            let header = if way.floor() == 576 { 20 } else { 40 };
            assert_eq!(way.request(7, [1; 8], 1500).len() + header, 1500);
        }
    }
}
