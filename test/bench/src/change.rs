//! A proxy over nf_tables at growing numbers of Services: its load, one changed endpoint from the watch event to the
//! kernel's answer, changes at a steady rate, and a restart. The peer is in `peer.rs`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::{Engine, Update};
use svcnet_runtime::Change;

use crate::peer::{self, Measurement};
use crate::stats::{Spread, median, percentile, row};
use crate::sustained;
use crate::synthetic::{self, Lists};

/// Changes that are measured in each run.
const CHANGES: u32 = 500;

/// For how long changes come at once after the load.
const EARLY_SECONDS: u32 = 1;

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) runs: usize,
    /// Changes a second; none leaves the rows of a steady rate out.
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
    /// The peer is not loaded beyond this number of services.
    pub(crate) peer_max: u32,
    /// The peer is given up when its first load takes longer, and is not run again when all its runs took as long.
    pub(crate) peer_patience: Duration,
}

/// What was measured of ours; seconds.
pub(crate) struct Measured {
    pub(crate) load: f64,
    pub(crate) changes: Vec<f64>,
}

/// Of several runs; seconds.
#[derive(Default)]
struct Runs {
    load: Vec<f64>,
    median: Vec<f64>,
    p99: Vec<f64>,
    steady_median: Vec<f64>,
    steady_p99: Vec<f64>,
    steady_commits: Vec<f64>,
    early_p99: Vec<f64>,
    early_most: Vec<f64>,
    restart: Vec<f64>,
}

/// Prints rows for each number of services.
pub(crate) fn measure(sizes: &[u32], plan: &Plan) -> Result<()> {
    for &services in sizes {
        let mut runs = Runs::default();
        for _ in 0..plan.runs {
            let netns = OwnedNetNs::unique("bench")?;
            netns.run(|| runs.run(services, plan))??;
        }
        let peer = if services <= plan.peer_max {
            peer::measure(services, plan.runs, plan.peer_patience)?
        } else {
            Measurement::default()
        };
        runs.print(services, plan, &peer);
    }
    Ok(())
}

impl Runs {
    fn run(&mut self, services: u32, plan: &Plan) -> Result<()> {
        let mut engine = synthetic::nftables()?;
        self.load.push(load(&mut engine, services)?);
        if plan.rate > 0 {
            let early = sustained::churn(&mut engine, services, plan.rate, EARLY_SECONDS)?;
            self.early_p99.push(percentile(&early.waits, 0.99));
            self.early_most.push(percentile(&early.waits, 1.0));
            restore(&mut engine, services, plan.rate * EARLY_SECONDS)?;
        }
        let changes = change(&mut engine, services, CHANGES)?;
        self.median.push(median(&changes));
        self.p99.push(percentile(&changes, 0.99));
        restore(&mut engine, services, CHANGES)?;
        self.restart.push(restart(services)?);
        if plan.rate > 0 {
            let steady = sustained::churn(&mut engine, services, plan.rate, plan.seconds)?;
            self.steady_median.push(median(&steady.waits));
            self.steady_p99.push(percentile(&steady.waits, 0.99));
            self.steady_commits.push(f64::from(steady.commits));
        }
        Ok(())
    }

    fn print(&self, services: u32, plan: &Plan, peer: &Measurement) {
        let ratio = match &peer.changes[..] {
            [] => String::new(),
            changes => format!("{:.0} times faster", median(changes) / median(&self.median)),
        };
        row(
            &format!(
                "one endpoint changed, {services} services x 3: event to commit; chains through `nft -f`"
            ),
            &format!("{}; p99 {}", Spread::ms(&self.median), Spread::ms(&self.p99)),
            &peer.change_text(),
            &ratio,
        );
        row(
            &format!("cold start, {services} services x 3; chains through `nft -f`"),
            &Spread::s(&self.load).to_string(),
            &peer.load_text(),
            if services >= 100_000 { "bar 5 s" } else { "" },
        );
        row(
            &format!("restart over a right kernel state, {services} services x 3: nothing written"),
            &Spread::s(&self.restart).to_string(),
            "",
            "",
        );
        if plan.rate == 0 {
            return;
        }
        row(
            &format!(
                "{} changes a second for {} s, {services} services x 3: event to commit",
                plan.rate, plan.seconds
            ),
            &format!(
                "{}; p99 {}; in {:.0} commits",
                Spread::ms(&self.steady_median),
                Spread::ms(&self.steady_p99),
                median(&self.steady_commits)
            ),
            "",
            "",
        );
        row(
            "the same in the first second after the cold start: p99; the most",
            &format!(
                "{}; {}",
                Spread::ms(&self.early_p99),
                Spread::ms(&self.early_most)
            ),
            "",
            "",
        );
    }
}

/// Loads the Services, then gives endpoints to some of them, one after the other.
pub(crate) fn load_and_change(engine: &mut Engine, services: u32, changes: u32) -> Result<Measured> {
    Ok(Measured {
        load: load(engine, services)?,
        changes: change(engine, services, changes)?,
    })
}

/// Seconds until the Services are in force.
fn load(engine: &mut Engine, services: u32) -> Result<f64> {
    let lists = Lists::new(services)?;
    let begun = Instant::now();
    lists.load(engine)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds for each of some changes, one after the other.
fn change(engine: &mut Engine, services: u32, changes: u32) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for change in 0..changes {
        let event = synthetic::slice(
            stride(change, services),
            synthetic::ENDPOINTS + 1 + change / services,
        )?;
        let begun = Instant::now();
        engine.apply_change(Update::Slices(Change::Apply(event)));
        let report = engine.sync()?;
        seconds.push(begun.elapsed().as_secs_f64());
        ensure!(report.operations > 0, "a change came to nothing");
    }
    Ok(seconds)
}

/// Makes what the lists say be in force again after so many changes.
fn restore(engine: &mut Engine, services: u32, changes: u32) -> Result<()> {
    for n in (0..changes.min(services)).map(|change| stride(change, services)) {
        let event = synthetic::slice(n, synthetic::ENDPOINTS)?;
        engine.apply_change(Update::Slices(Change::Apply(event)));
    }
    engine.sync()?;
    Ok(())
}

/// Visits services all over the tables, each once before any is visited again.
pub(crate) fn stride(change: u32, services: u32) -> u32 {
    change.wrapping_mul(7919) % services
}

/// Seconds for a new proxy to find that the kernel holds all already.
fn restart(services: u32) -> Result<f64> {
    let lists = Lists::new(services)?;
    let begun = Instant::now();
    let report = lists.load(&mut synthetic::nftables()?)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(
        report.operations == 0,
        "a restart wrote {} operations",
        report.operations
    );
    Ok(seconds)
}
