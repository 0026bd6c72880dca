//! The proxy's backends side by side, on a kernel that has both: the load of many Services, one change, and what the
//! way through a ClusterIP costs. `test/vm/run bench` runs it in a virtual machine.

use anyhow::Result;
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::Engine;
use svcnet_proxy::ipvs::{self, Ipvs};

use crate::change::{Measured, load_and_change};
use crate::path::{Path, Rates, ip};
use crate::stats::{median, percentile, row};
use crate::synthetic;

/// Changes that are measured.
const CHANGES: u32 = 100;

type Open = fn() -> Result<Engine>;

fn ipvs() -> Result<Engine> {
    let config = ipvs::Config {
        pod_networks: vec!["10.244.0.0/16".parse()?],
        service_networks: vec!["10.96.0.0/12".parse()?],
        ..ipvs::Config::default()
    };
    synthetic::engine(Box::new(Ipvs::open(&config)?))
}

fn load(open: Open, services: u32) -> Result<Measured> {
    let netns = OwnedNetNs::unique("bench")?;
    // IPVS takes endpoints only where some address is local.
    ip(&netns, "link set lo up")?;
    netns.run(|| load_and_change(&mut open()?, services, CHANGES))?
}

/// Prints rows with nftables first and IPVS second.
pub(crate) fn measure(services: u32, rounds: usize, connections: u32) -> Result<()> {
    let openers: [Open; 2] = [synthetic::nftables, ipvs];
    let mut measured = Vec::new();
    let mut paths = Vec::new();
    for open in openers {
        // The first use of all makes the kernel load its modules.
        load(open, 1)?;
        measured.push(load(open, services)?);
        paths.push((Path::new(services, open)?, Rates::default(), Rates::default()));
    }
    for _ in 0..rounds {
        for (path, connects, streams) in &mut paths {
            path.connect_both(connects, connections)?;
            path.stream_both(streams, 0.5)?;
        }
    }
    let [nft, ipvs] = &measured[..] else {
        anyhow::bail!("there are two backends")
    };
    let times = |ours: f64, theirs: f64| format!("{:.2}", ours / theirs);
    row(
        &format!("load of {services} services x 3: nftables, ipvs"),
        &format!("{:.2} s", nft.load),
        &format!("{:.2} s", ipvs.load),
        &times(nft.load, ipvs.load),
    );
    let change = |changes: &[f64]| {
        let (median, p99) = (median(changes) * 1e3, percentile(changes, 0.99) * 1e3);
        format!("{median:.2} ms (p99 {p99:.2})")
    };
    row(
        &format!("one endpoint changed, {services} services x 3: nftables, ipvs"),
        &change(&nft.changes),
        &change(&ipvs.changes),
        &times(median(&nft.changes), median(&ipvs.changes)),
    );
    let [(_, nft, nft_streams), (_, ipvs, ipvs_streams)] = &paths[..] else {
        anyhow::bail!("there are two backends")
    };
    for (what, nft, ipvs) in [
        ("connections", nft, ipvs),
        ("throughput", nft_streams, ipvs_streams),
    ] {
        row(
            &format!("{what} through a ClusterIP against straight, {services} services: nftables, ipvs"),
            &format!("{:.2}", nft.ratio()),
            &format!("{:.2}", ipvs.ratio()),
            &times(nft.ratio(), ipvs.ratio()),
        );
    }
    Ok(())
}
