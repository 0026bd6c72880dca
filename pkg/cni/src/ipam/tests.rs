use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use svcnet_api::types::PodCidr;
use tempfile::TempDir;

use super::*;

fn attachment(n: u8) -> Attachment {
    Attachment::new(&format!("c{n}"), "eth0").unwrap()
}

fn cidrs() -> Vec<PodCidr> {
    vec![
        "10.244.1.0/28".parse().unwrap(),
        "fd00:10:244:1::/64".parse().unwrap(),
    ]
}

fn sets() -> Vec<RangeSet> {
    cidrs().into_iter().map(RangeSet::whole).collect()
}

fn reserve_as(ipam: &mut Ipam, n: u8, runtime: &RuntimeConfig) -> Result<Reserved, Error> {
    let wish = Wish {
        attachment: &attachment(n),
        network: "svcnet",
        netns: Path::new("/run/netns/x"),
        pod: None,
        runtime,
        unpinned: false,
    };
    let (reserved, unsynced) = ipam.reserve(&wish, &sets())?;
    unsynced.sync()?;
    Ok(reserved)
}

fn reserve(ipam: &mut Ipam, n: u8) -> Result<Lease, Error> {
    let reserved = reserve_as(ipam, n, &RuntimeConfig::default())?;
    Ok(reserved.lease().clone())
}

fn reserve_these(ipam: &mut Ipam, n: u8, ips: &[&str]) -> Result<Vec<String>, String> {
    let runtime = RuntimeConfig {
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..RuntimeConfig::default()
    };
    let reserved = reserve_as(ipam, n, &runtime).map_err(|e| e.to_string())?;
    Ok(reserved
        .lease()
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect())
}

#[test]
fn addresses_go_round_and_are_not_used_again_at_once() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    let first = reserve(&mut ipam, 0).unwrap();
    assert_eq!(first.addresses[0].to_string(), "10.244.1.2");
    assert_eq!(first.addresses[1].to_string(), "fd00:10:244:1::2");
    for n in 3..15 {
        ipam.release(&attachment(0)).unwrap();
        drop(ipam);
        ipam = Ipam::open(dir.path()).unwrap();
        assert_eq!(
            reserve(&mut ipam, 0).unwrap().addresses[0].to_string(),
            format!("10.244.1.{n}")
        );
    }
    ipam.release(&attachment(0)).unwrap();
    assert_eq!(
        reserve(&mut ipam, 0).unwrap().addresses[0].to_string(),
        "10.244.1.2"
    );
}

#[test]
fn a_second_reservation_keeps_the_first() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    let first = reserve(&mut ipam, 1).unwrap();
    let again = reserve_as(&mut ipam, 1, &RuntimeConfig::default()).unwrap();
    assert_eq!(again, Reserved::Kept(first));
    assert!(ipam.release(&attachment(1)).unwrap().is_some());
    assert!(ipam.release(&attachment(1)).unwrap().is_none());
}

#[test]
fn exhaustion_is_said_as_host_local_says_it() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    for n in 0..13 {
        reserve(&mut ipam, n).unwrap();
    }
    let error = reserve(&mut ipam, 13).unwrap_err().to_string();
    let wanted =
        "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.1-10.244.1.14";
    assert_eq!(error, wanted);
    ipam.release(&attachment(7)).unwrap();
    assert_eq!(
        reserve(&mut ipam, 13).unwrap().addresses[0].to_string(),
        "10.244.1.9"
    );
}

#[test]
fn addresses_that_are_asked_for() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    assert_eq!(
        reserve_these(&mut ipam, 1, &["10.244.1.9"]).unwrap(),
        ["10.244.1.9", "fd00:10:244:1::2"]
    );
    assert_eq!(
        reserve_these(&mut ipam, 2, &["fd00:10:244:1::77", "10.244.1.10"]).unwrap(),
        ["10.244.1.10", "fd00:10:244:1::77"]
    );
    let taken = "failed to allocate for range 0: requested IP address 10.244.1.9 is not available in range set \
                 10.244.1.1-10.244.1.14: eth0 of container c1 has it";
    assert_eq!(reserve_these(&mut ipam, 3, &["10.244.1.9"]).unwrap_err(), taken);
    for (asked, left) in [
        (&["10.9.9.9"][..], "10.9.9.9"),
        (&["10.244.1.1"], "10.244.1.1"),
        (&["10.244.1.12", "10.244.1.13"], "10.244.1.13"),
    ] {
        assert_eq!(
            reserve_these(&mut ipam, 3, asked).unwrap_err(),
            format!("failed to allocate all requested IPs: {left}")
        );
    }
    assert_eq!(ipam.leases().count(), 2, "a refusal takes nothing");
    // Those after it are chosen around it.
    ipam.release(&attachment(2)).unwrap();
    assert_ne!(
        reserve(&mut ipam, 4).unwrap().addresses[0].to_string(),
        "10.244.1.10"
    );
}

#[test]
fn the_address_that_was_free_for_longest_comes_first() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    for n in 0..13 {
        reserve(&mut ipam, n).unwrap();
    }
    for n in [7, 3, 9] {
        ipam.release(&attachment(n)).unwrap();
    }
    let mut given = Vec::new();
    for n in [20, 21, 22] {
        given.push(reserve(&mut ipam, n).unwrap().addresses[0].to_string());
    }
    assert_eq!(given, ["10.244.1.9", "10.244.1.5", "10.244.1.11"]);
    assert!(ipam.has_room(&sets()).is_err());
}

#[test]
fn a_lease_of_an_older_version_is_read() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    reserve(&mut ipam, 1).unwrap();
    drop(ipam);
    let old = r#"{"serial":1,"attachment":{"container":"c1","ifname":"eth0"},"addresses":["10.244.1.2"],"netns":"/run/netns/x"}"#;
    fs::write(dir.path().join("leases/c1@eth0"), old).unwrap();
    let ipam = Ipam::open(dir.path()).unwrap();
    let lease = ipam.get(&attachment(1)).unwrap();
    assert_eq!(
        (lease.network.as_str(), &lease.runtime),
        ("svcnet", &RuntimeConfig::default())
    );
}

#[test]
fn one_process_at_a_time_and_no_guess_about_what_is_not_readable() {
    let dir = TempDir::new().unwrap();
    let ipam = Ipam::open(dir.path()).unwrap();
    assert!(matches!(Ipam::open(dir.path()), Err(Error::Locked(_))));
    drop(ipam);
    fs::write(dir.path().join("leases/c9@eth0"), "{").unwrap();
    assert!(matches!(Ipam::open(dir.path()), Err(Error::NotALease { .. })));
}

/// Of a lease that was not synced a power failure may leave the name alone: its container is gone too.
#[test]
fn what_a_power_failure_leaves_is_nobodys() {
    let dir = TempDir::new().unwrap();
    let mut ipam = Ipam::open(dir.path()).unwrap();
    let kept = reserve(&mut ipam, 0).unwrap();
    let lost = reserve(&mut ipam, 1).unwrap();
    drop(ipam);
    for name in [file_name(&lost.attachment).as_str(), LAST] {
        File::create(dir.path().join("leases").join(name)).unwrap();
    }
    let mut ipam = Ipam::open(dir.path()).unwrap();
    assert_eq!(ipam.leases().collect::<Vec<_>>(), [&kept]);
    assert_eq!(reserve(&mut ipam, 1).unwrap().addresses, lost.addresses);
    drop(ipam);
    assert_eq!(Ipam::open(dir.path()).unwrap().leases().count(), 2);
}

/// A kill between writing a lease and syncing it: the next start has it, and can still sync it.
#[test]
fn a_lease_that_was_not_synced_can_be_synced_by_the_next_process() {
    let dir = TempDir::new().unwrap();
    let runtime = RuntimeConfig::default();
    let attachment = attachment(0);
    let wish = Wish {
        attachment: &attachment,
        network: "svcnet",
        netns: Path::new("/run/netns/x"),
        pod: None,
        runtime: &runtime,
        unpinned: false,
    };
    let mut ipam = Ipam::open(dir.path()).unwrap();
    let (reserved, unsynced) = ipam.reserve(&wish, &sets()).unwrap();
    drop((ipam, unsynced));
    let mut ipam = Ipam::open(dir.path()).unwrap();
    let (again, unsynced) = ipam.reserve(&wish, &sets()).unwrap();
    assert_eq!(again, Reserved::Kept(reserved.lease().clone()));
    unsynced.sync().unwrap();
}

/// What a step does to the directory, and where it may be killed.
#[derive(Debug, Clone, Copy)]
enum Step {
    Reserve(u8),
    Release(u8),
    /// A kill while the lease of this container was being written, after so many bytes.
    KilledWriting(u8, usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..20u8).prop_map(Step::Reserve),
        3 => (0..20u8).prop_map(Step::Release),
        1 => (0..20u8, 0..200usize).prop_map(|(n, bytes)| Step::KilledWriting(n, bytes)),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a model that remembers everything: no address is given twice, none is lost, and none comes back
    /// at once, whatever is killed when.
    #[test]
    fn no_address_twice_wherever_it_is_killed(steps in prop::collection::vec(step(), 1..60)) {
        let dir = TempDir::new().unwrap();
        let mut ipam = Ipam::open(dir.path()).unwrap();
        let mut model: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
        let mut given: BTreeSet<IpAddr> = BTreeSet::new();
        let mut last_given = None;
        // Since the start: what came free before is not remembered in its order.
        let mut last_released = None;
        for step in steps {
            match step {
                Step::Reserve(n) => match reserve(&mut ipam, n) {
                    Ok(lease) => {
                        if let Some(had) = model.get(&n) {
                            prop_assert_eq!(had, &lease.addresses);
                            continue;
                        }
                        let v4 = lease.addresses[0];
                        prop_assert!(!model.values().any(|a| a.contains(&v4)));
                        // Given twice in a row, across restarts too, only when all have been given once.
                        prop_assert!(last_given != Some(v4) || given.len() == 13);
                        // Given just after it came free only when there is no other.
                        prop_assert!(last_released != Some(v4) || model.len() == 12);
                        given.insert(v4);
                        last_given = Some(v4);
                        model.insert(n, lease.addresses);
                    }
                    Err(error) => {
                        let exhausted = matches!(error, Error::Exhausted { .. });
                        prop_assert!(exhausted);
                        prop_assert_eq!(model.len(), 13);
                    }
                },
                Step::Release(n) => {
                    let released = ipam.release(&attachment(n)).unwrap().map(|l| l.addresses);
                    last_released = released.as_ref().map(|a| a[0]).or(last_released);
                    prop_assert_eq!(released, model.remove(&n));
                }
                Step::KilledWriting(n, bytes) => {
                    drop(ipam);
                    let whole = serde_json::to_vec(&Lease {
                        serial: 1 << 40,
                        attachment: attachment(n),
                        addresses: vec!["10.244.1.2".parse().unwrap()],
                        netns: "/run/netns/x".into(),
                        pod: None,
                        network: default_network(),
                        runtime: RuntimeConfig::default(),
                        unpinned: false,
                    }).unwrap();
                    let draft = dir.path().join(format!("leases/.{}", file_name(&attachment(n))));
                    fs::write(draft, &whole[..bytes.min(whole.len())]).unwrap();
                    ipam = Ipam::open(dir.path()).unwrap();
                    last_released = None;
                }
                Step::Restart => {
                    drop(ipam);
                    last_released = None;
                    ipam = Ipam::open(dir.path()).unwrap();
                }
            }
            let mut held: Vec<_> = ipam.leases().map(|l| l.addresses.clone()).collect();
            let mut wanted: Vec<_> = model.values().cloned().collect();
            held.sort();
            wanted.sort();
            prop_assert_eq!(held, wanted);
        }
    }
}
