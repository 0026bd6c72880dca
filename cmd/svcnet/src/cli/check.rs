//! `svcnet check`: what this host lacks.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::check::{self, Finding, Verdict};

/// What this host lacks to run svcnet, and what to do about it
///
/// Kernel features are not looked up but tried, in a network namespace that is thrown away; nothing of this host's own
/// network is touched. Ends with status 1 when something is missing that svcnet needs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show only what is missing
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let findings = check::all();
    let mut out = io::stdout().lock();
    for finding in &findings {
        if !args.quiet || finding.verdict != Verdict::Fine {
            // That nobody reads changes nothing about the host.
            _ = print(&mut out, finding);
        }
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Missing)
        .count();
    if missing == 0 {
        _ = writeln!(out, "this host has all that svcnet needs");
        ExitCode::SUCCESS
    } else {
        _ = writeln!(out, "svcnet can not run here: {missing} missing, see above");
        ExitCode::FAILURE
    }
}

fn print(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let word = match finding.verdict {
        Verdict::Fine => "ok",
        Verdict::Optional => "optional",
        Verdict::Missing => "MISSING",
    };
    writeln!(out, "{word:<9} {:<28} {}", finding.what, finding.detail)
}
