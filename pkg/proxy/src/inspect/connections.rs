//! Who is connected, out of the kernel's table of connections.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use svcnet_netlink::conntrack::{self, Entry};
use svcnet_netlink::nft::{Error, Family, Socket};
use svcnet_netlink::{Rtnl, rt};

use crate::model::{Frontend, FrontendKey, Protocol};

/// How many live connections go over each frontend to each endpoint. Those that both sides have closed do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    by_endpoint: HashMap<(FrontendKey, SocketAddr), usize>,
}

impl Connections {
    /// Over a frontend to an endpoint.
    pub fn to(&self, key: FrontendKey, endpoint: SocketAddr) -> usize {
        self.by_endpoint
            .get(&(key, endpoint))
            .copied()
            .unwrap_or_default()
    }
}

/// Counts the connections over these frontends, in the calling thread's network namespace.
///
/// # Errors
/// When the kernel has no conntrack or permission is lacking.
pub fn count(frontends: &[Frontend]) -> Result<Connections, Error> {
    let mut socket = Socket::open()?;
    let mut rtnl = Rtnl::open().map_err(|error| Error::Open(error.source))?;
    let ours = addresses(&mut rtnl).map_err(|error| Error::Open(error.source))?;
    let keys: HashSet<FrontendKey> = frontends.iter().map(|frontend| frontend.key).collect();
    let mut connections = Connections::default();
    for family in [Family::Ip, Family::Ip6] {
        for protocol in Protocol::ALL {
            if !keys
                .iter()
                .any(|key| key.family() == family && key.protocol() == protocol)
            {
                continue;
            }
            conntrack::list(&mut socket, family, protocol.number(), |entry| {
                if let Some(key) = frontend_of(entry, protocol, &keys, &ours).filter(|_| entry.is_live()) {
                    *connections
                        .by_endpoint
                        .entry((key, entry.reply.source))
                        .or_default() += 1;
                }
                false
            })?;
        }
    }
    Ok(connections)
}

fn addresses(rtnl: &mut Rtnl) -> Result<HashSet<IpAddr>, rt::Error> {
    let addresses = rtnl.addresses(None)?;
    Ok(addresses.into_iter().map(|address| address.net.addr()).collect())
}

/// The frontend that a connection was made to.
fn frontend_of(
    entry: &Entry,
    protocol: Protocol,
    keys: &HashSet<FrontendKey>,
    ours: &HashSet<IpAddr>,
) -> Option<FrontendKey> {
    let (ip, port) = (entry.original.destination.ip(), entry.original.destination.port());
    let by_address = FrontendKey::Address { ip, protocol, port };
    let by_port = FrontendKey::NodePort {
        family: Family::of(ip),
        protocol,
        port,
    };
    if keys.contains(&by_address) {
        return Some(by_address);
    }
    let here = ip.is_loopback() || ours.contains(&ip);
    (here && keys.contains(&by_port)).then_some(by_port)
}
