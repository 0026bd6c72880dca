//! `svcnet lab`: clusters of network namespaces.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use nix::sys::signal::Signal;
use svcnet_lab::list::{self, Kind, LabView};
use svcnet_lab::names::{DEFAULT_LAB, LabName, Member, NodeId, PodName, Stack};
use svcnet_lab::node::{self, Extent};
use svcnet_lab::pods::{self, PodOptions};
use svcnet_lab::state::LabDir;
use svcnet_lab::up::{self, Outcome, Progress, UpOptions};
use svcnet_lab::{down, exec, segment};

/// Clusters of network namespaces on this machine: real packets, no images and containers
///
/// A lab has nodes n1, n2, … (the server on n1), a host `client` on the same layer 2 outside the cluster, and the pods
/// that you run. All share the segment 172.30.0.0/24 (n1 is .11, n2 .12, client .100); nothing of it touches the host's
/// own network. Several labs can be up at once, each under its --name.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet lab up
  svcnet lab exec n1 -- kubectl get svc -o wide
  svcnet lab pod run web1 --node n2 --label app=nginx --container-port 80
  svcnet lab exec web1 -- curl -s http://kubernetes.default
  svcnet lab node cut n2        # pull its cable …
  svcnet lab node heal n2       # … and plug it in again
  svcnet lab down")]
pub(crate) struct Args {
    /// Name of the lab
    #[arg(long, global = true, default_value = DEFAULT_LAB)]
    name: LabName,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a lab, and return when it is ready
    Up(UpArgs),
    /// Remove a lab: its processes, namespaces and files
    Down,
    /// Show the labs there are, with their members
    List(ListArgs),
    /// Run a command in a member: n1, n2, …, client, lan (the segment itself), or a pod; `svcnet` is the lab's own there
    Exec(ExecArgs),
    /// Run and remove pods
    #[command(subcommand)]
    Pod(PodCommand),
    /// Stop and start a node's processes, cut and heal its cable
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show what the process of a node or a pod wrote
    Logs(LogsArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// How many nodes [default: 3]
    #[arg(long, value_name = "COUNT")]
    nodes: Option<u32>,
    /// Give the segment, the pods and the Services IPv6 addresses too (segment fd00:172:30::/64: n1 is ::11, client ::100)
    #[arg(long)]
    dual_stack: bool,
    /// A further argument for `svcnet server` on n1, as in --server-arg=--service-node-port-range=30000-40000; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    server_arg: Vec<String>,
    /// A further argument for `svcnet agent` on the other nodes, and for the agent's part of the server; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// Leave a lab that does not come up, to look at it
    #[arg(long)]
    keep: bool,
    /// Print what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// As a table or as JSON
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// Where: n1, n2, …, client, lan, or the name of a pod
    member: Member,
    /// Program and arguments; KUBECONFIG is set for it [default: your shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum PodCommand {
    /// Run a pod, and return when it is ready
    Run(PodRunArgs),
    /// Remove a pod: its object, its process, its namespace
    Rm {
        /// Name of the pod
        pod: PodName,
    },
}

#[derive(Debug, clap::Args)]
struct PodRunArgs {
    /// Name of the pod
    pod: PodName,
    /// The node to run it on
    #[arg(long)]
    node: NodeId,
    /// Namespace of the Pod object
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// A label, KEY=VALUE; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A port that the pod listens on: NUMBER[/udp][=NAME]; may be repeated
    #[arg(long, value_name = "PORT")]
    container_port: Vec<svcnet_lab::pod::ContainerPort>,
    /// Return as soon as the pod has an address, ready or not
    #[arg(long)]
    no_wait: bool,
    /// Program and arguments [default: a responder that tells its name (/, /hostname) and its caller (/clientip)]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Stop a node's processes, its pods' too
    Stop {
        /// The node
        node: NodeId,
        /// TERM lets them end in order (KILL follows for what does not); KILL is a power cut
        #[arg(long, value_enum, default_value_t = StopSignal::Term)]
        signal: StopSignal,
        /// Stop the agent (and the server) alone; pods go on
        #[arg(long)]
        keep_pods: bool,
    },
    /// Start a node's processes again, and the pods that were stopped with it
    Start {
        /// The node
        node: NodeId,
        /// A further argument for `svcnet server`, if it runs on the node; may be repeated
        #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
        server_arg: Vec<String>,
        /// A further argument for `svcnet agent`; may be repeated
        #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
        agent_arg: Vec<String>,
        /// Return at once, ready or not
        #[arg(long)]
        no_wait: bool,
    },
    /// Pull a node's cable; `client` has one too
    Cut {
        /// The node, or client
        member: Member,
    },
    /// Plug a node's cable in again
    Heal {
        /// The node, or client
        member: Member,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum StopSignal {
    Term,
    Kill,
}

#[derive(Debug, clap::Args)]
struct LogsArgs {
    /// A node or a pod
    member: Member,
    /// Go on as more is written
    #[arg(long, short)]
    follow: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = args.name;
    match args.command {
        Command::Up(args) => bring_up(name, args)?,
        Command::Down => match down::down(&name)? {
            Some(gone) => println!(
                "lab {name} is gone: {} processes, {} network namespaces",
                gone.processes, gone.namespaces
            ),
            None => println!("there is no lab {name}"),
        },
        Command::List(args) => print_list(args.output)?,
        Command::Exec(args) => match exec::exec(&name, &args.member, &args.command)? {},
        Command::Pod(PodCommand::Run(args)) => run_pod(&name, args)?,
        Command::Pod(PodCommand::Rm { pod }) => {
            pods::remove(&name, &pod)?;
            println!("pod {pod} is gone");
        }
        Command::Node(command) => run_node(&name, command)?,
        Command::Logs(args) => print_log(&name, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn bring_up(name: LabName, args: UpArgs) -> anyhow::Result<()> {
    let mut server_args = args.agent_arg.clone();
    server_args.extend(args.server_arg);
    let options = UpOptions {
        name: name.clone(),
        nodes: args.nodes,
        stack: if args.dual_stack {
            Stack::Dual
        } else {
            Stack::Single
        },
        binary: std::env::current_exe().context("find this binary")?,
        server_args,
        agent_args: args.agent_arg,
        keep: args.keep,
    };
    if args.dry_run {
        print!("{}", up::plan(&options)?);
        return Ok(());
    }
    let begun = Instant::now();
    // A terminal wants to see that it goes on; a script wants the end alone.
    let shown = io::stderr().is_terminal();
    let progress = |step: Progress| {
        if shown {
            eprintln!("{:6.3} s  {step}", begun.elapsed().as_secs_f64());
        }
    };
    match up::up(options, &progress)? {
        Outcome::Made => println!("lab {name} is up, after {:.2} s", begun.elapsed().as_secs_f64()),
        Outcome::WasUp => println!("lab {name} is up already"),
    }
    print_hints(&list::view(&name));
    Ok(())
}

fn print_hints(lab: &LabView) {
    let option = if lab.name.as_str() == DEFAULT_LAB {
        String::new()
    } else {
        format!(" --name {}", lab.name)
    };
    let last = lab
        .members
        .iter()
        .rfind(|member| matches!(member.kind, Kind::Agent | Kind::Server));
    let last = last.map_or_else(|| "n1".to_string(), |node| node.name.to_string());
    let cluster_ip = "'{.spec.clusterIP}'";
    println!(
        "
Try:
  svcnet lab exec{option} n1 -- kubectl get nodes,svc -o wide
  svcnet lab pod run{option} web1 --node {last} --label app=web --container-port 80
  svcnet lab exec{option} n1 -- kubectl expose pod web1 --name web --port 80 --type NodePort
  svcnet lab exec{option} web1 -- curl -s http://web
  svcnet lab exec{option} n1 -- sh -c 'curl -s $(kubectl get svc web -o jsonpath={cluster_ip})'
  svcnet lab down{option}",
        cluster_ip = cluster_ip.replace('\'', "")
    );
}

fn print_list(format: Format) -> anyhow::Result<()> {
    let labs = list::list();
    let mut out = io::stdout().lock();
    if format == Format::Json {
        serde_json::to_writer_pretty(&mut out, &labs)?;
        writeln!(out)?;
        return Ok(());
    }
    if labs.is_empty() {
        writeln!(out, "no lab is up: `svcnet lab up` makes one")?;
        return Ok(());
    }
    let mut rows = vec![["LAB", "MEMBER", "KIND", "ADDRESS", "NODE", "STATE", "PID"].map(str::to_string)];
    for lab in &labs {
        rows.extend(lab.members.iter().map(|member| {
            let dash = || "-".to_string();
            [
                lab.name.to_string(),
                member.name.to_string(),
                format!("{:?}", member.kind).to_lowercase(),
                member.address.clone().unwrap_or_else(dash),
                member.node.map_or_else(dash, |node| node.to_string()),
                member.state.word().to_string(),
                member.pid.map_or_else(dash, |pid| pid.to_string()),
            ]
        }));
    }
    print_table(&mut out, &rows)?;
    for lab in labs.iter().filter(|lab| !lab.complete) {
        writeln!(
            out,
            "lab {0} is not whole: `svcnet lab down --name {0}` removes it",
            lab.name
        )?;
    }
    Ok(())
}

/// Columns as wide as their widest cell, three spaces between, as kubectl prints them.
pub(crate) fn print_table<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn run_pod(lab: &LabName, args: PodRunArgs) -> anyhow::Result<()> {
    let options = PodOptions {
        name: args.pod,
        node: args.node,
        namespace: args.namespace,
        labels: args.label,
        ports: args.container_port.iter().map(ToString::to_string).collect(),
        command: args.command,
        wait: !args.no_wait,
    };
    let address = pods::run(lab, &options)?;
    let address = address.map_or_else(|| "no address".to_string(), |address| address.to_string());
    let state = if options.wait { "is ready" } else { "has started" };
    println!("pod {} {state} on {}: {address}", options.name, options.node);
    Ok(())
}

fn run_node(lab: &LabName, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Stop {
            node,
            signal,
            keep_pods,
        } => {
            let signal = match signal {
                StopSignal::Term => Signal::SIGTERM,
                StopSignal::Kill => Signal::SIGKILL,
            };
            let extent = if keep_pods { Extent::Agent } else { Extent::Machine };
            node::stop(lab, node, signal, extent)?;
            println!("{node} is stopped");
        }
        NodeCommand::Start {
            node,
            server_arg,
            agent_arg,
            no_wait,
        } => {
            let mut more = agent_arg;
            if node == NodeId::SERVER {
                more.extend(server_arg);
            } else if !server_arg.is_empty() {
                bail!(
                    "the server runs on {}, not on {node}: use --agent-arg",
                    NodeId::SERVER
                );
            }
            match node::start(lab, node, &more, !no_wait)? {
                true if no_wait => println!("{node} is started"),
                true => println!("{node} is ready"),
                false => println!("{node} runs already"),
            }
        }
        NodeCommand::Cut { member } => {
            segment::set_cable(lab, &member, false)?;
            println!("the cable of {member} is cut");
        }
        NodeCommand::Heal { member } => {
            segment::set_cable(lab, &member, true)?;
            println!("the cable of {member} is whole");
        }
    }
    Ok(())
}

fn print_log(lab: &LabName, args: &LogsArgs) -> anyhow::Result<()> {
    let dir = LabDir::of(lab);
    dir.record()?;
    let Some(path) = dir.log(&args.member) else {
        bail!(
            "{} runs no process of its own: nodes and pods have logs",
            args.member
        );
    };
    let mut file =
        std::fs::File::open(&path).with_context(|| format!("there is no {} in lab {lab}", args.member))?;
    let mut out = io::stdout().lock();
    let mut read = 0;
    loop {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(read))?;
        read += u64::try_from(file.read_to_end(&mut text)?)?;
        // Whoever reads may have seen enough: `svcnet lab logs n1 | head`.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() || !args.follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
