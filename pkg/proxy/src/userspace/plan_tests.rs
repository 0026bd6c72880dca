use proptest::prelude::*;

use super::*;
use crate::model::{Endpoint, Protocol};
use crate::scheduler::Scheduler;
use crate::userspace::door::From;

/// What carrying a plan out does.
fn carry_out(plan: &Plan, observed: &mut Observed) {
    for operation in plan.0.clone() {
        match operation {
            Operation::Place(ip) => assert!(observed.addresses.insert(ip), "{ip} is there"),
            Operation::Release(ip) => {
                let used = observed
                    .sockets
                    .keys()
                    .any(|key| matches!(key, FrontendKey::Address { ip: at, .. } if *at == ip));
                assert!(!used, "{ip} is needed");
                assert!(observed.addresses.remove(&ip), "{ip} is not there");
            }
            Operation::Open(key, door, rules) => {
                if let FrontendKey::Address { ip, .. } = key {
                    assert!(observed.addresses.contains(&ip), "{key} has no address");
                }
                assert_eq!(observed.sockets.insert(key, (door, rules)), None, "{key} is open");
            }
            Operation::Guard(key, door) => {
                let held = observed.sockets.get_mut(&key).unwrap();
                assert_eq!(held.0.at, door.at, "{key} listens elsewhere");
                held.0 = door;
            }
            Operation::Direct(key, rules) => observed.sockets.get_mut(&key).unwrap().1 = rules,
            Operation::Close(key) => assert!(observed.sockets.remove(&key).is_some(), "{key} is closed"),
        }
    }
}

fn keys() -> impl Strategy<Value = FrontendKey> {
    (0..3u8, 0..2u16, any::<bool>(), any::<bool>()).prop_map(|(ip, port, udp, address)| {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        match address {
            true => FrontendKey::Address {
                ip: [10, 96, 0, ip].into(),
                protocol,
                port,
            },
            false => FrontendKey::NodePort {
                family: svcnet_netlink::nft::Family::Ip,
                protocol,
                port,
            },
        }
    })
}

fn wishes() -> impl Strategy<Value = Option<Wanted>> {
    let door = prop_oneof![
        Just(From::Everybody),
        Just(From::Nobody),
        Just(From::Inside(["10.0.0.0/8".parse().unwrap()].into()))
    ];
    let relay = (door, 1..4u8).prop_map(|(from, count)| {
        let endpoint = |n| Endpoint {
            at: ([10, 244, 0, n], 80).into(),
            local: true,
            weight: 1,
        };
        let rules = Rules {
            inside: (0..count).map(endpoint).collect(),
            outside: None,
            draining: Box::default(),
            scheduler: Scheduler::Random,
            affinity: None,
        };
        let door = Door {
            sources: None,
            from,
            at: (count == 3).then(|| [[192, 0, 2, count].into()].into()),
        };
        Some(Wanted::Relay {
            door,
            rules: Arc::new(rules),
        })
    });
    prop_oneof![3 => relay, 1 => Just(Some(Wanted::Nobody)), 2 => Just(None)]
}

proptest! {
    /// Working incrementally gives what working from scratch gives, whatever came before.
    #[test]
    fn changes_add_up(batches in prop::collection::vec(prop::collection::vec((keys(), wishes()), 1..4), 1..12)) {
        let (mut desired, mut observed) = (Desired::default(), Observed::default());
        for batch in batches {
            let mut touched = BTreeSet::new();
            for (key, wanted) in batch {
                desired.set(key, wanted);
                touched.insert(key);
            }
            carry_out(&some(&desired, &observed, touched), &mut observed);
            prop_assert_eq!(all(&desired, &observed), Plan::default());
            let mut scratch = Observed::default();
            carry_out(&all(&desired, &scratch), &mut scratch);
            prop_assert_eq!(&scratch, &observed);
        }
        carry_out(&all(&Desired::default(), &observed), &mut observed);
        prop_assert_eq!(observed, Observed::default());
    }
}
