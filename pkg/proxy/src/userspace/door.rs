//! Who is let in at a socket, as a filter that the kernel runs on each packet (classic BPF).
//!
//! A process can not leave a connection unanswered that its socket has accepted: it only can end it. The filter is asked
//! before: what it turns away is dropped without a word, which is what policy `Local` and source ranges ask for.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use socket2::SockFilter;

/// Where a frontend listens, and who may send there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    /// The networks that everybody must come from, this node too.
    pub(crate) sources: Option<Box<[IpNet]>>,
    pub(crate) from: From,
    /// The addresses of this node that a node port answers on, if not on all. At others the kernel refuses.
    pub(crate) at: Option<Box<[IpAddr]>>,
}

/// Who of those may send to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// Everybody.
    Everybody,
    /// This node itself, and these networks.
    Inside(Box<[IpNet]>),
    /// Nobody.
    Nobody,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            From::Everybody => f.write_str("for everybody")?,
            From::Inside(networks) => {
                f.write_str("for this node")?;
                networks.iter().try_for_each(|net| write!(f, " {net}"))?;
            }
            From::Nobody => f.write_str("for nobody")?,
        }
        if let Some(networks) = &self.sources {
            f.write_str(" from")?;
            networks.iter().try_for_each(|net| write!(f, " {net}"))?;
        }
        if let Some(addresses) = &self.at {
            f.write_str(" on")?;
            addresses.iter().try_for_each(|ip| write!(f, " {ip}"))?;
        }
        Ok(())
    }
}

impl Door {
    /// The filter for a socket; none lets all in. A longer one than the kernel takes (`BPF_MAXINSNS`) is refused by it: nobody is let
    /// in wrongly by one that is cut.
    pub(crate) fn filter(&self, ipv6: bool) -> Option<Vec<SockFilter>> {
        if self.from == From::Nobody {
            return Some(vec![instruction(RETURN, 0, 0, NOTHING)]);
        }
        let mut filter = Vec::new();
        if let Some(networks) = &self.sources {
            filter = only_from(networks, ipv6);
        }
        match &self.from {
            From::Everybody | From::Nobody if filter.is_empty() => return None,
            From::Everybody | From::Nobody => filter.push(instruction(RETURN, 0, 0, EVERYTHING)),
            From::Inside(networks) => {
                filter.extend([
                    instruction(LOAD_WORD, 0, 0, INTERFACE),
                    instruction(JUMP_IF_EQUAL, 0, 1, svcnet_netlink::local::LOOPBACK),
                    instruction(RETURN, 0, 0, EVERYTHING),
                ]);
                for net in networks.iter().filter(|net| net.addr().is_ipv6() == ipv6) {
                    compare(net, instruction(RETURN, 0, 0, EVERYTHING), &mut filter);
                }
                filter.push(instruction(RETURN, 0, 0, NOTHING));
            }
        }
        Some(filter)
    }
}

/// Drops what is not from one of these networks, and goes on behind its last instruction with what is.
fn only_from(networks: &[IpNet], ipv6: bool) -> Vec<SockFilter> {
    // From the last to the first, since each jumps over those behind it.
    let mut behind = vec![instruction(RETURN, 0, 0, NOTHING)];
    for net in networks.iter().rev().filter(|net| net.addr().is_ipv6() == ipv6) {
        let over = u32::try_from(behind.len()).unwrap_or(u32::MAX);
        let mut these = Vec::new();
        compare(net, instruction(JUMP, 0, 0, over), &mut these);
        these.append(&mut behind);
        behind = these;
    }
    behind
}

// Numbers as in `include/uapi/linux/filter.h` and `bpf_common.h`.
/// `BPF_LD | BPF_W | BPF_ABS`
const LOAD_WORD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JA`
const JUMP: u16 = 0x05;
/// `BPF_RET | BPF_K`
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_IFINDEX`: the link that a packet came by; for what this node sends to itself, loopback.
const INTERFACE: u32 = (-0x1000_i32 + 8).cast_unsigned();
/// `SKF_NET_OFF`: the beginning of the IP header.
const NETWORK_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();
/// How much of a packet passes.
const EVERYTHING: u32 = u32::MAX;
const NOTHING: u32 = 0;

fn instruction(code: u16, if_so: u8, if_not: u8, value: u32) -> SockFilter {
    SockFilter::new(code, if_so, if_not, value)
}

/// Where the source address is in a header.
fn source_offset(ipv6: bool) -> u32 {
    if ipv6 { 8 } else { 12 }
}

/// Does that where the source address lies in the network, or goes on behind.
fn compare(net: &IpNet, then: SockFilter, filter: &mut Vec<SockFilter>) {
    let offset = source_offset(net.addr().is_ipv6());
    let (address, mask): (Vec<u8>, Vec<u8>) = match (net.network(), net.netmask()) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => (address.octets().into(), mask.octets().into()),
        (IpAddr::V6(address), IpAddr::V6(mask)) => (address.octets().into(), mask.octets().into()),
        _ => return,
    };
    let words = |bytes: &[u8]| -> Vec<u32> {
        let chunks = bytes.chunks_exact(4);
        chunks
            .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
            .collect()
    };
    let parts: Vec<(u32, (u32, u32))> = (0..).zip(words(&address).into_iter().zip(words(&mask))).collect();
    let parts: Vec<_> = parts.into_iter().filter(|(_, (_, mask))| *mask != 0).collect();
    for (index, (word, (address, mask))) in parts.iter().enumerate() {
        // Three instructions for each of the words behind this one, and the one that lets in.
        let rest = u8::try_from((parts.len() - index - 1) * 3 + 1).unwrap_or(u8::MAX);
        filter.push(instruction(LOAD_WORD, 0, 0, NETWORK_HEADER + offset + word * 4));
        filter.push(instruction(AND, 0, 0, *mask));
        filter.push(instruction(JUMP_IF_EQUAL, 0, rest, *address));
    }
    filter.push(then);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(networks: &[&str]) -> Box<[IpNet]> {
        networks.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn each_network_is_a_few_instructions() {
        let length = |sources: Option<&[&str]>, from: From, ipv6| {
            let door = Door {
                sources: sources.map(networks),
                from,
                at: None,
            };
            door.filter(ipv6).map(|filter| filter.len())
        };
        assert_eq!(length(None, From::Everybody, false), None);
        assert_eq!(length(Some(&["10.0.0.0/8"]), From::Nobody, false), Some(1));
        let three = From::Inside(networks(&["10.0.0.0/8", "0.0.0.0/0", "fd00::/48"]));
        assert_eq!(length(None, three, false), Some(3 + 4 + 1 + 1));
        let two = From::Inside(networks(&["10.0.0.0/8", "fd00::/48"]));
        assert_eq!(length(None, two.clone(), true), Some(3 + 7 + 1));
        let sources = ["10.0.0.0/8", "fd00::/32"];
        assert_eq!(length(Some(&sources), From::Everybody, false), Some(4 + 1 + 1));
        assert_eq!(length(Some(&sources), two, false), Some(4 + 1 + 3 + 4 + 1));
    }
}
