use super::*;
use crate::scheduler::Scheduler;

fn at(text: &str, protocol: Protocol) -> Virtual {
    let at: SocketAddr = text.parse().unwrap();
    Virtual {
        ip: at.ip(),
        protocol: protocol.number(),
        port: at.port(),
    }
}

fn endpoint(at: &str, local: bool) -> Endpoint {
    Endpoint {
        at: at.parse().unwrap(),
        local,
        weight: 1,
    }
}

fn balance(endpoints: &[(&str, bool)]) -> Fate {
    Fate::Balance(endpoints.iter().map(|(at, local)| endpoint(at, *local)).collect())
}

const HERE: (&str, bool) = ("10.244.0.1:80", true);
const THERE: (&str, bool) = ("10.244.1.1:80", false);

fn frontend(fate: Fate, outside: Option<Fate>) -> Frontend {
    Frontend {
        key: FrontendKey::Address {
            ip: "203.0.113.7".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        },
        name: "a/b".into(),
        fate,
        outside,
        scheduler: Scheduler::Sh,
        affinity_seconds: Some(60),
        masquerade: Masquerade::OwnOnly,
        inside: false,
        sources: None,
        draining: Box::default(),
    }
}

fn of(frontend: &Frontend) -> Wanted {
    wanted(at("203.0.113.7:80", Protocol::Tcp), frontend, &Host::default())
}

fn endpoints_of(wanted: &Wanted) -> Vec<String> {
    wanted.destinations.keys().map(SocketAddr::to_string).collect()
}

fn lists(wanted: &Wanted) -> Vec<List> {
    let list = |slot: &Slot| match slot {
        Slot::Frontend(list, _) => Some(*list),
        _ => None,
    };
    wanted.slots.iter().filter_map(list).collect()
}

#[test]
fn policy_local_sends_everyone_to_local_endpoints_where_there_are_some() {
    let some = of(&frontend(balance(&[HERE, THERE]), Some(balance(&[HERE]))));
    assert_eq!(endpoints_of(&some), ["10.244.0.1:80"]);
    assert_eq!(lists(&some), [List::Frontends]);
    let none = of(&frontend(balance(&[THERE]), Some(Fate::OnlyElsewhere)));
    assert_eq!(
        endpoints_of(&none),
        ["10.244.1.1:80"],
        "pods and this node still get there"
    );
    assert_eq!(lists(&none), [List::Frontends, List::DroppedOutside]);
}

#[test]
fn nobody_there_is_refused_and_elsewhere_is_dropped() {
    assert_eq!(
        lists(&of(&frontend(Fate::NoEndpoints, None))),
        [List::Frontends, List::Refused]
    );
    assert_eq!(
        lists(&of(&frontend(Fate::OnlyElsewhere, None))),
        [List::Frontends, List::Dropped]
    );
}

#[test]
fn clients_stay_by_their_whole_address() {
    let v4 = of(&frontend(balance(&[HERE]), None));
    assert_eq!(
        v4.persistence,
        Some(Persistence {
            seconds: 60,
            prefix: 32
        })
    );
    let at = at("[fd00::1]:80", Protocol::Tcp);
    let v6 = wanted(
        at,
        &frontend(balance(&[("[fd00::2]:80", true)]), None),
        &Host::default(),
    );
    assert_eq!(
        v6.persistence,
        Some(Persistence {
            seconds: 60,
            prefix: 128
        })
    );
    assert!(v6.slots.contains(&Slot::Hairpin("fd00::2".parse().unwrap())));
}

#[test]
fn a_node_port_is_a_service_on_each_address_of_its_family() {
    let ips = ["10.0.0.1", "172.30.0.11", "fd00::11"].map(|ip| ip.parse().unwrap());
    let host = Host {
        node_ports_on: ips.into(),
        ..Host::default()
    };
    let key = FrontendKey::NodePort {
        family: Family::Ip,
        protocol: Protocol::Udp,
        port: 30053,
    };
    let expected = ["10.0.0.1:30053", "172.30.0.11:30053"].map(|text| at(text, Protocol::Udp));
    assert_eq!(virtuals(key, &host), expected);
    let [first, _] = expected;
    assert_eq!(candidates(first, &host).last(), Some(key));
    let stranger = at("10.0.0.9:30053", Protocol::Udp);
    assert!(!candidates(stranger, &host).any(|candidate| candidate == key));
}

#[test]
fn a_node_that_is_let_in_comes_from_the_address_it_asks() {
    let host = Host {
        node: ["172.30.0.11".parse().unwrap(), "fd00:30::11".parse().unwrap()].into(),
        ..Host::default()
    };
    let sources = |ranges: &[&str]| {
        let frontend = Frontend {
            sources: Some(ranges.iter().map(|net| net.parse().unwrap()).collect()),
            ..frontend(balance(&[HERE]), None)
        };
        let wanted = wanted(at("203.0.113.7:80", Protocol::Tcp), &frontend, &host);
        let nets = wanted.slots.iter().filter_map(|slot| match slot {
            Slot::Source(_, net) => Some(net.to_string()),
            _ => None,
        });
        nets.collect::<Vec<_>>()
    };
    assert_eq!(sources(&["10.0.0.0/8"]), ["10.0.0.0/8"]);
    assert_eq!(sources(&["172.30.0.0/24"]), ["172.30.0.0/24", "203.0.113.7/32"]);
    // One range that holds both: nf_tables takes none that overlap.
    assert_eq!(sources(&["0.0.0.0/0"]), ["0.0.0.0/0"]);
}

#[test]
fn what_only_keeps_its_connections_has_no_weight() {
    let udp = |scheduler| Frontend {
        key: FrontendKey::Address {
            ip: "203.0.113.7".parse().unwrap(),
            protocol: Protocol::Udp,
            port: 80,
        },
        scheduler,
        draining: [endpoint(THERE.0, false)].into(),
        ..frontend(balance(&[HERE]), None)
    };
    let of = |frontend: &Frontend| wanted(at("203.0.113.7:80", Protocol::Udp), frontend, &Host::default());
    let weights: Vec<u32> = of(&udp(Scheduler::Rr)).destinations.into_values().collect();
    assert_eq!(weights, [1, 0]);
    let weights: Vec<u32> = of(&udp(Scheduler::Dh)).destinations.into_values().collect();
    assert_eq!(
        weights,
        [1],
        "it would get new ones by that scheduler, and lose them"
    );
}
