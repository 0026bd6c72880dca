//! The numbers of README's table: each measured against something real in the same run, repeated, the median quoted.

mod change;
mod cni;
mod dns;
mod lab;
mod stats;
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
    /// CNI ADD and DEL against the reference plugins, which must be installed.
    Cni {
        /// How often; each measures both, one after the other.
        #[arg(long, default_value_t = 25)]
        rounds: usize,
    },
    /// One Service change to the kernel, at several sizes.
    Change {
        /// Numbers of services.
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
        services: Vec<u32>,
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
    /// Connections per second through a ClusterIP against straight to the pod.
    Vip {
        /// Rounds; each measures both, one after the other.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Connections a round and side. All rounds together must not use up the ports of one client (28,000).
        #[arg(long, default_value_t = 2000)]
        connections: u32,
    },
    /// `lab up` to the first answered request, and the memory of idle processes.
    Lab {
        /// How often.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Cni { rounds } => cni::measure(rounds),
        What::Change { services } => change::measure(&services),
        What::Dns {
            rounds,
            services,
            seconds,
        } => dns::measure(rounds, services, seconds),
        What::Vip { rounds, connections } => vip::measure(rounds, connections),
        What::Lab { rounds } => lab::measure(rounds),
    }
}
