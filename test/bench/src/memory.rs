//! What the proxy holds: resident memory of a process with an engine, against the same process without Services.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;

use crate::stats::{Spread, median, row};
use crate::synthetic::{self, Lists};

/// Each in a process of its own, for memory that was used once is not always given back.
pub(crate) fn measure(services: u32, rounds: usize) -> Result<()> {
    let (mut loaded, mut empty) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        loaded.push(of_child(services)?);
        empty.push(of_child(0)?);
    }
    row(
        &format!("resident memory, a proxy with {services} services x 3; without any"),
        &Spread::new(&loaded, 1).unit(" MB").to_string(),
        &Spread::new(&empty, 1).unit(" MB").to_string(),
        &format!("bar 60 MB; {:.1} MB more", median(&loaded) - median(&empty)),
    );
    Ok(())
}

fn of_child(services: u32) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["memory-of", &services.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "memory-of: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The child: loads as many Services and prints the megabytes that it has then.
pub(crate) fn print_own(services: u32) -> Result<()> {
    let netns = OwnedNetNs::unique("bench")?;
    let engine = netns.run(|| -> Result<_> {
        let mut engine = synthetic::nftables()?;
        Lists::new(services)?.load(&mut engine)?;
        Ok(engine)
    })??;
    println!("{}", resident_mb(std::process::id())?);
    drop(engine);
    Ok(())
}

/// Resident memory of a process, program text included.
pub(crate) fn resident_mb(pid: u32) -> Result<f64> {
    megabytes(pid, "VmRSS:")
}

/// The most that it has ever been.
pub(crate) fn peak_mb(pid: u32) -> Result<f64> {
    megabytes(pid, "VmHWM:")
}

fn megabytes(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let line = line.with_context(|| format!("no {field} of process {pid}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
