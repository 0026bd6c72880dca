//! The core of the proxy: takes changes in, computes frontends, hands what differs to the backend. It knows nothing of
//! watches, threads and clocks, so tests and benchmarks drive it directly:
//!
//! ```no_run
//! use svcnet_proxy::{Engine, Nftables, Settings, Update};
//! use svcnet_runtime::Change;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = Nftables::open(&["10.244.0.0/16".parse()?], &["10.96.0.0/12".parse()?])?;
//! let mut engine = Engine::new("n1", Settings::default(), Box::new(backend));
//! engine.apply_change(Update::Services(Change::Reset(Vec::new())));
//! engine.apply_change(Update::Slices(Change::Reset(Vec::new())));
//! let report = engine.sync()?; // from here on each sync commits what was applied since the last
//! # Ok(()) }
//! ```

use std::collections::{BTreeSet, HashMap};
use std::os::fd::BorrowedFd;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use svcnet_runtime::Change;

use crate::backend::{Backend, Error, Report};
use crate::desired::{Settings, frontends};
use crate::health::Checks;
use crate::ipvs::Tuning;
use crate::local::{Lack, Locals};
use crate::model::{Frontend, FrontendKey};
use crate::node_ports::NodePortAddresses;
use crate::notices::{Notice, Notices};
use crate::scheduler::Scheduler;
use crate::view::{Name, View};

/// Annotation of a slice: when what made it change happened (`v1.EndpointsLastChangeTriggerTime`).
const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One change of what is watched.
#[derive(Debug, Clone)]
pub enum Update {
    /// Of Services.
    Services(Change<Service>),
    /// Of EndpointSlices.
    Slices(Change<EndpointSlice>),
    /// Of the node that this is on; others are left aside.
    Node(Change<Node>),
}

/// The proxy without its surroundings.
pub struct Engine {
    view: View,
    settings: Settings,
    dirty: BTreeSet<Name>,
    triggers: Vec<Timestamp>,
    claims: Claims,
    locals: Locals,
    notices: Notices,
    node_ports: NodePortAddresses,
    backend: Box<dyn Backend>,
    trust: Trust,
}

/// How far the backend is known to hold what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    /// It does.
    Synced,
    /// It may hold anything: look.
    Unknown,
    /// Looking did not help: replace everything.
    Broken,
}

impl Engine {
    /// A proxy for the node of that name. Until the first lists of Services and slices have come, nothing is done.
    pub fn new(node_name: &str, settings: Settings, backend: Box<dyn Backend>) -> Self {
        Self {
            view: View::new(node_name),
            settings,
            dirty: BTreeSet::new(),
            triggers: Vec::new(),
            claims: Claims::default(),
            locals: Locals::default(),
            notices: Notices::default(),
            node_ports: NodePortAddresses::default(),
            backend,
            trust: Trust::Unknown,
        }
    }

    /// Waits for the Node too before anything is done: its zone decides about endpoints.
    #[must_use]
    pub fn awaiting_node(mut self) -> Self {
        self.view.await_node();
        self
    }

    /// Takes in a change; [`Self::sync`] brings it into force.
    pub fn apply_change(&mut self, update: Update) {
        match update {
            Update::Services(change) => self.view.change_services(change, &mut self.dirty),
            Update::Slices(change) => {
                let trigger = triggered_at(&change);
                let mut dirty = BTreeSet::new();
                self.view.change_slices(change, &mut dirty);
                // What changed nothing here was not waited for.
                self.triggers.extend(trigger.filter(|_| !dirty.is_empty()));
                self.dirty.append(&mut dirty);
            }
            Update::Node(change) => {
                self.view.change_node(change, &mut self.dirty);
                // Looked at again where node ports follow the node's addresses.
                if self.backend.node_addresses(&self.view.node().addresses) {
                    self.trust = self.trust.max(Trust::Unknown);
                }
            }
        }
    }

    /// Whether the first lists have come.
    pub fn is_complete(&self) -> bool {
        self.view.is_complete()
    }

    /// Whether there is anything for [`Self::sync`] to do.
    pub fn is_pending(&self) -> bool {
        self.is_complete() && (self.trust != Trust::Synced || !self.dirty.is_empty())
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.view.service_count()
    }

    /// How many frontends they have.
    pub fn frontend_count(&self) -> usize {
        self.claims.owners.len()
    }

    /// Every frontend that there should be, from scratch.
    pub fn desired(&self) -> impl Iterator<Item = Frontend> + '_ {
        desired(&self.view, &self.settings, &self.claims)
    }

    /// Brings all changes into force, in one transaction. After an error, the next call looks at what is there first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sync(&mut self) -> Result<Report, Error> {
        if !self.is_complete() {
            return Ok(Report::default());
        }
        let first = self.claims.owners.is_empty();
        let changes = self.changes();
        let result = match self.trust {
            Trust::Synced if changes.is_empty() => return Ok(Report::default()),
            Trust::Synced => self.backend.change(changes),
            // All there is has just been computed.
            Trust::Unknown if first => {
                let mut desired = changes.into_iter().filter_map(|(_, frontend)| frontend);
                self.backend.converge(&mut desired, false)
            }
            Trust::Unknown | Trust::Broken => {
                let mut desired = desired(&self.view, &self.settings, &self.claims);
                self.backend.converge(&mut desired, self.trust == Trust::Broken)
            }
        };
        if self.trust != Trust::Synced {
            // All that there is went through memory, more than once.
            svcnet_netlink::memory::give_back();
        }
        self.trust = match (&result, self.trust) {
            (Ok(_), _) => Trust::Synced,
            (Err(_), Trust::Synced) => Trust::Unknown,
            (Err(_), _) => Trust::Broken,
        };
        result
    }

    /// Hands everything to another backend, and gives the former one back when that has taken it. Until then, and when
    /// it refuses, the former one serves.
    ///
    /// # Errors
    /// When the new backend does not take it.
    pub fn switch(&mut self, mut backend: Box<dyn Backend>) -> Result<Box<dyn Backend>, Error> {
        backend.node_ports_on(&self.node_ports, &self.view.node().addresses);
        if self.is_complete() {
            let missed = !self.changes().is_empty();
            let mut desired = desired(&self.view, &self.settings, &self.claims);
            if let Err(error) = backend.converge(&mut desired, false) {
                if missed && self.trust == Trust::Synced {
                    self.trust = Trust::Unknown;
                }
                return Err(error);
            }
            drop(desired);
            self.trust = Trust::Synced;
        } else {
            self.trust = Trust::Unknown;
        }
        Ok(std::mem::replace(&mut self.backend, backend))
    }

    /// How endpoints are chosen for Services that do not say it; the next [`Self::sync`] brings it into force.
    pub fn set_scheduler(&mut self, scheduler: Scheduler) {
        if self.settings.scheduler != scheduler {
            self.settings.scheduler = scheduler;
            self.dirty.extend(self.view.service_names().cloned());
        }
    }

    /// Which addresses of the node its node ports answer on; the next [`Self::sync`] brings it into force.
    pub fn set_node_ports(&mut self, addresses: NodePortAddresses) {
        if self
            .backend
            .node_ports_on(&addresses, &self.view.node().addresses)
        {
            self.trust = self.trust.max(Trust::Unknown);
        }
        self.node_ports = addresses;
    }

    /// What of the kernel is to be set beside frontends; the next [`Self::sync`] brings it into force.
    pub fn tune(&mut self, tuning: &Tuning) {
        if self.backend.tune(tuning) {
            self.trust = self.trust.max(Trust::Unknown);
        }
    }

    /// Whether [`Self::tidy`] may find something, now or the next time.
    pub fn is_untidy(&self) -> bool {
        self.trust == Trust::Synced && self.backend.is_untidy()
    }

    /// Clears away what was left for packets on their way; see [`Backend::tidy`].
    ///
    /// # Errors
    /// When the kernel refuses; the next [`Self::sync`] looks at what is there.
    pub fn tidy(&mut self) -> Result<Report, Error> {
        if self.trust != Trust::Synced {
            return Ok(Report::default());
        }
        let result = self.backend.tidy();
        if result.is_err() {
            self.trust = Trust::Unknown;
        }
        result
    }

    /// When the changes that are in force now were caused, as far as their objects say.
    pub fn take_triggers(&mut self) -> Vec<Timestamp> {
        std::mem::take(&mut self.triggers)
    }

    /// What health checks of Services are to be answered, if that has changed since the last call.
    pub(crate) fn take_checks(&mut self) -> Option<Checks> {
        self.locals.take_checks()
    }

    /// How many ports of Services are to use endpoints of this node alone, and find none.
    pub fn lack(&self) -> Lack {
        self.locals.lack()
    }

    /// Looks whether somebody else has changed what is ours; if so, the next [`Self::sync`] repairs it.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn check(&mut self) -> Result<bool, Error> {
        let touched = self.backend.touched()?;
        if touched && self.trust == Trust::Synced {
            self.trust = Trust::Unknown;
        }
        Ok(touched)
    }

    /// Name of the backend.
    pub fn mode(&self) -> &'static str {
        self.backend.name()
    }

    /// Readable when [`Self::check`] may find something.
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.backend.wake()
    }

    /// The frontends of the Services that changed.
    fn changes(&mut self) -> Vec<(FrontendKey, Option<Frontend>)> {
        let mut changes: HashMap<FrontendKey, Option<Frontend>> = HashMap::new();
        let scheduler = self.settings.scheduler;
        self.notices
            .default_scheduler(scheduler, self.backend.nearest(scheduler));
        // A Service that gives a frontend up can make another one change, which comes into the queue then.
        while let Some(name) = self.dirty.pop_first() {
            match self.notice(&name) {
                Some(notice) => self.notices.service(&name, notice),
                None => self.notices.forget(&name),
            }
            let wanted = frontends(&name, &self.view, &self.settings);
            self.locals.update(&name, &self.view, &wanted);
            for key in self.claims.release(&name, &wanted) {
                match self.claims.next_owner(&key) {
                    Some(heir) => drop(self.dirty.insert(heir)),
                    None => drop(changes.insert(key, None)),
                }
            }
            let mut taken = Vec::new();
            for frontend in wanted {
                match self.claims.claim(frontend.key, &name) {
                    Claim::Granted => drop(changes.insert(frontend.key, Some(frontend))),
                    Claim::Waits(owner) => taken.push((frontend.key, owner)),
                }
            }
            self.notices.taken(&name, taken);
        }
        changes.into_iter().collect()
    }

    /// What is left aside in a Service, if there is one of that name.
    fn notice(&self, name: &Name) -> Option<Notice> {
        let service = self.view.service(name)?;
        let scheduler = service
            .scheduler
            .map(|wanted| (wanted, self.backend.nearest(wanted)));
        Some(Notice {
            complaints: service.complaints.clone(),
            refused: self.settings.refused_addresses(service).collect(),
            stand_in: scheduler.filter(|(wanted, used)| wanted != used),
        })
    }
}

/// When a pod or Service changed that made a slice change. Lists say nothing about that: they may be old.
fn triggered_at(change: &Change<EndpointSlice>) -> Option<Timestamp> {
    let Change::Apply(slice) = change else { return None };
    slice
        .metadata
        .annotations
        .as_ref()?
        .get(ANNOTATION_TRIGGER_TIME)?
        .parse()
        .ok()
}

fn desired<'a>(
    view: &'a View,
    settings: &'a Settings,
    claims: &'a Claims,
) -> impl Iterator<Item = Frontend> + 'a {
    view.service_names().flat_map(move |name| {
        let of_service = frontends(name, view, settings);
        of_service
            .into_iter()
            .filter(move |frontend| claims.is_owner(&frontend.key, name))
    })
}

/// Which Service has which frontend. Two can want the same, by `externalIPs` for one; the first by name has it,
/// whichever came first, so that every node decides alike.
#[derive(Debug, Default)]
struct Claims {
    owners: HashMap<FrontendKey, Name>,
    waiting: HashMap<FrontendKey, BTreeSet<Name>>,
    by_service: HashMap<Name, Box<[FrontendKey]>>,
}

enum Claim {
    Granted,
    Waits(Name),
}

impl Claims {
    fn is_owner(&self, key: &FrontendKey, name: &Name) -> bool {
        self.owners.get(key) == Some(name)
    }

    /// Notes what a Service wants now, and gives back the frontends that it had and does not want any more.
    fn release(&mut self, name: &Name, wanted: &[Frontend]) -> Vec<FrontendKey> {
        let keys: Box<[FrontendKey]> = wanted.iter().map(|frontend| frontend.key).collect();
        let old = if keys.is_empty() {
            self.by_service.remove(name)
        } else {
            self.by_service.insert(name.clone(), keys)
        };
        let mut released = Vec::new();
        for key in old.unwrap_or_default() {
            if wanted.binary_search_by_key(&key, |frontend| frontend.key).is_ok() {
                continue;
            }
            if self.is_owner(&key, name) {
                self.owners.remove(&key);
                released.push(key);
            } else {
                self.stop_waiting(&key, name);
            }
        }
        released
    }

    /// Who has a released frontend from now on.
    fn next_owner(&mut self, key: &FrontendKey) -> Option<Name> {
        let heir = self.waiting.get(key)?.first()?.clone();
        self.stop_waiting(key, &heir);
        self.owners.insert(*key, heir.clone());
        Some(heir)
    }

    fn claim(&mut self, key: FrontendKey, name: &Name) -> Claim {
        match self.owners.get(&key) {
            Some(owner) if owner == name => Claim::Granted,
            Some(owner) if owner < name => {
                let owner = owner.clone();
                self.waiting.entry(key).or_default().insert(name.clone());
                Claim::Waits(owner)
            }
            other => {
                if let Some(former) = other.cloned() {
                    self.waiting.entry(key).or_default().insert(former);
                }
                self.owners.insert(key, name.clone());
                Claim::Granted
            }
        }
    }

    fn stop_waiting(&mut self, key: &FrontendKey, name: &Name) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.remove(name);
            if waiting.is_empty() {
                self.waiting.remove(key);
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
