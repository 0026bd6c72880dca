//! ClusterIPs of one network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::range::{NumberRange, Refusal};

/// Addresses that a range of IPv6 may have at most; a longer prefix than /64 keeps offsets in 64 bits.
const PREFIX_V6_MIN: u8 = 64;

/// A service network that no addresses can be given out of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRangeError {
    /// No address is left between the network's own and the broadcast address.
    #[error("service network {0} has no address to give; use a larger one, such as 10.96.0.0/12")]
    TooSmall(IpNet),
    /// Larger than an IPv6 subnet.
    #[error("service network {0} is too large: an IPv6 prefix must not be shorter than /64")]
    TooLarge(IpNet),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressAllocator {
    net: IpNet,
    numbers: NumberRange,
}

impl AddressAllocator {
    pub(super) fn new(net: IpNet, reserved: &[IpAddr]) -> Result<Self, AddressRangeError> {
        let bits = net.max_prefix_len() - net.prefix_len();
        if matches!(net, IpNet::V6(_)) && net.prefix_len() < PREFIX_V6_MIN {
            return Err(AddressRangeError::TooLarge(net));
        }
        let size = 1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX);
        // The network's own address is never given, and neither is the broadcast address, which IPv6 does not have.
        let end = if matches!(net, IpNet::V4(_)) {
            size.saturating_sub(1)
        } else {
            size
        };
        if end <= 1 {
            return Err(AddressRangeError::TooSmall(net));
        }
        let mut allocator = Self {
            net,
            numbers: NumberRange::new(0..0, 0, Vec::new()),
        };
        let reserved: Vec<u64> = reserved
            .iter()
            .filter_map(|address| allocator.offset(*address))
            .collect();
        allocator.numbers = NumberRange::new(1..end, static_band(size) + 1, reserved);
        Ok(allocator)
    }

    pub(super) fn take(&mut self, address: IpAddr) -> Result<(), Refusal> {
        self.numbers
            .take(self.offset(address).ok_or(Refusal::OutOfRange)?)
    }

    pub(super) fn take_any(&mut self, random: u64) -> Result<IpAddr, Refusal> {
        self.numbers.take_any(random).map(|offset| self.address(offset))
    }

    /// Whether it is one of those that are given.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.offset(address)
            .is_some_and(|offset| self.numbers.contains(offset))
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.numbers.release(offset);
        }
    }

    pub(super) fn net(&self) -> IpNet {
        self.net
    }

    pub(super) fn taken(&self) -> u64 {
        self.numbers.taken()
    }

    fn offset(&self, address: IpAddr) -> Option<u64> {
        if !self.net.contains(&address) {
            return None;
        }
        match (address, self.net.network()) {
            (IpAddr::V4(address), IpAddr::V4(base)) => Some(u64::from(address.to_bits() - base.to_bits())),
            (IpAddr::V6(address), IpAddr::V6(base)) => u64::try_from(address.to_bits() - base.to_bits()).ok(),
            _ => None,
        }
    }

    fn address(&self, offset: u64) -> IpAddr {
        match self.net.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().saturating_add(offset)))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(
                base.to_bits().saturating_add(u128::from(offset)),
            )),
        }
    }
}

/// Addresses at the start of a range that are kept for who asks by name: `min(max(16, size/16), 256)`
/// (KEP-3070), none where that would be the whole range.
fn static_band(size: u64) -> u64 {
    if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(net: &str) -> AddressAllocator {
        AddressAllocator::new(net.parse().unwrap(), &[]).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn bands_are_those_of_the_real_one() {
        for (net, first_dynamic) in [
            ("10.0.0.0/24", "10.0.0.17"),
            ("10.0.0.0/16", "10.0.1.1"),
            ("10.96.0.0/12", "10.96.1.1"),
        ] {
            assert_eq!(allocator(net).take_any(0), Ok(address(first_dynamic)), "{net}");
        }
        assert_eq!(allocator("10.0.0.0/28").take_any(0), Ok(address("10.0.0.1")));
        assert_eq!(allocator("fd00::/108").take_any(0), Ok(address("fd00::101")));
    }

    #[test]
    fn network_and_broadcast_are_never_given() {
        let mut small = allocator("10.0.0.0/29");
        let given: Vec<IpAddr> = std::iter::from_fn(|| small.take_any(5).ok()).collect();
        assert_eq!(given.len(), 6);
        assert!(!given.contains(&address("10.0.0.0")) && !given.contains(&address("10.0.0.7")));
        assert_eq!(small.take_any(0), Err(Refusal::Full));
        assert_eq!(small.take(address("10.0.0.0")), Err(Refusal::OutOfRange));
        assert_eq!(small.take(address("10.0.0.7")), Err(Refusal::OutOfRange));
        assert_eq!(small.take(address("10.0.0.8")), Err(Refusal::OutOfRange));
        assert_eq!(small.take(address("10.0.0.3")), Err(Refusal::Taken));
    }

    #[test]
    fn the_broadcast_address_of_v6_is_an_address() {
        assert_eq!(allocator("fd00::/112").take(address("fd00::ffff")), Ok(()));
        let mut subnet = allocator("fd00::/64");
        let some = subnet.take_any(u64::MAX / 3).unwrap();
        assert_eq!(subnet.take(some), Err(Refusal::Taken));
        subnet.release(some);
        assert_eq!((subnet.take(some), subnet.taken()), (Ok(()), 1));
    }

    #[test]
    fn reserved_addresses_are_given_by_name_only() {
        let dns = address("10.0.0.2");
        let mut range = AddressAllocator::new("10.0.0.0/29".parse().unwrap(), &[dns]).unwrap();
        let given: Vec<IpAddr> = std::iter::from_fn(|| range.take_any(0).ok()).collect();
        assert!(given.len() == 5 && !given.contains(&dns));
        assert_eq!(range.take(dns), Ok(()));
    }

    #[test]
    fn impossible_ranges_are_refused() {
        for net in ["10.0.0.0/32", "10.0.0.0/31", "fd00::1/128"] {
            let net: IpNet = net.parse().unwrap();
            assert_eq!(
                AddressAllocator::new(net, &[]),
                Err(AddressRangeError::TooSmall(net))
            );
        }
        let wide: IpNet = "fd00::/56".parse().unwrap();
        assert_eq!(
            AddressAllocator::new(wide, &[]),
            Err(AddressRangeError::TooLarge(wide))
        );
    }
}
