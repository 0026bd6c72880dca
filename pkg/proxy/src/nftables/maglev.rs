//! Maglev's lookup table (Eisenbud et al., NSDI 2016, section 3.4): the same on every node from the same endpoints,
//! even, and little of it moves when an endpoint comes or goes.
//!
//! Every place of a table is an element of a map in the kernel (about 200 bytes), so its length goes by the number of
//! endpoints. In the few moments that the length itself changes, most clients move.

use std::net::SocketAddr;

use super::choice::hash;

/// Lengths that a table can have: primes, so that every stride meets every place. The last is the largest prime
/// below the number of indexes that a frontend has.
const LENGTHS: [usize; 4] = [1021, 4093, 16381, 32749];
/// Places that each endpoint has at least, on average, below the last length.
const PLACES_MIN: usize = 64;

/// How long the table for endpoints with these shares is.
pub(crate) fn table_len(shares: &[u32]) -> usize {
    // Uneven shares need places too: a share should come to several of them.
    let total: usize = shares.iter().map(|share| *share as usize).sum();
    let even = shares.windows(2).all(|pair| pair[0] == pair[1]);
    let wanted = (shares.len() * PLACES_MIN).max(if even { 0 } else { total * 8 });
    let longest = LENGTHS[LENGTHS.len() - 1];
    LENGTHS
        .into_iter()
        .find(|length| *length >= wanted)
        .unwrap_or(longest)
}

/// The index of an endpoint for each place. There are at most as many endpoints as places.
pub(crate) fn table(endpoints: &[SocketAddr], shares: &[u32]) -> Vec<usize> {
    let length = table_len(shares);
    let mut walks: Vec<Walk> = endpoints.iter().map(|at| Walk::new(*at, length)).collect();
    let mut table: Vec<Option<usize>> = vec![None; length];
    let mut left = length;
    // Each takes the next free place of its walk, as many in a round as its share, until there is none.
    while left > 0 && !walks.is_empty() {
        for (index, walk) in walks.iter_mut().enumerate() {
            for _ in 0..shares.get(index).copied().unwrap_or(1) {
                if left == 0 {
                    break;
                }
                let mut place = walk.next(length);
                while table[place].is_some() {
                    place = walk.next(length);
                }
                table[place] = Some(index);
                left -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The order in which an endpoint wants places.
struct Walk {
    at: usize,
    stride: usize,
}

impl Walk {
    fn new(endpoint: SocketAddr, length: usize) -> Self {
        let below = |salt: u64, bound: usize| {
            let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
            usize::try_from(hash(endpoint.ip(), endpoint.port(), salt) % bound).unwrap_or_default()
        };
        Self {
            at: below(1, length),
            stride: below(2, length - 1) + 1,
        }
    }

    fn next(&mut self, length: usize) -> usize {
        let place = self.at;
        self.at = (self.at + self.stride) % length;
        place
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn endpoints(count: u16) -> Vec<SocketAddr> {
        (0..count)
            .map(|n| SocketAddr::from(([10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]], 8080)))
            .collect()
    }

    fn places(endpoints: &[SocketAddr], shares: &[u32]) -> Vec<SocketAddr> {
        table(endpoints, shares)
            .into_iter()
            .map(|index| endpoints[index])
            .collect()
    }

    #[test]
    fn lengths_are_primes_and_grow() {
        for length in LENGTHS {
            assert!(
                (2..length)
                    .take_while(|n| n * n <= length)
                    .all(|n| length % n != 0),
                "{length}"
            );
        }
        assert_eq!(table_len(&[1; 3]), 1021);
        assert_eq!(table_len(&[1; 15]), 1021);
        assert_eq!(table_len(&[1; 16]), 4093);
        assert_eq!(table_len(&[1; 5000]), 32749);
    }

    #[test]
    fn it_is_even() {
        for count in [1u16, 2, 3, 10, 60] {
            let places = places(&endpoints(count), &vec![1; usize::from(count)]);
            let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
            places.iter().for_each(|at| *counts.entry(*at).or_default() += 1);
            let fair = places.len() / usize::from(count);
            assert!(
                counts.values().all(|n| n.abs_diff(fair) <= 1),
                "{count}: {counts:?}"
            );
        }
    }

    /// Nearly only those places move that belong to the endpoint which comes or goes.
    #[test]
    fn little_moves() {
        let ten = endpoints(10);
        let before = places(&ten, &[1; 10]);
        for gone in 0..10 {
            let mut nine = ten.clone();
            let at = nine.remove(gone);
            let after = places(&nine, &[1; 9]);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(b, a)| b != a && **b != at)
                .count();
            assert!(
                moved * 12 < before.len(),
                "{moved} of {} that did not have to",
                before.len()
            );
        }
    }

    #[test]
    fn shares_weigh() {
        let three = endpoints(3);
        let places = places(&three, &[3, 2, 1]);
        for (at, share) in three.iter().zip([3, 2, 1]) {
            let count = places.iter().filter(|place| *place == at).count();
            assert!(count.abs_diff(places.len() * share / 6) <= 3, "{count}");
        }
    }
}
