//! The backend on IPVS, the kernel's own load balancer: what kube-proxy's mode of that name does, without `ipvsadm`.
//!
//! A dummy link (`kube-ipvs0`, down and without ARP, as kube-proxy makes it) holds every service address, so that packets
//! to it are this host's and pass IPVS. Each frontend is a virtual service whose destinations are reached by address
//! translation; a node port is one for each address of the node. `layout.rs` says what our tables do beside that, `loopback.rs` what it
//! takes to have node ports on 127.0.0.1,
//! `desired.rs` how frontends become virtual services, `can.rs` finds out what this host can do, `plan.rs` decides, `observe.rs` and `apply.rs` talk to the
//! kernel, `stale.rs` clears what a change leaves in conntrack.
//!
//! What the kernel's load balancer can not do, other than the tables of `../nftables`:
//! - with policy `Local`, pods and this node go to local endpoints where there are some, as everyone does;
//! - a Service that goes takes its connections along. A switch to nftables mode does not (`leave.rs`); one to userspace
//!   mode does, for IPVS takes packets before they come to a socket.
//!
//! With `net.ipv4.vs.conn_reuse_mode` left alone, as kube-proxy does since Linux 5.9: a client's port that is used again
//! soon gets a new endpoint.

mod apply;
mod can;
mod desired;
mod layout;
mod leave;
mod look;
mod loopback;
mod observe;
mod plan;
mod schedule;
mod slot;
mod stale;
mod tuning;
mod wake;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use svcnet_netlink::ipvs::{self as kernel, Identity, Op};
use svcnet_netlink::monitor::{self, Group, Happened, Listener};
use svcnet_netlink::nft::{self, Family, Socket, Watch};
use svcnet_netlink::{Rtnl, rt, sysctl};

pub use can::{Unavailable, cleanup, is_there, probe};
pub use desired::{Host, Wanted};
pub use leave::{Left, Step, leave};
pub(crate) use look::words;
pub use look::{Difference, Listed, listed, listings};
pub use plan::{Balancer, Elements, Held, Plan, State, Tables, Touch};
pub use slot::{List, Slot};
pub(crate) use tuning::restore as restore_timeouts;
pub use tuning::{BadTimeout, NOTE as TIMEOUTS_NOTE, SetTimeouts, Timeouts, Tuning, put_back_timeouts};

use crate::backend::{self, Backend, Report};
use crate::model::{Frontend, FrontendKey};
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;
use crate::sysctls::{self, Sysctls};
use apply::Kernel;
use can::{families, has_scheduler};
use layout::Networks;
use schedule::Lacking;
use stale::Suspects;
use wake::Wake;

/// The link that holds service addresses. The name is kube-proxy's: other programs know to leave it alone.
pub const LINK: &str = "kube-ipvs0";
/// IPVS tells nobody of changes, so all of it is looked at so often; and no more than a hundredth of the time.
const VERIFY: Duration = Duration::from_secs(1);
const VERIFY_SHARE: u32 = 100;
/// What IPVS needs to work as a Service should: conntrack for masquerading; connections and clients of removed and
/// drained endpoints do not wait for their timeout.
pub const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
];
/// Each link answers ARP for its own addresses alone, and asks with them alone.
pub const STRICT_ARP: [(&str, &str); 2] = [
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
];

/// How the backend is to work.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Networks of pods (`--cluster-cidr`): their addresses are kept on the way to services.
    pub pod_networks: Vec<IpNet>,
    /// Networks of ClusterIPs (`--service-cluster-ip-range`).
    pub service_networks: Vec<IpNet>,
    /// Settings of the kernel. Strict ARP (`--strict-arp`) because a service's address is on every node, and an announcer
    /// wants to be the only one that answers for it.
    pub tuning: Tuning,
    /// Where it is written down what kernel parameters were before.
    pub sysctls: Option<Sysctls>,
}

/// What can go wrong with IPVS and what is around it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// IPVS can not be used here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// IPVS refused.
    #[error(transparent)]
    Balancer(#[from] kernel::Error),
    /// nf_tables refused.
    #[error(transparent)]
    Tables(#[from] nft::Error),
    /// A link or address.
    #[error(transparent)]
    Links(#[from] rt::Error),
    /// A kernel parameter.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// What a kernel parameter was could not be written down.
    #[error(transparent)]
    Remember(#[from] sysctls::Error),
    /// The kernel's list of connections can not be read.
    #[error("read the connections of IPVS: {0}")]
    Connections(#[source] std::io::Error),
    /// No way to be woken.
    #[error("wait for foreign changes: {0}")]
    Wake(#[source] Errno),
}

/// IPVS, the link and the tables of the network namespace that it was opened in.
pub struct Ipvs {
    kernel: Kernel,
    families: Vec<Family>,
    tuning: Tuning,
    sysctls: Option<Sysctls>,
    node_ports: NodePortAddresses,
    /// The networks of those, where they are not all.
    node_port_networks: Option<Vec<IpNet>>,
    /// The node's addresses, as its Node says.
    node: BTreeSet<IpAddr>,
    networks: Networks,
    watch: Watch,
    listener: Listener,
    wake: Wake,
    state: State,
    link: Option<u32>,
    schedulers: Schedulers,
    /// Mark of the services that find out about schedulers.
    probe_mark: u32,
    /// When all is looked at next; nothing before the first convergence.
    verify_at: Option<Instant>,
}

/// What is known about the kernel's schedulers.
#[derive(Debug, Default)]
struct Schedulers {
    known: BTreeSet<&'static str>,
    lacking: Lacking,
}

impl Ipvs {
    /// Probes and opens the ways to the kernel; changes nothing yet.
    ///
    /// # Errors
    /// When IPVS can not be used here: [`Error::Unavailable`] says why.
    pub fn open(config: &Config) -> Result<Self, Error> {
        probe()?;
        let balancer = kernel::Socket::open()?.ok_or(Unavailable::NoIpvs)?;
        Self::over(config, balancer)
    }

    fn over(config: &Config, balancer: kernel::Socket) -> Result<Self, Error> {
        let mut tables = Socket::open()?;
        let families = families(&mut tables)?;
        if !families.contains(&Family::Ip6) {
            tracing::warn!("no IPv6 in this kernel or for new links, services have IPv4 frontends only");
        }
        let watch = Watch::open()?;
        let listener = Listener::open(&[Group::Link, Group::Address])?;
        Ok(Self {
            wake: Wake::new(&[&watch, &listener]).map_err(Error::Wake)?,
            kernel: Kernel {
                tables,
                links: Rtnl::open()?,
                balancer,
            },
            families,
            networks: Networks {
                pods: config.pod_networks.clone(),
                services: config.service_networks.clone(),
            },
            tuning: config.tuning,
            node_port_networks: None,
            node: BTreeSet::new(),
            node_ports: NodePortAddresses::default(),
            sysctls: config.sysctls.clone(),
            watch,
            listener,
            state: State::default(),
            link: None,
            schedulers: Schedulers::default(),
            probe_mark: can::PROBE_MARK,
            verify_at: None,
        })
    }

    /// What the kernel should hold.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads back what the kernel holds.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn observe(&mut self) -> Result<(Balancer, Tables, Host), Error> {
        let addresses = observe::addresses(&mut self.kernel.links)?;
        self.link = addresses.link;
        let host = self.host(&addresses);
        let balancer = observe::balancer(&mut self.kernel.balancer, &addresses)?;
        let tables = observe::tables(&mut self.kernel.tables, &self.families, &self.networks)?;
        Ok((balancer, tables, host))
    }

    fn host(&self, addresses: &observe::Addresses) -> Host {
        let networks = self.node_port_networks.as_deref();
        Host {
            node_ports_on: observe::node_ports_on(addresses, networks, &self.networks),
            addresses: addresses.others.clone(),
            node: self.node.clone(),
            lacking: self.schedulers.lacking.clone(),
        }
    }

    fn carry_out(&mut self, plan: &Plan, suspects: &Suspects) -> Result<Report, Error> {
        if plan.is_empty() {
            return Ok(Report::default());
        }
        let begin = Instant::now();
        let mut report = Report {
            operations: plan.len(),
            bytes: self.kernel.apply(plan, &self.networks, self.sysctls.as_ref())?,
            ..Report::default()
        };
        if plan.add_link {
            self.link = self.kernel.links.link(LINK)?.map(|link| link.index);
        }
        report.commit = begin.elapsed();
        // The new state is in force; what is left of the old one is looked after, but is no reason to fail.
        match suspects.clear(&mut self.kernel.tables) {
            Ok(cleared) => report.cleared = cleared,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "stale connections stay");
            }
        }
        Ok(report)
    }

    /// Looks at IPVS, our link and kernel parameters, and repairs what differs.
    fn verify(&mut self) -> Result<Report, Error> {
        let begin = Instant::now();
        let addresses = observe::addresses(&mut self.kernel.links)?;
        let balancer = observe::balancer(&mut self.kernel.balancer, &addresses)?;
        let (plan, suspects) = self
            .state
            .balance(&balancer, |at| balancer.bound.contains(&at.ip));
        self.verify_at = Some(Instant::now() + VERIFY.max(begin.elapsed() * VERIFY_SHARE));
        let drained = |op: &Op| matches!(op, Op::DeleteDestination(..));
        let only_drained = plan.ops.iter().all(drained) && plan.len() == plan.ops.len();
        if !only_drained {
            tracing::info!(
                plan.ops = plan.len(),
                "somebody else changed IPVS or what it needs, repairing it"
            );
        }
        tracing::debug!(%plan, "verify");
        self.carry_out(&plan, &suspects)
    }

    /// Removes endpoints whose last connection has ended, and what else was kept for packets on their way.
    fn remove_drained(&mut self) -> Result<Report, Error> {
        let mut plan = self.state.tidy();
        for at in self.state.draining().collect::<Vec<_>>() {
            let observed = self.kernel.balancer.destinations(Identity::Address(at))?;
            plan.ops.extend(self.state.drained(at, &observed));
        }
        self.carry_out(&plan, &Suspects::default())
    }

    /// Finds out which schedulers the kernel has, of those that frontends ask for, and says once what it lacks.
    fn learn<'a>(&mut self, frontends: impl Iterator<Item = &'a Frontend>) -> Result<bool, Error> {
        let before = self.schedulers.lacking.len();
        for frontend in frontends {
            let wanted = frontend.scheduler;
            if wanted == Scheduler::Random || !self.schedulers.known.insert(wanted.name()) {
                continue;
            }
            if !has_scheduler(&mut self.kernel.balancer, wanted.name(), self.probe_mark)? {
                self.schedulers.lacking.insert(wanted.name());
                tracing::warn!(
                    object.name = %frontend.name, scheduler = %wanted,
                    "this kernel lacks the scheduler (module ip_vs_NAME), endpoints take turns instead"
                );
            }
        }
        Ok(self.schedulers.lacking.len() != before)
    }

    fn concerns(&self, event: &monitor::Event) -> bool {
        use monitor::Event;
        match event {
            Event::Link(Happened::Deleted, link) => link.name == LINK,
            Event::Address(happened, address) => {
                let ip = address.net.addr();
                if observe::is_link_local(ip) {
                    return false;
                }
                let known = if Some(address.link) == self.link {
                    self.state.binds(ip)
                } else {
                    self.state.host().addresses.contains(&ip)
                };
                // Our own changes make true what is known already.
                known != (*happened == Happened::Set)
            }
            Event::Lost => true,
            _ => false,
        }
    }
}

impl Backend for Ipvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        from_scratch: bool,
    ) -> Result<Report, backend::Error> {
        let families = &self.families;
        let frontends: Vec<Frontend> = frontends
            .filter(|frontend| families.contains(&frontend.key.family()))
            .collect();
        self.learn(frontends.iter())?;
        let (balancer, mut tables, host) = self.observe()?;
        if from_scratch {
            tables.rebuild = self.families.iter().copied().collect();
            tables.elements.clear();
        }
        let mut state = State::new(frontends.into_iter(), host);
        let (mut plan, suspects) = state.converge(&balancer, tables, &self.state);
        self.claim_sysctls();
        plan.sysctls = self.wrong_sysctls()?;
        plan.restore = self.needless_sysctls();
        plan.timeouts = self.wrong_timeouts()?;
        self.state = state;
        tracing::debug!(plan = %Shortened(&plan), "converge");
        loopback::prepare(&mut self.kernel.links, &self.families);
        let report = self.carry_out(&plan, &suspects)?;
        self.verify_at = Some(Instant::now() + VERIFY);
        Ok(report)
    }

    fn change(
        &mut self,
        mut changes: Vec<(FrontendKey, Option<Frontend>)>,
    ) -> Result<Report, backend::Error> {
        changes.retain(|(key, _)| self.families.contains(&key.family()));
        if self.learn(changes.iter().filter_map(|(_, frontend)| frontend.as_ref()))? {
            self.state.learn(&self.schedulers.lacking);
        }
        let (plan, suspects) = self.state.change(changes);
        tracing::debug!(plan = %Shortened(&plan), "change");
        Ok(self.carry_out(&plan, &suspects)?)
    }

    fn nearest(&self, scheduler: Scheduler) -> Scheduler {
        let lacks = self.schedulers.lacking.contains(scheduler.name());
        if lacks || scheduler == Scheduler::Random {
            Scheduler::Rr
        } else {
            scheduler
        }
    }

    fn node_ports_on(&mut self, addresses: &NodePortAddresses, node: &[IpAddr]) -> bool {
        self.node_ports = addresses.clone();
        self.node_addresses(node)
    }

    fn node_addresses(&mut self, addresses: &[IpAddr]) -> bool {
        let (networks, node) = (
            self.node_ports.networks(addresses),
            addresses.iter().copied().collect(),
        );
        let changed = networks != self.node_port_networks || node != self.node;
        (self.node_port_networks, self.node) = (networks, node);
        changed
    }

    fn tune(&mut self, tuning: &Tuning) -> bool {
        let changed = self.tuning != *tuning;
        self.tuning = *tuning;
        changed
    }

    fn is_untidy(&self) -> bool {
        self.verify_at.is_some()
    }

    fn tidy(&mut self) -> Result<Report, backend::Error> {
        match self.verify_at {
            Some(at) if at <= Instant::now() => {
                let left = self.state.tidy();
                self.carry_out(&left, &Suspects::default())?;
                Ok(self.verify()?)
            }
            _ => Ok(self.remove_drained()?),
        }
    }

    fn touched(&mut self) -> Result<bool, backend::Error> {
        let (port, mut touched) = (self.kernel.tables.port(), false);
        self.watch
            .drain(|event| match event {
                nft::Event::Changed { table, port: by } => {
                    touched |= table.name == layout::TABLE && by != port;
                }
                nft::Event::Overrun => touched = true,
            })
            .map_err(Error::Tables)?;
        let mut events = Vec::new();
        self.listener
            .drain(|event| events.push(event))
            .map_err(Error::Links)?;
        Ok(touched || events.iter().any(|event| self.concerns(event)))
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }
}

/// A plan for the log: all of a short one.
struct Shortened<'a>(&'a Plan);

impl std::fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.len() > 50 {
            write!(f, "{} operations", self.0.len())
        } else {
            self.0.fmt(f)
        }
    }
}
