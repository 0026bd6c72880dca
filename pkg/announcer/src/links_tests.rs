use svcnet_netlink::link::Kind;

use super::*;

fn link(name: &str) -> Link {
    Link {
        index: 2,
        name: name.to_string(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        lower_up: true,
        loopback: false,
        no_arp: false,
        master: None,
        lower: None,
        peer_netns: None,
        kind: Kind::Device,
        port: None,
    }
}

#[test]
fn what_cannot_or_must_not_announce_is_told_why() {
    let config = Config::default();
    let eth0 = link("eth0");
    let unfit = |link: &Link| fitness(link, &config).unwrap_err();
    assert!(fitness(&eth0, &config).is_ok());
    let lo = Link {
        loopback: true,
        ..link("lo")
    };
    assert_eq!(unfit(&lo), Unfit::Loopback);
    let tun = Link {
        mac: None,
        ..link("tun0")
    };
    assert_eq!(unfit(&tun), Unfit::NotEthernet);
    assert_eq!(
        unfit(&Link {
            no_arp: true,
            ..eth0.clone()
        }),
        Unfit::NoArp
    );
    assert_eq!(
        unfit(&Link {
            master: Some(7),
            ..eth0.clone()
        }),
        Unfit::Enslaved
    );
    assert_eq!(
        unfit(&Link {
            lower_up: false,
            ..eth0.clone()
        }),
        Unfit::Down
    );
    for name in ["svcnet0", "svcnet.1", "veth1a2b", "docker0", "cni0"] {
        assert_eq!(unfit(&link(name)), Unfit::Excluded, "{name}");
    }
}

#[test]
fn links_that_are_asked_for_are_the_only_ones() {
    let config = Config {
        interfaces: vec!["veth*".parse().unwrap()],
        ..Config::default()
    };
    let found = carriers(&[link("eth0"), link("veth7")], &config);
    assert_eq!(
        found.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["veth7"]
    );
    assert_eq!(
        meant(&found, &Links::Named(["eth0".to_string()].into())).count(),
        0
    );
}

#[test]
fn only_what_changes_the_carriers_is_looked_at() {
    let config = Config::default();
    let known = carriers(&[link("eth0")], &config);
    let concern = |happened, link: Link| concerns(&Event::Link(happened, Box::new(link)), &known, &config);
    let other = |name: &str| Link {
        index: 9,
        ..link(name)
    };
    assert!(!concern(Happened::Set, link("eth0")));
    assert!(concern(Happened::Deleted, link("eth0")));
    assert!(concern(Happened::Set, link("renamed")));
    let down = Link {
        up: false,
        ..link("eth0")
    };
    assert!(concern(Happened::Set, down));
    let another_mac = Link {
        mac: Some([2, 0, 0, 0, 0, 9]),
        ..link("eth0")
    };
    assert!(concern(Happened::Set, another_mac));
    assert!(concern(Happened::Set, other("eth1")));
    // A pod's.
    assert!(!concern(Happened::Set, other("veth0123456789")));
    assert!(!concern(Happened::Deleted, other("veth0123456789")));
    assert!(concerns(&Event::Lost, &known, &config));
}
