//! The peer of the nftables backend: the layout that kube-proxy uses (a chain for each service and endpoint behind a
//! verdict map), loaded and changed through the program `nft`, in a namespace of its own.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;

use crate::stats::{Spread, median};
use crate::synthetic::{cluster_ip, endpoint_ip};

/// It is slow: few changes a run say enough.
const CHANGES: u32 = 5;
const POLL: Duration = Duration::from_millis(5);

/// Seconds of each run; nothing where the peer was not tried.
#[derive(Default)]
pub(crate) struct Measurement {
    pub(crate) loads: Vec<f64>,
    /// The median of each run.
    pub(crate) changes: Vec<f64>,
    /// How long the first load had been running when it was given up.
    given_up_after: Option<Duration>,
}

impl Measurement {
    pub(crate) fn load_text(&self) -> String {
        match self.given_up_after {
            Some(after) => format!("given up: not loaded after {} s", after.as_secs()),
            None if self.loads.is_empty() => "not tried".into(),
            None => Spread::s(&self.loads).to_string(),
        }
    }

    pub(crate) fn change_text(&self) -> String {
        match self.given_up_after {
            Some(_) => "given up while loading".into(),
            None if self.changes.is_empty() => "not tried".into(),
            None => Spread::ms(&self.changes).to_string(),
        }
    }
}

/// Runs of a load and some changes each: as many as asked for, or as many as begin within `patience`, but one. A first
/// load that takes longer than that is ended.
pub(crate) fn measure(services: u32, runs: usize, patience: Duration) -> Result<Measurement> {
    let mut measurement = Measurement::default();
    let begun = Instant::now();
    for run in 0..runs {
        if run > 0 && begun.elapsed() >= patience {
            break;
        }
        let Some((load, change)) = run_once(services, patience)? else {
            if run == 0 {
                measurement.given_up_after = Some(patience);
            }
            break;
        };
        measurement.loads.push(load);
        measurement.changes.push(change);
    }
    Ok(measurement)
}

/// Seconds to load the chains, and the median of changing one service; nothing when it takes too long.
fn run_once(services: u32, patience: Duration) -> Result<Option<(f64, f64)>> {
    let netns = OwnedNetNs::unique("bench")?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("rules.nft");
    let Some(loaded) = load(&netns, &file, &rules(services)?, patience)? else {
        return Ok(None);
    };
    let mut seconds = Vec::new();
    for change in 0..CHANGES {
        let n = change * 17 % services;
        let text = format!(
            "add chain ip peer e{n}x3\nadd rule ip peer e{n}x3 meta l4proto tcp dnat to {}:80\nflush chain ip peer s{n}\n\
             add rule ip peer s{n} {}\n",
            endpoint_ip(n, 3),
            spread(n, 4)
        );
        let Some(changed) = load(&netns, &file, &text, patience)? else {
            return Ok(None);
        };
        seconds.push(changed);
    }
    Ok(Some((loaded, median(&seconds))))
}

/// Seconds that `nft -f` takes for a text; nothing when it takes too long and is ended.
fn load(netns: &OwnedNetNs, file: &Path, text: &str, patience: Duration) -> Result<Option<f64>> {
    std::fs::write(file, text)?;
    let begun = Instant::now();
    // A child is born into the namespace of the thread that makes it.
    let child = netns.run(|| Command::new("nft").arg("-f").arg(file).spawn())?;
    let mut child = child.context("the peer is the program nft: install nftables")?;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "nft refused its rules");
            return Ok(Some(begun.elapsed().as_secs_f64()));
        }
        if begun.elapsed() >= patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        // Short against what it takes, and no load beside it.
        std::thread::sleep(POLL.min(begun.elapsed() / 50));
    }
}

fn rules(services: u32) -> Result<String> {
    let mut rules = String::from("table ip peer {\n");
    for n in 0..services {
        for i in 0..3 {
            writeln!(
                rules,
                " chain e{n}x{i} {{ meta l4proto tcp dnat to {}:80; }}",
                endpoint_ip(n, i)
            )?;
        }
        writeln!(rules, " chain s{n} {{ {}; }}", spread(n, 3))?;
    }
    rules.push_str(" map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n");
    for n in 0..services {
        writeln!(rules, "  {} . tcp . 80 : goto s{n},", cluster_ip(n))?;
    }
    rules.push_str(
        " } }\n chain prerouting { type nat hook prerouting priority dstnat;\n  \
         ip daddr . meta l4proto . th dport vmap @services; }\n}\n",
    );
    Ok(rules)
}

fn spread(n: u32, endpoints: u32) -> String {
    let goto: Vec<String> = (0..endpoints).map(|i| format!("{i} : goto e{n}x{i}")).collect();
    format!("numgen random mod {endpoints} vmap {{ {} }}", goto.join(", "))
}
