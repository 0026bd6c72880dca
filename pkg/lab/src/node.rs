//! `lab node`: a node's processes and its cable.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use svcnet_netlink::netns::NetNs;

use crate::names::{LabName, Member, NodeId};
use crate::plan::NodePlan;
use crate::pods::{self, PodsError};
use crate::process::{self, ProcessError, ProcessId};
use crate::state::{LabDir, NodeRecord, StateError};
use crate::up::{self, UpError};

/// What the processes of a node may take to end after the signal.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a node may take to be ready again.
const READY_PATIENCE: Duration = Duration::from_secs(90);

/// A node could not be stopped or started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// No such node.
    #[error("lab {lab} has no node {node}")]
    Unknown {
        /// The lab.
        lab: LabName,
        /// The node.
        node: NodeId,
    },
    /// It does not end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It does not start.
    #[error(transparent)]
    Up(#[from] UpError),
    /// A pod of it does not come back.
    #[error(transparent)]
    Pods(#[from] PodsError),
}

/// Which of a node's processes to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All, as when the machine goes down: its pods' too.
    Machine,
    /// The agent (and server) alone, as for an upgrade.
    Agent,
}

/// Stops a node's processes: pods first, so that they leave in order, then its agent. SIGKILL asks nobody.
///
/// # Errors
/// When there is no such node, or a process does not end.
pub fn stop(lab: &LabName, node: NodeId, signal: Signal, extent: Extent) -> Result<(), NodeError> {
    let (dir, record) = find(lab, node)?;
    if extent == Extent::Machine {
        let pods = pods::on_node(&dir, node);
        let supervisors: Vec<ProcessId> = pods
            .iter()
            .filter_map(|(_, record)| record.process)
            .filter(|process| process.is_alive())
            .collect();
        for (name, mut record) in pods {
            record.resume = record.process.is_some_and(ProcessId::is_alive) || record.resume;
            dir.pod(&name).write_record(&record)?;
            if signal == Signal::SIGKILL
                && let Ok(netns) = NetNs::open(&lab.netns(&Member::Pod(name)))
                && let Ok(id) = netns.id()
            {
                process::stop(&supervisors, signal, Duration::ZERO)?;
                process::stop(&process::inside(&[id]), signal, Duration::ZERO)?;
            }
        }
        process::stop(&supervisors, signal, PATIENCE)?;
    }
    let own: Vec<ProcessId> = record.process.into_iter().collect();
    process::stop(&own, signal, PATIENCE)?;
    dir.node(node).write_record(&NodeRecord {
        process: None,
        args: record.args,
    })?;
    Ok(())
}

/// Starts a node again, and the pods that were stopped with it. Waits until all of them are ready, if asked to, and
/// tells whether there was anything to start.
///
/// # Errors
/// When there is no such node, or it does not become ready.
pub fn start(lab: &LabName, node: NodeId, more: &[String], wait: bool) -> Result<bool, NodeError> {
    let (dir, record) = find(lab, node)?;
    if record.process.is_some_and(ProcessId::is_alive) {
        return Ok(false);
    }
    let made = dir.record()?;
    let mut plan = NodePlan::of(&made, node, Some(more));
    if more.is_empty() {
        // As it was started last.
        plan.args = record.args;
    }
    up::start_node(&dir, &made, &plan)?;
    if wait {
        let deadline = Instant::now() + READY_PATIENCE;
        up::wait_for_nodes(&dir, &[node], deadline, &|_| {})?;
        let server = dir
            .node(NodeId::SERVER)
            .record()?
            .and_then(|server| server.process);
        if server.is_some_and(ProcessId::is_alive) {
            up::wait_for_api(&dir, &[node], deadline)?;
        }
    }
    pods::resume(&dir, node, wait)?;
    Ok(true)
}

fn find(lab: &LabName, node: NodeId) -> Result<(LabDir, NodeRecord), NodeError> {
    let dir = LabDir::of(lab);
    dir.record()?;
    let record = dir.node(node).record()?.ok_or_else(|| NodeError::Unknown {
        lab: lab.clone(),
        node,
    })?;
    Ok((dir, record))
}
