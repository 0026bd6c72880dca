//! Who holds a port that we want, as far as /proc tells.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

/// A process with a socket in our way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// Its number; `None`: it is in another container, or not ours to see.
    pid: Option<u32>,
    /// Its name.
    name: String,
    /// What it listens at.
    address: SocketAddr,
    /// Over what.
    protocol: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            address,
            protocol,
            ..
        } = self;
        match self.pid {
            Some(pid) => write!(f, "{name} (pid {pid}, {address}/{protocol})"),
            None => write!(f, "an unknown process ({address}/{protocol})"),
        }
    }
}

/// The processes whose sockets keep us from an address: those at the same port of this address or of all addresses.
pub(super) fn holders(wanted: SocketAddr) -> Vec<Holder> {
    let mut found = Vec::new();
    for (file, protocol) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
        let Ok(text) = fs::read_to_string(format!("/proc/self/net/{file}")) else {
            continue;
        };
        for (address, inode) in text.lines().filter_map(|line| listener(line, protocol)) {
            let same_ip = address.ip() == wanted.ip() || address.ip().is_unspecified();
            if address.port() == wanted.port() && same_ip {
                let (pid, name) = owner(inode).map_or((None, String::new()), |(pid, name)| (Some(pid), name));
                let holder = Holder {
                    pid,
                    name,
                    address,
                    protocol,
                };
                if !found.contains(&holder) {
                    found.push(holder);
                }
            }
        }
    }
    found
}

/// The local address and the inode on a line of /proc/net/{tcp,udp}{,6}, if that socket takes what comes.
fn listener(line: &str, protocol: &str) -> Option<(SocketAddr, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let state = *words.get(3)?;
    // TCP_LISTEN; TCP_CLOSE is what an unconnected UDP socket is in.
    if state != if protocol == "tcp" { "0A" } else { "07" } {
        return None;
    }
    Some((parse_address(words.get(1)?)?, words.get(9)?.parse().ok()?))
}

/// `0100007F:0035`: words of the host's byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        u32::from_str_radix(ip.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at * 8)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port).into())
}

/// The process that has the socket open.
fn owner(inode: u64) -> Option<(u32, String)> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has = open
            .flatten()
            .any(|file| fs::metadata(file.path()).is_ok_and(|meta| meta.ino() == inode));
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_string()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::TcpListener::bind(address).unwrap();
            let address = socket.local_addr().unwrap();
            let found = holders(address);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(
                (found[0].pid, found[0].protocol),
                (Some(std::process::id()), "tcp")
            );
            let socket = std::net::UdpSocket::bind((address.ip(), 0)).unwrap();
            let found = holders(socket.local_addr().unwrap());
            assert_eq!(
                (found[0].pid, found[0].protocol),
                (Some(std::process::id()), "udp")
            );
        }
    }
}
