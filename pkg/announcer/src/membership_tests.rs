use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;

const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    timeout: Duration::from_millis(700),
};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

fn list(last: &[u8]) -> List {
    List::new(last.iter().map(|l| address(*l)).collect::<BTreeSet<_>>())
}

/// An announcer that has one peer, n2, and has settled.
fn settled(now: Instant) -> Membership {
    let mut membership = Membership::new("n1", 1, TIMING, now);
    membership.set_peers(BTreeMap::from([("n2".into(), Some(address(2)))]));
    membership.receive(now, beat(1, 1, Phase::Active, &list(&[])));
    assert!(!membership.is_settling());
    membership
}

fn beat(incarnation: u64, number: u64, phase: Phase, list: &List) -> Message {
    Message {
        node: "n2".into(),
        incarnation,
        number,
        body: Body::Beat(Beat {
            phase,
            list: list.version(),
            held: List::new(BTreeSet::new()).version(),
            macs: vec![[2; 6]],
        }),
    }
}

#[test]
fn silence_is_death() {
    let start = Instant::now();
    let mut membership = settled(start);
    membership.tick(start + ms(699));
    assert_eq!(membership.counts(), (1, 1));
    assert!(membership.deadline() <= start + ms(700));
    membership.tick(start + ms(700));
    assert_eq!(membership.counts(), (1, 0));
    assert_eq!(membership.peer_with([2; 6]), None);
}

#[test]
fn unknown_nodes_and_overtaken_messages_are_not_heard() {
    let now = Instant::now();
    let mut membership = settled(now);
    let stranger = Message {
        node: "n9".into(),
        ..beat(1, 9, Phase::Active, &list(&[]))
    };
    assert!(!membership.receive(now, stranger));
    assert!(membership.receive(now, beat(1, 5, Phase::Active, &list(&[]))));
    assert!(!membership.receive(now, beat(1, 4, Phase::Settling, &list(&[]))));
    assert!(
        membership.receive(now, beat(2, 1, Phase::Active, &list(&[]))),
        "it has restarted"
    );
}

#[test]
fn a_peer_whose_clock_was_set_back_is_heard_once_it_had_been_dead() {
    let now = Instant::now();
    let mut membership = settled(now);
    assert!(membership.receive(now, beat(100, 1, Phase::Active, &list(&[]))));
    assert!(!membership.receive(now + ms(500), beat(50, 1, Phase::Active, &list(&[]))));
    membership.tick(now + ms(700));
    assert!(membership.receive(now + ms(701), beat(50, 2, Phase::Active, &list(&[]))));
}

#[test]
fn a_deleted_node_is_forgotten_with_its_candidacies() {
    let now = Instant::now();
    let mut membership = settled(now);
    membership.set_candidacies(list(&[200]));
    membership.receive(now, beat(1, 2, Phase::Active, &list(&[200])));
    let before = membership.changes();
    membership.set_peers(BTreeMap::new());
    assert!(membership.changes() > before);
    assert_eq!(membership.owner(address(200)), Some("n1"));
    assert!(!membership.receive(now, beat(1, 3, Phase::Active, &list(&[200]))));
}

#[test]
fn equal_lists_need_not_be_sent() {
    let now = Instant::now();
    let mut membership = settled(now);
    let candidacies: Vec<u8> = (0..100).collect();
    membership.set_candidacies(list(&candidacies));
    membership.receive(now, beat(1, 2, Phase::Active, &list(&candidacies)));
    let owners: BTreeSet<&str> = candidacies
        .iter()
        .filter_map(|l| membership.owner(address(*l)))
        .collect();
    assert_eq!(owners, BTreeSet::from(["n1", "n2"]));
}

#[test]
fn a_list_counts_when_all_its_parts_have_arrived_and_the_former_one_until_then() {
    let now = Instant::now();
    let mut membership = settled(now);
    let old = list(&[200]);
    membership.receive(now, beat(1, 2, Phase::Active, &old));
    for part in old.parts() {
        membership.receive(now, part_of(part));
    }
    assert_eq!(membership.owner(address(200)), Some("n2"));
    let new: Vec<u8> = (0..120).collect();
    let new = list(&new);
    membership.receive(now, beat(1, 3, Phase::Active, &new));
    let parts = new.parts();
    assert_eq!(parts.len(), 3);
    for part in [&parts[2], &parts[0], &parts[2]] {
        membership.receive(now, part_of(part.clone()));
        assert_eq!(membership.owner(address(200)), Some("n2"));
    }
    membership.receive(now, part_of(parts[1].clone()));
    assert_eq!(membership.owner(address(200)), None);
    assert_eq!(membership.owner(address(119)), Some("n2"));
}

fn part_of(part: Part) -> Message {
    Message {
        node: "n2".into(),
        incarnation: 1,
        number: 3,
        body: Body::Part(part),
    }
}

#[test]
fn settling_peers_are_alive_but_not_elected() {
    let now = Instant::now();
    let mut membership = Membership::new("n1", 1, TIMING, now);
    membership.set_peers(BTreeMap::from([("n2".into(), Some(address(2)))]));
    membership.set_candidacies(list(&[200]));
    membership.receive(now, beat(1, 2, Phase::Settling, &list(&[200])));
    assert_eq!(membership.counts(), (1, 1));
    assert_eq!(membership.owner(address(200)), Some("n1"));
}

#[test]
fn an_active_peer_that_settles_again_is_waited_for_but_not_for_ever() {
    let now = Instant::now();
    let mut membership = settled(now);
    let n2s: Vec<u8> = (0..40).collect();
    membership.set_candidacies(list(&n2s));
    membership.receive(now, beat(1, 2, Phase::Active, &list(&n2s)));
    let owned = |m: &Membership| n2s.iter().filter(|l| m.owner(address(**l)) == Some("n2")).count();
    let before = owned(&membership);
    assert!(before > 0);
    for (number, at) in [(1, 0), (2, 200), (3, 400)] {
        membership.receive(now + ms(at), beat(2, number, Phase::Settling, &list(&n2s)));
        assert_eq!(owned(&membership), before);
    }
    assert!(membership.deadline() <= now + ms(600));
    membership.tick(now + ms(600));
    assert_eq!(owned(&membership), 0);
    membership.receive(now + ms(610), beat(2, 4, Phase::Active, &list(&n2s)));
    assert_eq!(owned(&membership), before);
}

#[test]
fn beats_go_out_each_interval_and_at_once_when_something_changes() {
    let start = Instant::now();
    let mut membership = settled(start);
    assert_eq!(membership.messages(start).len(), 1);
    assert!(membership.messages(start + ms(199)).is_empty());
    let next = membership.messages(start + ms(200));
    assert!(matches!(&next[..], [(to, Message { body: Body::Beat(_), .. })] if *to == address(2)));
    membership.set_candidacies(list(&[200]));
    let urgent = membership.messages(start + ms(210));
    // The peer says that it has another list: it gets this one with the beat.
    assert!(matches!(
        &urgent[..],
        [
            (
                _,
                Message {
                    body: Body::Beat(_),
                    ..
                }
            ),
            (
                _,
                Message {
                    body: Body::Part(_),
                    ..
                }
            )
        ]
    ));
}

#[test]
fn late_beats_do_not_pile_up() {
    let start = Instant::now();
    let mut membership = settled(start);
    membership.messages(start);
    let late = start + ms(5000);
    membership.tick(late);
    assert_eq!(membership.messages(late).len(), 1);
    assert!(membership.messages(late + ms(50)).is_empty());
}
