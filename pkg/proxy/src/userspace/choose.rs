//! Which endpoint a new connection goes to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::model::Endpoint;
use crate::scheduler::Scheduler;

/// Clients whose endpoint is remembered, for each frontend. With more, some are not kept with theirs.
const CLIENTS_MAX: usize = 65_536;

/// What was chosen before for a frontend, as far as it matters.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    turn: usize,
    credit: HashMap<SocketAddr, i64>,
    active: HashMap<SocketAddr, u64>,
    clients: HashMap<IpAddr, (SocketAddr, Instant)>,
}

/// A connection that needs an endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) endpoints: &'a [Endpoint],
    pub(crate) scheduler: Scheduler,
    pub(crate) affinity: Option<Duration>,
    pub(crate) client: IpAddr,
    /// The address and port that it came to.
    pub(crate) destination: SocketAddr,
    /// Endpoints that did not answer it.
    pub(crate) not: &'a [SocketAddr],
    pub(crate) random: u64,
    pub(crate) now: Instant,
}

impl Balancer {
    /// An endpoint; none when there is none that takes new connections.
    pub(crate) fn choose(&mut self, ask: &Ask<'_>) -> Option<SocketAddr> {
        let able = |endpoint: &&Endpoint| endpoint.weight > 0 && !ask.not.contains(&endpoint.at);
        let able: Vec<Endpoint> = ask.endpoints.iter().filter(able).copied().collect();
        let Some(affinity) = ask.affinity else {
            return self.schedule(&able, ask);
        };
        let kept = self.clients.get(&ask.client).filter(|(at, last)| {
            ask.now.duration_since(*last) < affinity && able.iter().any(|endpoint| endpoint.at == *at)
        });
        let chosen = match kept {
            Some((at, _)) => *at,
            None => self.schedule(&able, ask)?,
        };
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&ask.client) {
            self.clients
                .retain(|_, (_, last)| ask.now.duration_since(*last) < affinity);
        }
        if self.clients.len() < CLIENTS_MAX || self.clients.contains_key(&ask.client) {
            self.clients.insert(ask.client, (chosen, ask.now));
        }
        Some(chosen)
    }

    fn schedule(&mut self, able: &[Endpoint], ask: &Ask<'_>) -> Option<SocketAddr> {
        let count = able.len();
        if count == 0 {
            return None;
        }
        self.turn = self.turn.wrapping_add(1);
        // Equals take turns.
        let turned = || able.iter().cycle().skip(self.turn % count).take(count);
        let (active, weight) = (
            |e: &Endpoint| self.active(e.at),
            |e: &Endpoint| u64::from(e.weight),
        );
        let chosen = match ask.scheduler {
            Scheduler::Random => by_weight(able, ask.random),
            Scheduler::Rr => turned().next(),
            Scheduler::Wrr => return self.smooth(able),
            Scheduler::Lc => turned().min_by_key(|e| active(e)),
            // The destination is the same for all connections of a frontend: what is left of these is this.
            Scheduler::Wlc | Scheduler::Lblc | Scheduler::Lblcr => {
                turned().min_by(|a, b| (active(a) * weight(b)).cmp(&(active(b) * weight(a))))
            }
            Scheduler::Sed => turned().min_by(|a, b| delay(active(a), active(b), weight(a), weight(b))),
            Scheduler::Nq => {
                let idle = turned().find(|e| active(e) == 0);
                idle.or_else(|| turned().min_by(|a, b| delay(active(a), active(b), weight(a), weight(b))))
            }
            Scheduler::Dh => by_hash(able, hash_address(ask.destination)),
            Scheduler::Sh | Scheduler::Mh => by_hash(able, hash_ip(ask.client, SEED)),
        };
        chosen.map(|endpoint| endpoint.at)
    }

    /// Smooth weighted round-robin: turns in proportion to weights, spread out.
    fn smooth(&mut self, able: &[Endpoint]) -> Option<SocketAddr> {
        self.credit.retain(|at, _| able.iter().any(|e| e.at == *at));
        let total: i64 = able.iter().map(|e| i64::from(e.weight)).sum();
        for endpoint in able {
            *self.credit.entry(endpoint.at).or_default() += i64::from(endpoint.weight);
        }
        let richest = able
            .iter()
            .rev()
            .max_by_key(|e| self.credit.get(&e.at).copied())?;
        if let Some(credit) = self.credit.get_mut(&richest.at) {
            *credit -= total;
        }
        Some(richest.at)
    }

    fn active(&self, at: SocketAddr) -> u64 {
        self.active.get(&at).copied().unwrap_or_default()
    }

    /// A connection goes there now.
    pub(crate) fn begin(&mut self, at: SocketAddr) {
        *self.active.entry(at).or_default() += 1;
    }

    /// A connection there has ended.
    pub(crate) fn end(&mut self, at: SocketAddr) {
        if let Some(count) = self.active.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                self.active.remove(&at);
            }
        }
    }
}

/// Compares expected delays: connections with the one that is to come, by weight.
fn delay(active_a: u64, active_b: u64, weight_a: u64, weight_b: u64) -> std::cmp::Ordering {
    ((active_a + 1) * weight_b).cmp(&((active_b + 1) * weight_a))
}

fn by_weight(able: &[Endpoint], random: u64) -> Option<&Endpoint> {
    let total: u64 = able.iter().map(|e| u64::from(e.weight)).sum();
    let mut at = random % total.max(1);
    able.iter().find(|e| {
        let weight = u64::from(e.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}

/// Rendezvous hashing: each endpoint draws a lot for the key, and the best lot wins. The same on every node, whatever the
/// order; an endpoint that comes or goes moves only the keys that it wins or won.
fn by_hash(able: &[Endpoint], key: u64) -> Option<&Endpoint> {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are lots enough")]
    let lot = |endpoint: &Endpoint| {
        let draw = (hash_address(endpoint.at) ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let uniform = ((mix(draw) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        f64::from(endpoint.weight) / -uniform.ln()
    };
    able.iter().max_by(|a, b| lot(a).total_cmp(&lot(b)))
}

/// Any number will do, the same everywhere.
const SEED: u64 = 0x7376_636e_6574;

/// The finalizer of splitmix64. Not the standard library's hash: that one may change with its version, and nodes with
/// different versions are to choose alike.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn hash_ip(ip: IpAddr, seed: u64) -> u64 {
    match ip {
        IpAddr::V4(ip) => mix(seed ^ u64::from(ip.to_bits())),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            #[expect(clippy::cast_possible_truncation, reason = "both halves go in")]
            let (high, low) = ((bits >> 64) as u64, bits as u64);
            mix(mix(seed ^ high) ^ low)
        }
    }
}

fn hash_address(at: SocketAddr) -> u64 {
    hash_ip(at.ip(), SEED ^ (u64::from(at.port()) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(weights: &[u16]) -> Vec<Endpoint> {
        let endpoint = |(n, weight): (u8, &u16)| Endpoint {
            at: ([10, 244, 0, n], 80).into(),
            local: false,
            weight: *weight,
        };
        (1..).zip(weights).map(endpoint).collect()
    }

    fn ask(endpoints: &[Endpoint], scheduler: Scheduler, client: u8, random: u64) -> Ask<'_> {
        Ask {
            endpoints,
            scheduler,
            affinity: None,
            client: [192, 0, 2, client].into(),
            destination: ([10, 96, 0, 1], 80).into(),
            not: &[],
            random,
            now: Instant::now(),
        }
    }

    fn last(at: Option<SocketAddr>) -> u8 {
        match at.unwrap().ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("not one of these"),
        }
    }

    #[test]
    fn turns_and_weights() {
        let of = endpoints(&[1, 3, 0]);
        let mut balancer = Balancer::default();
        let mut counted = |scheduler| {
            let mut counts = [0; 4];
            for n in 0..40 {
                counts[usize::from(last(balancer.choose(&ask(&of, scheduler, 1, n))))] += 1;
            }
            counts
        };
        assert_eq!(counted(Scheduler::Random), [0, 10, 30, 0]);
        assert_eq!(counted(Scheduler::Rr), [0, 20, 20, 0]);
        assert_eq!(counted(Scheduler::Wrr), [0, 10, 30, 0]);
        let none = endpoints(&[0]);
        assert_eq!(balancer.choose(&ask(&none, Scheduler::Random, 1, 7)), None);
    }

    #[test]
    fn those_with_few_connections_come_first() {
        let of = endpoints(&[1, 2]);
        for (scheduler, expected) in [
            (Scheduler::Lc, [3, 3]),
            (Scheduler::Wlc, [2, 4]),
            (Scheduler::Sed, [2, 4]),
            (Scheduler::Lblc, [2, 4]),
        ] {
            let mut balancer = Balancer::default();
            for _ in 0..6 {
                let at = balancer.choose(&ask(&of, scheduler, 1, 0)).unwrap();
                balancer.begin(at);
            }
            assert_eq!(
                [balancer.active(of[0].at), balancer.active(of[1].at)],
                expected,
                "{scheduler}"
            );
            balancer.end(of[1].at);
            assert_eq!(
                balancer.choose(&ask(&of, scheduler, 1, 0)),
                Some(of[1].at),
                "{scheduler}"
            );
        }
        let mut balancer = Balancer::default();
        balancer.begin(of[1].at);
        assert_eq!(balancer.choose(&ask(&of, Scheduler::Nq, 1, 0)), Some(of[0].at));
    }

    #[test]
    fn a_client_keeps_its_endpoint_and_few_move() {
        let (before, after) = (endpoints(&[1; 10]), endpoints(&[1; 11]));
        let (mut one, mut other) = (Balancer::default(), Balancer::default());
        let mut reversed = before.clone();
        reversed.reverse();
        let (mut moved, mut used) = (0, std::collections::BTreeSet::new());
        for client in 0..=255 {
            for scheduler in [Scheduler::Sh, Scheduler::Mh] {
                let at = one.choose(&ask(&before, scheduler, client, 0));
                assert_eq!(other.choose(&ask(&reversed, scheduler, client, 9)), at);
                let then = one.choose(&ask(&after, scheduler, client, 0));
                assert!(then == at || last(then) == 11, "only to the new one");
                moved += usize::from(then != at);
                used.insert(at);
            }
        }
        assert_eq!(used.len(), 10);
        assert!((10..100).contains(&moved), "{moved} of 512");
        let same = one.choose(&ask(&before, Scheduler::Dh, 1, 0));
        assert_eq!(one.choose(&ask(&before, Scheduler::Dh, 2, 0)), same);
    }

    #[test]
    fn affinity_ends_with_its_time_or_its_endpoint() {
        let of = endpoints(&[1, 1]);
        let mut balancer = Balancer::default();
        let begin = Instant::now();
        let at = |seconds, random| Ask {
            affinity: Some(Duration::from_secs(10)),
            now: begin + Duration::from_secs(seconds),
            ..ask(&of, Scheduler::Random, 1, random)
        };
        assert_eq!(last(balancer.choose(&at(0, 0))), 1);
        assert_eq!(last(balancer.choose(&at(9, 1))), 1);
        assert_eq!(
            last(balancer.choose(&at(18, 1))),
            1,
            "each connection begins the time anew"
        );
        assert_eq!(last(balancer.choose(&at(28, 1))), 2);
        let not = [of[1].at];
        let retry = Ask {
            not: &not,
            ..at(29, 1)
        };
        assert_eq!(
            last(balancer.choose(&retry)),
            1,
            "one that did not answer is not kept"
        );
        let gone = Ask {
            endpoints: &of[1..],
            ..at(30, 0)
        };
        assert_eq!(last(balancer.choose(&gone)), 2);
    }
}
