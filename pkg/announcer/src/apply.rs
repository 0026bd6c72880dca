//! Carries operations out on the links, and hands over what arrives there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use svcnet_netlink::packet::arp::{self, Arp};
use svcnet_netlink::packet::ndp::{self, Ndp};
use svcnet_netlink::packet::{LinkSocket, Protocol};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::desired::Links;
use crate::links::Carrier;
use crate::metrics;
use crate::plan::Operation;

/// Frames that may wait for the announcer; more are lost, as under any flood.
const QUEUE_LENGTH: usize = 512;
/// Larger than any ARP frame, and than a neighbour discovery message with the options that matter here.
const FRAME_LENGTH_MAX: usize = 256;

/// Time between two attempts to read from a socket that fails.
const RETRY: Duration = Duration::from_secs(1);

/// The node's links.
pub(crate) struct Wire {
    ports: BTreeMap<u32, Port>,
    sender: mpsc::Sender<Frame>,
    /// Holds the memberships of solicited-node groups: switches and network cards pass what is joined. `None` where
    /// the kernel has no IPv6.
    groups: Option<Socket>,
}

/// A frame that arrived.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Index of its link.
    pub(crate) link: u32,
    pub(crate) content: Content,
}

/// What the frame is.
#[derive(Debug)]
pub(crate) enum Content {
    Arp(Arp),
    Ndp(Ndp),
}

struct Port {
    carrier: Carrier,
    arp: Arc<LinkSocket>,
    ndp: Option<Arc<LinkSocket>>,
    /// Read the sockets; end with the port.
    _readers: JoinSet<()>,
}

impl Wire {
    /// No links yet. Belongs to the network namespace of the calling thread.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Frame>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let wire = Self {
            ports: BTreeMap::new(),
            sender,
            groups: Socket::new(Domain::IPV6, Type::DGRAM, None).ok(),
        };
        (wire, receiver)
    }

    /// Opens and closes sockets so that exactly these links are used. Gives those that are.
    pub(crate) fn set_carriers(&mut self, carriers: Vec<Carrier>) -> Vec<Carrier> {
        self.ports
            .retain(|index, _| carriers.iter().any(|c| c.index == *index));
        for carrier in carriers {
            match self.ports.get_mut(&carrier.index) {
                // The sockets stay when the link's name or address changes.
                Some(port) => port.carrier = carrier,
                None => match Port::open(&carrier, &self.sender) {
                    Ok(port) => _ = self.ports.insert(carrier.index, port),
                    Err(error) => {
                        tracing::warn!(link = carrier.name, %error, "cannot announce on this link");
                    }
                },
            }
        }
        self.ports.values().map(|p| p.carrier.clone()).collect()
    }

    /// Name of a link in use.
    pub(crate) fn link_name(&self, index: u32) -> Option<&str> {
        self.ports.get(&index).map(|p| p.carrier.name.as_str())
    }

    /// Carries an operation out, as far as it concerns the links.
    pub(crate) fn apply(&self, operation: &Operation) {
        match operation {
            Operation::Probe(address, links) => self.each(links, |port| port.probe(*address)),
            Operation::Announce(address, links) => {
                self.each(links, |port| port.announce(*address));
                metrics::gratuitous(*address);
            }
            Operation::Claim(IpAddr::V6(address), links) => self.each(links, |port| {
                self.join(*address, port.carrier.index);
                Ok(())
            }),
            Operation::Release(IpAddr::V6(address)) => self.part(*address),
            Operation::Claim(..) | Operation::Release(..) | Operation::Report(..) => {}
        }
    }

    /// Answers a request that arrived on the link.
    pub(crate) fn answer(&self, link: u32, content: &Content) {
        let Some(port) = self.ports.get(&link) else { return };
        let mac = port.carrier.mac;
        let sent = match content {
            Content::Arp(request) => port.arp.send(&request.answer(mac).encode()),
            Content::Ndp(solicitation) => match &port.ndp {
                Some(socket) => socket.send(&solicitation.answer(mac).encode()),
                None => Ok(()),
            },
        };
        port.log(sent);
    }

    fn each(&self, links: &Links, send: impl Fn(&Port) -> io::Result<()>) {
        for port in self.ports.values().filter(|p| links.take(&p.carrier.name)) {
            port.log(send(port));
        }
    }

    fn join(&self, address: Ipv6Addr, link: u32) {
        if let Some(groups) = &self.groups {
            let joined = groups.join_multicast_v6(&ndp::solicited_node(address), link);
            // Addresses that end alike share a group, which is joined already then.
            if let Err(error) = joined
                && error.kind() != io::ErrorKind::AddrInUse
            {
                tracing::debug!(%address, %error, "cannot join the solicited-node group");
            }
        }
    }

    /// Leaves the group where it was joined. An address that shares it is rejoined by its next announcement's claim:
    /// sharing takes 2^24 addresses or an adversary.
    fn part(&self, address: Ipv6Addr) {
        if let Some(groups) = &self.groups {
            for &link in self.ports.keys() {
                _ = groups.leave_multicast_v6(&ndp::solicited_node(address), link);
            }
        }
    }
}

impl Port {
    fn open(carrier: &Carrier, sender: &mpsc::Sender<Frame>) -> Result<Self, svcnet_netlink::packet::Error> {
        let mut readers = JoinSet::new();
        let arp = Arc::new(LinkSocket::open(carrier.index, Protocol::Arp)?);
        readers.spawn(read(arp.clone(), sender.clone(), |frame| {
            Arp::parse(frame).map(Content::Arp)
        }));
        let ndp = LinkSocket::open(carrier.index, Protocol::Ndp).ok().map(Arc::new);
        if let Some(ndp) = &ndp {
            readers.spawn(read(ndp.clone(), sender.clone(), |frame| {
                Ndp::parse(frame).map(Content::Ndp)
            }));
        }
        Ok(Self {
            carrier: carrier.clone(),
            arp,
            ndp,
            _readers: readers,
        })
    }

    fn probe(&self, address: IpAddr) -> io::Result<()> {
        let mac = self.carrier.mac;
        match (address, &self.ndp) {
            (IpAddr::V4(v4), _) => self.arp.send(&Arp::probe(v4, mac).encode()),
            (IpAddr::V6(v6), Some(ndp)) => ndp.send(&Ndp::probe(v6, mac).encode()),
            (IpAddr::V6(_), None) => Ok(()),
        }
    }

    fn announce(&self, address: IpAddr) -> io::Result<()> {
        let mac = self.carrier.mac;
        match (address, &self.ndp) {
            (IpAddr::V4(v4), _) => [arp::Operation::Request, arp::Operation::Reply]
                .iter()
                .try_for_each(|o| self.arp.send(&Arp::gratuitous(*o, v4, mac).encode())),
            (IpAddr::V6(v6), Some(ndp)) => ndp.send(&Ndp::unsolicited(v6, mac).encode()),
            (IpAddr::V6(_), None) => Ok(()),
        }
    }

    fn log(&self, sent: io::Result<()>) {
        if let Err(error) = sent {
            tracing::debug!(link = self.carrier.name, %error, "cannot send on this link");
        }
    }
}

async fn read(
    socket: Arc<LinkSocket>,
    sender: mpsc::Sender<Frame>,
    parse: impl Fn(&[u8]) -> Option<Content>,
) {
    let mut buffer = [0; FRAME_LENGTH_MAX];
    loop {
        match socket.receive(&mut buffer).await {
            Ok(length) => {
                if let Some(content) = parse(&buffer[..length]) {
                    let link = socket.index();
                    // Full: the announcer is behind. Who asked asks again.
                    _ = sender.try_send(Frame { link, content });
                }
            }
            Err(error) => {
                tracing::warn!(link = socket.index(), %error, "cannot read from this link, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
