//! A kernel for tests of plans. It refuses what the kernel would, and after each step of a plan looks whether a port of the
//! host has come to light.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use svcnet_netlink::ipvs::{Connections, Identity, Op, Virtual};
use svcnet_netlink::nft::Family;

use super::super::desired::Host;
use super::super::slot::{List, Slot};
use super::{Balancer, Elements, Held, Plan, State, Tables};
use crate::model::Frontend;

/// An address of the node.
pub(super) const NODE: &str = "172.30.0.11";

/// A node with that address and loopback.
pub(super) fn host() -> Host {
    let node: IpAddr = NODE.parse().unwrap();
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    Host {
        node_ports_on: [node].into(),
        addresses: [node, loopback].into(),
        ..Host::default()
    }
}

/// What the kernel holds; it refuses what the kernel would refuse.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fake {
    pub(super) tables: BTreeSet<Family>,
    pub(super) elements: HashMap<Slot, Box<str>>,
    pub(super) link: bool,
    pub(super) bound: BTreeSet<IpAddr>,
    pub(super) services: BTreeMap<Virtual, Held>,
}

/// One step of a plan, after which a crash may come.
enum Step<'a> {
    Tables(&'a BTreeSet<Family>, &'a Elements),
    Link,
    Unbind(IpAddr),
    Op(&'a Op),
    Bind(IpAddr),
}

fn steps(plan: &Plan) -> Vec<Step<'_>> {
    static NONE: BTreeSet<Family> = BTreeSet::new();
    let mut steps = vec![Step::Tables(&plan.rebuild, &plan.before)];
    steps.extend(plan.add_link.then_some(Step::Link));
    steps.extend(plan.unbind.iter().map(|ip| Step::Unbind(*ip)));
    steps.extend(plan.ops.iter().map(Step::Op));
    steps.extend(plan.bind.iter().map(|ip| Step::Bind(*ip)));
    steps.push(Step::Tables(&NONE, &plan.after));
    steps
}

impl Fake {
    pub(super) fn apply(&mut self, plan: &Plan) {
        self.apply_until(plan, usize::MAX);
    }

    /// Carries out that many steps of a plan.
    pub(super) fn apply_until(&mut self, plan: &Plan, count: usize) {
        for step in steps(plan).into_iter().take(count) {
            match step {
                Step::Tables(rebuild, elements) => self.commit(rebuild, elements),
                Step::Link => assert!(!std::mem::replace(&mut self.link, true), "a second link"),
                Step::Unbind(ip) => assert!(self.bound.remove(&ip), "{ip} is not on the link"),
                Step::Op(op) => self.op(op),
                Step::Bind(ip) => assert!(self.link && self.bound.insert(ip), "{ip} is there"),
            }
            self.is_closed();
        }
    }

    /// Behind no service's address lies a port of the host.
    pub(super) fn is_closed(&self) {
        for ip in &self.bound {
            assert!(
                self.elements.contains_key(&Slot::Bound(*ip)),
                "{ip} is open: {self:#?}"
            );
        }
        for slot in self.elements.keys() {
            if let Slot::Frontend(List::Frontends, at) = slot
                && self.bound.contains(&at.ip)
            {
                assert!(self.services.contains_key(at), "port of {at} is open: {self:#?}");
            }
        }
    }

    pub(super) fn commit(&mut self, rebuild: &BTreeSet<Family>, elements: &Elements) {
        self.tables.extend(rebuild);
        self.elements.retain(|slot, _| !rebuild.contains(&slot.family()));
        for slot in &elements.deletes {
            assert!(self.elements.remove(slot).is_some(), "{slot} is not there");
        }
        for (slot, name) in &elements.adds {
            assert!(self.tables.contains(&slot.family()), "no table for {slot}");
            assert_eq!(
                self.elements.insert(*slot, name.as_ref().into()),
                None,
                "{slot} is there"
            );
        }
    }

    pub(super) fn op(&mut self, op: &Op) {
        let of = |identity: &Identity| match identity {
            Identity::Address(at) => *at,
            Identity::Mark { .. } => panic!("no service of ours has a mark"),
        };
        let none = Some(Connections::default());
        match op {
            Op::AddService(service) => {
                let held = Held {
                    service: service.clone(),
                    destinations: BTreeMap::new(),
                };
                let before = self.services.insert(of(&service.identity), held);
                assert_eq!(before, None, "{op}: it is there");
            }
            Op::SetService(service) => {
                self.services
                    .get_mut(&of(&service.identity))
                    .expect("a service")
                    .service = service.clone();
            }
            Op::DeleteService(identity) => {
                assert!(
                    self.services.remove(&of(identity)).is_some(),
                    "{op}: it is not there"
                );
            }
            Op::AddDestination(identity, to) => {
                let held = self.services.get_mut(&of(identity)).expect("a service");
                assert_eq!(
                    held.destinations.insert(to.at, (*to, none)),
                    None,
                    "{op}: it is there"
                );
            }
            Op::SetDestination(identity, to) => {
                let held = self.services.get_mut(&of(identity)).expect("a service");
                held.destinations.get_mut(&to.at).expect("a destination").0 = *to;
            }
            Op::DeleteDestination(identity, at) => {
                let held = self.services.get_mut(&of(identity)).expect("a service");
                assert!(held.destinations.remove(at).is_some(), "{op}: it is not there");
            }
        }
    }

    pub(super) fn connections(&mut self, of: Virtual, to: SocketAddr, active: u32, inactive: u32) {
        let destination = self
            .services
            .get_mut(&of)
            .unwrap()
            .destinations
            .get_mut(&to)
            .unwrap();
        destination.1 = Some(Connections {
            active,
            inactive,
            persistent: 0,
        });
    }

    pub(super) fn balancer(&self) -> Balancer {
        Balancer {
            link: self.link,
            bound: self.bound.clone(),
            services: self.services.clone(),
        }
    }

    pub(super) fn observed(&self) -> (Balancer, Tables) {
        let listed = |slot: &Slot| match slot {
            Slot::Frontend(List::Frontends, at) => Some(*at),
            _ => None,
        };
        let comment = |name: &str| (!name.is_empty()).then(|| name.into());
        let tables = Tables {
            rebuild: [Family::Ip, Family::Ip6]
                .into_iter()
                .filter(|f| !self.tables.contains(f))
                .collect(),
            elements: self
                .elements
                .iter()
                .map(|(slot, name)| (*slot, comment(name)))
                .collect(),
            listed: self.elements.keys().filter_map(listed).collect(),
        };
        (self.balancer(), tables)
    }

    /// Converges as after a restart, and says what that took.
    pub(super) fn converge(&mut self, frontends: &[Frontend], former: &State) -> (State, Plan) {
        let mut state = State::new(frontends.iter().cloned(), host());
        let (balancer, tables) = self.observed();
        let (plan, _) = state.converge(&balancer, tables, former);
        self.apply(&plan);
        (state, plan)
    }

    pub(super) fn change(&mut self, state: &mut State, frontend: Frontend) -> Plan {
        let (plan, _) = state.change(vec![(frontend.key, Some(frontend))]);
        self.apply(&plan);
        plan
    }

    /// What the periodic look does.
    pub(super) fn tidy(&mut self, state: &mut State) -> Plan {
        let mut plan = state.tidy();
        for of in state.draining().collect::<Vec<_>>() {
            let held = self.services.get(&of).map(|held| held.destinations.values());
            let observed: Vec<_> = held
                .into_iter()
                .flatten()
                .map(|(to, connections)| (*to, connections.unwrap_or_default()))
                .collect();
            plan.ops.extend(state.drained(of, &observed));
        }
        self.apply(&plan);
        plan
    }

    /// After a foreign removal of services their ports are open until the first step of the repair.
    pub(super) fn apply_tolerant(&mut self, plan: &Plan) {
        for op in &plan.ops {
            self.op(op);
        }
        assert_eq!(plan.len(), plan.ops.len(), "{plan}");
        self.is_closed();
    }
}
