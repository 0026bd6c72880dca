//! The numbers of README's table: each measured against something real in the same run, repeated, the median quoted.

mod backends;
mod change;
mod cni;
mod dns;
mod lab;
mod memory;
mod path;
mod peer;
mod policy;
mod stats;
mod sustained;
mod synthetic;
mod vip;

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
        rounds: usize,
        /// Connections a round and way.
        #[arg(long, default_value_t = 300)]
        connections: u32,
    },
    /// CNI ADD and DEL against the reference plugins, which must be installed.
    Cni {
        /// How often; each measures both, one after the other.
        #[arg(long, default_value_t = 25)]
        rounds: usize,
    },
    /// One Service change to the kernel, at several sizes.
    Change {
        /// Numbers of services.
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,30000,100000")]
        services: Vec<u32>,
        /// The peer is not loaded beyond this: it takes minutes and gigabytes.
        #[arg(long, default_value_t = 10_000)]
        peer_services_max: u32,
    },
    /// DNS answers per second against NSD, which must be installed.
    Dns {
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
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
        rounds: usize,
    },
    /// Resident memory of a proxy with many services.
    Memory {
        /// Number of services.
        #[arg(long, default_value_t = 10_000)]
        services: u32,
        /// How often.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// For `memory`: prints that of this process, in MB, with so many services.
    #[command(hide = true)]
    MemoryOf {
        /// Number of services.
        services: u32,
    },
    /// Connections and throughput through a ClusterIP against straight to the pod, with one service loaded and with many.
    Path {
        /// Rounds; each measures all, one after the other.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Connections a round and way. All rounds together must not use up the ports of one client (28,000).
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
        rounds: usize,
        /// Connections a round and way. All rounds together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
    },
    /// Changes at a steady rate: how long each waits until it is in force.
    Sustained {
        /// Numbers of services.
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,30000,100000")]
        services: Vec<u32>,
        /// Changes a second.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
        /// For how long.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// Connections per second through a ClusterIP against straight to the pod, in a lab.
    Vip {
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Connections a round and side. All rounds together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Backends {
            services,
            rounds,
            connections,
        } => backends::measure(services, rounds, connections),
        What::Cni { rounds } => cni::measure(rounds),
        What::Change {
            services,
            peer_services_max,
        } => change::measure(&services, peer_services_max),
        What::Dns {
            rounds,
            services,
            seconds,
        } => dns::measure(rounds, services, seconds),
        What::Lab { rounds } => lab::measure(rounds),
        What::Memory { services, rounds } => memory::measure(services, rounds),
        What::MemoryOf { services } => memory::print_own(services),
        What::Path {
            rounds,
            connections,
            seconds,
            services,
        } => path::measure(rounds, connections, seconds, services),
        What::Policy {
            policies,
            pods,
            rounds,
            connections,
        } => policy::measure(policies, pods, rounds, connections),
        What::Sustained {
            services,
            rate,
            seconds,
        } => sustained::measure(&services, rate, seconds),
        What::Vip { rounds, connections } => vip::measure(rounds, connections),
    }
}
