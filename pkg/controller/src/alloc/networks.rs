//! ClusterIPs of all networks that Services draw from: those of the command line, and those of ServiceCIDR objects, which
//! come and go while the cluster runs (KEP-1880). Networks may overlap; an address is held once, whatever it lies in.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::addresses::{AddressAllocator, AddressRangeError};
use super::fields::Family;
use super::range::Refusal;

/// Who says that a network is there to draw from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// `--service-cluster-ip-range`.
    Flag,
    /// A ServiceCIDR, by name.
    Object(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Network {
    owners: BTreeSet<Owner>,
    /// Those of them that are being deleted: nothing new is drawn on their account.
    leaving: BTreeSet<Owner>,
    allocator: AddressAllocator,
}

impl Network {
    fn is_open(&self) -> bool {
        self.owners.len() > self.leaving.len()
    }

    fn is_open_without(&self, owner: &Owner) -> bool {
        self.owners
            .iter()
            .any(|other| other != owner && !self.leaving.contains(other))
    }

    fn is_of(&self, family: Family) -> bool {
        Family::of(self.allocator.net().network()) == family
    }
}

/// Every network, and every address that somebody holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Networks {
    /// In the order in which they came: the command line's first.
    networks: Vec<Network>,
    /// Also what lies in no network (any more), since one may come that holds it. An address that the store gives to
    /// several owners is free when the last one lets go.
    held: HashMap<IpAddr, u32>,
    reserved: Vec<IpAddr>,
}

impl Networks {
    /// Networks of the command line. `reserved` addresses are given only to who asks for them by name.
    pub(super) fn new(
        nets: impl Iterator<Item = IpNet>,
        reserved: &[IpAddr],
    ) -> Result<Self, AddressRangeError> {
        let mut all = Self {
            reserved: reserved.to_vec(),
            ..Self::default()
        };
        for net in nets {
            all.open(&Owner::Flag, net)?;
        }
        Ok(all)
    }

    /// Whether addresses could be given out of a network.
    pub(super) fn check(&self, net: IpNet) -> Result<(), AddressRangeError> {
        AddressAllocator::new(net, &self.reserved).map(drop)
    }

    /// Lets addresses be drawn from a network.
    pub(super) fn open(&mut self, owner: &Owner, net: IpNet) -> Result<(), AddressRangeError> {
        if let Some(network) = self.networks.iter_mut().find(|n| n.allocator.net() == net) {
            network.owners.insert(owner.clone());
            network.leaving.remove(owner);
            return Ok(());
        }
        let mut allocator = AddressAllocator::new(net, &self.reserved)?;
        for address in self.held.keys() {
            _ = allocator.take(*address);
        }
        self.networks.push(Network {
            owners: BTreeSet::from([owner.clone()]),
            leaving: BTreeSet::new(),
            allocator,
        });
        Ok(())
    }

    /// Draws nothing new on account of the owner, or does so again. Whether that changes anything.
    pub(super) fn set_leaving(&mut self, owner: &Owner, leaving: bool) -> bool {
        let mut changed = false;
        for network in self.networks.iter_mut().filter(|n| n.owners.contains(owner)) {
            changed |= if leaving {
                network.leaving.insert(owner.clone())
            } else {
                network.leaving.remove(owner)
            };
        }
        changed
    }

    /// Forgets the owner, and the networks that are nobody else's.
    pub(super) fn close(&mut self, owner: &Owner) {
        for network in &mut self.networks {
            network.owners.remove(owner);
            network.leaving.remove(owner);
        }
        self.networks.retain(|network| !network.owners.is_empty());
    }

    /// An address in use that would lie in no network without the owner.
    pub(super) fn needed_for(&self, owner: &Owner) -> Option<IpAddr> {
        let all = self.networks.iter();
        let mine: Vec<&Network> = all.clone().filter(|n| n.owners.contains(owner)).collect();
        if mine.iter().all(|n| n.is_open_without(owner)) {
            return None;
        }
        let others: Vec<&Network> = all.filter(|n| n.is_open_without(owner)).collect();
        let lies_in = |networks: &[&Network], address| networks.iter().any(|n| n.allocator.contains(address));
        let needed = self.held.keys().copied();
        needed
            .filter(|address| lies_in(&mine, *address) && !lies_in(&others, *address))
            .min()
    }

    /// Whether any network is of the family.
    pub(super) fn has(&self, family: Family) -> bool {
        self.networks.iter().any(|n| n.is_of(family))
    }

    /// The networks that are drawn from, of one family.
    pub(super) fn open_nets(&self, family: Family) -> Vec<IpNet> {
        let open = self.networks.iter().filter(|n| n.is_open() && n.is_of(family));
        open.map(|n| n.allocator.net()).collect()
    }

    /// Takes an address by name.
    pub(super) fn take(&mut self, address: IpAddr) -> Result<(), Refusal> {
        let mut open = self.networks.iter().filter(|n| n.is_open());
        if !open.any(|n| n.allocator.contains(address)) {
            return Err(Refusal::OutOfRange);
        }
        self.claim(address)
    }

    /// Takes an address whether or not a network has it.
    pub(super) fn claim(&mut self, address: IpAddr) -> Result<(), Refusal> {
        if self.held.contains_key(&address) {
            return Err(Refusal::Taken);
        }
        self.hold(address);
        Ok(())
    }

    /// Any address of a family, from the first network that has one; `random` says where in its band the search begins.
    pub(super) fn take_any(&mut self, family: Family, random: u64) -> Result<IpAddr, Refusal> {
        let mut open = self
            .networks
            .iter_mut()
            .filter(|n| n.is_open() && n.is_of(family));
        let address = open
            .find_map(|n| n.allocator.take_any(random).ok())
            .ok_or(Refusal::Full)?;
        self.hold(address);
        Ok(address)
    }

    fn hold(&mut self, address: IpAddr) {
        let holders = self.held.entry(address).or_default();
        *holders += 1;
        if *holders == 1 {
            for network in &mut self.networks {
                _ = network.allocator.take(address);
            }
        }
    }

    /// Takes in what the store holds. Whether it is of a network, and was free.
    pub(super) fn restore(&mut self, address: IpAddr) -> Result<(), Refusal> {
        let taken = self.held.contains_key(&address);
        let outside = !self.networks.iter().any(|n| n.allocator.contains(address));
        self.hold(address);
        match (outside, taken) {
            (true, _) => Err(Refusal::OutOfRange),
            (false, true) => Err(Refusal::Taken),
            (false, false) => Ok(()),
        }
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        match self.held.get_mut(&address) {
            Some(holders) if *holders > 1 => *holders -= 1,
            Some(_) => {
                self.held.remove(&address);
                for network in &mut self.networks {
                    network.allocator.release(address);
                }
            }
            None => {}
        }
    }

    /// Takes in what is so elsewhere, said once or several times.
    pub(super) fn observe(&mut self, address: IpAddr, taken: bool) {
        if taken == self.held.contains_key(&address) {
            return;
        }
        if taken {
            self.hold(address);
        } else {
            self.held.insert(address, 1);
            self.release(address);
        }
    }

    /// Whether the owner has the network.
    pub(super) fn is_owner(&self, owner: &Owner, net: IpNet) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|n| n.allocator.net() == net && n.owners.contains(owner))
    }

    /// The networks of an owner.
    pub(super) fn of(&self, owner: &Owner) -> Vec<IpNet> {
        let mine = self.networks.iter().filter(|n| n.owners.contains(owner));
        mine.map(|n| n.allocator.net()).collect()
    }

    /// Each network, and how many of its addresses are taken.
    pub(super) fn usage(&self) -> impl Iterator<Item = (IpNet, u64)> {
        self.networks
            .iter()
            .map(|n| (n.allocator.net(), n.allocator.taken()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn networks(net: &str) -> Networks {
        Networks::new([net.parse().unwrap()].into_iter(), &[]).unwrap()
    }

    fn object(name: &str) -> Owner {
        Owner::Object(name.to_string())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_full_range_goes_on_in_the_next_one() {
        let mut all = networks("10.0.0.0/30");
        let drawn: Vec<IpAddr> = (0..2).map(|_| all.take_any(Family::V4, 0).unwrap()).collect();
        assert_eq!(all.take_any(Family::V4, 0), Err(Refusal::Full));
        assert_eq!(all.take_any(Family::V6, 0), Err(Refusal::Full));
        assert_eq!(all.take(address("10.1.0.1")), Err(Refusal::OutOfRange));
        all.open(&object("more"), "10.1.0.0/28".parse().unwrap()).unwrap();
        assert_eq!(all.take(address("10.1.0.1")), Ok(()));
        assert_eq!(all.take_any(Family::V4, 0), Ok(address("10.1.0.2")));
        all.release(drawn[1]);
        assert_eq!(all.take_any(Family::V4, 0), Ok(drawn[1]));
    }

    #[test]
    fn what_is_outside_counts_once_a_range_holds_it() {
        let mut all = networks("10.0.0.0/24");
        assert_eq!(all.restore(address("10.1.0.1")), Err(Refusal::OutOfRange));
        all.open(&object("old"), "10.1.0.0/30".parse().unwrap()).unwrap();
        assert_eq!(all.take(address("10.1.0.1")), Err(Refusal::Taken));
        assert_eq!(all.needed_for(&object("old")), Some(address("10.1.0.1")));
        all.release(address("10.1.0.1"));
        assert_eq!(all.needed_for(&object("old")), None);
    }

    #[test]
    fn a_range_that_leaves_gives_nothing_more_and_is_needed_as_long_as_it_holds() {
        let mut all = networks("10.0.0.0/30");
        let more = object("more");
        all.open(&more, "10.1.0.0/24".parse().unwrap()).unwrap();
        assert_eq!(all.take(address("10.1.0.7")), Ok(()));
        assert!(all.set_leaving(&more, true) && !all.set_leaving(&more, true));
        assert_eq!(all.take(address("10.1.0.8")), Err(Refusal::OutOfRange));
        assert_eq!(all.needed_for(&more), Some(address("10.1.0.7")));
        // Another one that covers it lets it go.
        all.open(&object("wider"), "10.1.0.0/16".parse().unwrap())
            .unwrap();
        assert_eq!(all.needed_for(&more), None);
        all.close(&more);
        assert_eq!(all.take(address("10.1.0.7")), Err(Refusal::Taken));
        assert_eq!(all.take(address("10.1.0.8")), Ok(()));
    }

    #[test]
    fn the_default_object_shares_the_network_of_the_flag() {
        let mut all = networks("10.0.0.0/24");
        all.open(&object("kubernetes"), "10.0.0.0/24".parse().unwrap())
            .unwrap();
        let held = all.take_any(Family::V4, 0).unwrap();
        assert_eq!(all.usage().count(), 1);
        assert_eq!(all.needed_for(&object("kubernetes")), None);
        assert_eq!(all.needed_for(&Owner::Flag), None);
        all.close(&object("kubernetes"));
        assert_eq!(all.take(held), Err(Refusal::Taken));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Any(u64),
        Name(u8),
        Release(usize),
        Open(usize),
        Close(usize),
        Leave(usize, bool),
    }

    const NETS: [&str; 4] = ["10.0.0.0/28", "10.0.0.8/29", "10.0.0.16/28", "10.0.0.0/27"];

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            any::<u64>().prop_map(Step::Any),
            (0u8..34).prop_map(Step::Name),
            (0usize..40).prop_map(Step::Release),
            (0usize..4).prop_map(Step::Open),
            (0usize..4).prop_map(Step::Close),
            (0usize..4, any::<bool>()).prop_map(|(at, on)| Step::Leave(at, on)),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        /// Networks that overlap come and go: no address is given twice, each is of an open network, and a range is full
        /// only when each of its addresses is held.
        #[test]
        fn no_address_is_given_twice(steps in steps()) {
            let mut all = networks("10.0.0.0/29");
            let mut held: Vec<IpAddr> = Vec::new();
            for step in steps {
                let given = match step {
                    Step::Any(random) => all.take_any(Family::V4, random),
                    Step::Name(last) => {
                        let wish = address(&format!("10.0.0.{last}"));
                        all.take(wish).map(|()| wish)
                    }
                    Step::Release(at) if at < held.len() => {
                        all.release(held.swap_remove(at));
                        continue;
                    }
                    Step::Release(_) => continue,
                    Step::Open(at) => {
                        all.open(&object(NETS[at]), NETS[at].parse().unwrap()).unwrap();
                        continue;
                    }
                    Step::Close(at) => {
                        all.close(&object(NETS[at]));
                        continue;
                    }
                    Step::Leave(at, on) => {
                        all.set_leaving(&object(NETS[at]), on);
                        continue;
                    }
                };
                let given = match given {
                    Ok(given) => given,
                    Err(Refusal::Full) => {
                        for net in all.open_nets(Family::V4) {
                            let last = net.hosts().count();
                            prop_assert_eq!(net.hosts().take(last).filter(|a| held.contains(a)).count(), last);
                        }
                        continue;
                    }
                    Err(_) => continue,
                };
                prop_assert!(!held.contains(&given), "{} twice", given);
                prop_assert!(all.open_nets(Family::V4).iter().any(|net| net.contains(&given)));
                held.push(given);
            }
            let distinct: HashSet<&IpAddr> = held.iter().collect();
            prop_assert_eq!(distinct.len(), held.len());
            prop_assert_eq!(all.held.len(), held.len());
        }
    }
}
