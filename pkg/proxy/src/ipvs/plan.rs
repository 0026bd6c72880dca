//! What to tell the kernel: from what it holds and what it should hold to a list of operations.
//!
//! [`State`] is what should be. [`State::converge`] compares all of it with what was read back: at the start, and after a
//! foreign change. [`State::change`] takes the frontends that changed and costs in proportion to them.
//!
//! There is no transaction over tables, link and IPVS, so the order matters; see [`Plan`]. At no moment is a port of the
//! host open through a service's address, and a crash at any moment leaves nothing that is not known as ours afterwards:
//! a virtual service is ours when its address is on our link, or when our tables list it.
//!
//! An endpoint that goes takes no new connections (weight zero) and is removed when its last connection has ended. That
//! needs no memory: a destination of weight zero that nobody wants is one that drains, whoever set it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use svcnet_netlink::ipvs::{Connections, Destination, Identity, Op, Service, Virtual};
use svcnet_netlink::nft::{Family, comment_kept};

use super::desired::{self, Host, Wanted};
use super::schedule::Lacking;
use super::slot::{List, Slot};
use super::stale::Suspects;
use super::tuning::SetTimeouts;
use crate::idle::Idle;
use crate::model::{Frontend, FrontendKey};

/// Operations, in the order of their fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Kernel parameters to set.
    pub sysctls: Vec<(&'static str, &'static str)>,
    /// Kernel parameters to put back.
    pub restore: Vec<&'static str>,
    /// Timeouts to set.
    pub timeouts: Option<SetTimeouts>,
    /// Tables that are made anew.
    pub rebuild: BTreeSet<Family>,
    /// What the tables must hold before anything else changes: all that forbids.
    pub before: Elements,
    /// Whether our link is to be made.
    pub add_link: bool,
    /// Addresses to take from our link.
    pub unbind: Vec<IpAddr>,
    /// What IPVS is told.
    pub ops: Vec<Op>,
    /// Addresses to put on our link: the services behind them are there by now.
    pub bind: Vec<IpAddr>,
    /// What the tables must not change before all that: what allows.
    pub after: Elements,
}

/// Elements of our tables, in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// To remove.
    pub deletes: Vec<Slot>,
    /// To add, with the frontend's name.
    pub adds: Vec<(Slot, Arc<str>)>,
}

impl Plan {
    /// Whether the kernel holds what it should.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        let elements = |e: &Elements| e.deletes.len() + e.adds.len();
        self.sysctls.len()
            + self.restore.len()
            + usize::from(self.timeouts.is_some())
            + self.rebuild.len()
            + elements(&self.before)
            + usize::from(self.add_link)
            + self.unbind.len()
            + self.ops.len()
            + self.bind.len()
            + elements(&self.after)
    }

    /// Distributes elements over the two transactions; links and addresses are planned by now.
    fn place(&mut self, deletes: Vec<Slot>, adds: Vec<(Slot, Arc<str>)>, after: &State) {
        let stays_bound = |ip: IpAddr| after.binds(ip) && !self.bind.contains(&ip);
        let replaced: BTreeSet<Slot> = {
            let deleted: BTreeSet<Slot> = deletes.iter().copied().collect();
            adds.iter()
                .map(|(slot, _)| *slot)
                .filter(|slot| deleted.contains(slot))
                .collect()
        };
        for slot in deletes {
            let first = replaced.contains(&slot)
                || match slot {
                    // The service goes, and what is behind its port on the host must not come to light.
                    Slot::Frontend(List::Frontends, at) => stays_bound(at.ip),
                    // The kernel takes no range that overlaps one that is there.
                    Slot::Source(at, _) => after.restricts(at),
                    _ => false,
                };
            let elements = if first { &mut self.before } else { &mut self.after };
            elements.deletes.push(slot);
        }
        let added: BTreeSet<Identity> = self
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::AddService(service) => Some(service.identity),
                _ => None,
            })
            .collect();
        for (slot, name) in adds {
            let last = match slot {
                Slot::Frontend(List::Frontends, at) => {
                    stays_bound(at.ip) && added.contains(&Identity::Address(at))
                }
                _ => false,
            };
            let elements = if last { &mut self.after } else { &mut self.before };
            elements.adds.push((slot, name));
        }
        for elements in [&mut self.before, &mut self.after] {
            elements.deletes.sort_unstable();
            elements.adds.sort_unstable_by_key(|(slot, _)| *slot);
        }
    }
}

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// All there is.
    All,
    /// All of a family.
    Family(Family),
    /// All at an address.
    Address(IpAddr),
    /// A virtual service.
    Service(Virtual),
}

impl Plan {
    /// The operations in their order, each with what it is about, and in words.
    pub fn operations(&self) -> Vec<(Touch, String)> {
        let mut all = Vec::new();
        let mut say = |touch, text| all.push((touch, text));
        for (name, value) in &self.sysctls {
            say(Touch::All, format!("sysctl {name} = {value}"));
        }
        for name in &self.restore {
            say(Touch::All, format!("sysctl {name}: put back"));
        }
        if let Some(timeouts) = &self.timeouts {
            say(Touch::All, format!("set {timeouts}"));
        }
        for family in &self.rebuild {
            say(Touch::Family(*family), format!("table {family}: make anew"));
        }
        self.before.say(&mut say);
        if self.add_link {
            say(Touch::All, "add the link".into());
        }
        for ip in &self.unbind {
            say(Touch::Address(*ip), format!("take {ip} from the link"));
        }
        for op in &self.ops {
            let touch = match op.identity() {
                Identity::Address(at) => Touch::Service(at),
                Identity::Mark { .. } => Touch::All,
            };
            say(touch, op.to_string());
        }
        for ip in &self.bind {
            say(Touch::Address(*ip), format!("put {ip} on the link"));
        }
        self.after.say(&mut say);
        all
    }
}

impl Elements {
    fn say(&self, say: &mut impl FnMut(Touch, String)) {
        let touch = |slot: &Slot| match *slot {
            Slot::Frontend(_, at) | Slot::Source(at, _) => Touch::Service(at),
            // A hairpin is an endpoint's, which no frontend has as its address.
            Slot::Bound(ip) | Slot::Hairpin(ip) => Touch::Address(ip),
        };
        for slot in &self.deletes {
            say(touch(slot), format!("- {slot}"));
        }
        for (slot, name) in &self.adds {
            let name = if name.is_empty() {
                String::new()
            } else {
                format!(" ({name})")
            };
            say(touch(slot), format!("+ {slot}{name}"));
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut operations = self.operations().into_iter();
        operations.try_for_each(|(_, text)| writeln!(f, "{text}"))
    }
}

/// What was read back of IPVS and of our link.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    /// Whether our link is there.
    pub link: bool,
    /// The addresses on it.
    pub bound: BTreeSet<IpAddr>,
    /// The services by address, whoever made them.
    pub services: BTreeMap<Virtual, Held>,
}

/// A virtual service as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The service.
    pub service: Service,
    /// Its destinations, with their connections where those are known.
    pub destinations: BTreeMap<SocketAddr, (Destination, Option<Connections>)>,
}

/// What was read back of our tables.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Tables that are missing or not as declared.
    pub rebuild: BTreeSet<Family>,
    /// Elements with their comments.
    pub elements: HashMap<Slot, Option<Box<str>>>,
    /// Virtual services that tables list, also those to be made anew.
    pub listed: BTreeSet<Virtual>,
}

/// What should be.
#[derive(Debug, Default)]
pub struct State {
    host: Host,
    frontends: HashMap<FrontendKey, Frontend>,
    shared: HashMap<Slot, u32>,
    draining: BTreeMap<Virtual, BTreeSet<SocketAddr>>,
    idle_hairpins: Idle<IpAddr>,
}

impl State {
    /// All of it.
    pub fn new(frontends: impl Iterator<Item = Frontend>, host: Host) -> Self {
        let mut state = Self {
            host,
            ..Self::default()
        };
        state.frontends = frontends.map(|frontend| (frontend.key, frontend)).collect();
        let mut shared = HashMap::new();
        for (_, wanted) in state.all() {
            for slot in wanted.slots.into_iter().filter(|slot| slot.is_shared()) {
                *shared.entry(slot).or_default() += 1;
            }
        }
        state.shared = shared;
        state
    }

    /// What of the node it is for.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Notes what schedulers the kernel lacks, as far as anybody has asked for them.
    pub(crate) fn learn(&mut self, lacking: &Lacking) {
        self.host.lacking.clone_from(lacking);
    }

    /// The virtual services with endpoints that wait for the end of their connections.
    pub fn draining(&self) -> impl Iterator<Item = Virtual> + '_ {
        self.draining.keys().copied()
    }

    /// Whether that address belongs on our link.
    pub fn binds(&self, ip: IpAddr) -> bool {
        self.shared.contains_key(&Slot::Bound(ip))
    }

    /// What should be done for a virtual service.
    pub fn wanted(&self, at: Virtual) -> Option<Wanted> {
        let frontend = desired::candidates(at, &self.host).find_map(|key| self.frontends.get(&key))?;
        Some(desired::wanted(at, frontend, &self.host))
    }

    fn restricts(&self, at: Virtual) -> bool {
        self.wanted(at)
            .is_some_and(|wanted| wanted.slots.contains(&Slot::Frontend(List::Restricted, at)))
    }

    /// Every virtual service once.
    fn all(&self) -> impl Iterator<Item = (Virtual, Wanted)> + '_ {
        self.frontends.values().flat_map(move |frontend| {
            let owned = desired::virtuals(frontend.key, &self.host)
                .into_iter()
                .filter(|at| {
                    let owner =
                        desired::candidates(*at, &self.host).find(|key| self.frontends.contains_key(key));
                    owner == Some(frontend.key)
                });
            owned.map(move |at| (at, desired::wanted(at, frontend, &self.host)))
        })
    }

    /// The plan for IPVS and our link; also finds out what drains. `is_ours` says which services that nobody wants are
    /// to go.
    pub fn balance(&mut self, observed: &Balancer, is_ours: impl Fn(Virtual) -> bool) -> (Plan, Suspects) {
        let mut plan = Plan {
            add_link: !observed.link,
            ..Plan::default()
        };
        let mut suspects = Suspects::default();
        let mut draining = BTreeMap::new();
        for (at, wanted) in self.all() {
            let held = observed.services.get(&at);
            suspects.add(at, held, Some(&wanted));
            let drains = compare(at, held, Some(&wanted), &mut plan.ops);
            if !drains.is_empty() {
                draining.insert(at, drains);
            }
        }
        for (at, held) in &observed.services {
            if self.wanted(*at).is_none() && is_ours(*at) {
                suspects.add(*at, Some(held), None);
                compare(*at, Some(held), None, &mut plan.ops);
            }
        }
        self.draining = draining;
        plan.unbind = observed
            .bound
            .iter()
            .copied()
            .filter(|ip| !self.binds(*ip))
            .collect();
        let bound = self.shared.keys().filter_map(|slot| match slot {
            Slot::Bound(ip) => Some(*ip),
            _ => None,
        });
        plan.bind = bound.filter(|ip| !observed.bound.contains(ip)).collect();
        plan.bind.sort_unstable();
        (plan, suspects)
    }

    /// The plan that makes the kernel hold this and nothing else. `former` is what should have been before: its
    /// services are ours too.
    pub fn converge(&mut self, balancer: &Balancer, mut tables: Tables, former: &Self) -> (Plan, Suspects) {
        let listed = std::mem::take(&mut tables.listed);
        let is_ours = |at: Virtual| {
            balancer.bound.contains(&at.ip) || listed.contains(&at) || former.wanted(at).is_some()
        };
        let (mut plan, suspects) = self.balance(balancer, is_ours);
        plan.rebuild = std::mem::take(&mut tables.rebuild);
        let nameless: Arc<str> = "".into();
        let (mut deletes, mut adds) = (Vec::new(), Vec::new());
        let mut want = |slot: Slot, name: &Arc<str>| match tables.elements.remove(&slot) {
            Some(comment) if comment.as_deref().unwrap_or_default() == comment_kept(name) => {}
            Some(_) => {
                deletes.push(slot);
                adds.push((slot, name.clone()));
            }
            None => adds.push((slot, name.clone())),
        };
        for (_, wanted) in self.all() {
            for slot in wanted.slots.iter().filter(|slot| !slot.is_shared()) {
                want(*slot, &wanted.name);
            }
        }
        for slot in self.shared.keys() {
            want(*slot, &nameless);
        }
        for slot in tables.elements.into_keys() {
            match slot {
                Slot::Hairpin(ip) => self.idle_hairpins.put(ip),
                slot => deletes.push(slot),
            }
        }
        plan.place(deletes, adds, self);
        (plan, suspects)
    }

    /// The plan for some changed frontends; `None` is one that goes.
    pub fn change(&mut self, changes: Vec<(FrontendKey, Option<Frontend>)>) -> (Plan, Suspects) {
        let touched: BTreeSet<Virtual> = changes
            .iter()
            .flat_map(|(key, _)| desired::virtuals(*key, &self.host))
            .collect();
        let before: Vec<(Virtual, Option<Wanted>)> =
            touched.into_iter().map(|at| (at, self.wanted(at))).collect();
        for (key, frontend) in changes {
            match frontend {
                Some(frontend) => drop(self.frontends.insert(key, frontend)),
                None => drop(self.frontends.remove(&key)),
            }
        }
        let (mut plan, mut suspects) = (Plan::default(), Suspects::default());
        let (mut deletes, mut adds) = (Vec::new(), Vec::new());
        let mut shared = BTreeMap::new();
        let mut gone = Vec::new();
        for (at, before) in before {
            let after = self.wanted(at);
            if before == after {
                continue;
            }
            let drains = self.draining.remove(&at).unwrap_or_default();
            let held = before.as_ref().map(|before| held(at, before, &drains));
            suspects.add(at, held.as_ref(), after.as_ref());
            let ops = if after.is_none() { &mut gone } else { &mut plan.ops };
            let drains = compare(at, held.as_ref(), after.as_ref(), ops);
            if !drains.is_empty() {
                self.draining.insert(at, drains);
            }
            self.count(before.as_ref(), after.as_ref(), &mut shared);
            compare_slots(before.as_ref(), after.as_ref(), &mut deletes, &mut adds);
        }
        plan.ops.append(&mut gone);
        for (slot, was) in shared {
            match (was, self.shared.contains_key(&slot), slot) {
                (false, true, Slot::Hairpin(ip)) if self.idle_hairpins.take_back(&ip) => {}
                (true, false, Slot::Hairpin(ip)) => self.idle_hairpins.put(ip),
                (false, true, _) => adds.push((slot, "".into())),
                (true, false, _) => deletes.push(slot),
                _ => continue,
            }
            if let Slot::Bound(ip) = slot {
                let list = if was { &mut plan.unbind } else { &mut plan.bind };
                list.push(ip);
            }
        }
        plan.place(deletes, adds, self);
        (plan, suspects)
    }

    /// The plan that removes the hairpins which nobody has used since the last one: IPVS may have sent a packet back to
    /// the pod that it is from, and it is masqueraded only behind that.
    pub fn tidy(&mut self) -> Plan {
        let mut plan = Plan::default();
        let hairpins = self.idle_hairpins.tidy().into_iter();
        plan.after.deletes = hairpins.map(Slot::Hairpin).collect();
        plan
    }

    /// What is to be done for endpoints of a virtual service that drained, by what the kernel holds now.
    pub fn drained(&mut self, at: Virtual, observed: &[(Destination, Connections)]) -> Vec<Op> {
        let Some(draining) = self.draining.get_mut(&at) else {
            return Vec::new();
        };
        let mut ops = Vec::new();
        draining.retain(|endpoint| {
            let found = observed
                .iter()
                .find(|(destination, _)| destination.at == *endpoint);
            match found {
                Some((_, connections)) if is_idle(connections) => {
                    ops.push(Op::DeleteDestination(Identity::Address(at), *endpoint));
                    false
                }
                found => found.is_some(),
            }
        });
        if draining.is_empty() {
            self.draining.remove(&at);
        }
        ops
    }

    /// Counts what virtual services share, and notes for each whether it was there before.
    fn count(
        &mut self,
        before: Option<&Wanted>,
        after: Option<&Wanted>,
        was_there: &mut BTreeMap<Slot, bool>,
    ) {
        for (wanted, up) in [(after, true), (before, false)] {
            let slots = wanted.into_iter().flat_map(|wanted| &wanted.slots);
            for slot in slots.filter(|slot| slot.is_shared()) {
                let count = self.shared.entry(*slot).or_default();
                was_there.entry(*slot).or_insert(*count > 0);
                *count = if up { *count + 1 } else { count.saturating_sub(1) };
                if *count == 0 {
                    self.shared.remove(slot);
                }
            }
        }
    }
}

fn is_idle(connections: &Connections) -> bool {
    connections.active == 0 && connections.inactive == 0
}

fn service(at: Virtual, wanted: &Wanted) -> Service {
    Service {
        identity: Identity::Address(at),
        scheduler: wanted.scheduler.into(),
        flags: wanted.flags,
        persistence: wanted.persistence,
    }
}

/// What the kernel holds of a virtual service after it was told.
fn held(at: Virtual, wanted: &Wanted, draining: &BTreeSet<SocketAddr>) -> Held {
    let weights = wanted.destinations.iter().map(|(at, weight)| (*at, *weight));
    let weights = weights.chain(draining.iter().map(|at| (*at, 0)));
    Held {
        service: service(at, wanted),
        destinations: weights
            .map(|(at, weight)| (at, (Destination::masquerade(at, weight), None)))
            .collect(),
    }
}

/// What differs between two states of a virtual service; gives the endpoints that drain from now on.
fn compare(
    at: Virtual,
    held: Option<&Held>,
    wanted: Option<&Wanted>,
    ops: &mut Vec<Op>,
) -> BTreeSet<SocketAddr> {
    let identity = Identity::Address(at);
    let mut draining = BTreeSet::new();
    let Some(wanted) = wanted else {
        ops.extend(held.map(|_| Op::DeleteService(identity)));
        return draining;
    };
    let service = service(at, wanted);
    match held {
        None => ops.push(Op::AddService(service)),
        Some(held) if held.service != service => ops.push(Op::SetService(service)),
        Some(_) => {}
    }
    let none = BTreeMap::new();
    let there = held.map_or(&none, |held| &held.destinations);
    for (endpoint, weight) in &wanted.destinations {
        let right = Destination::masquerade(*endpoint, *weight);
        match there.get(endpoint) {
            None => ops.push(Op::AddDestination(identity, right)),
            Some((destination, _)) if *destination != right => ops.push(Op::SetDestination(identity, right)),
            Some(_) => {}
        }
    }
    for (endpoint, (destination, connections)) in there {
        if wanted.destinations.contains_key(endpoint) {
            continue;
        }
        let takes_new = destination.weight != 0;
        // Counters lag behind: only one that took none for a while can be known to have none.
        let is_idle = !takes_new && connections.as_ref().is_some_and(is_idle);
        if !wanted.drains || is_idle {
            ops.push(Op::DeleteDestination(identity, *endpoint));
            continue;
        }
        draining.insert(*endpoint);
        if takes_new {
            let destination = Destination {
                weight: 0,
                ..*destination
            };
            ops.push(Op::SetDestination(identity, destination));
        }
    }
    draining
}

/// What differs between the elements of two states of a virtual service, but for those that it shares.
fn compare_slots(
    before: Option<&Wanted>,
    after: Option<&Wanted>,
    deletes: &mut Vec<Slot>,
    adds: &mut Vec<(Slot, Arc<str>)>,
) {
    let name_changed = before.map(|w| &w.name) != after.map(|w| &w.name);
    let own = |wanted: Option<&Wanted>| -> BTreeSet<Slot> {
        let slots = wanted.into_iter().flat_map(|wanted| &wanted.slots);
        slots.copied().filter(|slot| !slot.is_shared()).collect()
    };
    let (old, new) = (own(before), own(after));
    deletes.extend(old.iter().filter(|slot| name_changed || !new.contains(slot)));
    let name: Arc<str> = after.map_or_else(|| "".into(), |wanted| wanted.name.clone());
    let fresh = new.iter().filter(|slot| name_changed || !old.contains(slot));
    adds.extend(fresh.map(|slot| (*slot, name.clone())));
}

#[cfg(test)]
#[path = "fake.rs"]
mod fake;

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
