//! How one of several endpoints is chosen for a new connection: schedulers as nf_tables can do them.
//!
//! A rule chooses an index, and the map `endpoints` holds an endpoint for each. So a scheduler is two things: how the
//! index is chosen ([`Choice`], which is part of the shape), and which endpoint stands at which index ([`table`]): each
//! at one, or each at as many as its weight, or by Maglev's table.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use svcnet_netlink::nft::ChosenBy;

use super::maglev;
use super::shape::ENDPOINTS_MAX;
use crate::model::{Endpoint, FrontendKey};
use crate::scheduler::Scheduler;

/// Indexes that a frontend with weights has, unless there are more endpoints.
const SLOTS_MAX: u32 = 1024;
/// Counters for choices by turns. Frontends share chains, and with them a rule's counter: so each belongs to one of so
/// many lanes, and two that meet in one take turns with each other.
pub(crate) const LANES: u8 = 128;

/// How an index is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// At random.
    Random,
    /// One after the other.
    Turn {
        /// Which counter, below [`LANES`].
        lane: u8,
    },
    /// By a hash of the source's address.
    Source,
}

impl Choice {
    /// What a frontend's scheduler comes to.
    pub(crate) fn of(scheduler: Scheduler, key: FrontendKey) -> Self {
        match nearest(scheduler) {
            Scheduler::Rr | Scheduler::Wrr => Self::Turn { lane: lane(key) },
            Scheduler::Sh | Scheduler::Mh => Self::Source,
            _ => Self::Random,
        }
    }

    pub(crate) fn chosen_by(self) -> ChosenBy {
        match self {
            Self::Random => ChosenBy::Random,
            Self::Turn { .. } => ChosenBy::Turn,
            Self::Source => ChosenBy::Source,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => Ok(()),
            Self::Turn { lane } => write!(f, "turn{lane}-"),
            Self::Source => f.write_str("source-"),
        }
    }
}

/// The scheduler that is used where this one is asked for. A rule does not know how many connections an endpoint has, and
/// the destination is the same for all connections of a frontend.
pub(crate) fn nearest(scheduler: Scheduler) -> Scheduler {
    match scheduler {
        Scheduler::Random | Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Mh => scheduler,
        Scheduler::Lc | Scheduler::Nq => Scheduler::Rr,
        Scheduler::Wlc | Scheduler::Sed | Scheduler::Lblc | Scheduler::Lblcr => Scheduler::Wrr,
        Scheduler::Dh => Scheduler::Sh,
    }
}

/// Any of the lanes, always the same for a frontend.
fn lane(key: FrontendKey) -> u8 {
    let hash = match key {
        FrontendKey::Address { ip, protocol, port } => hash(ip, port, u64::from(protocol.number())),
        FrontendKey::NodePort { protocol, port, .. } => {
            hash(IpAddr::from([0; 4]), port, u64::from(protocol.number()))
        }
    };
    u8::try_from(hash % u64::from(LANES)).unwrap_or_default()
}

/// A hash that is the same on every node and in every build: FNV-1a, stirred as SplitMix64 ends.
pub(crate) fn hash(ip: IpAddr, port: u16, salt: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ salt;
    let mut take = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match ip {
        IpAddr::V4(ip) => take(&ip.octets()),
        IpAddr::V6(ip) => take(&ip.octets()),
    }
    take(&port.to_be_bytes());
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Whether each endpoint stands at one index: then it keeps its index while it stays, and few elements change.
pub(crate) fn is_plain(scheduler: Scheduler, endpoints: &[Endpoint]) -> bool {
    match nearest(scheduler) {
        Scheduler::Mh => false,
        Scheduler::Rr => true,
        _ => endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight),
    }
}

/// How long [`table`] is.
pub(crate) fn table_len(scheduler: Scheduler, endpoints: &[Endpoint]) -> usize {
    if is_plain(scheduler, endpoints) {
        return endpoints.len();
    }
    let shares = shares(endpoints);
    match nearest(scheduler) {
        Scheduler::Mh => maglev::table_len(&shares),
        _ => shares.iter().map(|share| *share as usize).sum(),
    }
}

/// The endpoint at each index.
pub(crate) fn table(scheduler: Scheduler, endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    if is_plain(scheduler, endpoints) {
        return endpoints.iter().map(|endpoint| endpoint.at).collect();
    }
    let mut sorted = endpoints.to_vec();
    sorted.sort_by_key(|endpoint| endpoint.at);
    let shares = shares(&sorted);
    let at: Vec<SocketAddr> = sorted.iter().map(|endpoint| endpoint.at).collect();
    let order = match nearest(scheduler) {
        Scheduler::Mh => maglev::table(&at, &shares),
        _ => turns(&shares),
    };
    order
        .into_iter()
        .filter_map(|index| at.get(index).copied())
        .collect()
}

/// Weights as the smallest numbers of that proportion, or near it where those would be too many; never none.
fn shares(endpoints: &[Endpoint]) -> Vec<u32> {
    let weights = || endpoints.iter().map(|endpoint| u32::from(endpoint.weight.max(1)));
    let divisor = weights().fold(0, gcd).max(1);
    let sum: u64 = weights().map(|weight| u64::from(weight / divisor)).sum();
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    let most = u32::try_from(ENDPOINTS_MAX)
        .unwrap_or(u32::MAX)
        .saturating_sub(count);
    let budget = SLOTS_MAX.max(count).min(most);
    let fits = sum <= u64::from(budget);
    let scaled = |weight: u32| u32::try_from(u64::from(weight) * u64::from(budget) / sum).unwrap_or(u32::MAX);
    weights()
        .map(|weight| {
            if fits {
                weight / divisor
            } else {
                scaled(weight / divisor).max(1)
            }
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// As many turns for each as its share, spread evenly: the nth of m stands where the middle of the nth of m parts is.
fn turns(shares: &[u32]) -> Vec<usize> {
    let of = |(index, share): (usize, &u32)| {
        let share = u64::from(*share);
        (0..share).map(move |turn| (2 * turn + 1, share, index))
    };
    let mut turns: Vec<(u64, u64, usize)> = shares.iter().enumerate().flat_map(of).collect();
    turns.sort_by(|(a, a_share, a_index), (b, b_share, b_index)| {
        (a * b_share, a_index).cmp(&(b * a_share, b_index))
    });
    turns.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(weights: &[u16]) -> Vec<Endpoint> {
        let weights = (1u16..).zip(weights);
        weights
            .map(|(n, weight)| Endpoint {
                at: SocketAddr::from(([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]], 80)),
                local: false,
                weight: *weight,
            })
            .collect()
    }

    fn last_numbers(scheduler: Scheduler, weights: &[u16]) -> String {
        let table = table(scheduler, &endpoints(weights));
        let number = |at: &SocketAddr| at.ip().to_string().rsplit('.').next().unwrap().to_string();
        table.iter().map(number).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn weights_take_turns() {
        assert_eq!(last_numbers(Scheduler::Wrr, &[5, 1, 1]), "1 1 1 2 3 1 1");
        assert_eq!(last_numbers(Scheduler::Wrr, &[30, 10]), "1 1 2 1");
        assert_eq!(
            last_numbers(Scheduler::Wrr, &[7, 7, 7]),
            "1 2 3",
            "equal weights are none"
        );
        assert_eq!(
            last_numbers(Scheduler::Rr, &[5, 1, 1]),
            "1 2 3",
            "rr knows no weights"
        );
        assert_eq!(last_numbers(Scheduler::Random, &[2, 1]).len(), "1 1 2".len());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn everyone_is_there_in_about_its_proportion(weights in proptest::collection::vec(1u16..=u16::MAX, 1..80)) {
            let endpoints = endpoints(&weights);
            let all: BTreeSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.at).collect();
            for scheduler in [Scheduler::Random, Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh, Scheduler::Mh] {
                let table = table(scheduler, &endpoints);
                prop_assert_eq!(table.len(), table_len(scheduler, &endpoints));
                prop_assert!(table.len() <= ENDPOINTS_MAX);
                prop_assert_eq!(table.into_iter().collect::<BTreeSet<_>>(), all.clone(), "{}", scheduler);
            }
            let table = table(Scheduler::Wrr, &endpoints);
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for endpoint in &endpoints {
                let count = table.iter().filter(|at| **at == endpoint.at).count() as f64;
                let wanted = f64::from(endpoint.weight) / sum * table.len() as f64;
                prop_assert!((count - wanted).abs() <= 1.0 + wanted * 0.1, "{count} for {wanted}");
            }
        }
    }

    #[test]
    fn many_endpoints_with_weights_fit() {
        let weights: Vec<u16> = (0..40_000u32)
            .map(|n| if n % 2 == 0 { 1 } else { 1000 })
            .collect();
        let many = &endpoints(&weights)[..ENDPOINTS_MAX];
        for scheduler in [Scheduler::Wrr, Scheduler::Mh] {
            assert!(table(scheduler, many).len() <= ENDPOINTS_MAX, "{scheduler}");
        }
    }
}
