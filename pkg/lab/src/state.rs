//! Where a lab stands on disk.
//!
//! ```text
//! /run/svcnet/labs/NAME/
//!   lab.json              what the lab was made as (written once, by `lab up`)
//!   ready                 there when `lab up` came to its end
//!   nodes/n1/             data/ run/ etc/ of the node's processes
//!   nodes/n1/node.json    its process and how it was started (by `lab up` and `lab node`)
//!   nodes/n1/log          what its process wrote
//!   pods/web1/pod.json    the pod's supervisor and how it was started (by `lab pod run`)
//!   pods/web1/log         what the supervisor and the pod's command wrote
//! ```
//!
//! Each file is replaced in one step (written aside, renamed), so that a reader never sees half of it. The directory
//! itself is the claim on the name: making it is how two `lab up` of one name find out about each other.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::names::{LabName, Member, NodeId, PodName, Stack};
use crate::process::ProcessId;

/// Where labs stand.
pub const LABS_DIR: &str = "/run/svcnet/labs";

/// A file of a lab that can not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No lab of that name.
    #[error(
        "there is no lab {0:?}: `svcnet lab up --name {0}` makes it, `svcnet lab list` shows those there are"
    )]
    NoLab(LabName),
    /// The name is taken.
    #[error("lab {0} is there already")]
    Exists(LabName),
    /// The file system.
    #[error("{what} {path}")]
    Io {
        /// What failed.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content of a file.
    #[error("{path} is damaged; `svcnet lab down` removes the lab")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// What a lab was made as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabRecord {
    /// Its name.
    pub name: LabName,
    /// How many nodes it has.
    pub nodes: u32,
    /// Which address families it has.
    pub stack: Stack,
    /// The svcnet binary that runs in it.
    pub binary: PathBuf,
    /// What `lab up --server-arg` gave.
    pub server_args: Vec<String>,
    /// What `lab up --agent-arg` gave.
    pub agent_args: Vec<String>,
}

/// A node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// The process, unless the node is stopped.
    pub process: Option<ProcessId>,
    /// Its arguments.
    pub args: Vec<String>,
}

/// A pod's supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// The node that it is on.
    pub node: NodeId,
    /// Its namespace in the API.
    pub namespace: String,
    /// The process, as it was started last.
    pub process: Option<ProcessId>,
    /// Arguments of `svcnet`, `pod run …`.
    pub args: Vec<String>,
    /// Whether `lab node stop` stopped it, so that `lab node start` brings it back.
    pub resume: bool,
}

/// The directory of a lab.
#[derive(Debug, Clone)]
pub struct LabDir {
    path: PathBuf,
    name: LabName,
}

impl LabDir {
    /// The directory of the lab, whether or not it is there.
    pub fn of(name: &LabName) -> Self {
        Self {
            path: Path::new(LABS_DIR).join(name.as_str()),
            name: name.clone(),
        }
    }

    /// Claims the name.
    ///
    /// # Errors
    /// When it is taken ([`StateError::Exists`]), or the directory can not be made.
    pub fn claim(&self) -> Result<(), StateError> {
        fs::create_dir_all(LABS_DIR).map_err(failed("create", LABS_DIR))?;
        match fs::create_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Exists(self.name.clone())),
            Err(e) => Err(failed("create", &self.path)(e)),
        }
    }

    /// Whether the lab is there, whole or half-made.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// What the lab was made as.
    ///
    /// # Errors
    /// When there is no such lab.
    pub fn record(&self) -> Result<LabRecord, StateError> {
        read(&self.path.join("lab.json"))?.ok_or_else(|| StateError::NoLab(self.name.clone()))
    }

    /// Writes what the lab is made as, and links its binary into [`Self::programs`].
    ///
    /// # Errors
    /// When a file can not be written.
    pub fn write_record(&self, record: &LabRecord) -> Result<(), StateError> {
        let link = self.programs().join("svcnet");
        fs::create_dir_all(self.programs())
            .and_then(|()| symlink(&record.binary, &link))
            .map_err(failed("write", link))?;
        write(&self.path.join("lab.json"), record)
    }

    /// What goes before the host's programs in its members: `svcnet`, as it runs in the lab.
    pub fn programs(&self) -> PathBuf {
        self.path.join("bin")
    }

    /// Whether `lab up` came to its end.
    pub fn is_complete(&self) -> bool {
        self.path.join("ready").exists()
    }

    /// Notes that `lab up` came to its end.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn mark_complete(&self) -> Result<(), StateError> {
        let path = self.path.join("ready");
        fs::write(&path, "").map_err(failed("write", path))
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// A node's directory.
    pub fn node(&self, node: NodeId) -> NodeDir {
        NodeDir(self.path.join("nodes").join(node.to_string()))
    }

    /// A pod's directory.
    pub fn pod(&self, pod: &PodName) -> PodDir {
        PodDir(self.path.join("pods").join(pod.as_str()))
    }

    /// The pods that were started and not removed, with those that have ended by themselves.
    pub fn pods(&self) -> Vec<PodName> {
        children(&self.path.join("pods"))
    }

    /// The administrator's kubeconfig, which the server writes.
    pub fn kubeconfig(&self) -> PathBuf {
        self.node(NodeId::SERVER).etc().join("kubeconfig.yaml")
    }

    /// The token that agents join with, which the server writes.
    pub fn token(&self) -> PathBuf {
        self.node(NodeId::SERVER).data().join("token")
    }

    /// The log of a member's process.
    pub fn log(&self, member: &Member) -> Option<PathBuf> {
        match member {
            Member::Node(node) => Some(self.node(*node).log()),
            Member::Pod(pod) => Some(self.pod(pod).log()),
            Member::Client | Member::Lan => None,
        }
    }

    /// Removes all files of the lab, and the directories above it that are left empty.
    ///
    /// # Errors
    /// When a file can not be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &self.path)(e)),
            _ => {}
        }
        // Not empty means that somebody else is there: they go when the last one does.
        _ = fs::remove_dir(LABS_DIR).and_then(|()| fs::remove_dir(svcnet_api::wellknown::DEFAULT_RUN_DIR));
        Ok(())
    }
}

/// The labs there are, whole or half-made.
pub fn labs() -> Vec<LabName> {
    children(Path::new(LABS_DIR))
}

/// A node's directory.
#[derive(Debug, Clone)]
pub struct NodeDir(PathBuf);

impl NodeDir {
    /// `--data-dir` of its process.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// `--run-dir` of its process.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// What would be /etc/svcnet on a host.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// What its process wrote.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// When one can not be made.
    pub fn create(&self) -> Result<(), StateError> {
        for path in [self.data(), self.run(), self.etc()] {
            fs::create_dir_all(&path).map_err(failed("create", path))?;
        }
        Ok(())
    }

    /// The node's process, if it was ever started.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn record(&self) -> Result<Option<NodeRecord>, StateError> {
        read(&self.0.join("node.json"))
    }

    /// Notes the node's process.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn write_record(&self, record: &NodeRecord) -> Result<(), StateError> {
        write(&self.0.join("node.json"), record)
    }
}

/// A pod's directory.
#[derive(Debug, Clone)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// What the supervisor and the pod's command wrote.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// When it can not be made.
    pub fn create(&self) -> Result<(), StateError> {
        fs::create_dir_all(&self.0).map_err(failed("create", &self.0))
    }

    /// How the pod was started, if it is there.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn record(&self) -> Result<Option<PodRecord>, StateError> {
        read(&self.0.join("pod.json"))
    }

    /// Notes how the pod was started.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn write_record(&self, record: &PodRecord) -> Result<(), StateError> {
        write(&self.0.join("pod.json"), record)
    }

    /// Forgets the pod.
    ///
    /// # Errors
    /// When a file can not be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.0)(e)),
            _ => Ok(()),
        }
    }
}

/// The value in a JSON file; none when there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path)(e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| StateError::Damaged {
            path: path.to_path_buf(),
            source,
        })
}

/// Replaces a JSON file in one step.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let aside = path.with_extension("new");
    let text = serde_json::to_vec_pretty(value).map_err(|source| StateError::Damaged {
        path: path.to_path_buf(),
        source,
    })?;
    fs::write(&aside, text)
        .and_then(|()| fs::rename(&aside, path))
        .map_err(failed("write", path))
}

fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StateError {
    let path = path.into();
    move |source| StateError::Io { what, path, source }
}

/// The names of a directory that are names of what it should hold; none when it is missing.
fn children<T: std::str::FromStr + Ord>(path: &Path) -> Vec<T> {
    let mut names: Vec<T> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    names
}
