//! What is desired, kept up to date change by change: the work of a change depends on what it concerns, not on how much
//! there is. What it takes to bring the kernel along is collected until it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::net::IpAddr;
use std::sync::RwLockReadGuard;

use svcnet_api::types::PodCidr;
use svcnet_netlink::nft::Family;

use crate::desired::{Asked, Element, Entry, InUse, Name, asked, pod_entries, policy_entries};
use crate::known::{Known, Shared};
use crate::layout::RELAYS;
use crate::model::{Direction, Namespaces, ObjectKey, Policy};
use crate::plan::{Delta, Hooked, Isolation, Plan};
use crate::view::{Labels, PodFacts, View, of_namespace};

/// An address that is isolated in a direction.
type Place = (Direction, IpAddr);

/// The desired state and what it was made of.
#[derive(Debug)]
pub struct Engine {
    known: Shared,
    families: Vec<Family>,
    in_use: InUse,
    /// How many contribute an entry, but for those of isolation.
    counts: HashMap<Entry, usize>,
    /// Who isolates an address, and how many say so: two pods may have one for a moment.
    claims: HashMap<Place, BTreeMap<Option<Name>, usize>>,
    /// How many addresses are isolated, where any is.
    isolated: BTreeMap<Hooked, usize>,
    of_pods: HashMap<ObjectKey, BTreeSet<Entry>>,
    of_policies: HashMap<ObjectKey, Vec<Entry>>,
    of_nodes: HashMap<String, Vec<Entry>>,
    /// Where packets are judged, as of the last plan.
    hooked: BTreeSet<Hooked>,
    /// What has changed since the last plan, and how it was.
    touched: HashMap<Entry, bool>,
    touched_places: HashMap<Place, Option<Isolation>>,
}

impl Engine {
    /// Nothing is known yet. Addresses of other families are left alone.
    pub fn new(families: &[Family]) -> Self {
        Self {
            known: Shared::default(),
            families: families.to_vec(),
            in_use: InUse::default(),
            counts: HashMap::new(),
            claims: HashMap::new(),
            isolated: BTreeMap::new(),
            of_pods: HashMap::new(),
            of_policies: HashMap::new(),
            of_nodes: HashMap::new(),
            hooked: BTreeSet::new(),
            touched: HashMap::new(),
            touched_places: HashMap::new(),
        }
    }

    /// What is known.
    pub fn view(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// The same for those who ask from elsewhere.
    pub(crate) fn shared(&self) -> Shared {
        self.known.clone()
    }

    /// All that the kernel should hold.
    pub fn entries(&self) -> BTreeSet<Entry> {
        let places = self.claims.keys().filter_map(|place| {
            let isolation = self.isolation(*place)?;
            Some(Entry::Isolated(place.0, place.1, isolation))
        });
        self.counts.keys().cloned().chain(places).collect()
    }

    /// How much the kernel should hold.
    pub fn entry_count(&self) -> usize {
        self.counts.len() + self.claims.len()
    }

    /// How many addresses are isolated, in a direction or both.
    pub fn isolated_count(&self) -> usize {
        self.claims
            .keys()
            .filter(|(direction, address)| {
                *direction == Direction::Egress || !self.claims.contains_key(&(Direction::Egress, *address))
            })
            .count()
    }

    /// What has changed since the last call. When the kernel does not take it, all has to be told anew.
    pub fn take_plan(&mut self) -> Plan {
        let mut delta = Delta::default();
        for (entry, was) in mem::take(&mut self.touched) {
            match (was, self.counts.contains_key(&entry)) {
                (false, true) => delta.added.push(entry),
                (true, false) => delta.removed.push(entry),
                _ => {}
            }
        }
        for (place, was) in mem::take(&mut self.touched_places) {
            let is = self.isolation(place);
            if was != is {
                delta.isolation.insert(place, (was, is));
            }
        }
        let hooked: BTreeSet<Hooked> = self.isolated.keys().copied().collect();
        let former = mem::replace(&mut self.hooked, hooked);
        delta.hooked = self.hooked.difference(&former).copied().collect();
        delta.unhooked = former.difference(&self.hooked).copied().collect();
        Plan::of_delta(delta, &self.families)
    }

    /// Everything, for a kernel that holds nothing.
    pub fn take_all(&mut self) -> Plan {
        self.touched.clear();
        self.touched_places.clear();
        self.hooked = self.isolated.keys().copied().collect();
        let places = self
            .claims
            .keys()
            .map(|place| (*place, (None, self.isolation(*place))));
        let delta = Delta {
            added: self.counts.keys().cloned().collect(),
            removed: Vec::new(),
            isolation: places.collect(),
            hooked: self.hooked.iter().copied().collect(),
            unhooked: Vec::new(),
        };
        Plan::of_delta(delta, &self.families)
    }

    /// Whether packets of a family are judged in a direction, as of the last plan.
    pub(crate) fn is_hooked(&self, family: Family, direction: Direction) -> bool {
        self.hooked.contains(&(family, direction))
    }

    /// How an address is isolated. Where several say so, the strictest goes first: that nothing is allowed.
    fn isolation(&self, place: Place) -> Option<Isolation> {
        self.claims.get(&place)?.keys().next().cloned()
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.families.contains(&Family::of(address))
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Isolated(direction, address, chain) => {
                if self.is_ours(address) {
                    let place = (direction, address);
                    let was = self.isolation(place);
                    self.touched_places.entry(place).or_insert(was);
                    let claims = self.claims.entry(place).or_default();
                    if claims.is_empty() {
                        *self.isolated.entry((Family::of(address), direction)).or_default() += 1;
                    }
                    *claims.entry(chain).or_default() += 1;
                }
            }
            Entry::Element(_, element) if !self.is_ours(element.address) => {}
            entry => {
                let count = self.counts.entry(entry.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    self.touched.entry(entry).or_insert(false);
                }
            }
        }
    }

    fn remove(&mut self, entry: &Entry) {
        if let Entry::Isolated(direction, address, chain) = entry {
            let place = (*direction, *address);
            let was = self.isolation(place);
            let Some(claims) = self.claims.get_mut(&place) else {
                return;
            };
            self.touched_places.entry(place).or_insert(was);
            if let Some(count) = claims.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    claims.remove(chain);
                }
            }
            if claims.is_empty() {
                self.claims.remove(&place);
                let hooked = (Family::of(*address), *direction);
                if let Some(count) = self.isolated.get_mut(&hooked) {
                    *count -= 1;
                    if *count == 0 {
                        self.isolated.remove(&hooked);
                    }
                }
            }
            return;
        }
        if let Some(count) = self.counts.get_mut(entry) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(entry);
                self.touched.entry(entry.clone()).or_insert(true);
            }
        }
    }

    /// Labels of a namespace; none where it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.view().namespaces.get(name) == labels.as_ref() {
            return;
        }
        let wide: Vec<_> = self.in_use.wide.values().cloned().collect();
        let meant =
            |view: &View| -> Vec<bool> { wide.iter().map(|s| view.selects_namespace(s, name)).collect() };
        let before = meant(&self.view());
        self.known.write().set_namespace(name, labels);
        if meant(&self.view()) != before {
            let pods: Vec<ObjectKey> = of_namespace(&self.view().pods, name)
                .map(|(key, _)| key.clone())
                .collect();
            pods.iter().for_each(|key| self.refresh(key));
        }
    }

    /// A pod; none where it is gone.
    pub fn set_pod(&mut self, key: &ObjectKey, pod: Option<PodFacts>) {
        if self.view().pods.get(key) == pod.as_ref() {
            return;
        }
        self.known.write().set_pod(key, pod);
        self.refresh(key);
    }

    /// A policy; none where it is gone.
    pub fn set_policy(&mut self, key: &ObjectKey, policy: Option<Policy>) {
        if self.view().policies.get(key) == policy.as_ref() {
            return;
        }
        let before = self.known.write().set_policy(key, policy.clone());
        let entries = policy
            .as_ref()
            .map(|policy| policy_entries(key, policy))
            .unwrap_or_default();
        entries.iter().for_each(|entry| self.add(entry.clone()));
        let former = if entries.is_empty() {
            self.of_policies.remove(key)
        } else {
            self.of_policies.insert(key.clone(), entries)
        };
        former.iter().flatten().for_each(|entry| self.remove(entry));

        // Whoever is asked about for the first time, or no more.
        let mut concerned = BTreeSet::new();
        for asked in policy.iter().flat_map(asked) {
            if self.in_use.add(&asked) {
                self.answering(&asked, &mut concerned);
            }
        }
        for asked in before.iter().flat_map(asked) {
            if self.in_use.remove(&asked) {
                self.answering(&asked, &mut concerned);
            }
        }
        // Whoever is isolated, or no more.
        let isolates = |policy: &Policy, pod: &PodFacts| policy.selects.matches_labels(Some(&pod.labels));
        let types = |policy: &Policy| Direction::BOTH.map(|d| policy.rules(d).is_some());
        let same_types = before.as_ref().map(types) == policy.as_ref().map(types);
        let known = self.view();
        for (key, pod) in of_namespace(&known.pods, &key.namespace).filter(|(_, pod)| pod.local) {
            let [was, is] = [&before, &policy].map(|p| p.as_ref().is_some_and(|p| isolates(p, pod)));
            if was != is || (is && !same_types) {
                concerned.insert(key.clone());
            }
        }
        drop(known);
        concerned.iter().for_each(|key| self.refresh(key));
    }

    /// The pods that answer what a policy asks.
    fn answering(&self, asked: &Asked, into: &mut BTreeSet<ObjectKey>) {
        let view = self.view();
        let pods = &view.pods;
        match asked {
            Asked::Pods(_, selector) => {
                let meant =
                    |(_, pod): &(&ObjectKey, &PodFacts)| selector.pods.matches_labels(Some(&pod.labels));
                let mut of = |namespace: &str| {
                    into.extend(
                        of_namespace(pods, namespace)
                            .filter(meant)
                            .map(|(key, _)| key.clone()),
                    );
                };
                match &selector.namespaces {
                    Namespaces::Own(namespace) => of(namespace),
                    Namespaces::Labelled(labels) => {
                        let all = view.namespaces.iter();
                        all.filter(|(_, own)| labels.matches_labels(Some(own)))
                            .for_each(|(name, _)| of(name));
                    }
                }
            }
            Asked::Port(_, protocol, name) => {
                let names = |pod: &PodFacts| {
                    pod.ports
                        .iter()
                        .any(|p| p.name == *name && p.protocol == *protocol)
                };
                into.extend(
                    pods.iter()
                        .filter(|(_, pod)| names(pod))
                        .map(|(key, _)| key.clone()),
                );
            }
        }
    }

    /// What a pod contributes, anew.
    fn refresh(&mut self, key: &ObjectKey) {
        let view = self.view();
        let pod = view.pods.get(key);
        let entries = pod
            .map(|pod| pod_entries(&view, &self.in_use, key, pod))
            .unwrap_or_default();
        drop(view);
        let former = self.of_pods.remove(key).unwrap_or_default();
        entries
            .difference(&former)
            .for_each(|entry| self.add(entry.clone()));
        former.difference(&entries).for_each(|entry| self.remove(entry));
        if !entries.is_empty() {
            self.of_pods.insert(key.clone(), entries);
        }
    }

    /// The addresses from which relays of another node connect, which has these networks; none where it is gone.
    pub fn set_relays(&mut self, node: &str, networks: &[PodCidr]) {
        let element = |address| Element { address, port: None };
        let relays = networks.iter().filter_map(|network| network.relay());
        let entries: Vec<Entry> = relays
            .map(|address| Entry::Element(RELAYS.into(), element(address)))
            .collect();
        let former = self.of_nodes.remove(node).unwrap_or_default();
        entries.iter().for_each(|entry| self.add(entry.clone()));
        former.iter().for_each(|entry| self.remove(entry));
        if !entries.is_empty() {
            self.of_nodes.insert(node.to_string(), entries);
        }
    }

    /// The nodes that relays are let in of.
    pub(crate) fn relaying(&self) -> impl Iterator<Item = &String> {
        self.of_nodes.keys()
    }

    /// Nothing may reach an address, nor leave it, until it is known whose it is. As often as this is said, so often it
    /// has to be [taken back](Self::release).
    pub fn hold(&mut self, address: IpAddr) {
        self.known.write().hold(address);
        for direction in Direction::BOTH {
            self.add(Entry::Isolated(direction, address, None));
        }
    }

    /// It is known whose an address is.
    pub fn release(&mut self, address: IpAddr) {
        self.known.write().release(address);
        for direction in Direction::BOTH {
            self.remove(&Entry::Isolated(direction, address, None));
        }
    }
}
