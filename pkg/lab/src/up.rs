//! `lab up`: from nothing to a cluster that answers.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use svcnet_netlink::netns::{self, NetNs};

use crate::down::{self, DownError};
use crate::names::{LabName, Member, NameError, NodeId, Stack};
use crate::plan::{LabPlan, NodePlan};
use crate::process::{Launch, ProcessError, ProcessId, last_lines};
use crate::segment::{self, SegmentError};
use crate::state::{LabDir, LabRecord, NodeRecord, StateError};

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(3);
/// How long a lab may take to become ready. Long: machines are shared.
const PATIENCE: Duration = Duration::from_secs(90);
/// Nodes of a lab when nothing else is asked for.
const NODES_DEFAULT: u32 = 3;
/// Lines of a log that an error shows.
const LOG_LINES: usize = 15;
/// Where an agent tells its health (`--metrics-bind-address`).
const OPS_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// A lab did not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Not the super-user.
    #[error("a lab needs root: it makes network namespaces (try: sudo svcnet lab up)")]
    NotRoot,
    /// Half of the lab is there.
    #[error("lab {0} is there but not whole: `svcnet lab down --name {0}` removes it, then try again")]
    HalfMade(LabName),
    /// Another one of the name is there.
    #[error(
        "lab {lab} is up already, with {have} nodes and not {want}: take it down first, or give the new one another --name"
    )]
    Other {
        /// The lab.
        lab: LabName,
        /// Nodes that it has.
        have: u32,
        /// Nodes that it was to have.
        want: u32,
    },
    /// Another one of the name is there.
    #[error("lab {0} is up already, without IPv6: take it down first, or give the new one another --name")]
    SingleStack(LabName),
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The segment.
    #[error("make the segment; `svcnet check` tells what this host lacks")]
    Segment(#[from] SegmentError),
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// A node's configuration.
    #[error("write {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A node's process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A node's process ended.
    #[error("the process of {node} ended; its last words:\n{log}")]
    Ended {
        /// The node.
        node: NodeId,
        /// The end of its log.
        log: String,
    },
    /// A node does not become ready.
    #[error("{node} is not ready after {PATIENCE:?}: {why}; the last lines of its log:\n{log}")]
    NotReady {
        /// The node.
        node: NodeId,
        /// What it says itself.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// It could not be removed after a failure.
    #[error("and what was made could not be removed")]
    Undo(#[from] DownError),
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Name of the lab.
    pub name: LabName,
    /// How many nodes; what is usual, or what is there, without.
    pub nodes: Option<u32>,
    /// Which address families.
    pub stack: Stack,
    /// The svcnet binary to run in it.
    pub binary: PathBuf,
    /// Further arguments of the server.
    pub server_args: Vec<String>,
    /// Further arguments of the agents.
    pub agent_args: Vec<String>,
    /// Whether to leave a lab that did not come up, to look at it.
    pub keep: bool,
}

/// How far a lab has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Namespaces and cables are there.
    Segment,
    /// The server answers and has written its token.
    Server,
    /// A node says that it is ready.
    Node(NodeId),
    /// The API knows all nodes as ready.
    Cluster,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment => f.write_str("network namespaces and cables are there"),
            Self::Server => f.write_str("the server has started"),
            Self::Node(node) => write!(f, "{node} is ready"),
            Self::Cluster => f.write_str("the API shows every node as Ready"),
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The lab was made.
    Made,
    /// It was there already, and is as it was.
    WasUp,
}

/// Brings a lab up, and returns when it is ready. After a failure nothing of it is left, unless it is to be kept.
///
/// # Errors
/// When it can not be made or does not become ready.
pub fn up(options: UpOptions, progress: &(dyn Fn(Progress) + Sync)) -> Result<Outcome, UpError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(UpError::NotRoot);
    }
    let record = record(&options);
    let plan = LabPlan::of(&record)?;
    let dir = LabDir::of(&record.name);
    match dir.claim() {
        Err(StateError::Exists(_)) => return there_already(&dir, &options),
        claimed => claimed?,
    }
    let made = make(&dir, &record, &plan, progress);
    if made.is_err() && !options.keep {
        down::down(&record.name)?;
    }
    made.map(|()| Outcome::Made)
}

/// What would be made.
///
/// # Errors
/// When it is to have too few or too many nodes.
pub fn plan(options: &UpOptions) -> Result<LabPlan, NameError> {
    LabPlan::of(&record(options))
}

fn record(options: &UpOptions) -> LabRecord {
    LabRecord {
        name: options.name.clone(),
        nodes: options.nodes.unwrap_or(NODES_DEFAULT),
        stack: options.stack,
        binary: options.binary.clone(),
        server_args: options.server_args.clone(),
        agent_args: options.agent_args.clone(),
    }
}

fn there_already(dir: &LabDir, options: &UpOptions) -> Result<Outcome, UpError> {
    let half_made = || UpError::HalfMade(dir.name().clone());
    if !dir.is_complete() {
        return Err(half_made());
    }
    let there = dir.record()?;
    if let Some(want) = options.nodes.filter(|want| *want != there.nodes) {
        return Err(UpError::Other {
            lab: there.name,
            have: there.nodes,
            want,
        });
    }
    if options.stack == Stack::Dual && there.stack == Stack::Single {
        return Err(UpError::SingleStack(there.name));
    }
    // After a reboot the files may still be there, where /run is a disk, but nothing else.
    if NetNs::open(&there.name.netns(&Member::Lan)).is_err() {
        return Err(half_made());
    }
    Ok(Outcome::WasUp)
}

fn make(
    dir: &LabDir,
    record: &LabRecord,
    plan: &LabPlan,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), UpError> {
    dir.write_record(record)?;
    segment::build(plan)?;
    progress(Progress::Segment);
    let deadline = Instant::now() + PATIENCE;
    for (index, node) in plan.nodes.iter().enumerate() {
        let process = start_node(dir, record, node)?;
        if index == 0 {
            wait_for_token(dir, process, deadline)?;
            progress(Progress::Server);
        }
    }
    let nodes: Vec<NodeId> = plan.nodes.iter().map(|node| node.node).collect();
    wait_for_nodes(dir, &nodes, deadline, progress)?;
    wait_for_api(dir, &nodes, deadline)?;
    progress(Progress::Cluster);
    Ok(dir.mark_complete()?)
}

/// Starts a node's process and notes it.
///
/// # Errors
/// When it can not be started.
pub fn start_node(dir: &LabDir, record: &LabRecord, plan: &NodePlan) -> Result<ProcessId, UpError> {
    let at = dir.node(plan.node);
    at.create()?;
    fs::write(&plan.config_path, &plan.config).map_err(|source| UpError::Config {
        path: plan.config_path.clone(),
        source,
    })?;
    let netns = NetNs::open(&record.name.netns(&Member::Node(plan.node)))?;
    let launch = Launch {
        program: record.binary.clone(),
        args: plan.args.iter().map(Into::into).collect(),
        log: at.log(),
        netns: &netns,
    };
    let child = launch.start()?;
    let process = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    at.write_record(&NodeRecord {
        process,
        args: plan.args.clone(),
    })?;
    process.ok_or_else(|| ended(dir, plan.node))
}

/// The server writes the token once it listens.
fn wait_for_token(dir: &LabDir, server: ProcessId, deadline: Instant) -> Result<(), UpError> {
    let token = dir.token();
    while !fs::metadata(&token).is_ok_and(|meta| meta.len() > 0) {
        if !server.is_alive() {
            return Err(ended(dir, NodeId::SERVER));
        }
        if Instant::now() > deadline {
            return Err(not_ready(
                dir,
                NodeId::SERVER,
                "it has written no token".to_string(),
            ));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// Waits until each of the nodes says that it is ready.
///
/// # Errors
/// When one ends, or is not ready in time.
pub fn wait_for_nodes(
    dir: &LabDir,
    nodes: &[NodeId],
    deadline: Instant,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), UpError> {
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for node in nodes {
            let sender = sender.clone();
            scope.spawn(move || sender.send((*node, wait_for_node(dir, *node, deadline))));
        }
        drop(sender);
        let mut failure = None;
        for (node, result) in receiver {
            match result {
                Ok(()) => progress(Progress::Node(node)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

fn wait_for_node(dir: &LabDir, node: NodeId, deadline: Instant) -> Result<(), UpError> {
    let process = dir.node(node).record()?.and_then(|record| record.process);
    let netns = NetNs::open(&dir.name().netns(&Member::Node(node)))?;
    netns.run(|| {
        loop {
            let why = match ready(OPS_ADDRESS) {
                Ok((true, _)) => return Ok(()),
                Ok((false, text)) => text,
                Err(error) => format!("{OPS_ADDRESS}/readyz does not answer: {error}"),
            };
            if !process.is_some_and(ProcessId::is_alive) {
                return Err(ended(dir, node));
            }
            if Instant::now() > deadline {
                return Err(not_ready(dir, node, why));
            }
            thread::sleep(GLANCE);
        }
    })?
}

/// Asks `/readyz` in this thread's namespace: whether all is ready, and what is not.
///
/// # Errors
/// When nobody answers.
pub fn ready(address: SocketAddr) -> io::Result<(bool, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let failed: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    Ok((head.starts_with("HTTP/1.1 200"), failed.join("; ")))
}

/// Waits until the API shows every node as Ready and with a range of addresses for its pods.
///
/// # Errors
/// When one is not in time.
pub fn wait_for_api(dir: &LabDir, nodes: &[NodeId], deadline: Instant) -> Result<(), UpError> {
    let netns = NetNs::open(&dir.name().netns(&Member::Node(NodeId::SERVER)))?;
    netns.run(|| {
        loop {
            let why = match unready_nodes(dir, nodes) {
                Ok(unready) => match unready.first() {
                    None => return Ok(()),
                    Some(node) => (
                        *node,
                        "the API does not show it as Ready, with a podCIDR".to_string(),
                    ),
                },
                Err(error) => (NodeId::SERVER, error.to_string()),
            };
            if Instant::now() > deadline {
                return Err(not_ready(dir, why.0, why.1));
            }
            thread::sleep(GLANCE);
        }
    })?
}

fn unready_nodes(
    dir: &LabDir,
    nodes: &[NodeId],
) -> Result<Vec<NodeId>, Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let known = runtime.block_on(async {
        let client = svcnet_runtime::connect::client(&dir.kubeconfig()).await?;
        let list = Api::<Node>::all(client).list(&ListParams::default()).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(list.items)
    })?;
    let is_ready = |node: &Node| {
        let has_range = node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        has_range
            && conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    let ready = |id: &NodeId| {
        let name = id.to_string();
        known
            .iter()
            .any(|node| node.metadata.name.as_deref() == Some(&name) && is_ready(node))
    };
    Ok(nodes.iter().copied().filter(|id| !ready(id)).collect())
}

fn ended(dir: &LabDir, node: NodeId) -> UpError {
    UpError::Ended {
        node,
        log: last_lines(&dir.node(node).log(), LOG_LINES),
    }
}

fn not_ready(dir: &LabDir, node: NodeId, why: String) -> UpError {
    UpError::NotReady {
        node,
        why,
        log: last_lines(&dir.node(node).log(), LOG_LINES),
    }
}
