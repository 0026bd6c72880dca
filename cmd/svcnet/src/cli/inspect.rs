//! `svcnet proxy services`, `diff` and `ruleset`: the proxy of this node, seen from beside it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use svcnet_proxy::inspect::{Kernel, OnNode};
use svcnet_proxy::{BackendError, Frontend, FrontendKey, inspect};

use super::beside::{self, Beside, Instead, LookFlags, Objects, Output};
use crate::settings::Problems;

/// A change may be on its way from the API to the kernel: what differs is looked at so many times.
const LOOKS: usize = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// What to look at; without one of these, the proxy runs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Look {
    Services(ServicesArgs),
    Diff(DiffArgs),
    Ruleset(RulesetArgs),
}

/// What this node's proxy has in the kernel, as the kernel holds it
///
/// Tables in the words of `nft list table`, or as its JSON, IPVS as `ipvsadm -Ln` shows it, and the addresses and sockets
/// of relays; without those programs. Everything is read from the kernel: what somebody else has put there shows too.
#[derive(Debug, clap::Args)]
pub(crate) struct RulesetArgs {
    /// As JSON; tables as nft prints them with -j
    #[arg(long)]
    json: bool,
}

/// Frontends, endpoints and live connections of Services, as this node's proxy has them
#[derive(Debug, clap::Args)]
pub(crate) struct ServicesArgs {
    /// Only this Service: NAME, or NAMESPACE/NAME
    name: Option<String>,
    /// How to print it
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    look: LookFlags,
}

/// What the kernel of this node would have to be told for it to hold what the API says
///
/// Prints nothing but a word when there is nothing to tell, and ends with status 0; else prints the operations, and ends
/// with status 1. The agent carries them out by itself: what stays is a defect, or an agent that does not run.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    look: LookFlags,
}

impl Look {
    /// Does what was asked for.
    pub(crate) fn run(&self, mut problems: Problems<'_>, instead: &Instead<'_>) -> anyhow::Result<ExitCode> {
        svcnet_netlink::signal::end_on_broken_pipe();
        let (flags, named) = match self {
            Self::Ruleset(args) => return ruleset(args),
            Self::Services(args) => (&args.look, Some(args)),
            Self::Diff(args) => (&args.look, None),
        };
        let address = flags.address(&mut problems);
        problems.check()?;
        let beside = beside::beside(address.context("no address")?, instead)?;
        let kubeconfig = flags.kubeconfig(&beside.here.data_dir);
        let objects = || beside::objects(&kubeconfig, &beside.here);
        match named {
            Some(args) => services(args, &beside, &objects()?),
            None => diff(&beside, objects),
        }
    }
}

fn ruleset(args: &RulesetArgs) -> anyhow::Result<ExitCode> {
    let ruleset = inspect::Ruleset::read()?;
    if ruleset.is_empty() {
        anyhow::bail!(
            "the kernel holds nothing of svcnet's proxy here: does it run in this network namespace?"
        );
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", ruleset.json(env!("CARGO_PKG_VERSION")))?;
    } else {
        write!(out, "{ruleset}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn desired(beside: &Beside, objects: &Objects) -> Vec<Frontend> {
    let (services, slices) = (objects.services.clone(), objects.slices.clone());
    inspect::frontends(on_node(beside, objects), services, slices)
}

fn on_node<'a>(beside: &'a Beside, objects: &'a Objects) -> OnNode<'a> {
    OnNode {
        name: &beside.here.node,
        config: &beside.proxy,
        node: objects.node.as_ref(),
    }
}

fn services(args: &ServicesArgs, beside: &Beside, objects: &Objects) -> anyhow::Result<ExitCode> {
    let mut frontends = desired(beside, objects);
    let total = frontends.len();
    // What can not be counted or compared is left out: the rest is as true without it.
    let connections = inspect::count(&frontends);
    let difference = Kernel::open(on_node(beside, objects), beside.here.mode)
        .and_then(|mut kernel| kernel.diff(frontends.iter().cloned()));
    if let Some(name) = &args.name {
        let whole = if name.contains('/') {
            name.clone()
        } else {
            format!("default/{name}")
        };
        let with_port = format!("{whole}:");
        frontends.retain(|frontend| *frontend.name == *whole || frontend.name.starts_with(&with_port));
        if frontends.is_empty() {
            anyhow::bail!("{}", nothing_for(&whole, objects));
        }
    }
    let holds = |key: FrontendKey| Some(!difference.as_ref().ok()?.concerns(key));
    let shown = inspect::show(
        &frontends,
        &objects.services,
        &objects.slices,
        connections.as_ref().ok(),
        holds,
    );
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?,
        Output::Text => {
            for (index, service) in shown.iter().enumerate() {
                write!(out, "{}{service}", if index == 0 { "" } else { "\n" })?;
            }
            if args.name.is_none() {
                let mode = beside.here.mode;
                writeln!(
                    out,
                    "\n{} on {}, mode {mode}",
                    count(total, "frontend"),
                    beside.here.node
                )?;
            }
        }
    }
    if let Err(error) = &connections {
        eprintln!("svcnet: connections not counted: {error}");
    }
    match difference {
        Err(error) => eprintln!("svcnet: not compared with the kernel: {error}"),
        Ok(difference) if !difference.is_empty() => eprintln!(
            "svcnet: the kernel differs by {}: svcnet proxy diff",
            count(difference.len(), "operation")
        ),
        Ok(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Why there is nothing to show for a Service.
fn nothing_for(name: &str, objects: &Objects) -> String {
    let found = objects.services.iter().find(|service| {
        let metadata = &service.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()) == name
    });
    let Some(service) = found else {
        return format!("there is no Service {name}; one of another namespace is NAMESPACE/NAME");
    };
    match svcnet_proxy::view::Service::new(service) {
        Err(skipped) => format!("the proxy has nothing to do with the Service {name}: {skipped}"),
        Ok(_) => format!("the Service {name} has no frontend here: this node answers its addresses itself"),
    }
}

fn diff(beside: &Beside, objects: impl Fn() -> anyhow::Result<Objects>) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut left = None;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let objects = objects()?;
        let frontends = desired(beside, &objects);
        let mut kernel = Kernel::open(on_node(beside, &objects), beside.here.mode)?;
        let difference = kernel.diff(frontends.iter().cloned())?;
        let total = count(frontends.len(), "frontend");
        if difference.is_empty() {
            let impossible = difference.impossible();
            for (key, why) in impossible {
                writeln!(out, "not served: {key}: {why}")?;
            }
            match impossible.len() {
                0 => writeln!(out, "the kernel holds all {total} as it should")?,
                some => writeln!(out, "the kernel holds {total} as it should, but for {some}")?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        left = Some((difference, total));
    }
    let (difference, total) = left.context("looked at nothing")?;
    write!(out, "{difference}")?;
    writeln!(
        out,
        "\n{} to do, for {total}",
        count(difference.len(), "operation")
    )?;
    if let Err(why) = &beside.here.agent {
        writeln!(out, "nobody carries them out: {why}")?;
    }
    Ok(ExitCode::FAILURE)
}

/// How many operations the kernel of this node is away from what it should hold.
pub(crate) fn drift(facts: &inspect::Facts, objects: &Objects) -> Result<usize, BackendError> {
    let (services, slices) = (objects.services.clone(), objects.slices.clone());
    let on = OnNode {
        name: &facts.node,
        config: &facts.config,
        node: objects.node.as_ref(),
    };
    let frontends = inspect::frontends(on, services, slices);
    let mut kernel = Kernel::open(on, facts.mode)?;
    let mut operations = 0;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        operations = kernel.diff(frontends.iter().cloned())?.len();
        if operations == 0 {
            break;
        }
    }
    Ok(operations)
}

/// `1 operation`, `2 operations`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
