//! What a process holds, by `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// How long a process is left alone before it is looked at: what follows a start or a large list is done by then, and what it
/// took is given back.
pub(crate) const SETTLE: Duration = Duration::from_secs(12);

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
