use proptest::prelude::*;

use super::fake::{Fake, NODE, host};
use super::*;
use crate::model::{Endpoint, Fate, Masquerade, Protocol};
use crate::scheduler::Scheduler;

const VIP: &str = "10.96.0.1";

fn address(ip: &str, protocol: Protocol, port: u16) -> FrontendKey {
    FrontendKey::Address {
        ip: ip.parse().unwrap(),
        protocol,
        port,
    }
}

fn endpoint(number: u8, weight: u16) -> Endpoint {
    Endpoint {
        at: SocketAddr::new(IpAddr::from([10, 244, 0, number]), 8080),
        local: number < 3,
        weight,
    }
}

fn balance(numbers: &[u8]) -> Fate {
    match numbers {
        [] => Fate::NoEndpoints,
        numbers => Fate::Balance(numbers.iter().map(|n| endpoint(*n, 1)).collect()),
    }
}

fn frontend(key: FrontendKey, fate: Fate) -> Frontend {
    Frontend {
        key,
        name: "default/web:http".into(),
        fate,
        outside: None,
        scheduler: Scheduler::Rr,
        affinity_seconds: None,
        masquerade: Masquerade::AllButPods,
        inside: true,
        sources: None,
        draining: Box::default(),
    }
}

fn web(numbers: &[u8]) -> Frontend {
    frontend(address(VIP, Protocol::Tcp, 80), balance(numbers))
}

fn at(key: FrontendKey) -> Virtual {
    desired::virtuals(key, &host())[0]
}

/// A kernel with one service of two endpoints.
fn with_web() -> (Fake, State) {
    let mut fake = Fake::default();
    let (state, _) = fake.converge(&[web(&[1, 5])], &State::default());
    (fake, state)
}

fn text(plan: &Plan) -> String {
    plan.to_string().trim_end().to_string()
}

#[test]
fn a_plan_prints_in_the_order_of_what_it_does() {
    let mut fake = Fake::default();
    let (mut state, plan) = fake.converge(&[web(&[1, 5])], &State::default());
    assert_eq!(
        text(&plan),
        "table ip: make anew
table ip6: make anew
+ frontends 10.96.0.1:80 tcp (default/web:http)
+ masquerade-all 10.96.0.1:80 tcp (default/web:http)
+ hairpin 10.244.0.1
+ bound 10.96.0.1
add the link
add service 10.96.0.1:80 tcp rr
add destination 10.244.0.1:8080 weight 1 of 10.96.0.1:80 tcp
add destination 10.244.0.5:8080 weight 1 of 10.96.0.1:80 tcp
put 10.96.0.1 on the link"
    );
    // A second port of the same address: it is refused until its service is there.
    let second = frontend(address(VIP, Protocol::Tcp, 443), balance(&[5]));
    assert_eq!(
        text(&fake.change(&mut state, second)),
        "+ masquerade-all 10.96.0.1:443 tcp (default/web:http)
add service 10.96.0.1:443 tcp rr
add destination 10.244.0.5:8080 weight 1 of 10.96.0.1:443 tcp
+ frontends 10.96.0.1:443 tcp (default/web:http)"
    );
    // It goes: refused before its service is gone.
    let (plan, _) = state.change(vec![(address(VIP, Protocol::Tcp, 443), None)]);
    assert_eq!(
        text(&plan),
        "- frontends 10.96.0.1:443 tcp
delete service 10.96.0.1:443 tcp
- masquerade-all 10.96.0.1:443 tcp"
    );
}

#[test]
fn one_endpoint_more_is_one_operation() {
    let (mut fake, mut state) = with_web();
    let plan = fake.change(&mut state, web(&[1, 5, 6]));
    assert_eq!(
        text(&plan),
        "add destination 10.244.0.6:8080 weight 1 of 10.96.0.1:80 tcp"
    );
}

#[test]
fn an_endpoint_that_goes_drains_first() {
    let (mut fake, mut state) = with_web();
    let (of, gone) = (at(web(&[]).key), endpoint(5, 1).at);
    let plan = fake.change(&mut state, web(&[1]));
    assert_eq!(
        text(&plan),
        "set destination 10.244.0.5:8080 weight 0 of 10.96.0.1:80 tcp"
    );
    for (active, inactive) in [(1, 0), (0, 1)] {
        fake.connections(of, gone, active, inactive);
        assert!(
            fake.tidy(&mut state).is_empty(),
            "{active} active, {inactive} inactive"
        );
        // A restart meanwhile changes nothing about it.
        let (restarted, plan) = fake.converge(&[web(&[1])], &State::default());
        assert!(plan.is_empty(), "{plan}");
        state = restarted;
    }
    fake.connections(of, gone, 0, 0);
    let plan = fake.tidy(&mut state);
    assert_eq!(
        text(&plan),
        "delete destination 10.244.0.5:8080 of 10.96.0.1:80 tcp"
    );
    assert_eq!(state.draining().count(), 0);
}

#[test]
fn an_endpoint_that_comes_back_while_it_drains_serves_again() {
    let (mut fake, mut state) = with_web();
    fake.change(&mut state, web(&[1]));
    let plan = fake.change(&mut state, web(&[1, 5]));
    assert_eq!(
        text(&plan),
        "set destination 10.244.0.5:8080 weight 1 of 10.96.0.1:80 tcp"
    );
    assert!(fake.tidy(&mut state).is_empty());
    assert_eq!(
        fake.converge(&[web(&[1, 5])], &State::default()).1,
        Plan::default()
    );
}

#[test]
fn what_can_not_drain_goes_at_once() {
    let udp = |numbers: &[u8]| frontend(address(VIP, Protocol::Udp, 53), balance(numbers));
    let by_destination = |numbers: &[u8]| Frontend {
        scheduler: Scheduler::Dh,
        ..web(numbers)
    };
    for of in [&udp as &dyn Fn(&[u8]) -> Frontend, &by_destination] {
        let mut fake = Fake::default();
        let (mut state, _) = fake.converge(&[of(&[1, 5])], &State::default());
        let plan = fake.change(&mut state, of(&[1]));
        assert!(
            text(&plan).starts_with("delete destination 10.244.0.5:8080"),
            "{plan}"
        );
    }
}

#[test]
fn weights_are_what_they_should_be_whatever_was_there() {
    let (mut fake, _) = with_web();
    for held in fake.services.values_mut() {
        for (destination, _) in held.destinations.values_mut() {
            destination.weight = 0;
        }
    }
    let (_, plan) = fake.converge(&[web(&[1, 5])], &State::default());
    assert_eq!(
        text(&plan),
        "set destination 10.244.0.1:8080 weight 1 of 10.96.0.1:80 tcp
set destination 10.244.0.5:8080 weight 1 of 10.96.0.1:80 tcp"
    );
}

#[test]
fn services_of_others_stay() {
    let (mut fake, state) = with_web();
    let foreign = Virtual {
        ip: NODE.parse().unwrap(),
        protocol: 6,
        port: 3306,
    };
    let held = Held {
        service: Service {
            identity: Identity::Address(foreign),
            scheduler: "wlc".into(),
            flags: svcnet_netlink::ipvs::Flags::default(),
            persistence: None,
        },
        destinations: BTreeMap::new(),
    };
    fake.services.insert(foreign, held.clone());
    let (mut state, plan) = fake.converge(&[], &state);
    assert_eq!(
        text(&plan),
        "take 10.96.0.1 from the link
delete service 10.96.0.1:80 tcp
- frontends 10.96.0.1:80 tcp
- masquerade-all 10.96.0.1:80 tcp
- bound 10.96.0.1"
    );
    assert!(
        fake.tidy(&mut state).is_empty(),
        "a packet may be on its way back to where it came from"
    );
    assert_eq!(text(&fake.tidy(&mut state)), "- hairpin 10.244.0.1");
    assert_eq!(fake.services, BTreeMap::from([(foreign, held)]));
}

#[test]
fn what_others_removed_comes_back() {
    let (fake, mut state) = with_web();
    let mut cleared = fake.clone();
    cleared.services.clear();
    let (plan, _) = state.balance(&cleared.balancer(), |_| false);
    cleared.apply_tolerant(&plan);
    assert_eq!(cleared, fake, "services");
    let mut cleared = Fake {
        link: false,
        bound: BTreeSet::new(),
        ..fake.clone()
    };
    let (plan, _) = state.balance(&cleared.balancer(), |_| false);
    cleared.apply(&plan);
    assert_eq!(cleared, fake, "the link");
    let mut cleared = Fake {
        tables: BTreeSet::new(),
        elements: HashMap::new(),
        ..fake.clone()
    };
    cleared.converge(&[web(&[1, 5])], &state);
    assert_eq!(cleared, fake, "tables");
}

#[test]
fn an_address_of_the_node_is_not_put_on_the_link() {
    let external = frontend(address(NODE, Protocol::Tcp, 80), balance(&[5]));
    let mut fake = Fake::default();
    let (_, plan) = fake.converge(&[external], &State::default());
    assert!(plan.bind.is_empty(), "{plan}");
    assert!(
        !fake.elements.contains_key(&Slot::Bound(NODE.parse().unwrap())),
        "the host's ports stay open"
    );
    assert_eq!(fake.services.len(), 1);
}

#[test]
fn an_address_goes_before_a_node_port() {
    let by_address = frontend(address(NODE, Protocol::Tcp, 30080), balance(&[5]));
    let key = FrontendKey::NodePort {
        family: Family::Ip,
        protocol: Protocol::Tcp,
        port: 30080,
    };
    let by_port = frontend(key, balance(&[1]));
    let mut fake = Fake::default();
    let (mut state, _) = fake.converge(&[by_port.clone(), by_address.clone()], &State::default());
    let to = |fake: &Fake| {
        fake.services[&at(by_address.key)]
            .destinations
            .keys()
            .copied()
            .collect::<Vec<_>>()
    };
    assert_eq!(to(&fake), [endpoint(5, 1).at]);
    let (plan, _) = state.change(vec![(by_address.key, None)]);
    fake.apply(&plan);
    fake.tidy(&mut state);
    assert_eq!(to(&fake), [endpoint(1, 1).at]);
    assert_eq!(fake.converge(&[by_port], &State::default()).1, Plan::default());
}

fn keys() -> impl Strategy<Value = FrontendKey> {
    let protocols = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let ips = prop_oneof![
        4 => Just("10.96.0.1"), 4 => Just("10.96.0.2"), 1 => Just(NODE), 1 => Just("fd00:96::1"),
    ];
    prop_oneof![
        4 => (ips, protocols.clone(), 80u16..83).prop_map(|(ip, protocol, port)| address(ip, protocol, port)),
        1 => (protocols, 80u16..83).prop_map(|(protocol, port)| FrontendKey::NodePort {
            family: Family::Ip, protocol, port,
        }),
    ]
}

fn fates(key: FrontendKey) -> impl Strategy<Value = Fate> {
    let endpoints = proptest::collection::btree_map(1u8..6, 0u16..3, 1..4);
    let balance = endpoints.prop_map(move |endpoints| {
        let at = |number: u8| match key.family() {
            Family::Ip => endpoint(number, 1).at,
            Family::Ip6 => SocketAddr::new(IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, u16::from(number)]), 8080),
        };
        let endpoints = endpoints.into_iter().map(|(number, weight)| Endpoint {
            at: at(number),
            ..endpoint(number, weight)
        });
        Fate::Balance(endpoints.collect())
    });
    prop_oneof![4 => balance, 1 => Just(Fate::NoEndpoints), 1 => Just(Fate::OnlyElsewhere)]
}

prop_compose! {
    fn changes()(key in keys())(
        key in Just(key),
        there in prop::bool::weighted(0.75),
        name in prop_oneof![3 => Just("default/web:http"), 1 => Just("default/other")],
        fate in fates(key),
        outside in proptest::option::weighted(0.3, fates(key)),
        scheduler in prop_oneof![
            3 => Just(Scheduler::Random), 1 => Just(Scheduler::Sh), 1 => Just(Scheduler::Dh),
        ],
        affinity_seconds in proptest::option::weighted(0.2, 1u32..3),
        sources in proptest::option::weighted(0.2, 0u8..3),
    ) -> (FrontendKey, Option<Frontend>) {
        let sources = sources.filter(|_| key.family() == Family::Ip && matches!(key, FrontendKey::Address { .. }));
        // Ranges that overlap those of other numbers.
        let range = |bits: u8| ipnet::Ipv4Net::new([192, 168, 0, 0].into(), 16 + bits).unwrap().into();
        let frontend = Frontend {
            name: name.into(),
            outside: outside.filter(|_| matches!(fate, Fate::Balance(_))),
            scheduler,
            affinity_seconds,
            masquerade: if outside_masks(&fate) { Masquerade::AllButPods } else { Masquerade::OwnOnly },
            sources: sources.map(|bits| [range(bits)].into()),
            ..frontend(key, fate)
        };
        (key, there.then_some(frontend))
    }
}

fn outside_masks(fate: &Fate) -> bool {
    fate.endpoints().len().is_multiple_of(2)
}

proptest! {
    #[test]
    fn step_by_step_gives_what_from_scratch_gives(
        batches in proptest::collection::vec(proptest::collection::vec(changes(), 1..4), 1..12),
    ) {
        let (mut fake, mut state) = (Fake::default(), State::default());
        let (first, _) = fake.converge(&[], &state);
        state = first;
        let mut all: BTreeMap<FrontendKey, Frontend> = BTreeMap::new();
        for batch in batches {
            // The engine never names a frontend twice in one change.
            let batch: BTreeMap<FrontendKey, Option<Frontend>> = batch.into_iter().collect();
            for (key, frontend) in &batch {
                match frontend {
                    Some(frontend) => drop(all.insert(*key, frontend.clone())),
                    None => drop(all.remove(key)),
                }
            }
            let (plan, _) = state.change(batch.into_iter().collect());
            fake.apply(&plan);
            let (verified, _) = state.balance(&fake.balancer(), |_| true);
            let drained = verified.ops.iter().all(|op| matches!(op, Op::DeleteDestination(..)));
            prop_assert!(drained && verified.len() == verified.ops.len(), "a look finds nothing: {}", verified);
            fake.apply(&verified);
        }
        for _ in 0..2 {
            fake.tidy(&mut state);
        }
        let frontends: Vec<Frontend> = all.into_values().collect();
        let mut scratch = Fake::default();
        scratch.converge(&frontends, &State::default());
        prop_assert_eq!(&fake, &scratch);
        let (_, plan) = fake.converge(&frontends, &State::default());
        prop_assert!(plan.is_empty(), "a restart writes nothing: {}", plan);
    }

    #[test]
    fn a_crash_at_any_step_is_made_good(
        before in proptest::collection::vec(changes(), 0..6),
        after in proptest::collection::vec(changes(), 0..6),
        count in 0usize..40,
    ) {
        let frontends = |changes: Vec<(FrontendKey, Option<Frontend>)>| -> Vec<Frontend> {
            let last: BTreeMap<FrontendKey, Option<Frontend>> = changes.into_iter().collect();
            last.into_values().flatten().collect()
        };
        let (before, after) = (frontends(before), frontends(after));
        let mut fake = Fake::default();
        fake.converge(&before, &State::default());
        let mut interrupted = State::new(after.iter().cloned(), host());
        let (balancer, tables) = fake.observed();
        let (plan, _) = interrupted.converge(&balancer, tables, &State::default());
        fake.apply_until(&plan, count);
        let (mut state, _) = fake.converge(&after, &State::default());
        for _ in 0..2 {
            fake.tidy(&mut state);
        }
        let mut scratch = Fake::default();
        scratch.converge(&after, &State::default());
        prop_assert_eq!(&fake, &scratch);
        // And all of it can be taken away again.
        let (mut state, _) = fake.converge(&[], &State::default());
        for _ in 0..2 {
            fake.tidy(&mut state);
        }
        prop_assert!(fake.services.is_empty() && fake.bound.is_empty() && fake.elements.is_empty());
    }
}
