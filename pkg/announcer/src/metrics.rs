//! What an announcer counts. Names that MetalLB has too are MetalLB's, for dashboards that exist.

use std::collections::BTreeMap;
use std::net::IpAddr;

use metrics::{counter, gauge};

use crate::core::Core;
use crate::desired::{NotAnnounced, Target};

/// Whether this node announces the address, for each of its Services.
pub(crate) fn announced(node: &str, address: IpAddr, services: &[Target], yes: bool) {
    for service in services {
        gauge!("metallb_speaker_announced",
            "service" => service.key.to_string(), "protocol" => "layer2", "node" => node.to_string(),
            "ip" => address.to_string())
        .set(if yes { 1.0 } else { 0.0 });
    }
}

pub(crate) fn request(address: IpAddr) {
    counter!("metallb_layer2_requests_received", "ip" => address.to_string()).increment(1);
}

pub(crate) fn response(address: IpAddr) {
    counter!("metallb_layer2_responses_sent", "ip" => address.to_string()).increment(1);
}

pub(crate) fn gratuitous(address: IpAddr) {
    counter!("metallb_layer2_gratuitous_sent", "ip" => address.to_string()).increment(1);
}

/// Another host answered for an address of ours.
pub(crate) fn contested(address: IpAddr) {
    counter!("svcnet_announcer_contests_total", "ip" => address.to_string()).increment(1);
}

/// This node began to announce an address.
pub(crate) fn takeover() {
    counter!("svcnet_announcer_takeovers_total").increment(1);
}

/// A datagram on the heartbeat port was of no use.
pub(crate) fn rejected(reason: &'static str) {
    counter!("svcnet_announcer_heartbeats_rejected_total", "reason" => reason).increment(1);
}

/// How many addresses and peers are in which state.
pub(crate) fn states(core: &Core) {
    let mut counts: BTreeMap<&str, u32> = NotAnnounced::NAMES.iter().map(|name| (*name, 0)).collect();
    for (_, standing) in core.standings() {
        let name = standing.as_ref().map_or_else(NotAnnounced::name, |_| "announced");
        *counts.entry(name).or_default() += 1;
    }
    counts.entry("announced").or_default();
    for (state, count) in counts {
        gauge!("svcnet_announcer_addresses", "state" => state).set(count);
    }
    let (peers, alive) = core.membership().counts();
    gauge!("svcnet_announcer_peers", "state" => "alive").set(count(alive));
    gauge!("svcnet_announcer_peers", "state" => "dead").set(count(peers - alive));
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
