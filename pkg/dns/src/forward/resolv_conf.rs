//! The node's `/etc/resolv.conf`: whom it asks.

use std::net::{IpAddr, SocketAddr};

use crate::config::UPSTREAMS_MAX;

/// The servers of a `resolv.conf`, in its order, without those at which we ourselves answer: the node may well use us.
pub(crate) fn upstreams(text: &str, ours: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(parse) else {
            continue;
        };
        if !ours.contains(&server) && !found.contains(&server) && found.len() < UPSTREAMS_MAX {
            found.push(server);
        }
    }
    found
}

/// An address, perhaps with the link that it is reached by (`fe80::1%eth0`; only numbers: names need a system call).
fn parse(word: &str) -> Option<SocketAddr> {
    let (address, scope) = word.split_once('%').unwrap_or((word, "0"));
    match address.parse().ok()? {
        IpAddr::V4(ip) => Some((ip, 53).into()),
        IpAddr::V6(ip) => {
            Some(std::net::SocketAddrV6::new(ip, 53, 0, scope.parse().unwrap_or_default()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_in_order_without_ourselves() {
        let text = "# comment\nsearch example.com\nnameserver 10.96.0.10\nnameserver\t192.0.2.1 # first\n\
                    nameserver 2001:db8::1\nnameserver 192.0.2.1\nnameserver nonsense\noptions ndots:5\nnameserver fe80::1%3\n";
        let ours = ["10.96.0.10:53".parse().unwrap()];
        let found: Vec<String> = upstreams(text, &ours).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53"]);
        assert_eq!(upstreams("", &ours), []);
    }
}
