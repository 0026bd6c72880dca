//! Whether checksums that are left to the VXLAN link arrive right. Some kernels and drivers compute none, or a wrong one,
//! for what is inside of an encapsulated packet (flannel issue 1279): such packets are dropped by whoever receives them.
//!
//! A datagram to a port that nobody listens at is answered (port unreachable, RFC 1122) only when its checksum is right,
//! and an echo request's checksum is never left to a link. So a peer that answers the one and not the other is a suspect;
//! it is one no more unless switching the link's help off, on and off again makes the difference each time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use svcnet_netlink::ethtool::Ethtool;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::LINK_NAMES;
use crate::status::Checksums;

/// Where traceroute expects that nobody listens.
const PORT: u16 = 33434;
/// Hosts answer so many in a burst and one a second after that (`icmp_ratelimit`).
const WAIT: Duration = Duration::from_millis(1100);
const TRIES: usize = 3;

/// Tries it with these peers, which have answered an echo request. Leaves the link with its help off only where that harms.
pub(super) async fn test(ethtool: &Ethtool, own: IpAddr, peers: &[IpAddr]) -> Checksums {
    match ethtool.tx_checksum(LINK_NAMES.vxlan) {
        Ok(true) => {}
        Ok(false) => return Checksums::Off,
        Err(_) => return Checksums::Untested,
    }
    for peer in peers {
        if arrives(own, *peer).await {
            return Checksums::Right;
        }
    }
    for peer in peers {
        match try_without(ethtool, own, *peer).await {
            Ok(true) => return Checksums::Corrupted,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, "whether checksums arrive right can not be tested");
                return Checksums::Untested;
            }
        }
    }
    Checksums::Untested
}

/// Whether it is the link's help that keeps datagrams from arriving.
async fn try_without(ethtool: &Ethtool, own: IpAddr, peer: IpAddr) -> io::Result<bool> {
    for _ in 0..2 {
        ethtool.set_tx_checksum(LINK_NAMES.vxlan, false)?;
        let without = arrives(own, peer).await;
        ethtool.set_tx_checksum(LINK_NAMES.vxlan, true)?;
        if !without || arrives(own, peer).await {
            return Ok(false);
        }
    }
    ethtool.set_tx_checksum(LINK_NAMES.vxlan, false)?;
    Ok(true)
}

async fn arrives(own: IpAddr, peer: IpAddr) -> bool {
    let ask = async {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0)).await?;
        socket.connect(SocketAddr::new(peer, PORT)).await?;
        for _ in 0..TRIES {
            // An answer to the one before may be told here.
            match socket.send(b"svcnet").await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(true),
                other => _ = other?,
            }
            match timeout(WAIT, socket.recv(&mut [0; 16])).await {
                Err(_elapsed) => {}
                Ok(Err(error)) if error.kind() != io::ErrorKind::ConnectionRefused => return Err(error),
                // Refused; or somebody listens there after all.
                Ok(_) => return Ok(true),
            }
        }
        Ok(false)
    };
    ask.await.unwrap_or_else(|error: io::Error| {
        tracing::debug!(%peer, %error, "a datagram could not be sent");
        false
    })
}
