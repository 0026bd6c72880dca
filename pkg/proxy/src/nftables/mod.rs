//! The backend on nf_tables.
//!
//! Few static rules, data maps for what is many, and a chain for each *shape* of frontend (see `shape.rs`): a change
//! costs the same at 1,000 and at 100,000 services. `layout.rs` declares the tables, `slot.rs` says how frontends lie
//! in their sets, `choice.rs` how schedulers choose, `plan.rs` decides, `apply.rs` and `observe.rs` talk to the kernel, `stale.rs` clears what a change
//! leaves in the kernel's memory.
//!
//! A packet may look twice, before and after a change: each lookup in nf_tables sees the newest generation of the sets,
//! so the count of endpoints and the endpoint can be of two states. Therefore each `dnat` has a rule behind it that
//! takes the first index, and a chain or a hairpin that nobody uses any more stays for a second or two
//! (`Backend::tidy`). The test `churn` failed without the two.
//!
//! A chain of a shape looks nothing up: for a new rule that looks into a map the kernel walks all of the map
//! (`nf_tables_bind_set`), with 300,000 endpoints 150 ms for the first Service of a count. So such a chain only chooses
//! an index, which the packet's priority carries on to a rule that is always there; priorities are cleared behind all
//! that, since a rule that translates is a packet's last.

mod apply;
mod choice;
mod layout;
mod loopback;
mod maglev;
mod observe;
mod plan;
mod shape;
mod slot;
mod stale;

use std::net::IpAddr;
use std::time::Instant;

use nix::errno::Errno;
use svcnet_netlink::Rtnl;
use svcnet_netlink::nft::{Batch, Error, Event, Family, Listing, Socket, Table, Watch};

pub use choice::Choice;
pub use plan::{Observed, Plan, ShapeAt, State, Stays};
pub use shape::{Place, Shape};
pub use slot::{List, Slot, Value};

use crate::backend::{self, Backend, Report};
use crate::model::{Frontend, FrontendKey};
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;
use layout::Networks;
use stale::Suspects;

/// While more operations than this are carried out at once, nobody listens for foreign changes: the kernel would make
/// a notification for each. (It makes them as long as anybody on the host listens, in whichever namespace.)
const BULK: usize = 256;

/// The tables `ip svcnet` and `ip6 svcnet` of the network namespace that it was opened in.
pub struct Nftables {
    socket: Socket,
    links: Rtnl,
    families: Vec<Family>,
    watch: Watch,
    networks: Networks,
    node_ports: NodePortAddresses,
    state: State,
    unheard: bool,
}

impl Nftables {
    /// Opens sockets to the kernel; changes nothing yet.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn open(pod_networks: &[ipnet::IpNet], service_networks: &[ipnet::IpNet]) -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        let mut families = vec![Family::Ip];
        if is_supported(&mut socket, Family::Ip6)? {
            families.push(Family::Ip6);
        } else {
            tracing::warn!("no nf_tables for IPv6 in this kernel, services have IPv4 frontends only");
        }
        Ok(Self {
            socket,
            links: Rtnl::open().map_err(|error| Error::Open(error.source))?,
            families,
            watch: Watch::open()?,
            networks: Networks {
                pods: pod_networks.to_vec(),
                services: service_networks.to_vec(),
                node_ports: None,
            },
            node_ports: NodePortAddresses::default(),
            state: State::default(),
            unheard: false,
        })
    }

    /// With node ports on these addresses only.
    #[must_use]
    pub fn with_node_ports_on(mut self, addresses: NodePortAddresses) -> Self {
        self.networks.node_ports = addresses.networks(&[]);
        self.node_ports = addresses;
        self
    }

    /// What the kernel holds, as far as we know.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads back what the kernel holds.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn observe(&mut self) -> Result<Observed, Error> {
        observe::observe_at_once(&mut self.socket, &self.families, &self.networks)
    }

    /// What the kernel would have to be told for it to hold these frontends and nothing else. Changes nothing, neither
    /// there nor here.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn diff(&mut self, frontends: impl IntoIterator<Item = Frontend>) -> Result<Plan, Error> {
        let observed = self.observe()?;
        let families = &self.families;
        let frontends = frontends
            .into_iter()
            .filter(|frontend| families.contains(&frontend.key.family()));
        let (_, plan, _) = plan::converge(observed, frontends);
        Ok(plan)
    }

    /// Commits while nobody listens; what others did meanwhile shows in the generation.
    fn commit_unheard(&mut self, batch: Batch) -> Result<(), Error> {
        self.watch.pause()?;
        let before = self.socket.generation();
        let result = self.socket.commit(batch);
        self.watch.resume()?;
        let own = if result.is_ok() { 1 } else { 0 };
        self.unheard |= self.socket.generation()? != before?.wrapping_add(own);
        result
    }

    fn carry_out(&mut self, plan: &Plan, suspects: &Suspects) -> Result<Report, Error> {
        let mut report = Report::default();
        if !plan.is_empty() {
            let begin = Instant::now();
            report.operations = plan.len();
            for batch in apply::batches(plan, &self.networks) {
                report.bytes += batch.len();
                if plan.len() > BULK {
                    self.commit_unheard(batch)?;
                } else {
                    self.socket.commit(batch)?;
                }
            }
            report.commit = begin.elapsed();
        }
        if suspects.is_empty() {
            return Ok(report);
        }
        // The new state is in force; what is left of the old one is looked after, but is no reason to fail.
        match suspects.clear(
            &mut self.socket,
            &mut self.links,
            &self.state,
            &self.networks.pods,
        ) {
            Ok(cleared) => report.cleared = cleared,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "stale connections stay");
            }
        }
        Ok(report)
    }
}

impl Backend for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        from_scratch: bool,
    ) -> Result<Report, backend::Error> {
        let observed = if from_scratch {
            Observed {
                rebuild: self.families.iter().copied().collect(),
                ..Observed::default()
            }
        } else {
            observe::observe(&mut self.socket, &self.families, &self.networks)?
        };
        let families = &self.families;
        let frontends = frontends.filter(|frontend| families.contains(&frontend.key.family()));
        let (state, plan, gone) = plan::converge(observed, frontends);
        self.state = state;
        tracing::debug!(plan = %Shortened(&plan), "converge");
        if self.families.contains(&Family::Ip6) && self.networks.answers_on_loopback6() {
            loopback::prepare(&mut self.links);
        }
        Ok(self.carry_out(&plan, &Suspects::of_everything(gone))?)
    }

    fn change(
        &mut self,
        mut changes: Vec<(FrontendKey, Option<Frontend>)>,
    ) -> Result<Report, backend::Error> {
        changes.retain(|(key, _)| self.families.contains(&key.family()));
        let mut suspects = Suspects::default();
        for (key, after) in &changes {
            suspects.add(*key, self.state.frontend(key), after.as_ref());
        }
        let plan = plan::change(&mut self.state, changes);
        tracing::debug!(plan = %Shortened(&plan), "change");
        Ok(self.carry_out(&plan, &suspects)?)
    }

    fn nearest(&self, scheduler: Scheduler) -> Scheduler {
        choice::nearest(scheduler)
    }

    fn node_ports_on(&mut self, addresses: &NodePortAddresses, node: &[IpAddr]) -> bool {
        self.node_ports = addresses.clone();
        self.node_addresses(node)
    }

    fn node_addresses(&mut self, addresses: &[IpAddr]) -> bool {
        let networks = self.node_ports.networks(addresses);
        let changed = networks != self.networks.node_ports;
        self.networks.node_ports = networks;
        changed
    }

    fn is_untidy(&self) -> bool {
        self.state.is_untidy()
    }

    fn tidy(&mut self) -> Result<Report, backend::Error> {
        let plan = plan::tidy(&mut self.state);
        Ok(self.carry_out(&plan, &Suspects::default())?)
    }

    fn touched(&mut self) -> Result<bool, backend::Error> {
        let (port, mut touched) = (self.socket.port(), std::mem::take(&mut self.unheard));
        self.watch.drain(|event| match event {
            Event::Changed { table, port: by } => touched |= table.name == layout::TABLE && by != port,
            Event::Overrun => touched = true,
        })?;
        Ok(touched)
    }

    fn wake(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.watch))
    }
}

/// Tries whether the kernel has tables of that family.
fn is_supported(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    let mut batch = Batch::new();
    batch.remove_table(&Table::new(family, "svcnet-probe"));
    match socket.commit(batch) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => Ok(false),
        Err(error) => Err(error),
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

/// Deletes what the kernel remembers of datagrams to these frontends: where they were sent is not looked after any more.
///
/// # Errors
/// When the kernel refuses.
pub fn forget(frontends: impl Iterator<Item = FrontendKey>) -> Result<usize, Error> {
    let mut links = Rtnl::open().map_err(|error| Error::Open(error.source))?;
    stale::forget(&frontends.collect(), &mut Socket::open()?, &mut links)
}

/// Our tables as the kernel holds them, in full; those that are not there are left out.
///
/// # Errors
/// When the kernel has no nf_tables or permission is lacking.
pub fn listings() -> Result<Vec<Listing>, Error> {
    listings_of(layout::table)
}

/// The same of another backend's tables.
pub(crate) fn listings_of(table: impl Fn(Family) -> Table) -> Result<Vec<Listing>, Error> {
    let mut socket = Socket::open()?;
    let mut listings = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        // A kernel without IPv6 has no tables of it.
        match socket.listing(&table(family)) {
            Ok(listing) => listings.extend(listing),
            Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(listings)
}

/// Removes our tables, and says whether any was there.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup() -> Result<bool, Error> {
    let mut socket = Socket::open()?;
    let v4 = socket.remove(&layout::table(Family::Ip))?;
    let v6 = socket.remove(&layout::table(Family::Ip6))?;
    let mut links = Rtnl::open().map_err(|error| Error::Open(error.source))?;
    loopback::clean_up(&mut links);
    Ok(v6 || v4)
}
