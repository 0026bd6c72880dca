//! The numbers of README's table: each measured against something real in the same run, repeated, the median quoted.

mod backends;
mod change;
mod cni;
mod dns;
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "shared with tests")]
#[path = "../../../pkg/store/tests/etcd/mod.rs"]
mod etcd;
mod lab;
mod memory;
mod overlay;
mod path;
mod peer;
mod policy;
mod processes;
mod stats;
mod store;
mod sustained;
mod synthetic;
mod vip;

use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures svcnet against its peers; see test/bench/run")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The backends nftables and ipvs side by side; the kernel must have IPVS (`test/vm/run bench`).
    Backends {
        /// Number of services.
        #[arg(long, default_value_t = 1000)]
        services: u32,
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Connections a round and way.
        #[arg(long, default_value_t = 300)]
        connections: u32,
    },
    /// CNI ADD and DEL against the reference plugins, which must be installed.
    Cni {
        /// How often; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// The proxy at several sizes: cold start, one Service change to the kernel, changes at a steady rate, restart.
    Change {
        /// Numbers of services.
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,30000,100000")]
        services: Vec<u32>,
        /// Runs at each size, ours and the peer's.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Changes a second of the steady rate; 0 leaves it out.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// For how long.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// The peer is not loaded beyond this: it takes minutes and gigabytes.
        #[arg(long, default_value_t = 30_000)]
        peer_services_max: u32,
        /// The peer's time at each size, in seconds: a first load that takes longer is ended, and no run begins later.
        #[arg(long, default_value_t = 240)]
        peer_seconds_max: u64,
    },
    /// DNS answers per second against NSD, which must be installed.
    Dns {
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Services in the zone.
        #[arg(long, default_value_t = 1000)]
        services: usize,
        /// How long one measurement takes.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// `lab up` to the first answered request, and the memory of idle processes.
    Lab {
        /// How often.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Pod to pod on two nodes, against links made by hand: throughput and round trips, over VXLAN and direct.
    Overlay {
        /// Rounds; each measures all, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// How long a stream takes.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Round trips a round and way.
        #[arg(long, default_value_t = 20_000)]
        trips: u32,
    },
    /// Connections and throughput through a ClusterIP against straight to the pod, with one service loaded and with many.
    Path {
        /// Rounds; each measures all, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Connections a round and way. All runs together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
        /// How long a stream takes.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// How many are many.
        #[arg(long, default_value_t = 100_000)]
        services: u32,
    },
    /// NetworkPolicies: the time of a change, and what a connection costs.
    Policy {
        /// Number of policies.
        #[arg(long, default_value_t = 10_000)]
        policies: u32,
        /// Number of pods of the node.
        #[arg(long, default_value_t = 5000)]
        pods: u32,
        /// Rounds; each measures with and without policies, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Connections a round and way. All rounds together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
    },
    /// Resident memory of `svcnet server --disable-agent` and `svcnet proxy` as they are run, with many Services and without any.
    Processes {
        /// Number of services.
        #[arg(long, default_value_t = 10_000)]
        services: u32,
        /// How often.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// The store: durable creates against puts of etcd (Debian: etcd-server), a large list, one change to many watchers.
    Store {
        /// How often.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// How long a rate is measured.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Services in the list.
        #[arg(long, default_value_t = 100_000)]
        services: u32,
        /// Watchers of the change; each takes two open files.
        #[arg(long, default_value_t = 1000)]
        watchers: usize,
    },
    /// Connections per second through a ClusterIP against straight to the pod, in a lab.
    Vip {
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Connections a round and side. All runs together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Backends {
            services,
            runs,
            connections,
        } => backends::measure(services, runs, connections),
        What::Cni { runs } => cni::measure(runs),
        What::Change {
            services,
            runs,
            rate,
            seconds,
            peer_services_max,
            peer_seconds_max,
        } => change::measure(
            &services,
            &change::Plan {
                runs,
                rate,
                seconds,
                peer_max: peer_services_max,
                peer_patience: Duration::from_secs(peer_seconds_max),
            },
        ),
        What::Dns {
            runs,
            services,
            seconds,
        } => dns::measure(runs, services, seconds),
        What::Lab { runs } => lab::measure(runs),
        What::Overlay { runs, seconds, trips } => overlay::measure(runs, seconds, trips),
        What::Path {
            runs,
            connections,
            seconds,
            services,
        } => path::measure(runs, connections, seconds, services),
        What::Policy {
            policies,
            pods,
            runs,
            connections,
        } => policy::measure(policies, pods, runs, connections),
        What::Processes { services, runs } => processes::measure(services, runs),
        What::Store {
            runs,
            seconds,
            services,
            watchers,
        } => store::measure(&store::Plan {
            runs,
            seconds,
            services,
            watchers,
        }),
        What::Vip { runs, connections } => vip::measure(runs, connections),
    }
}
