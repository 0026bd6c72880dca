//! Asks the daemon: one call, one connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::protocol::{AddResult, CniError, Command, Invocation, PodRef, Version, code};

/// A daemon that takes longer has lost the call.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the daemon answers: a result, which may be null, or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It is done.
    Result(Value),
    /// It is not.
    Error(CniError),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("the svcnet agent does not answer at {path}: {source}. Is it running on this node?")]
    Away {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the svcnet agent at {path} broke: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon refused.
    #[error(transparent)]
    Refused(#[from] CniError),
}

impl Error {
    /// As a runtime reads it.
    pub fn into_cni(self) -> CniError {
        match self {
            Self::Refused(error) => error,
            away => CniError::new(code::RETRY, "the svcnet agent is not available").because(away),
        }
    }
}

/// A daemon, by its socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens there: [`crate::socket_path`].
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// When the daemon is away, or refuses.
    pub fn call(&self, invocation: &Invocation) -> Result<Value, Error> {
        let path = || self.socket.clone();
        let away = |source| Error::Away { path: path(), source };
        let broken = |source| Error::Broken { path: path(), source };
        let mut stream = UnixStream::connect(&self.socket).map_err(away)?;
        let exchange = |stream: &mut UnixStream| -> io::Result<Answer> {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(&serde_json::to_vec(invocation)?)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(serde_json::from_slice(&answer)?)
        };
        match exchange(&mut stream).map_err(broken)? {
            Answer::Result(value) => Ok(value),
            Answer::Error(error) => Err(error.into()),
        }
    }

    /// Attaches a container: its interface `eth0`, with all that CNI ADD does.
    ///
    /// # Errors
    /// When the daemon is away, or refuses.
    pub fn add(&self, container: &str, netns: &Path, pod: Option<&PodRef>) -> Result<AddResult, Error> {
        let answer = self.call(&invocation(Command::Add, container, netns, pod))?;
        serde_json::from_value(answer).map_err(|e| {
            CniError::new(code::DECODE, "the svcnet agent answers something else")
                .because(e)
                .into()
        })
    }

    /// Detaches a container; that it is not attached is fine.
    ///
    /// # Errors
    /// When the daemon is away, or can not.
    pub fn del(&self, container: &str, netns: &Path, pod: Option<&PodRef>) -> Result<(), Error> {
        self.call(&invocation(Command::Del, container, netns, pod))
            .map(drop)
    }
}

fn invocation(command: Command, container: &str, netns: &Path, pod: Option<&PodRef>) -> Invocation {
    let mut args = String::new();
    if let Some(PodRef { namespace, name, uid }) = pod {
        args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        if let Some(uid) = uid {
            args += &format!(";K8S_POD_UID={uid}");
        }
    }
    Invocation {
        command,
        container_id: container.to_string(),
        netns: netns.display().to_string(),
        ifname: "eth0".to_string(),
        args,
        config: json!({ "cniVersion": Version::V1_1_0.as_str(), "name": "svcnet-programs", "type": crate::plugin::NAME }),
    }
}
