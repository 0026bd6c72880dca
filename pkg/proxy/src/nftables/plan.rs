//! What to tell the kernel: from what it holds and what it should hold to a list of operations.
//!
//! Two ways lead to a plan. [`converge`] compares everything with what was read back; it is for the start, and after a
//! foreign change. [`change`] takes the frontends that changed and costs in proportion to them. Both leave a [`State`]:
//! what the kernel holds once the plan is carried out. A plan that failed makes the state worthless: read back again.
//!
//! An endpoint keeps its index as long as it stays; a new one fills the first hole, and the last ones move into holes
//! that remain. So a change moves few elements, and the set of elements is the same as from scratch but for the order
//! of endpoints within a frontend, which means nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use svcnet_netlink::nft::{Family, comment_kept};

use super::choice::{self, Choice};
use super::shape::{ENDPOINTS_MAX, LOCAL_POOL, Place, Shape};
use super::slot::{List, Slot, Value};
use crate::idle::Idle;
use crate::model::{Endpoint, Fate, Frontend, FrontendKey, Masquerade};

/// A shape in the tables of a family.
pub type ShapeAt = (Family, Place, Shape);

/// Operations, in the order of their fields, all in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tables that are made anew.
    pub rebuild: BTreeSet<Family>,
    /// Chains to make.
    pub new_shapes: BTreeSet<ShapeAt>,
    /// How long clients stay, where the choice of times changes.
    pub stays: BTreeMap<Family, Stays>,
    /// Elements to remove.
    pub deletes: Vec<Slot>,
    /// Elements to add, with the frontend's name.
    pub adds: Vec<(Slot, Value, Arc<str>)>,
    /// Chains to remove.
    pub old_shapes: BTreeSet<ShapeAt>,
}

/// The times that clients stay for, before and after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stays {
    /// Not needed any more.
    pub old: BTreeSet<u32>,
    /// New.
    pub new: BTreeSet<u32>,
    /// All that there will be.
    pub all: BTreeSet<u32>,
}

impl Plan {
    /// Whether the kernel holds what it should.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the frontend is not as it should be, its table included.
    pub fn concerns(&self, key: FrontendKey) -> bool {
        self.rebuild.contains(&key.family())
            || self.deletes.iter().any(|slot| slot.is_of(key))
            || self.adds.iter().any(|(slot, _, _)| slot.is_of(key))
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.rebuild.len()
            + self.new_shapes.len()
            + self.stays.len()
            + self.deletes.len()
            + self.adds.len()
            + self.old_shapes.len()
    }

    /// Elements of one set in a row make fewer messages.
    fn sort(&mut self) {
        self.deletes.sort_by_key(|slot| slot.group());
        self.adds.sort_by_key(|(slot, _, _)| slot.group());
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in &self.rebuild {
            writeln!(f, "table {family}: make anew")?;
        }
        for (family, place, shape) in &self.new_shapes {
            writeln!(
                f,
                "+ {family} chain {}",
                shape.chain(*place).unwrap_or_else(|| shape.to_string())
            )?;
        }
        for (family, stays) in &self.stays {
            writeln!(
                f,
                "~ {family} clients stay: +{:?} -{:?} seconds",
                stays.new, stays.old
            )?;
        }
        for slot in &self.deletes {
            writeln!(f, "- {slot}")?;
        }
        for (slot, value, name) in &self.adds {
            let value = value.to_string();
            let gap = if value.is_empty() { "" } else { " " };
            write!(f, "+ {slot}{gap}{value}")?;
            // What frontends share has no name.
            if name.is_empty() {
                writeln!(f)?;
            } else {
                writeln!(f, " ({name})")?;
            }
        }
        for (family, place, shape) in &self.old_shapes {
            writeln!(
                f,
                "- {family} chain {}",
                shape.chain(*place).unwrap_or_else(|| shape.to_string())
            )?;
        }
        Ok(())
    }
}

/// What was read back.
#[derive(Debug, Default)]
pub struct Observed {
    /// Tables that are missing or not as declared.
    pub rebuild: BTreeSet<Family>,
    /// Chains that are there.
    pub shapes: BTreeSet<ShapeAt>,
    /// Times that clients stay for.
    pub stays: BTreeSet<(Family, u32)>,
    /// Elements with their comments.
    pub elements: HashMap<Slot, (Value, Option<Box<str>>)>,
}

/// What the kernel holds.
#[derive(Debug, Default)]
pub struct State {
    /// In boxes, so that the table can grow in a moment: at 100,000 frontends, a change would wait for it.
    held: HashMap<FrontendKey, Box<Frontend>>,
    counts: Counts,
    idle_shapes: Idle<ShapeAt>,
    idle_hairpins: Idle<IpAddr>,
}

/// How many frontends use each thing that they share.
#[derive(Debug, Default)]
struct Counts {
    shapes: BTreeMap<ShapeAt, u32>,
    stays: BTreeMap<(Family, u32), u32>,
    slots: BTreeMap<Slot, u32>,
}

impl State {
    /// The frontend, with its endpoints in the order of their indexes.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.held.get(key).map(|frontend| &**frontend)
    }

    /// All frontends.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.held.values().map(|frontend| &**frontend)
    }

    /// Whether [`tidy`] may find something, now or the next time.
    pub(crate) fn is_untidy(&self) -> bool {
        !self.idle_shapes.is_empty() || !self.idle_hairpins.is_empty()
    }

    /// Every element, in no order.
    pub fn elements(&self) -> impl Iterator<Item = (Slot, Value, &Arc<str>)> {
        self.held.values().flat_map(|f| {
            elements(f)
                .into_iter()
                .map(move |(slot, value)| (slot, value, &f.name))
        })
    }
}

impl Counts {
    /// Counts what a frontend shares with others; what it had before and still has is not touched.
    fn replace(&mut self, before: Option<&Frontend>, after: Option<&Frontend>, touched: &mut Shared) {
        let shapes_of = |frontend: Option<&Frontend>| -> BTreeSet<ShapeAt> {
            frontend.into_iter().flat_map(shapes).collect()
        };
        let stays_of = |frontend: Option<&Frontend>| -> BTreeSet<(Family, u32)> {
            let seconds = |f: &Frontend| Some((f.key.family(), f.affinity_seconds?));
            frontend.and_then(seconds).into_iter().collect()
        };
        let slots_of = |frontend: Option<&Frontend>| frontend.map(shared_slots).unwrap_or_default();
        step(
            &mut self.shapes,
            &mut touched.shapes,
            &shapes_of(before),
            &shapes_of(after),
        );
        step(
            &mut self.stays,
            &mut touched.stays,
            &stays_of(before),
            &stays_of(after),
        );
        step(
            &mut self.slots,
            &mut touched.slots,
            &slots_of(before),
            &slots_of(after),
        );
    }
}

/// What was there before, of all that is shared and was touched.
#[derive(Default)]
struct Shared {
    shapes: BTreeMap<ShapeAt, bool>,
    stays: BTreeMap<(Family, u32), bool>,
    slots: BTreeMap<Slot, bool>,
}

/// One less for what went, one more for what came.
fn step<K: Ord + Copy>(
    counts: &mut BTreeMap<K, u32>,
    was_there: &mut BTreeMap<K, bool>,
    before: &BTreeSet<K>,
    after: &BTreeSet<K>,
) {
    for key in before.difference(after) {
        was_there.entry(*key).or_insert(true);
        let left = counts.get(key).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.remove(key);
        } else {
            counts.insert(*key, left);
        }
    }
    for key in after.difference(before) {
        let count = counts.entry(*key).or_default();
        was_there.entry(*key).or_insert(*count > 0);
        *count += 1;
    }
}

/// The plan for some changed frontends; `None` is one that goes.
pub(crate) fn change(
    state: &mut State,
    changes: impl IntoIterator<Item = (FrontendKey, Option<Frontend>)>,
) -> Plan {
    let mut plan = Plan::default();
    let mut shared = Shared::default();
    for (key, wanted) in changes {
        let held = state.held.get(&key).map(|frontend| &**frontend);
        let wanted = wanted.map(|frontend| arrange(frontend, |pool, index| endpoint_at(held?, pool, index)));
        if held == wanted.as_ref() {
            continue;
        }
        compare(held, wanted.as_ref(), &mut plan);
        state.counts.replace(held, wanted.as_ref(), &mut shared);
        // Put in its place, not taken out and put in again: a hash table fills up with the places of what was taken out.
        match wanted {
            Some(wanted) => drop(state.held.insert(key, Box::new(wanted))),
            None => drop(state.held.remove(&key)),
        }
    }
    for (shape, before) in shared.shapes {
        match (before, state.counts.shapes.contains_key(&shape)) {
            (false, true) if !state.idle_shapes.take_back(&shape) => drop(plan.new_shapes.insert(shape)),
            (true, false) => state.idle_shapes.put(shape),
            _ => {}
        }
    }
    for ((family, seconds), before) in shared.stays {
        match (before, state.counts.stays.contains_key(&(family, seconds))) {
            (false, true) => drop(plan.stays.entry(family).or_default().new.insert(seconds)),
            (true, false) => drop(plan.stays.entry(family).or_default().old.insert(seconds)),
            _ => {}
        }
    }
    for (slot, before) in shared.slots {
        match (before, state.counts.slots.contains_key(&slot), slot) {
            (false, true, Slot::Hairpin(ip)) if state.idle_hairpins.take_back(&ip) => {}
            (false, true, _) => plan.adds.push((slot, Value::Member, "".into())),
            (true, false, Slot::Hairpin(ip)) => state.idle_hairpins.put(ip),
            (true, false, _) => plan.deletes.push(slot),
            _ => {}
        }
    }
    finish(state, &mut plan);
    plan
}

/// An endpoint that connections went to, and its frontend.
pub(crate) type Gone = (FrontendKey, SocketAddr);

/// The plan that makes the kernel hold these frontends and nothing else; and the endpoints that it takes away.
pub(crate) fn converge(
    mut observed: Observed,
    frontends: impl Iterator<Item = Frontend>,
) -> (State, Plan, Vec<Gone>) {
    let mut state = State::default();
    let mut plan = Plan {
        rebuild: std::mem::take(&mut observed.rebuild),
        ..Plan::default()
    };
    let mut ignored = Shared::default();
    let before: HashMap<Slot, SocketAddr> = endpoints_that_leave_traces(&observed);
    for frontend in frontends {
        let key = frontend.key;
        let frontend = arrange(frontend, |pool, index| {
            match observed.elements.get(&Slot::Endpoint(key, pool + index)) {
                Some((Value::Endpoint(at), _)) => Some(*at),
                _ => None,
            }
        });
        state.counts.replace(None, Some(&frontend), &mut ignored);
        for (slot, value) in elements(&frontend) {
            want(&mut observed, &mut plan, slot, value, &frontend.name);
        }
        state.held.insert(key, Box::new(frontend));
    }
    let nameless: Arc<str> = "".into();
    for slot in state.counts.slots.keys() {
        want(&mut observed, &mut plan, *slot, Value::Member, &nameless);
    }
    for slot in observed.elements.into_keys() {
        match slot {
            Slot::Hairpin(ip) => state.idle_hairpins.put(ip),
            slot => plan.deletes.push(slot),
        }
    }
    let wanted: BTreeSet<ShapeAt> = state.counts.shapes.keys().copied().collect();
    plan.new_shapes = wanted.difference(&observed.shapes).copied().collect();
    state.idle_shapes = observed.shapes.difference(&wanted).copied().collect();
    for (family, seconds) in state
        .counts
        .stays
        .keys()
        .filter(|stay| !observed.stays.contains(*stay))
    {
        plan.stays.entry(*family).or_default().new.insert(*seconds);
    }
    for (family, seconds) in observed
        .stays
        .iter()
        .filter(|stay| !state.counts.stays.contains_key(*stay))
    {
        plan.stays.entry(*family).or_default().old.insert(*seconds);
    }
    finish(&state, &mut plan);
    let gone = plan.deletes.iter().filter_map(|slot| match slot {
        Slot::Endpoint(key, _) => Some((*key, *before.get(slot)?)),
        _ => None,
    });
    let gone = gone.filter(|(key, at)| {
        !state
            .frontend(key)
            .is_some_and(|frontend| frontend.endpoints().any(|endpoint| endpoint.at == *at))
    });
    let gone = gone.collect();
    (state, plan, gone)
}

/// The plan that removes what nobody has used since the last one. A packet may have found a shape just before its last
/// frontend went, and is on its way to it; or it was sent back to the pod that it is from, and is masqueraded only behind
/// all that. So both stay until no such packet can be left.
pub(crate) fn tidy(state: &mut State) -> Plan {
    let hairpins = state.idle_hairpins.tidy().into_iter();
    Plan {
        deletes: hairpins.map(Slot::Hairpin).collect(),
        old_shapes: state.idle_shapes.tidy().into_iter().collect(),
        ..Plan::default()
    }
}

/// The endpoints whose going can leave something behind: connections that outlive them, and clients that stay. All others
/// would only fill memory.
fn endpoints_that_leave_traces(observed: &Observed) -> HashMap<Slot, SocketAddr> {
    let stays: BTreeSet<FrontendKey> = observed
        .elements
        .keys()
        .filter_map(|slot| match slot {
            Slot::Frontend(List::Stay(_), key) => Some(*key),
            _ => None,
        })
        .collect();
    let leaves = |key: &FrontendKey| key.protocol().outlives_endpoints() || stays.contains(key);
    let endpoints = observed
        .elements
        .iter()
        .filter_map(|(slot, (value, _))| match (slot, value) {
            (Slot::Endpoint(key, _), Value::Endpoint(at)) if leaves(key) => Some((*slot, *at)),
            _ => None,
        });
    endpoints.collect()
}

fn finish(state: &State, plan: &mut Plan) {
    for (family, stays) in &mut plan.stays {
        stays.all = state
            .counts
            .stays
            .keys()
            .filter(|(f, _)| f == family)
            .map(|(_, seconds)| *seconds)
            .collect();
    }
    plan.sort();
}

/// One element that should be there, against what was read back.
fn want(observed: &mut Observed, plan: &mut Plan, slot: Slot, value: Value, name: &Arc<str>) {
    match observed.elements.remove(&slot) {
        Some((there, comment))
            if there == value && comment.as_deref().unwrap_or_default() == comment_kept(name) =>
        {
            return;
        }
        Some(_) => plan.deletes.push(slot),
        None => {}
    }
    plan.adds.push((slot, value, name.clone()));
}

/// What differs between two states of one frontend.
fn compare(held: Option<&Frontend>, wanted: Option<&Frontend>, plan: &mut Plan) {
    let name_changed = held.map(|f| &f.name) != wanted.map(|f| &f.name);
    let mut before: BTreeMap<Slot, Value> = held.map(elements).unwrap_or_default().into_iter().collect();
    if let Some(wanted) = wanted {
        for (slot, value) in elements(wanted) {
            match before.remove(&slot) {
                Some(there) if there == value && !name_changed => continue,
                Some(_) => plan.deletes.push(slot),
                None => {}
            }
            plan.adds.push((slot, value, wanted.name.clone()));
        }
    }
    plan.deletes.extend(before.into_keys());
}

/// The elements of a frontend, but for those that it shares with others.
fn elements(frontend: &Frontend) -> Vec<(Slot, Value)> {
    let key = frontend.key;
    let mut elements = Vec::with_capacity(frontend.fate.endpoints().len() + 2);
    if frontend.fate == Fate::NoEndpoints {
        return vec![(Slot::Frontend(List::Refused, key), Value::Member)];
    }
    if let Some(sources) = &frontend.sources {
        elements.push((Slot::Frontend(List::Restricted, key), Value::Member));
        elements.extend(sources.iter().map(|net| (Slot::Source(key, *net), Value::Member)));
    }
    let [first, outside] = shape_pair(frontend);
    elements.extend(first.map(|shape| (Slot::Frontend(List::Services, key), Value::Shape(shape))));
    elements.extend(outside.map(|shape| (Slot::Frontend(List::External, key), Value::Shape(shape))));
    for (pool, fate) in [(0, Some(&frontend.fate)), (LOCAL_POOL, frontend.outside.as_ref())] {
        let table = choice::table(frontend.scheduler, fate.map_or(&[][..], Fate::endpoints));
        let numbered = (pool..).zip(table);
        elements.extend(numbered.map(|(index, at)| (Slot::Endpoint(key, index), Value::Endpoint(at))));
    }
    match frontend.masquerade {
        Masquerade::ByServiceNetwork => {}
        Masquerade::AllButPods => elements.push((Slot::Frontend(List::Masquerade, key), Value::Member)),
        Masquerade::OwnOnly => elements.push((Slot::Frontend(List::MasqueradeOwn, key), Value::Member)),
    }
    if let Some(seconds) = frontend.affinity_seconds {
        elements.push((Slot::Frontend(List::Stay(seconds), key), Value::Member));
    }
    elements
}

/// The shapes of a frontend: for all, or for pods and this node; and for those outside.
fn shape_pair(frontend: &Frontend) -> [Option<Shape>; 2] {
    let affinity = frontend.affinity_seconds.is_some();
    let count = |fate: &Fate| {
        u16::try_from(choice::table_len(frontend.scheduler, fate.endpoints())).unwrap_or(u16::MAX)
    };
    let choice = Choice::of(frontend.scheduler, frontend.key);
    let first = match (&frontend.fate, &frontend.outside) {
        (Fate::NoEndpoints, _) => return [None, None],
        (Fate::OnlyElsewhere, _) => Shape::Drop,
        (fate, None) => Shape::Balance {
            count: count(fate),
            affinity,
            choice,
        },
        (fate, Some(_)) => Shape::Policy {
            count: count(fate),
            affinity,
            choice,
        },
    };
    let outside = frontend.outside.as_ref().map(|fate| match fate {
        Fate::Balance(_) => Shape::Local {
            count: count(fate),
            choice,
        },
        Fate::NoEndpoints | Fate::OnlyElsewhere => Shape::LocalDrop,
    });
    [Some(first), outside]
}

fn shapes(frontend: &Frontend) -> impl Iterator<Item = ShapeAt> {
    let (family, place) = (frontend.key.family(), frontend.key.place());
    shape_pair(frontend)
        .into_iter()
        .flatten()
        .map(move |shape| (family, place, shape))
}

/// The elements that a frontend may share with others: its local endpoints, and its address.
fn shared_slots(frontend: &Frontend) -> BTreeSet<Slot> {
    let local = frontend
        .endpoints()
        .filter(|e| e.local)
        .map(|e| Slot::Hairpin(e.at.ip()));
    let address = match frontend.key {
        FrontendKey::Address { ip, .. } if frontend.inside => Some(Slot::ClusterIp(ip)),
        _ => None,
    };
    local.chain(address).collect()
}

fn endpoint_at(frontend: &Frontend, pool: u32, index: u32) -> Option<SocketAddr> {
    let fate = if pool == 0 {
        Some(&frontend.fate)
    } else {
        frontend.outside.as_ref()
    };
    fate?.endpoints().get(index as usize).map(|e| e.at)
}

/// Gives each endpoint the index that it has in the kernel, where it has one that fits. A table has an order of its own.
fn arrange(mut frontend: Frontend, holds: impl Fn(u32, u32) -> Option<SocketAddr>) -> Frontend {
    let scheduler = frontend.scheduler;
    let arrange = |endpoints: &mut Vec<Endpoint>, pool: u32| {
        endpoints.truncate(ENDPOINTS_MAX);
        if choice::is_plain(scheduler, endpoints) {
            order(endpoints, |index| holds(pool, index));
        }
    };
    if let Fate::Balance(endpoints) = &mut frontend.fate {
        arrange(endpoints, 0);
    }
    if let Some(Fate::Balance(endpoints)) = &mut frontend.outside {
        arrange(endpoints, LOCAL_POOL);
    }
    frontend
}

fn order(endpoints: &mut Vec<Endpoint>, holds: impl Fn(u32) -> Option<SocketAddr>) {
    let mut waiting: BTreeMap<SocketAddr, Endpoint> = endpoints.iter().map(|e| (e.at, *e)).collect();
    let keep: Vec<Option<Endpoint>> = (0u32..)
        .take(endpoints.len())
        .map(|index| waiting.remove(&holds(index)?))
        .collect();
    let mut rest = waiting.into_values();
    *endpoints = keep
        .into_iter()
        .filter_map(|kept| kept.or_else(|| rest.next()))
        .collect();
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
