//! What really passes to each peer: now and then a packet of the size that should pass is sent, never to be cut on the way,
//! and where it is not answered, smaller ones (as RFC 4821 and RFC 8899 have it, without waiting for routers to say what they
//! dropped). Peers are svcnet's own, so whatever the mode, an echo request comes back.
//!
//! The echo request goes in a VXLAN datagram of our own that must not be cut, since the kernel's own are cut silently.
//! A smaller path becomes the `mtu` of the peer's route, so that the kernel tells pods, and a rule lowers the segment
//! size of TCP by the routes there and back; it is there only while some route says less.

mod checksums;
mod packet;
mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::Socket;
use svcnet_netlink::ethtool::Ethtool;
use svcnet_netlink::packet::echo::{EchoSocket, TOKEN_LENGTH, uncut_udp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

pub(crate) use packet::{Encapsulated, Way};
use search::{Outcome, Search, Step};

use crate::status::Checksums;

/// An answer that takes longer is none.
const ROUND: Duration = Duration::from_secs(1);
/// A peer that does not answer is asked again after this long, …
const SILENT_MIN: Duration = Duration::from_secs(15);
/// … and each time later, up to this.
const SILENT_MAX: Duration = Duration::from_secs(600);
/// So many peers are asked in a row, …
const BURST: usize = 16;
/// … and the next ones after this long.
const PAUSE: Duration = Duration::from_millis(20);
/// So often: peers may not have been up, and some never answer what shows it.
const CHECKSUM_TRIES: u8 = 3;
/// So many peers are asked whether checksums arrive right.
const WITNESSES: usize = 3;

/// What is to be found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The way to the peer.
    pub(crate) way: Way,
    /// The packet that should pass, in bytes between the nodes.
    pub(crate) size: u32,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The largest packet that passes to a peer, in bytes between the nodes; none when all pass that should.
    Path {
        /// The peer.
        name: String,
        /// The packet.
        path: Option<u32>,
    },
    /// Whether checksums arrive right.
    Checksums(Checksums),
}

/// Asks on a task of its own, which ends with it.
pub(crate) struct Prober {
    targets: watch::Sender<BTreeMap<String, Target>>,
    findings: mpsc::Receiver<Finding>,
    task: JoinHandle<()>,
}

impl Prober {
    /// Opens its sockets in the namespace of the calling thread. `from` is this node's address towards its peers; each is
    /// asked again after `every`.
    ///
    /// # Errors
    /// Without the privilege to (CAP_NET_RAW), or when the address is not there.
    pub(crate) fn start(from: IpAddr, every: Duration) -> io::Result<Self> {
        let id = rand::random();
        let (targets, aimed) = watch::channel(BTreeMap::new());
        let (tell, findings) = mpsc::channel(16);
        let asker = Asker {
            udp: uncut_udp(from)?,
            v4: EchoSocket::open(false, id)?,
            // A kernel without IPv6 has no peers of it.
            v6: EchoSocket::open(true, id).ok(),
            ethtool: Ethtool::open()?,
            id,
            every,
            peers: BTreeMap::new(),
            due: BTreeSet::new(),
            rounds: HashMap::new(),
            witnesses: BTreeMap::new(),
            checksum_tries: CHECKSUM_TRIES,
            tell,
        };
        Ok(Self {
            targets,
            findings,
            task: tokio::spawn(asker.run(aimed)),
        })
    }

    /// Asks these peers from now on.
    pub(crate) fn aim(&self, targets: BTreeMap<String, Target>) {
        self.targets.send_if_modified(|former| {
            let changed = *former != targets;
            *former = targets;
            changed
        });
    }

    /// What is found out next; never, when it can find out nothing.
    pub(crate) async fn next(&mut self) -> Finding {
        match self.findings.recv().await {
            Some(finding) => finding,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Peer {
    target: Target,
    due: Instant,
    search: Option<(u32, Search)>,
    told: Option<Outcome>,
    silence: Duration,
}

struct Asker {
    udp: Socket,
    v4: EchoSocket,
    v6: Option<EchoSocket>,
    ethtool: Ethtool,
    id: u16,
    every: Duration,
    peers: BTreeMap<String, Peer>,
    due: BTreeSet<(Instant, String)>,
    /// Rounds under way, by the number in their tokens.
    rounds: HashMap<u32, String>,
    /// Peers over VXLAN that have answered: this node's end and theirs.
    witnesses: BTreeMap<String, (IpAddr, IpAddr)>,
    /// How often that may still be tried: none when it is known.
    checksum_tries: u8,
    tell: mpsc::Sender<Finding>,
}

impl Asker {
    async fn run(mut self, mut aimed: watch::Receiver<BTreeMap<String, Target>>) {
        loop {
            let next = self.due.first().map(|(at, _)| *at);
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let v6 = async {
                match &self.v6 {
                    Some(socket) => socket.receive().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = aimed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let targets = aimed.borrow_and_update().clone();
                    self.aim(targets);
                }
                answer = self.v4.receive() => self.take(answer),
                answer = v6 => self.take(answer),
                () = due => {
                    self.ask().await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn aim(&mut self, targets: BTreeMap<String, Target>) {
        let changed = |name: &String, peer: &Peer| targets.get(name) != Some(&peer.target);
        let gone: Vec<String> = self
            .peers
            .iter()
            .filter(|(name, peer)| changed(name, peer))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.witnesses.remove(&name);
            if let Some(peer) = self.peers.remove(&name) {
                self.due.remove(&(peer.due, name));
            }
        }
        let now = Instant::now();
        for (name, target) in targets {
            self.peers.entry(name).or_insert_with_key(|name| {
                self.due.insert((now, name.clone()));
                Peer {
                    target,
                    due: now,
                    search: None,
                    told: None,
                    silence: SILENT_MIN,
                }
            });
        }
        let peers = &self.peers;
        self.rounds.retain(|_, name| peers.contains_key(name));
    }

    fn take(&mut self, answer: io::Result<[u8; TOKEN_LENGTH]>) {
        let Ok([a, b, c, d, e, f, g, h]) = answer.inspect_err(|error| tracing::debug!(%error, "no answers"))
        else {
            return;
        };
        let (number, size) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let Some(name) = self.rounds.get(&number) else {
            return; // too late
        };
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        if let Way::Encapsulated(way) = &peer.target.way
            && self.witnesses.len() < WITNESSES
        {
            self.witnesses.insert(name.clone(), way.ends);
        }
        if let Some((current, search)) = &mut peer.search
            && *current == number
        {
            search.passed(size);
            if search.is_settled() {
                self.due.remove(&(peer.due, name.clone()));
                peer.due = Instant::now();
                self.due.insert((peer.due, name.clone()));
            }
        }
    }

    /// Goes on with the peers that are due, as many as go in a burst.
    async fn ask(&mut self) {
        let now = Instant::now();
        for _ in 0..BURST {
            let Some((_, name)) = self.due.first().filter(|(at, _)| *at <= now).cloned() else {
                break;
            };
            self.due.pop_first();
            let Some(peer) = self.peers.get_mut(&name) else {
                continue;
            };
            let step = match peer.search.take() {
                None => Step::Round(Search::new(peer.target.size, peer.target.way.floor())),
                Some((number, search)) => {
                    self.rounds.remove(&number);
                    search.end_round()
                }
            };
            let wait = match step {
                Step::Round(search) => {
                    self.send(&name, search);
                    ROUND
                }
                Step::Done(outcome) => self.done(&name, outcome).await,
            };
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.due = now + wait;
                self.due.insert((peer.due, name));
            }
        }
    }

    fn send(&mut self, name: &str, search: Search) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let number: u32 = rand::random();
        let way = &peer.target.way;
        for size in search.sizes() {
            let mut token = [0; TOKEN_LENGTH];
            token[..4].copy_from_slice(&number.to_be_bytes());
            token[4..].copy_from_slice(&size.to_be_bytes());
            let request = way.request(self.id, token, size);
            let sent = match way {
                Way::Encapsulated(way) => {
                    let to = SocketAddr::new(way.nodes.1, way.port);
                    self.udp.send_to(&way.datagram(&request), &to.into()).map(drop)
                }
                Way::Direct { to, .. } => match (to.is_ipv4(), &self.v6) {
                    (true, _) => self.v4.send(&request, *to),
                    (false, Some(v6)) => v6.send(&request, *to),
                    (false, None) => Ok(()),
                },
            };
            // Too large for this node's own link, or no way there: not answered then.
            if let Err(error) = sent {
                tracing::debug!(peer = name, size, %error, "a probe could not be sent");
            }
        }
        self.rounds.insert(number, name.to_string());
        peer.search = Some((number, search));
    }

    /// Tells what is new, and says when to ask again.
    async fn done(&mut self, name: &str, outcome: Outcome) -> Duration {
        let Some(peer) = self.peers.get_mut(name) else {
            return self.every;
        };
        let path = match outcome {
            // What was known of the path says nothing less now.
            Outcome::Silent => {
                let wait = peer.silence;
                peer.silence = SILENT_MAX.min(wait * 2);
                return wait;
            }
            Outcome::Whole => None,
            Outcome::Limited(path) => Some(path),
        };
        peer.silence = SILENT_MIN;
        if peer.told.replace(outcome) != Some(outcome) {
            let name = name.to_string();
            // A role that is gone wants to hear nothing.
            _ = self.tell.send(Finding::Path { name, path }).await;
        }
        if self.checksum_tries > 0 && !self.witnesses.is_empty() {
            self.test_checksums().await;
        }
        self.every
    }

    /// Meanwhile answers wait in their sockets, or get lost: those peers are asked again.
    async fn test_checksums(&mut self) {
        let Some((own, _)) = self.witnesses.values().next().copied() else {
            return;
        };
        let same_family = self.witnesses.values().filter(|(from, _)| *from == own);
        let peers: Vec<IpAddr> = same_family.map(|(_, peer)| *peer).collect();
        let found = checksums::test(&self.ethtool, own, &peers).await;
        self.checksum_tries -= 1;
        if found != Checksums::Untested {
            self.checksum_tries = 0;
            _ = self.tell.send(Finding::Checksums(found)).await;
        }
    }
}
