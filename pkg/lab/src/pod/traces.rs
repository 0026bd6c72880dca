//! What a supervisor holds, noted where the next one finds it: `RUN-DIR/pods/NETNS.json`.
//!
//! The note is written as soon as the namespace is made and removed last, so that whatever a killed supervisor left is
//! named in one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::ProcessId;
use crate::state::{self, StateError};

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// On the way: no address yet, or its program does not listen yet.
    Starting,
    /// Ready, and the API knows it.
    Ready,
    /// Not ready any more.
    NotReady,
    /// Its program ended and waits for the next try.
    Waiting,
}

/// What a supervisor holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// Itself.
    pub supervisor: ProcessId,
    /// Name of the pod's network namespace.
    pub netns: String,
    /// The Pod object.
    pub pod: String,
    /// Its namespace in the API.
    pub namespace: String,
    /// Its uid, once the object is there.
    pub uid: Option<String>,
    /// What the CNI plugin knows the pod by.
    pub container_id: String,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// How far it has come.
    pub stage: Stage,
}

/// Where a note stands.
#[derive(Debug, Clone)]
pub struct NotePath(PathBuf);

impl NotePath {
    /// The note on a network namespace.
    pub fn of(run_dir: &Path, netns: &str) -> Self {
        Self(run_dir.join("pods").join(format!("{netns}.json")))
    }

    /// The note, if there is one.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn read(&self) -> Result<Option<Note>, StateError> {
        state::read(&self.0)
    }

    /// Writes the note.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn write(&self, note: &Note) -> Result<(), StateError> {
        if let Some(dir) = self.0.parent() {
            std::fs::create_dir_all(dir).map_err(|source| StateError::Io {
                what: "create",
                path: dir.to_path_buf(),
                source,
            })?;
        }
        state::write(&self.0, note)
    }

    /// Removes the note, and the directory that it leaves empty.
    pub fn remove(&self) {
        // That it is gone is what was wanted.
        _ = std::fs::remove_file(&self.0);
        _ = self.0.parent().map(std::fs::remove_dir);
    }
}
