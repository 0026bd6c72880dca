//! Opening and closing sockets, as planned.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use svcnet_netlink::nft::Family;
use svcnet_netlink::rt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use super::desired::{Desired, Rules, Wanted};
use super::door::Door;
use super::front::{Front, Shared};
use super::plan::{Observed, Operation, Plan};
use super::udp::Desk;
use super::{sockets, tcp};
use crate::model::{FrontendKey, Protocol};

/// Frontends that one line of the log names.
const NAMED_MAX: usize = 5;

/// The sockets that are open, and what could not be opened.
pub(crate) struct Held {
    shared: Arc<Shared>,
    sockets_max: usize,
    sockets: BTreeMap<FrontendKey, Socket>,
    addresses: BTreeSet<IpAddr>,
    unplaced: BTreeMap<IpAddr, String>,
    unserved: BTreeMap<FrontendKey, String>,
}

struct Socket {
    door: Door,
    rules: Arc<Rules>,
    front: Arc<Front>,
    /// One, or one for each address that a node port answers on.
    listening: Vec<Listening>,
    closing: watch::Sender<Option<Duration>>,
}

enum Listening {
    Tcp(Arc<TcpListener>),
    Udp(Arc<Desk>),
}

impl Held {
    pub(crate) fn new(shared: Arc<Shared>, sockets_max: usize) -> Self {
        Self {
            shared,
            sockets_max,
            sockets: BTreeMap::new(),
            addresses: BTreeSet::new(),
            unplaced: BTreeMap::new(),
            unserved: BTreeMap::new(),
        }
    }

    /// Whether anything is not as desired.
    pub(crate) fn has_unserved(&self) -> bool {
        !self.unserved.is_empty() || !self.unplaced.is_empty()
    }

    /// What is there, asking the kernel.
    pub(crate) fn observe(&mut self) -> Result<Observed, rt::Error> {
        self.addresses = self.shared.addresses.observe()?;
        self.unplaced.clear();
        Ok(self.known())
    }

    /// What is there, as far as is known.
    pub(crate) fn known(&self) -> Observed {
        let sockets = self.sockets.iter();
        // What could not be placed is not to be tried with every change.
        let unplaced = self.unplaced.keys().copied();
        Observed {
            sockets: sockets
                .map(|(key, held)| (*key, (held.door.clone(), held.rules.clone())))
                .collect(),
            addresses: self.addresses.iter().copied().chain(unplaced).collect(),
        }
    }

    /// Carries a plan out as far as it can be, and says what can not.
    pub(crate) fn apply(&mut self, plan: &Plan, desired: &Desired) {
        let mut failed = BTreeMap::new();
        let mut touched: BTreeSet<FrontendKey> = BTreeSet::new();
        for operation in &plan.0 {
            let (key, result) = match operation {
                Operation::Place(ip) => {
                    self.place(*ip);
                    continue;
                }
                Operation::Release(ip) => {
                    self.release(*ip);
                    continue;
                }
                Operation::Open(key, door, rules) => (key, self.open(*key, door, rules)),
                Operation::Guard(key, door) => (key, self.guard(*key, door)),
                Operation::Direct(key, rules) => {
                    self.direct(*key, rules);
                    (key, Ok(()))
                }
                Operation::Close(key) => {
                    self.close(*key, Duration::ZERO);
                    (key, Ok(()))
                }
            };
            touched.insert(*key);
            if let Err(why) = result {
                failed.insert(*key, why);
            }
        }
        let impossible = desired.wanted.iter().filter_map(|(key, wanted)| match wanted {
            Wanted::Impossible(why) => Some((*key, (*why).to_string())),
            _ => None,
        });
        failed.extend(impossible);
        self.tell(failed, &touched, desired);
    }

    /// Notes what is not served, and says so where that is news.
    fn tell(
        &mut self,
        failed: BTreeMap<FrontendKey, String>,
        touched: &BTreeSet<FrontendKey>,
        desired: &Desired,
    ) {
        let before = std::mem::take(&mut self.unserved);
        let news: Vec<&FrontendKey> = failed.keys().filter(|key| !before.contains_key(key)).collect();
        if let Some(reason) = news.first().and_then(|key| failed.get(key)) {
            let named: Vec<String> = news.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            tracing::warn!(
                count = news.len(),
                frontends = named.join(", "),
                reason,
                "frontends are not served"
            );
        }
        let had = !before.is_empty();
        let stays = |key: &FrontendKey| desired.wanted.contains_key(key) && !touched.contains(key);
        self.unserved = before.into_iter().filter(|(key, _)| stays(key)).collect();
        self.unserved.extend(failed);
        if had && self.unserved.is_empty() {
            tracing::info!("all frontends are served");
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("svcnet_proxy_unserved_frontends").set(self.unserved.len() as f64);
    }

    fn place(&mut self, ip: IpAddr) {
        match self.shared.addresses.place(ip) {
            Ok(()) => {
                self.unplaced.remove(&ip);
                self.addresses.insert(ip);
            }
            Err(error) => {
                self.addresses.remove(&ip);
                self.unplaced.insert(ip, error.to_string());
            }
        }
    }

    fn release(&mut self, ip: IpAddr) {
        if self.unplaced.remove(&ip).is_none()
            && let Err(error) = self.shared.addresses.release(ip)
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an address stays that nothing needs"
            );
            return;
        }
        self.addresses.remove(&ip);
    }

    fn open(&mut self, key: FrontendKey, door: &Door, rules: &Arc<Rules>) -> Result<(), String> {
        if self.sockets.len() >= self.sockets_max {
            return Err(format!(
                "{} frontends have a socket, more the limit of open files (ulimit -n) does not allow",
                self.sockets_max
            ));
        }
        let ip = match key {
            FrontendKey::Address { ip, .. } => Some(ip),
            FrontendKey::NodePort { .. } => None,
        };
        let placed = ip.is_some_and(|ip| self.addresses.contains(&ip));
        let opened = self.try_open(key, door, rules, ip, placed);
        opened.map_err(|error| {
            let unplaced = ip.and_then(|ip| self.unplaced.get(&ip));
            match (unplaced, error.kind()) {
                (Some(why), io::ErrorKind::AddrNotAvailable) => {
                    format!(
                        "{why}; the host does not have the address, and CAP_NET_ADMIN is needed to add it"
                    )
                }
                (_, io::ErrorKind::AddrInUse) => {
                    format!("{error}: another process of this host listens on the port at all addresses")
                }
                (_, io::ErrorKind::PermissionDenied) => {
                    format!(
                        "{error}: ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
                    )
                }
                _ => error.to_string(),
            }
        })
    }

    fn try_open(
        &mut self,
        key: FrontendKey,
        door: &Door,
        rules: &Arc<Rules>,
        ip: Option<IpAddr>,
        placed: bool,
    ) -> io::Result<()> {
        let front = Arc::new(Front::new(self.shared.clone(), key.protocol(), rules.clone()));
        let (closing, closed) = watch::channel(None);
        let mut listening = Vec::new();
        for at in sockets::places(key, door) {
            // An address of the node may be about to come.
            let socket = sockets::open(key, at, door, placed || door.at.is_some())?;
            let hold = ip.and_then(|ip| self.shared.addresses.hold(ip));
            listening.push(if key.protocol() == Protocol::Udp {
                let socket = UdpSocket::from_std(socket.into())?;
                let desk = Arc::new(Desk::new(socket, front.clone(), key.port()));
                tokio::spawn(desk.clone().serve(closed.clone(), hold));
                Listening::Udp(desk)
            } else {
                let listener = Arc::new(TcpListener::from_std(socket.into())?);
                tokio::spawn(tcp::serve(listener.clone(), front.clone(), closed.clone(), hold));
                Listening::Tcp(listener)
            });
        }
        let held = Socket {
            door: door.clone(),
            rules: rules.clone(),
            front,
            listening,
            closing,
        };
        self.sockets.insert(key, held);
        Ok(())
    }

    fn guard(&mut self, key: FrontendKey, door: &Door) -> Result<(), String> {
        let Some(held) = self.sockets.get_mut(&key) else {
            return Ok(());
        };
        for listening in &held.listening {
            let socket = match listening {
                Listening::Tcp(listener) => SockRef::from(&**listener),
                Listening::Udp(desk) => SockRef::from(desk.socket()),
            };
            sockets::guard(socket, door, key.family() == Family::Ip6).map_err(|error| error.to_string())?;
        }
        held.door = door.clone();
        Ok(())
    }

    fn direct(&mut self, key: FrontendKey, rules: &Arc<Rules>) {
        let Some(held) = self.sockets.get_mut(&key) else {
            return;
        };
        held.front.direct(rules.clone());
        for listening in &held.listening {
            if let Listening::Udp(desk) = listening {
                desk.direct(rules);
            }
        }
        held.rules = rules.clone();
    }

    /// The task that serves the socket holds it a little longer, for those that it has not taken yet.
    fn close(&mut self, key: FrontendKey, grace: Duration) {
        if let Some(held) = self.sockets.remove(&key) {
            held.closing.send_replace(Some(grace));
        }
    }

    pub(crate) fn close_all(&mut self, grace: Duration) {
        for key in self.sockets.keys().copied().collect::<Vec<_>>() {
            self.close(key, grace);
        }
    }
}
