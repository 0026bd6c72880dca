//! The backend on sockets: TCP and UDP relays, for a host with neither nf_tables nor IPVS.
//!
//! Each frontend is a socket. For that, the addresses of Services are made local to the node (`addresses.rs`); node ports
//! need no more than a socket. Without CAP_NET_ADMIN no address can be made local: then node ports are served, and
//! frontends at addresses that the host has already, and the log says what is not served and why.
//!
//! What the kernel does by itself needs nothing here: a port without a socket is refused, whether for want of endpoints or
//! because no Service has it. What is to be dropped is dropped by a filter at the socket (`door.rs`).
//!
//! NetworkPolicies do not see clients behind relays, so relays ask about each connection ([`crate::admission`]), and heed changes
//! while it stands: a new one that may go nowhere is left without an answer (TCP: after the handshake, which is the kernel's), one
//! that stands is held, datagrams are lost. To pods of other nodes they connect from an address that says so (`source.rs`).
//!
//! What is lost against the other modes: pods see this node's address and not their clients'; every byte is copied through
//! this process; SCTP; ports on which the host itself listens at all its addresses answer at those of Services too; and
//! connections end with the process. Addresses that are local are answered for by ARP on every link, which would disturb
//! whoever announces LoadBalancer addresses: so `arp_ignore` and `arp_announce` are set as for strict ARP.
//!
//! `desired.rs` says what sockets should do, `plan.rs` what to change, `apply.rs` does it; `tcp.rs` and `udp.rs` relay, by
//! the choices of `front.rs` and `choose.rs`.

mod addresses;
mod apply;
mod choose;
mod desired;
mod door;
mod front;
pub mod look;
mod plan;
mod sockets;
mod source;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::monitor::{Event, Group, Monitor};
use svcnet_netlink::{Rtnl, rt};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::backend::{self, Backend, Mode, Report};
use crate::model::{Frontend, FrontendKey};
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;
use crate::sysctls::{self, Sysctls};
use addresses::Addresses;
use apply::Held;
use desired::{Desired, wanted};
use front::Shared;
use sockets::Limits;
use source::Sources;

/// Threads that relay.
const WORKERS: usize = 2;
/// How often is tried again what could not be served.
const RETRY: Duration = Duration::from_secs(5);
/// For how long sockets go on taking connections that were on their way when another mode took over.
const GRACE: Duration = Duration::from_secs(1);
/// Who answers for which address on the network is not the kernel's to decide any more.
pub(crate) const SYSCTLS: [(&str, &str); 2] = [
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
];

/// Why the backend can not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No threads, or no way to watch files.
    #[error("start the relays: {0}")]
    Start(#[source] std::io::Error),
    /// The kernel's routes can not be asked or changed.
    #[error(transparent)]
    Kernel(#[from] rt::Error),
    /// The kernel's lists of sockets can not be read.
    #[error("read the kernel's lists of sockets: {0}")]
    Sockets(#[source] std::io::Error),
    /// Parameters of the kernel could not be put back.
    #[error(transparent)]
    Sysctls(#[from] sysctls::Error),
}

/// The threads that relay. Connections live as long as these do, also when the mode is another one meanwhile.
pub struct Relays {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    sockets_max: usize,
}

impl Relays {
    /// Starts the threads, in the network namespace of this one. Connections are made as `admission` says, if it is there.
    ///
    /// # Errors
    /// When threads or sockets to the kernel can not be had.
    pub fn start(
        pod_networks: &[IpNet],
        sysctls: Sysctls,
        admission: Option<Arc<dyn Admission>>,
    ) -> Result<Arc<Self>, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("proxy-relay")
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let limits = Limits::raise();
        Ok(Arc::new(Self {
            runtime: Some(runtime),
            shared: Arc::new(Shared {
                addresses: Addresses::open(sysctls)?,
                sources: Sources::open()?,
                pods: pod_networks.into(),
                admission,
                connections: Arc::new(Semaphore::new(limits.connections)),
                sessions: Arc::new(Semaphore::new(limits.sessions)),
                waiting: Arc::new(Semaphore::new(limits.waiting)),
            }),
            sockets_max: limits.sockets,
        }))
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Threads are not waited for: this may be one that must not block.
            runtime.shutdown_background();
        }
    }
}

/// Relays on sockets, in the network namespace that they were started in.
pub struct Userspace {
    relays: Arc<Relays>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    desired: Desired,
    held: Held,
    /// What `--nodeport-addresses` says, and which networks that is.
    node_ports: NodePortAddresses,
    node_port_networks: Option<Vec<IpNet>>,
    /// The node's addresses in them.
    node_port_addresses: Option<Box<[IpAddr]>>,
    rtnl: Rtnl,
}

impl Userspace {
    /// A backend over these relays; does nothing yet.
    ///
    /// # Errors
    /// When a socket to the kernel can not be had.
    pub fn open(relays: &Arc<Relays>) -> Result<Self, Error> {
        let rtnl = Rtnl::open()?;
        tracing::warn!(
            "services are relayed on sockets: slower than in the kernel, pods see this node's address instead of their \
             clients', and connections end with this process"
        );
        relays.shared.sources.begin();
        let inner = Arc::new(Mutex::new(Inner {
            desired: Desired::default(),
            held: Held::new(relays.shared.clone(), relays.sockets_max),
            node_ports: NodePortAddresses::default(),
            node_port_networks: None,
            node_port_addresses: None,
            rtnl,
        }));
        if let Some(runtime) = &relays.runtime {
            runtime.spawn(keep(Arc::downgrade(&inner), relays.shared.sources.clone()));
        }
        Ok(Self {
            relays: relays.clone(),
            inner,
        })
    }

    fn run<T>(&self, body: impl FnOnce(&mut Inner) -> T) -> T {
        // Sockets belong to the runtime that they were made in.
        let _in_runtime = self.relays.runtime.as_ref().map(Runtime::enter);
        body(&mut lock(&self.inner))
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn set(&mut self, key: FrontendKey, frontend: Option<&Frontend>, pods: &[IpNet]) {
        let node_ports = self.node_port_addresses.as_deref();
        let wanted = frontend.map(|frontend| wanted(frontend, pods, node_ports));
        self.desired.set(key, wanted);
    }

    /// Whether node ports answer on other addresses than before, with these main ones of the node.
    fn node_addresses(&mut self, node: &[IpAddr]) -> bool {
        let networks = self.node_ports.networks(node);
        let changed = networks != self.node_port_networks;
        self.node_port_networks = networks;
        changed
    }

    /// Looks which addresses of the node node ports answer on.
    fn look_at_addresses(&mut self) -> Result<(), Error> {
        self.node_port_addresses = match &self.node_port_networks {
            None => None,
            Some(networks) => {
                let own = self.rtnl.addresses(None)?.into_iter();
                Some(desired::listen_at(
                    networks,
                    own.map(|address| address.net.addr()),
                ))
            }
        };
        self.desired.listen_at(self.node_port_addresses.as_deref());
        Ok(())
    }

    fn converge(&mut self) -> Result<Report, Error> {
        self.look_at_addresses()?;
        let observed = self.held.observe()?;
        let plan = plan::all(&self.desired, &observed);
        Ok(self.carry_out(&plan))
    }

    fn carry_out(&mut self, plan: &plan::Plan) -> Report {
        let begin = Instant::now();
        tracing::debug!(operations = plan.0.len(), "plan");
        tracing::trace!(%plan);
        self.held.apply(plan, &self.desired);
        Report {
            operations: plan.0.len(),
            commit: begin.elapsed(),
            ..Report::default()
        }
    }
}

impl Backend for Userspace {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        from_scratch: bool,
    ) -> Result<Report, backend::Error> {
        let pods = &self.relays.shared.pods;
        self.run(|inner| {
            if from_scratch {
                inner.held.close_all(Duration::ZERO);
            }
            inner.desired = Desired::default();
            // Once for all of them.
            inner.look_at_addresses()?;
            for frontend in frontends {
                inner.set(frontend.key, Some(&frontend), pods);
            }
            Ok(inner.converge()?)
        })
    }

    fn change(&mut self, changes: Vec<(FrontendKey, Option<Frontend>)>) -> Result<Report, backend::Error> {
        let pods = &self.relays.shared.pods;
        self.run(|inner| {
            for (key, frontend) in &changes {
                inner.set(*key, frontend.as_ref(), pods);
            }
            let keys = changes.into_iter().map(|(key, _)| key).collect();
            let plan = plan::some(&inner.desired, &inner.held.known(), keys);
            Ok(inner.carry_out(&plan))
        })
    }

    fn nearest(&self, scheduler: Scheduler) -> Scheduler {
        match scheduler {
            Scheduler::Lblc | Scheduler::Lblcr => Scheduler::Wlc,
            other => other,
        }
    }

    fn node_ports_on(&mut self, addresses: &NodePortAddresses, node: &[IpAddr]) -> bool {
        self.run(|inner| {
            inner.node_ports = addresses.clone();
            inner.node_addresses(node)
        })
    }

    fn node_addresses(&mut self, addresses: &[IpAddr]) -> bool {
        self.run(|inner| inner.node_addresses(addresses))
    }

    /// Never: what others do to the addresses is repaired without being asked.
    fn touched(&mut self) -> Result<bool, backend::Error> {
        Ok(false)
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for Userspace {
    /// Another mode has taken over, or the process ends. Connections go on where the threads do.
    fn drop(&mut self) {
        self.run(|inner| {
            inner.held.close_all(GRACE);
            self.relays.shared.sources.end();
            inner.desired = Desired::default();
            if let Err(error) = inner.converge() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "addresses of services stay local"
                );
            }
        });
    }
}

/// Puts back what others take away, and tries again what could not be served, until the backend is gone.
async fn keep(inner: Weak<Mutex<Inner>>, sources: Sources) {
    let mut monitor = Monitor::open(&[Group::Route, Group::Address])
        .inspect_err(|error| tracing::warn!(%error, "addresses that somebody removes are not put back"))
        .ok();
    loop {
        let disturbed = match &mut monitor {
            Some(monitor) => tokio::time::timeout(RETRY, monitor.next()).await.ok(),
            None => {
                tokio::time::sleep(RETRY).await;
                None
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        sources.mend();
        let mut inner = lock(&inner);
        let needed = match &disturbed {
            None => inner.held.has_unserved(),
            Some(Err(_)) => true,
            Some(Ok(events)) => events.iter().any(|event| match event {
                Event::LocalDeleted(ip) => inner.desired.addresses.contains_key(ip),
                // One that a link had was left alone, and is gone with it: those of ipvs mode go when this one has begun.
                Event::Address(_, address) => {
                    inner.node_port_networks.is_some()
                        || inner.desired.addresses.contains_key(&address.net.addr())
                }
                event => *event == Event::Lost,
            }),
        };
        if needed && let Err(error) = inner.converge() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "can not look after service addresses"
            );
        }
    }
}

/// Takes back the addresses that were made local, and the parameters that were set with them, and says whether there
/// was anything. Not while relays run.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(sysctls: &Sysctls) -> Result<bool, Error> {
    let mut rtnl = Rtnl::open()?;
    let addresses = rtnl.local_addresses(LocalFor::Relays)?;
    for ip in &addresses {
        rtnl.delete_local_address(LocalFor::Relays, *ip)?;
    }
    let sources = source::cleanup(&mut rtnl)?;
    let restored = sysctls.restore(Mode::Userspace, &SYSCTLS.map(|(name, _)| name))?;
    Ok(restored || sources || !addresses.is_empty())
}
