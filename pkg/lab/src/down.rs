//! `lab down`: everything of a lab goes, however far its making came.

use std::io;

use nix::sys::signal::Signal;
use svcnet_netlink::netns::{self, NetNs};

use crate::exec::resolv_conf_of;
use crate::names::{LabName, Member};
use crate::plan::namespaces;
use crate::process::{self, ProcessError, ProcessId};
use crate::state::{LabDir, StateError};

/// Looks for processes in the namespaces of a lab: one may start another while it is being killed.
const SWEEPS_MAX: usize = 20;

/// Something of a lab is left.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file outside the lab's directory.
    #[error("remove {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Processes that ran.
    pub processes: usize,
    /// Namespaces.
    pub namespaces: usize,
}

/// Removes a lab: processes, namespaces with all that is in them, files. Goes on after a failure and tells the first
/// one. None: there was no such lab.
///
/// # Errors
/// When something of it is left.
pub fn down(lab: &LabName) -> Result<Option<Removed>, DownError> {
    let dir = LabDir::of(lab);
    if !dir.exists() {
        return Ok(None);
    }
    let mut failures: Vec<DownError> = Vec::new();
    // A damaged record must not keep a lab from going: with the most nodes that there can be, all are found.
    let nodes = dir
        .record()
        .map_or(u32::from(crate::names::NODES_MAX), |record| record.nodes);
    let pods: Vec<Member> = dir.pods().into_iter().map(Member::Pod).collect();
    let names: Vec<String> = namespaces(lab, nodes, pods)
        .into_iter()
        .filter(|name| netns::path_of(name).is_ok_and(|path| path.exists()))
        .collect();
    let processes = kill_all(&dir, &names).unwrap_or_else(|error| {
        failures.push(error);
        0
    });
    for name in &names {
        match netns::delete(name) {
            Err(error) if !error.is_gone() => failures.push(error.into()),
            _ => {}
        }
        failures.extend(remove_resolv_conf(name).err());
    }
    if failures.is_empty() {
        failures.extend(dir.remove().err().map(DownError::from));
    }
    let removed = Removed {
        processes,
        namespaces: names.len(),
    };
    failures.into_iter().next().map_or(Ok(Some(removed)), Err)
}

/// Kills what runs in the namespaces, and what is recorded and still on its way into one.
fn kill_all(dir: &LabDir, names: &[String]) -> Result<usize, DownError> {
    let ids: Vec<netns::Id> = names
        .iter()
        .filter_map(|name| NetNs::open(name).ok()?.id().ok())
        .collect();
    let mut found = recorded(dir);
    let mut count = 0;
    for _ in 0..SWEEPS_MAX {
        found.extend(process::inside(&ids));
        found.sort();
        found.dedup();
        found.retain(|process| process.is_alive());
        if found.is_empty() {
            break;
        }
        count += found.len();
        process::stop(&found, Signal::SIGKILL, std::time::Duration::ZERO)?;
        found.clear();
    }
    Ok(count)
}

fn recorded(dir: &LabDir) -> Vec<ProcessId> {
    let nodes = crate::names::NodeId::first(u32::from(crate::names::NODES_MAX)).unwrap_or_default();
    let nodes = nodes
        .into_iter()
        .filter_map(|node| dir.node(node).record().ok()??.process);
    let pods = dir
        .pods()
        .into_iter()
        .filter_map(|pod| dir.pod(&pod).record().ok()??.process);
    nodes.chain(pods).collect()
}

/// The file of a pod's namespace under /etc/netns, and the directories that it leaves empty.
fn remove_resolv_conf(netns: &str) -> Result<(), DownError> {
    let path = resolv_conf_of(netns);
    match std::fs::remove_file(&path) {
        Ok(()) => {
            let dir = path.parent();
            _ = dir.map(std::fs::remove_dir);
            _ = dir.and_then(|dir| dir.parent()).map(std::fs::remove_dir);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DownError::File { path, source }),
    }
}
