use std::collections::BTreeMap;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::model::Protocol;
use crate::scheduler::Scheduler;

fn key(number: u8) -> FrontendKey {
    // The same numbers in both families and places, so that frontends share shapes and hairpins.
    let family = if number & 1 == 0 { Family::Ip } else { Family::Ip6 };
    let protocol = if number & 2 == 0 {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    if number & 4 == 0 {
        let ip = if family == Family::Ip {
            format!("10.96.0.{number}")
        } else {
            format!("fd00:96::{number}")
        };
        FrontendKey::Address {
            ip: ip.parse().unwrap(),
            protocol,
            port: 80,
        }
    } else {
        FrontendKey::NodePort {
            family,
            protocol,
            port: 30_000 + u16::from(number),
        }
    }
}

fn endpoints(family: Family, numbers: &BTreeSet<u8>) -> Vec<Endpoint> {
    let at = |n: &u8| {
        if family == Family::Ip {
            format!("10.244.0.{n}:80")
        } else {
            format!("[fd00:244::{n}]:80")
        }
    };
    numbers
        .iter()
        .map(|n| Endpoint {
            at: at(n).parse().unwrap(),
            local: n % 3 == 0,
            weight: 1,
        })
        .collect()
}

fn fate(family: Family, numbers: &BTreeSet<u8>) -> Fate {
    if numbers.is_empty() {
        Fate::OnlyElsewhere
    } else {
        Fate::Balance(endpoints(family, numbers))
    }
}

fn source(family: Family, number: u8) -> ipnet::IpNet {
    if family == Family::Ip {
        format!("172.30.{number}.0/24")
    } else {
        format!("fd00:{number}::/32")
    }
    .parse()
    .unwrap()
}

/// A frontend's choices, without its key.
type Choices = (BTreeSet<u8>, Option<BTreeSet<u8>>, Option<u32>, u8, u8);

fn choices() -> impl Strategy<Value = Choices> {
    let some = || btree_set(0u8..12, 0..6);
    (
        some(),
        proptest::option::of(some()),
        proptest::option::of(1u32..4),
        0u8..3,
        0u8..5,
    )
}

fn frontend(key: FrontendKey, (all, outside, affinity_seconds, masquerade, name): &Choices) -> Frontend {
    let family = key.family();
    let none = all.is_empty();
    let scheduler = [
        Scheduler::Random,
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Sh,
        Scheduler::Random,
    ][usize::from(*name)];
    let mut frontend = Frontend {
        key,
        name: format!("ns/service-{name}").into(),
        fate: if none {
            Fate::NoEndpoints
        } else {
            Fate::Balance(endpoints(family, all))
        },
        outside: outside
            .as_ref()
            .filter(|_| !none)
            .map(|numbers| fate(family, numbers)),
        scheduler,
        affinity_seconds: *affinity_seconds,
        masquerade: [
            Masquerade::ByServiceNetwork,
            Masquerade::AllButPods,
            Masquerade::OwnOnly,
        ][usize::from(*masquerade)],
        inside: *masquerade == 0,
        sources: (*name == 1 && matches!(key, FrontendKey::Address { .. }))
            .then(|| [source(family, *masquerade)].into()),
        draining: Box::default(),
    };
    let pools = [Some(&mut frontend.fate), frontend.outside.as_mut()];
    for fate in pools.into_iter().flatten().filter(|_| *name >= 2) {
        if let Fate::Balance(endpoints) = fate {
            endpoints
                .iter_mut()
                .for_each(|e| e.weight = e.at.to_string().len() as u16 % 3 + 1);
        }
    }
    frontend
}

/// A kernel that refuses what the real one refuses: adding what is there, removing what is not, jumping to nothing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Model {
    tables: BTreeSet<Family>,
    shapes: BTreeSet<ShapeAt>,
    stays: BTreeSet<(Family, u32)>,
    elements: BTreeMap<Slot, (Value, String)>,
}

impl Model {
    fn carry_out(&mut self, plan: &Plan) {
        for family in &plan.rebuild {
            self.tables.insert(*family);
            self.shapes.retain(|(f, _, _)| f != family);
            self.stays.retain(|(f, _)| f != family);
            self.elements.retain(|slot, _| slot.family() != *family);
        }
        for shape in &plan.new_shapes {
            assert!(self.shapes.insert(*shape), "{shape:?} is there");
        }
        for (family, stays) in &plan.stays {
            for seconds in &stays.new {
                assert!(self.stays.insert((*family, *seconds)), "{seconds} is there");
            }
        }
        for slot in &plan.deletes {
            assert!(self.elements.remove(slot).is_some(), "{slot} is not there");
        }
        for (slot, value, name) in &plan.adds {
            assert!(self.tables.contains(&slot.family()), "no table for {slot}");
            if let Slot::Frontend(List::Stay(seconds), key) = slot {
                assert!(
                    self.stays.contains(&(key.family(), *seconds)),
                    "no set for {slot}"
                );
            }
            let before = self.elements.insert(*slot, (*value, name.to_string()));
            assert_eq!(before, None, "{slot} is there");
        }
        for (family, stays) in &plan.stays {
            for seconds in &stays.old {
                assert!(self.stays.remove(&(*family, *seconds)), "{seconds} is not there");
            }
            let left: BTreeSet<u32> = self
                .stays
                .iter()
                .filter(|(f, _)| f == family)
                .map(|(_, s)| *s)
                .collect();
            assert_eq!(left, stays.all, "the rules name the sets that there are");
        }
        for shape in &plan.old_shapes {
            assert!(self.shapes.remove(shape), "{shape:?} is not there");
        }
        self.check();
    }

    /// Nothing dangles: each element leads somewhere, and each index below a count has its endpoint.
    fn check(&self) {
        for (slot, (value, _)) in &self.elements {
            match (slot, value) {
                (Slot::Frontend(list, key), Value::Shape(shape)) => {
                    assert!(
                        self.shapes.contains(&(key.family(), key.place(), *shape)),
                        "{slot} leads nowhere"
                    );
                    let (pool, count) = match (list, shape) {
                        (List::External, Shape::Local { count, .. }) => (LOCAL_POOL, *count),
                        (_, Shape::Balance { count, .. } | Shape::Policy { count, .. }) => (0, *count),
                        (List::Services, Shape::Drop) | (List::External, Shape::LocalDrop) => (0, 0),
                        other => panic!("{other:?}"),
                    };
                    for index in pool..pool + u32::from(count) {
                        assert!(
                            self.elements.contains_key(&Slot::Endpoint(*key, index)),
                            "{slot}: no {index}"
                        );
                    }
                }
                (Slot::Endpoint(key, _), _) => {
                    assert!(
                        self.elements.contains_key(&Slot::Frontend(List::Services, *key)),
                        "{slot} is orphaned"
                    );
                }
                _ => {}
            }
        }
    }

    fn observed(&self) -> Observed {
        Observed {
            rebuild: [Family::Ip, Family::Ip6]
                .into_iter()
                .filter(|f| !self.tables.contains(f))
                .collect(),
            shapes: self.shapes.clone(),
            stays: self.stays.clone(),
            elements: self
                .elements
                .iter()
                .map(|(slot, (value, name))| {
                    (
                        *slot,
                        (
                            *value,
                            Some(name.as_str()).filter(|n| !n.is_empty()).map(Into::into),
                        ),
                    )
                })
                .collect(),
        }
    }

    /// The same, whatever the order of endpoints within a frontend, and without what only waits to be tidied up.
    fn without_order(&self, state: &State) -> (BTreeSet<ShapeAt>, BTreeSet<(Family, u32)>, BTreeSet<String>) {
        let is_idle = |slot: &Slot| matches!(slot, Slot::Hairpin(ip) if state.idle_hairpins.contains(ip));
        let used = self.elements.iter().filter(|(slot, _)| !is_idle(slot));
        let words = used.map(|(slot, (value, name))| match slot {
            Slot::Endpoint(key, index) => format!("{key} {} {value} {name}", index / LOCAL_POOL),
            slot => format!("{slot} {value} {name}"),
        });
        let shapes = self.shapes.iter().copied();
        let shapes = shapes.filter(|shape| !state.idle_shapes.contains(shape));
        (shapes.collect(), self.stays.clone(), words.collect())
    }
}

fn from_scratch(frontends: &BTreeMap<u8, Choices>) -> (Model, State) {
    let mut model = Model::default();
    let all = frontends
        .iter()
        .map(|(number, choices)| frontend(key(*number), choices));
    let (state, plan, gone) = converge(model.observed(), all);
    assert_eq!(gone, []);
    model.carry_out(&plan);
    (model, state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Change after change leads to what a computation from scratch gives, and the state says what is there.
    #[test]
    fn changes_equal_from_scratch(
        start in btree_map(0u8..24, choices(), 0..12),
        batches in vec((btree_map(0u8..24, proptest::option::of(choices()), 0..6), 0..3), 0..8),
    ) {
        let (mut model, mut state) = from_scratch(&start);
        let mut frontends = start;
        for (batch, quiet_seconds) in batches {
            let changes: Vec<_> =
                batch.iter().map(|(n, c)| (key(*n), c.as_ref().map(|c| frontend(key(*n), c)))).collect();
            let plan = change(&mut state, changes);
            model.carry_out(&plan);
            for (number, choices) in batch {
                match choices {
                    Some(choices) => drop(frontends.insert(number, choices)),
                    None => drop(frontends.remove(&number)),
                }
            }
            for _ in 0..quiet_seconds {
                model.carry_out(&tidy(&mut state));
            }
            prop_assert!(quiet_seconds < 2 || !state.is_untidy());
            let (scratch, from_nothing) = from_scratch(&frontends);
            prop_assert_eq!(model.without_order(&state), scratch.without_order(&from_nothing));
            let all = frontends.iter().map(|(number, choices)| frontend(key(*number), choices));
            let (_, again, _) = converge(model.observed(), all);
            prop_assert!(again.is_empty(), "the fixed point: {}", again);
        }
    }

    /// Whatever is there at the start becomes what should be.
    #[test]
    fn anything_converges(
        there in btree_map(0u8..24, choices(), 0..12),
        wanted in btree_map(0u8..24, choices(), 0..12),
        lost in vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let (mut model, _) = from_scratch(&there);
        for index in lost {
            if !model.elements.is_empty() {
                let slot = *index.get(&model.elements.keys().copied().collect::<Vec<_>>());
                model.elements.remove(&slot);
            }
        }
        let all = || wanted.iter().map(|(number, choices)| frontend(key(*number), choices));
        let (mut state, plan, _) = converge(model.observed(), all());
        model.carry_out(&plan);
        let (scratch, from_nothing) = from_scratch(&wanted);
        prop_assert_eq!(model.without_order(&state), scratch.without_order(&from_nothing));
        for _ in 0..2 {
            model.carry_out(&tidy(&mut state));
        }
        prop_assert_eq!(&model.shapes, &scratch.shapes, "what nobody uses goes when it is quiet");
        let hairpins = |model: &Model| -> Vec<Slot> {
            let slots = model.elements.keys().copied();
            slots.filter(|slot| matches!(slot, Slot::Hairpin(_))).collect()
        };
        prop_assert_eq!(hairpins(&model), hairpins(&scratch), "so do hairpins");
        let (_, again, _) = converge(model.observed(), all());
        prop_assert!(again.is_empty(), "the fixed point: {}", again);
    }

    /// One endpoint more or less costs a handful of operations, however many there are.
    #[test]
    fn one_endpoint_costs_a_handful(mut numbers in btree_set(0u8..100, 2..90), gone in any::<prop::sample::Index>()) {
        let plain = |numbers: &BTreeSet<u8>| frontend(key(0), &(numbers.clone(), None, None, 0, 0));
        let mut state = State::default();
        let _ = change(&mut state, [(key(0), Some(plain(&numbers)))]);
        let gone = *gone.get(&numbers.iter().copied().collect::<Vec<_>>());
        numbers.remove(&gone);
        let less = change(&mut state, [(key(0), Some(plain(&numbers)))]);
        numbers.insert(gone);
        let more = change(&mut state, [(key(0), Some(plain(&numbers)))]);
        prop_assert!(less.len() <= 8 && more.len() <= 8, "{less}\n{more}");
    }
}

#[test]
fn a_plan_reads_like_what_it_does() {
    let two = frontend(key(0), &([1, 2].into(), None, None, 0, 0));
    let three = frontend(key(0), &([1, 2, 3].into(), None, None, 1, 0));
    let mut state = State::default();
    let plan = change(&mut state, [(key(0), Some(two))]);
    assert_eq!(
        plan.to_string(),
        "+ ip chain n2\n\
         + services 10.96.0.0:80 tcp : n2 (ns/service-0)\n\
         + endpoints 10.96.0.0:80 tcp #0 : 10.244.0.1:80 (ns/service-0)\n\
         + endpoints 10.96.0.0:80 tcp #1 : 10.244.0.2:80 (ns/service-0)\n\
         + cluster-ips 10.96.0.0\n"
    );
    let plan = change(&mut state, [(key(0), Some(three))]);
    assert_eq!(
        plan.to_string(),
        "+ ip chain n3\n\
         - services 10.96.0.0:80 tcp\n\
         - cluster-ips 10.96.0.0\n\
         + services 10.96.0.0:80 tcp : n3 (ns/service-0)\n\
         + masquerade-all 10.96.0.0:80 tcp (ns/service-0)\n\
         + endpoints 10.96.0.0:80 tcp #2 : 10.244.0.3:80 (ns/service-0)\n\
         + hairpin 10.244.0.3\n"
    );
    assert_eq!(
        tidy(&mut state).to_string(),
        "",
        "a packet may be on its way to the chain"
    );
    assert_eq!(tidy(&mut state).to_string(), "- ip chain n2\n");
    let plan = change(&mut state, [(key(0), None)]);
    assert_eq!(plan.deletes.len(), 5, "{plan}");
    assert_eq!(
        tidy(&mut state).to_string(),
        "",
        "a packet may be on its way back to where it came from"
    );
    assert_eq!(
        tidy(&mut state).to_string(),
        "- hairpin 10.244.0.3\n- ip chain n3\n"
    );
}
