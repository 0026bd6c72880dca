//! Counters. Under the names of CoreDNS where it has them, so that dashboards and alerts keep working.

use std::net::SocketAddr;

use metrics::{Counter, counter};

use crate::wire::{Rcode, RecordType};

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl Transport {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Whose names were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Domain {
    /// The cluster's.
    Cluster,
    /// Everybody else's.
    Rest,
}

/// The types that are counted by name; the others together.
const TYPES: [RecordType; 11] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::CNAME,
    RecordType::NS,
    RecordType::SOA,
    RecordType::MX,
    RecordType::HTTPS,
    RecordType::ANY,
];
const RCODES: [Rcode; 7] = [
    Rcode::NoError,
    Rcode::FormErr,
    Rcode::ServFail,
    Rcode::NxDomain,
    Rcode::NotImp,
    Rcode::Refused,
    Rcode::BadVers,
];

/// What one thread has answered: counted in plain numbers, told to the registry a batch at a time.
pub(crate) struct Tally {
    server: String,
    cluster: String,
    transport: Transport,
    family: &'static str,
    requests: [[Line; TYPES.len() + 1]; 2],
    responses: [[Line; RCODES.len()]; 2],
    dropped: Line,
}

#[derive(Default)]
struct Line {
    pending: u64,
    counter: Option<Counter>,
}

impl Line {
    fn flush(&mut self, register: impl FnOnce() -> Counter) {
        if self.pending > 0 {
            self.counter.get_or_insert_with(register).increment(self.pending);
            self.pending = 0;
        }
    }
}

impl Tally {
    pub(crate) fn new(address: SocketAddr, cluster: String, transport: Transport) -> Self {
        Self {
            server: format!("dns://{address}"),
            cluster,
            transport,
            family: if address.is_ipv4() { "1" } else { "2" },
            requests: Default::default(),
            responses: Default::default(),
            dropped: Line::default(),
        }
    }

    pub(crate) fn request(&mut self, domain: Domain, record_type: RecordType) {
        let at = TYPES
            .iter()
            .position(|t| *t == record_type)
            .unwrap_or(TYPES.len());
        self.requests[domain as usize][at].pending += 1;
    }

    pub(crate) fn response(&mut self, domain: Domain, rcode: Rcode) {
        let at = RCODES.iter().position(|r| *r == rcode).unwrap_or_default();
        self.responses[domain as usize][at].pending += 1;
    }

    pub(crate) fn dropped(&mut self) {
        self.dropped.pending += 1;
    }

    pub(crate) fn flush(&mut self) {
        let proto = self.transport.as_str();
        for (domain, lines) in self.requests.iter_mut().enumerate() {
            for (at, line) in lines.iter_mut().enumerate() {
                line.flush(|| {
                    let kind = TYPES.get(at).and_then(|t| t.mnemonic()).unwrap_or("other");
                    let zone = zone(domain, &self.cluster);
                    counter!("coredns_dns_requests_total", "server" => self.server.clone(), "zone" => zone, "proto" => proto,
                        "family" => self.family, "type" => kind)
                });
            }
        }
        for (domain, lines) in self.responses.iter_mut().enumerate() {
            for (at, line) in lines.iter_mut().enumerate() {
                line.flush(|| {
                    let rcode = RCODES.get(at).map_or("", |r| r.as_str());
                    let zone = zone(domain, &self.cluster);
                    counter!("coredns_dns_responses_total", "server" => self.server.clone(), "zone" => zone, "rcode" => rcode)
                });
            }
        }
        let server = &self.server;
        self.dropped
            .flush(|| counter!("svcnet_dns_dropped_total", "server" => server.clone(), "proto" => proto));
    }
}

fn zone(domain: usize, cluster: &str) -> String {
    if domain == Domain::Cluster as usize {
        cluster.to_string()
    } else {
        ".".to_string()
    }
}

/// An answer out of the cache, or not.
pub(crate) fn cache(hit: bool, negative: bool) {
    match (hit, negative) {
        (true, false) => counter!("coredns_cache_hits_total", "type" => "success").increment(1),
        (true, true) => counter!("coredns_cache_hits_total", "type" => "denial").increment(1),
        (false, _) => counter!("coredns_cache_misses_total").increment(1),
    }
}

/// A question went to an upstream, and how it ended there.
pub(crate) fn forwarded(to: SocketAddr, outcome: &'static str) {
    counter!("coredns_forward_requests_total", "to" => to.to_string()).increment(1);
    counter!("coredns_forward_responses_total", "to" => to.to_string(), "rcode" => outcome).increment(1);
}

/// A question was refused because too many wait.
pub(crate) fn rejected() {
    counter!("coredns_forward_max_concurrent_rejects_total").increment(1);
}

/// No upstream was up to be asked.
pub(crate) fn all_down() {
    counter!("coredns_forward_healthcheck_broken_total").increment(1);
}

/// A probe of an upstream went unanswered.
pub(crate) fn probe_failed(to: SocketAddr) {
    counter!("coredns_forward_healthcheck_failures_total", "to" => to.to_string()).increment(1);
}
