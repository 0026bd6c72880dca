//! Node ports: by number, so that TCP/N and UDP/N of two Services collide.

use std::collections::BTreeMap;

use svcnet_api::types::NodePortRange;

use super::range::{NumberRange, Refusal};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortAllocator {
    range: NodePortRange,
    numbers: NumberRange,
    /// What programs of the nodes listen on, as each node reports it.
    reported: BTreeMap<String, Vec<u16>>,
}

impl PortAllocator {
    pub(super) fn new(range: NodePortRange) -> Self {
        let (first, end) = (u64::from(range.first()), u64::from(range.last()) + 1);
        Self {
            range,
            numbers: NumberRange::new(first..end, first + static_band(range.size()), []),
            reported: BTreeMap::new(),
        }
    }

    /// Ports that a node's own programs listen on are given only to who asks for them by name: a Service that had one would
    /// take the program's clients away, on that node alone.
    pub(super) fn report(&mut self, node: &str, ports: Vec<u16>) {
        if self.reported.get(node).map_or(&[][..], Vec::as_slice) == ports {
            return;
        }
        if ports.is_empty() {
            self.reported.remove(node);
        } else {
            self.reported.insert(node.to_string(), ports);
        }
        let all = self.reported.values().flatten();
        self.numbers.reserve(all.map(|port| u64::from(*port)).collect());
    }

    /// Takes in what another server was told of a node.
    pub(super) fn observe_report(&mut self, node: &str, ports: Vec<u16>, is_so: bool) {
        if is_so {
            self.report(node, ports);
        } else if self.reported.get(node) == Some(&ports) {
            self.report(node, Vec::new());
        }
    }

    pub(super) fn take(&mut self, port: i64) -> Result<(), Refusal> {
        self.numbers
            .take(u64::try_from(port).map_err(|_| Refusal::OutOfRange)?)
    }

    pub(super) fn take_any(&mut self, random: u64) -> Result<i64, Refusal> {
        self.numbers.take_any(random).map(u64::cast_signed)
    }

    /// Takes in what the store holds. Whether it is of the range, and was free.
    pub(super) fn restore(&mut self, port: i64) -> Result<(), Refusal> {
        match u64::try_from(port) {
            Ok(number) if self.numbers.contains(number) => {
                if self.numbers.restore(number) {
                    Ok(())
                } else {
                    Err(Refusal::Taken)
                }
            }
            _ => Err(Refusal::OutOfRange),
        }
    }

    pub(super) fn release(&mut self, port: i64) {
        if let Ok(number) = u64::try_from(port) {
            self.numbers.release(number);
        }
    }

    pub(super) fn observe(&mut self, port: i64, taken: bool) {
        if let Ok(number) = u64::try_from(port) {
            self.numbers.observe(number, taken);
        }
    }

    pub(super) fn range(&self) -> NodePortRange {
        self.range
    }

    pub(super) fn taken(&self) -> u64 {
        self.numbers.taken()
    }
}

/// Ports at the start of the range that are kept for who asks by name: `min(max(16, size/32), 128)` (KEP-3668), none
/// in a range of 16 or fewer.
fn static_band(size: u32) -> u64 {
    if size <= 16 {
        0
    } else {
        u64::from((size / 32).clamp(16, 128))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(range: &str) -> PortAllocator {
        PortAllocator::new(range.parse().unwrap())
    }

    #[test]
    fn bands_are_those_of_the_real_one() {
        assert_eq!(allocator("30000-32767").take_any(0), Ok(30086));
        assert_eq!(allocator("30000-30015").take_any(0), Ok(30000));
        assert_eq!(allocator("30000-30019").take_any(0), Ok(30016));
        assert_eq!(allocator("1-65535").take_any(0), Ok(129));
    }

    #[test]
    fn what_a_host_listens_on_is_given_by_name_only() {
        let mut ports = allocator("30000-30002");
        ports.report("n1", vec![30000, 30001]);
        ports.report("n2", vec![30001]);
        assert_eq!(ports.take_any(0), Ok(30002));
        assert_eq!(ports.take_any(0), Err(Refusal::Full));
        assert_eq!(ports.take(30001), Ok(()));
        ports.report("n1", Vec::new());
        assert_eq!(ports.take_any(0), Ok(30000));
        ports.release(30001);
        assert_eq!(ports.take_any(0), Err(Refusal::Full));
        ports.report("n2", Vec::new());
        assert_eq!(ports.take_any(0), Ok(30001));
        assert_eq!(ports, {
            let mut same = allocator("30000-30002");
            (30000..30003).for_each(|port| same.take(port).unwrap());
            same
        });
    }

    #[test]
    fn ports_outside_the_range_are_refused() {
        let mut ports = allocator("30000-32767");
        for port in [-1, 0, 29999, 32768, 70000] {
            assert_eq!(ports.take(port), Err(Refusal::OutOfRange), "{port}");
        }
        assert_eq!(ports.take(32767), Ok(()));
        assert_eq!(ports.take(32767), Err(Refusal::Taken));
        ports.release(32767);
        assert_eq!(ports.take(32767), Ok(()));
        assert_eq!(ports.taken(), 1);
    }
}
