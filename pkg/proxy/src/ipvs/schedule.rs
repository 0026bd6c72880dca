//! Which of the kernel's schedulers does what a frontend asks for.

use std::collections::BTreeSet;

use svcnet_netlink::ipvs::Flags;

use crate::model::Endpoint;
use crate::scheduler::Scheduler;

/// The names of schedulers that the kernel lacks.
pub(crate) type Lacking = BTreeSet<&'static str>;

/// The kernel's name of what comes nearest: the one asked for; turns for `random`, which IPVS does not have, and for
/// what this kernel lacks; by weight where weights differ.
pub(crate) fn nearest<'a>(
    wanted: Scheduler,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
    lacking: &Lacking,
) -> &'static str {
    let name = wanted.name();
    if wanted != Scheduler::Random && !lacking.contains(name) {
        return name;
    }
    let mut weights = endpoints.into_iter().map(|endpoint| endpoint.weight);
    let first = weights.next();
    if weights.all(|weight| Some(weight) == first) {
        Scheduler::Rr.name()
    } else {
        Scheduler::Wrr.name()
    }
}

/// What the scheduler is told: those that hash the source take another endpoint when the one they hit takes nobody.
/// Without that, clients of an endpoint that drains would get nowhere.
pub(crate) fn flags(name: &str) -> Flags {
    if name == Scheduler::Sh.name() || name == Scheduler::Mh.name() {
        Flags::SCHED_1
    } else {
        Flags::default()
    }
}

/// Whether an endpoint of weight zero keeps its connections without harm to new ones. `dh` goes on to send new ones to
/// it, to be dropped, and has no flag against that.
pub(crate) fn can_drain(name: &str) -> bool {
    name != Scheduler::Dh.name()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(weights: &[u16]) -> Vec<Endpoint> {
        let endpoint = |weight| Endpoint {
            at: "10.0.0.1:80".parse().unwrap(),
            local: false,
            weight,
        };
        weights.iter().copied().map(endpoint).collect()
    }

    #[test]
    fn what_ipvs_lacks_becomes_turns() {
        let none = Lacking::new();
        assert_eq!(nearest(Scheduler::Random, &endpoints(&[1, 1, 1]), &none), "rr");
        assert_eq!(nearest(Scheduler::Random, &endpoints(&[1, 1, 2]), &none), "wrr");
        assert_eq!(nearest(Scheduler::Random, &endpoints(&[]), &none), "rr");
        for scheduler in Scheduler::ALL.into_iter().filter(|s| *s != Scheduler::Random) {
            assert_eq!(nearest(scheduler, &endpoints(&[1, 2]), &none), scheduler.name());
        }
        let lacking = Lacking::from(["lblc"]);
        assert_eq!(nearest(Scheduler::Lblc, &endpoints(&[2, 2]), &lacking), "rr");
        assert_eq!(nearest(Scheduler::Lblc, &endpoints(&[2, 3]), &lacking), "wrr");
        assert_eq!(nearest(Scheduler::Lblcr, &endpoints(&[2, 3]), &lacking), "lblcr");
    }
}
