//! A connection, tried from where the client is.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use svcnet_cni::ipam::Lease;
use svcnet_netlink::conntrack;
use svcnet_netlink::netns::NetNs;
use svcnet_netlink::nft::{Family, Socket};
use svcnet_proxy::Protocol;

use super::Here;
use crate::seen::ProbeSeen;
use crate::trace::{Origin, Way};

/// A connection that is not made in this time is not made: one lost packet is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(4);

/// Tries a TCP connection and closes it.
pub(super) fn connect(here: &Here, origin: Option<&Origin>, way: &Way) -> ProbeSeen {
    if way.protocol != Protocol::Tcp {
        return ProbeSeen::Impossible(format!("only TCP can be tried, and this is {}", way.protocol));
    }
    let tried = match origin {
        Some(Origin::Node { name, .. }) if *name == here.node => attempt(way.to),
        Some(Origin::Pod { key, node, .. }) if *node == here.node => match namespace_of(here, key) {
            Ok(netns) => match netns.run(|| attempt(way.to)) {
                Ok(tried) => tried,
                Err(error) => return ProbeSeen::Impossible(error.to_string()),
            },
            Err(why) => return ProbeSeen::Impossible(why),
        },
        Some(Origin::Pod { node, .. } | Origin::Node { name: node, .. }) => {
            return ProbeSeen::Impossible(format!("the client is on {node}, and this is {}", here.node));
        }
        Some(Origin::Outside { .. }) | None => {
            return ProbeSeen::Impossible("the client is outside the cluster".to_string());
        }
    };
    match tried {
        Ok((took, from)) => ProbeSeen::Connected {
            took_us: took.as_micros(),
            endpoint: endpoint_of(from, way),
        },
        Err(error) => ProbeSeen::Failed(words(&error)),
    }
}

fn attempt(to: SocketAddr) -> io::Result<(Duration, SocketAddr)> {
    let begun = Instant::now();
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    Ok((begun.elapsed(), stream.local_addr()?))
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_string(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer in {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}

/// The endpoint that took the connection, out of this node's table of connections.
fn endpoint_of(from: SocketAddr, way: &Way) -> Option<SocketAddr> {
    let mut socket = Socket::open().ok()?;
    let family = Family::of(way.to.ip());
    let entries = conntrack::list(&mut socket, family, way.protocol.number(), |entry| {
        entry.original.source == from && entry.original.destination == way.to
    });
    Some(entries.ok()?.first()?.reply.source)
}

/// The network namespace of a pod of this node, as the CNI daemon noted it.
fn namespace_of(here: &Here, pod: &str) -> Result<NetNs, String> {
    let dir = svcnet_cni::leases_dir(&here.data_dir).join("leases");
    let path = lease_of(&dir, pod).map_err(|error| format!("{}: {error}", dir.display()))?;
    let path = path.ok_or_else(|| format!("no lease in {} is of the pod {pod}", dir.display()))?;
    NetNs::open_path(&path).map_err(|error| error.to_string())
}

fn lease_of(dir: &Path, pod: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        // Leases come and go meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let Ok(lease) = serde_json::from_str::<Lease>(&text) else {
            continue;
        };
        let of = lease.pod.map(|of| format!("{}/{}", of.namespace, of.name));
        if of.as_deref() == Some(pod) {
            return Ok(Some(lease.netns));
        }
    }
    Ok(None)
}
