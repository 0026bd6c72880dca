//! One changed endpoint: from the watch event to the kernel's answer, at growing numbers of services; the load before
//! it, and the restart after it. The peer is in `peer.rs`.

use std::time::Instant;

use anyhow::{Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::{Engine, Update};
use svcnet_runtime::Change;

use crate::peer;
use crate::stats::{median, percentile, row};
use crate::synthetic::{self, Lists};

/// Changes that are measured at each size.
const CHANGES: u32 = 500;

/// What was measured of ours; seconds.
pub(crate) struct Measured {
    pub(crate) load: f64,
    pub(crate) changes: Vec<f64>,
}

/// Prints rows for each number of services; the peer's up to `peer_max` of them, for it takes minutes and gigabytes.
pub(crate) fn measure(sizes: &[u32], peer_max: u32) -> Result<()> {
    for &services in sizes {
        let netns = OwnedNetNs::unique("bench")?;
        let (ours, restart) = netns.run(|| -> Result<_> {
            let mut engine = synthetic::nftables()?;
            let measured = load_and_change(&mut engine, services, CHANGES)?;
            drop(engine);
            Ok((measured, restart(services)?))
        })??;
        let peer = (services <= peer_max)
            .then(|| peer::measure(services))
            .transpose()?;
        let (peer_text, ratio) = peer.map_or_else(
            || ("not tried".to_string(), String::new()),
            |(load, change)| {
                let ratio = format!("{:.0} times faster", change / median(&ours.changes));
                (format!("{:.0} ms; loaded in {:.1} s", change * 1e3, load), ratio)
            },
        );
        row(
            &format!("one endpoint changed, {services} services x 3; chains through `nft -f`"),
            &format!(
                "{:.2} ms (p99 {:.2}); loaded in {:.2} s",
                median(&ours.changes) * 1e3,
                percentile(&ours.changes, 0.99) * 1e3,
                ours.load
            ),
            &peer_text,
            &ratio,
        );
        row(
            &format!("restart over a right kernel state, {services} services x 3: nothing written"),
            &format!("{restart:.2} s"),
            "",
            "",
        );
    }
    Ok(())
}

/// Loads the Services, then gives endpoints to some of them, one after the other.
pub(crate) fn load_and_change(engine: &mut Engine, services: u32, changes: u32) -> Result<Measured> {
    let lists = Lists::new(services)?;
    let begun = Instant::now();
    lists.load(engine)?;
    let load = begun.elapsed().as_secs_f64();
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
    Ok(Measured {
        load,
        changes: seconds,
    })
}

/// Visits services all over the tables, each once before any is visited again.
pub(crate) fn stride(change: u32, services: u32) -> u32 {
    change.wrapping_mul(7919) % services
}

/// Seconds for a new proxy to find that the kernel holds all already.
fn restart(services: u32) -> Result<f64> {
    // A first one undoes the changes: what the lists say is in force again.
    Lists::new(services)?.load(&mut synthetic::nftables()?)?;
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
