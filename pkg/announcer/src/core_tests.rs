//! Announcers against each other in simulated time, on a simulated segment.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::desired::{Address, Target};
use crate::view::Key;

const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    timeout: Duration::from_millis(700),
};
/// What a message or frame takes to its receivers.
const LATENCY: Duration = Duration::from_micros(300);
/// Probes before a claim take this long.
const PROBING: Duration = Duration::from_millis(80);

struct Segment {
    start: Instant,
    now: Instant,
    hosts: Vec<Host>,
    under_way: BTreeMap<(Instant, u64), (usize, Arrival)>,
    sent: u64,
    /// A host outside the cluster that has this address.
    stranger: Option<IpAddr>,
    log: Vec<(Duration, usize, Operation)>,
}

struct Host {
    core: Core,
    running: bool,
    /// Its cable, and whether the node notices when it is out.
    connected: bool,
}

#[derive(Debug, Clone)]
enum Arrival {
    Message(Message),
    Probe { address: IpAddr, asker: usize },
    Claim { address: IpAddr, mac: Mac },
}

fn name(host: usize) -> String {
    format!("n{}", host + 1)
}

fn node_address(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(172, 30, 0, 11 + u8::try_from(host).unwrap()))
}

fn mac(host: usize) -> Mac {
    [2, 0, 0, 0, 0, u8::try_from(host).unwrap()]
}

fn addresses(count: u8) -> Vec<IpAddr> {
    (0..count)
        .map(|i| IpAddr::V4(Ipv4Addr::new(172, 30, 0, 200 + i)))
        .collect()
}

fn desired(me: usize, hosts: usize, candidate_for: &[IpAddr]) -> Desired {
    let address = |_| Address {
        services: vec![Target {
            key: Key::new("default", "web"),
            uid: "".into(),
        }],
        verdict: Ok(Links::All),
    };
    let peers = (0..hosts).filter(|h| *h != me);
    Desired {
        addresses: candidate_for.iter().map(|a| (*a, address(a))).collect(),
        peers: peers.map(|h| (name(h).into(), vec![node_address(h)])).collect(),
        own: vec![node_address(me)],
    }
}

fn carrier(host: usize) -> Vec<Carrier> {
    vec![Carrier {
        index: 2,
        name: "eth0".to_string(),
        mac: mac(host),
    }]
}

impl Segment {
    fn new(hosts: usize, wanted: &[IpAddr]) -> Self {
        let start = Instant::now() + Duration::from_secs(60);
        let mut segment = Self {
            start,
            now: start,
            hosts: Vec::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            stranger: None,
            log: Vec::new(),
        };
        for host in 0..hosts {
            let core = segment.fresh(host, hosts, wanted);
            segment.hosts.push(Host {
                core,
                running: true,
                connected: true,
            });
        }
        segment
    }

    fn fresh(&self, host: usize, hosts: usize, wanted: &[IpAddr]) -> Core {
        let incarnation = u64::try_from((self.now - self.start).as_nanos()).unwrap();
        let mut core = Core::new(&name(host), incarnation, TIMING, true, self.now);
        core.set_desired(desired(host, hosts, wanted), false);
        core.set_carriers(self.now, carrier(host));
        core.listen(self.now);
        core
    }

    fn restart(&mut self, host: usize, wanted: &[IpAddr]) {
        let core = self.fresh(host, self.hosts.len(), wanted);
        self.hosts[host].core = core;
        self.hosts[host].running = true;
    }

    /// The end of the process without a word.
    fn kill(&mut self, host: usize) {
        self.hosts[host].running = false;
    }

    /// The cable is pulled: at the node, which notices, or somewhere behind a switch.
    fn cut(&mut self, host: usize, noticed: bool) {
        self.hosts[host].connected = false;
        if noticed {
            self.hosts[host].core.set_carriers(self.now, Vec::new());
        }
    }

    fn heal(&mut self, host: usize) {
        self.hosts[host].connected = true;
        self.hosts[host].core.set_carriers(self.now, carrier(host));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.work();
            let deadlines = self.hosts.iter().filter(|h| h.running).map(|h| h.core.deadline());
            let arrivals = self.under_way.keys().next().map(|(at, _)| *at);
            let next = deadlines
                .chain(arrivals)
                .min()
                .unwrap_or(end + LATENCY)
                .max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            while let Some(entry) = self.under_way.first_entry()
                && entry.key().0 <= self.now
            {
                let (host, arrival) = entry.remove();
                self.deliver(host, arrival);
            }
        }
    }

    fn work(&mut self) {
        for host in 0..self.hosts.len() {
            // Also what is left of a batch of operations.
            while self.hosts[host].running {
                let work = self.hosts[host].core.work(self.now);
                for (to, message) in work.messages {
                    let to = (0..self.hosts.len()).find(|h| node_address(*h) == to).unwrap();
                    self.send(host, to, Arrival::Message(message));
                }
                let idle = work.operations.is_empty();
                for operation in work.operations {
                    self.carry_out(host, &operation);
                    self.log.push((self.now - self.start, host, operation));
                }
                if idle {
                    break;
                }
            }
        }
    }

    fn carry_out(&mut self, host: usize, operation: &Operation) {
        match *operation {
            Operation::Probe(address, _) => {
                if self.stranger == Some(address) {
                    let mac = [6; 6];
                    self.send(host, host, Arrival::Claim { address, mac });
                }
                self.broadcast(host, &Arrival::Probe { address, asker: host });
            }
            Operation::Announce(address, _) => {
                let mac = mac(host);
                self.broadcast(host, &Arrival::Claim { address, mac });
            }
            _ => {}
        }
    }

    fn broadcast(&mut self, from: usize, arrival: &Arrival) {
        for to in (0..self.hosts.len()).filter(|to| *to != from) {
            self.send(from, to, arrival.clone());
        }
    }

    fn send(&mut self, from: usize, to: usize, arrival: Arrival) {
        if self.hosts[from].connected && self.hosts[to].connected {
            self.sent += 1;
            self.under_way
                .insert((self.now + LATENCY, self.sent), (to, arrival));
        }
    }

    fn deliver(&mut self, host: usize, arrival: Arrival) {
        if !self.hosts[host].running || !self.hosts[host].connected {
            return;
        }
        let core = &mut self.hosts[host].core;
        match arrival {
            Arrival::Message(message) => _ = core.receive(self.now, message),
            Arrival::Claim { address, mac } => core.claimed_by(self.now, address, mac),
            Arrival::Probe { address, asker } => {
                if core.answers(address, "eth0") {
                    let mac = mac(host);
                    self.send(host, asker, Arrival::Claim { address, mac });
                }
            }
        }
    }

    /// Who answers a client on the segment.
    fn owners(&self, address: IpAddr) -> Vec<usize> {
        let answers = |h: &Host| h.running && h.connected && h.core.answers(address, "eth0");
        (0..self.hosts.len())
            .filter(|h| answers(&self.hosts[*h]))
            .collect()
    }

    fn owner(&self, address: IpAddr) -> usize {
        let owners = self.owners(address);
        assert_eq!(owners.len(), 1, "{address} is answered by {owners:?}");
        owners[0]
    }

    /// When the host claimed the address last.
    fn claimed_at(&self, host: usize, address: IpAddr) -> Duration {
        let claims = |(_, h, o): &&(Duration, usize, Operation)| {
            *h == host && matches!(o, Operation::Claim(a, _) if *a == address)
        };
        self.log.iter().rev().find(claims).expect("a claim").0
    }

    fn standing(&self, host: usize, address: IpAddr) -> Result<(), NotAnnounced> {
        self.hosts[host].core.standing(address).map(drop)
    }
}

#[test]
fn a_cluster_that_starts_agrees_within_moments() {
    let all = addresses(40);
    let mut segment = Segment::new(3, &all);
    segment.run(Duration::from_millis(90));
    let mut counts = [0; 3];
    for address in &all {
        counts[segment.owner(*address)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    let lost = segment.standing((segment.owner(all[0]) + 1) % 3, all[0]);
    assert!(matches!(lost, Err(NotAnnounced::LostElection { .. })), "{lost:?}");
}

#[test]
fn a_node_alone_listens_before_it_claims() {
    let all = addresses(1);
    let mut segment = Segment::new(3, &all);
    segment.kill(1);
    segment.kill(2);
    segment.run(Duration::from_millis(390));
    assert_eq!(segment.standing(0, all[0]), Err(NotAnnounced::Settling));
    segment.run(Duration::from_millis(150));
    assert_eq!(segment.owner(all[0]), 0);
}

#[test]
fn a_dead_owner_is_replaced_within_the_timeout_and_gets_its_addresses_back() {
    let all = addresses(20);
    let mut segment = Segment::new(3, &all);
    segment.run(Duration::from_secs(10));
    let died = segment.now - segment.start;
    let lost: Vec<IpAddr> = all.iter().copied().filter(|a| segment.owner(*a) == 1).collect();
    segment.kill(1);
    segment.run(Duration::from_secs(2));
    for address in &lost {
        let owner = segment.owner(*address);
        let took = segment.claimed_at(owner, *address) - died;
        assert!(
            took <= TIMING.timeout + PROBING + LATENCY,
            "{address} took {took:?}"
        );
    }
    segment.restart(1, &all);
    segment.run(Duration::from_millis(500));
    let back: Vec<IpAddr> = all.iter().copied().filter(|a| segment.owner(*a) == 1).collect();
    assert_eq!(back, lost);
}

#[test]
fn a_restart_within_the_timeout_moves_nothing() {
    // With a node that is down for long, the restarted one cannot hear all that there should be.
    for down in [None, Some(0)] {
        let all = addresses(20);
        let mut segment = Segment::new(3, &all);
        if let Some(host) = down {
            segment.kill(host);
        }
        segment.run(Duration::from_secs(6));
        let before: Vec<usize> = all.iter().map(|a| segment.owner(*a)).collect();
        segment.log.clear();
        segment.hosts[2].core.last_beat();
        segment.run(Duration::from_millis(1));
        segment.kill(2);
        segment.run(Duration::from_millis(690));
        segment.restart(2, &all);
        segment.run(Duration::from_secs(2));
        let after: Vec<usize> = all.iter().map(|a| segment.owner(*a)).collect();
        assert_eq!(after, before);
        let claims =
            |(_, host, o): &&(Duration, usize, Operation)| *host != 2 && matches!(o, Operation::Claim(..));
        assert_eq!(segment.log.iter().filter(claims).count(), 0, "{down:?} down");
    }
}

#[test]
fn whoever_takes_over_tells_the_segment() {
    let all = addresses(1);
    let mut segment = Segment::new(2, &all);
    segment.run(Duration::from_secs(10));
    let owner = segment.owner(all[0]);
    segment.kill(owner);
    segment.run(Duration::from_secs(10));
    let next = 1 - owner;
    let claimed = segment.claimed_at(next, all[0]);
    let announced: Vec<u128> = segment
        .log
        .iter()
        .filter(|(at, h, o)| *h == next && *at >= claimed && matches!(o, Operation::Announce(..)))
        .map(|(at, ..)| (*at - claimed).as_millis())
        .collect();
    assert_eq!(announced, [0, 1100, 2200, 3300, 4400]);
}

#[test]
fn a_cut_node_that_notices_answers_nobody_when_it_comes_back_until_it_has_listened() {
    let all = addresses(20);
    let mut segment = Segment::new(3, &all);
    segment.run(Duration::from_secs(2));
    segment.cut(0, true);
    segment.run(Duration::from_secs(2));
    assert_eq!(segment.standing(0, all[0]), Err(NotAnnounced::NoLink));
    assert!(all.iter().all(|a| segment.owner(*a) != 0));
    segment.heal(0);
    for _ in 0..200 {
        segment.run(Duration::from_millis(5));
        assert!(all.iter().all(|a| segment.owners(*a).len() <= 1));
    }
    assert!(all.iter().any(|a| segment.owner(*a) == 0));
}

#[test]
fn a_cut_behind_a_switch_heals_within_a_beat_and_caches_are_corrected() {
    let all = addresses(20);
    let mut segment = Segment::new(3, &all);
    segment.run(Duration::from_secs(2));
    segment.cut(0, false);
    segment.run(Duration::from_secs(20));
    // It is alone, for all it knows.
    assert!(all.iter().all(|a| segment.hosts[0].core.answers(*a, "eth0")));
    segment.heal(0);
    let healed = segment.now - segment.start;
    segment.run(TIMING.interval + PROBING);
    for address in &all {
        let owner = segment.owner(*address);
        let announced = |(at, h, o): &(Duration, usize, Operation)| {
            *at >= healed && *h == owner && matches!(o, Operation::Announce(a, _) if a == address)
        };
        assert!(
            segment.log.iter().any(announced),
            "{address} was not announced anew"
        );
    }
}

#[test]
fn an_address_that_a_stranger_has_is_not_claimed_but_reported() {
    let all = addresses(1);
    let mut segment = Segment::new(1, &all);
    segment.stranger = Some(all[0]);
    segment.run(Duration::from_secs(20));
    assert!(segment.owners(all[0]).is_empty());
    let standing = segment.standing(0, all[0]);
    assert!(
        matches!(standing, Err(NotAnnounced::AddressInUse { node: None, .. })),
        "{standing:?}"
    );
    let reports = segment
        .log
        .iter()
        .filter(|(.., o)| matches!(o, Operation::Report(..)));
    assert_eq!(reports.count(), 1, "once, not at every try");
    segment.stranger = None;
    segment.run(Duration::from_secs(4));
    assert_eq!(segment.owner(all[0]), 0);
}

#[test]
fn nodes_that_do_not_hear_each_other_do_not_both_claim() {
    let all = addresses(10);
    let mut segment = Segment::new(2, &all);
    // Neither knows of the other: ARP is all that they share.
    for host in 0..2 {
        let alone = Desired {
            peers: BTreeMap::new(),
            ..desired(host, 2, &all)
        };
        segment.hosts[host].core.set_desired(alone, false);
    }
    segment.cut(1, true);
    segment.run(Duration::from_millis(100));
    segment.heal(1);
    segment.run(Duration::from_secs(10));
    assert!(all.iter().all(|a| segment.owner(*a) == 0));
    let standing = segment.standing(1, all[0]);
    assert!(
        matches!(standing, Err(NotAnnounced::AddressInUse { node: None, .. })),
        "{standing:?}"
    );
    segment.kill(0);
    segment.run(Duration::from_secs(4));
    assert!(all.iter().all(|a| segment.owner(*a) == 1));
}

#[test]
fn a_node_with_an_outdated_view_is_no_candidate_for_what_it_does_not_know() {
    let all = addresses(30);
    let mut segment = Segment::new(3, &all);
    let outdated = desired(1, 3, &all[..15]);
    segment.hosts[1].core.set_desired(outdated, false);
    segment.run(Duration::from_secs(2));
    assert!(all[..15].iter().any(|a| segment.owner(*a) == 1));
    assert!(all[15..].iter().all(|a| segment.owner(*a) != 1));
}

#[test]
fn an_address_without_endpoints_is_given_up_by_all() {
    let all = addresses(2);
    let mut segment = Segment::new(2, &all);
    segment.run(Duration::from_secs(1));
    for host in 0..2 {
        let fewer = desired(host, 2, &all[..1]);
        segment.hosts[host].core.set_desired(fewer, false);
        segment.run(Duration::from_millis(30));
    }
    assert!(segment.owners(all[1]).is_empty());
    assert_eq!(segment.owners(all[0]).len(), 1);
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    Kill(usize),
    Restart(usize),
    Cut(usize, bool),
    Heal(usize),
    Forget(usize, u8),
    Calm(u16),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let host = 0..4usize;
    prop_oneof![
        host.clone().prop_map(Trouble::Kill),
        host.clone().prop_map(Trouble::Restart),
        (host.clone(), any::<bool>()).prop_map(|(h, noticed)| Trouble::Cut(h, noticed)),
        host.clone().prop_map(Trouble::Heal),
        (host, 0..8u8).prop_map(|(h, known)| Trouble::Forget(h, known)),
        (0..1500u16).prop_map(Trouble::Calm),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn after_any_trouble_each_address_has_exactly_one_owner(troubles in proptest::collection::vec(trouble(), 0..12)) {
        let all = addresses(8);
        let mut segment = Segment::new(4, &all);
        segment.run(Duration::from_millis(150));
        for trouble in troubles {
            match trouble {
                Trouble::Kill(host) => segment.kill(host),
                Trouble::Restart(host) => segment.restart(host, &all),
                Trouble::Cut(host, noticed) => segment.cut(host, noticed),
                Trouble::Heal(host) => segment.heal(host),
                Trouble::Forget(host, known) => {
                    let outdated = desired(host, 4, &all[..usize::from(known)]);
                    segment.hosts[host].core.set_desired(outdated, false);
                }
                Trouble::Calm(time) => segment.run(Duration::from_millis(time.into())),
            }
            segment.run(Duration::from_millis(10));
        }
        segment.run(Duration::from_secs(4));
        for address in all {
            let candidates = segment.hosts.iter().filter(|h| {
                h.running && h.connected && h.core.desired().addresses.contains_key(&address)
            });
            let expected = candidates.count().min(1);
            prop_assert_eq!(segment.owners(address).len(), expected, "{} {:?}", address, segment.owners(address));
        }
    }
}
