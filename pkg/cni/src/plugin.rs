//! The plugin that runtimes run: it hands the call to the daemon and prints the answer.

use std::env;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};
use svcnet_api::wellknown::{DEFAULT_DATA_DIR, DEFAULT_RUN_DIR};
use svcnet_netlink::Rtnl;

use crate::client::{Client, Error};
use crate::daemon::detach_without_daemon;
use crate::ipam::Ipam;
use crate::protocol::{Attachment, CniError, Command, Invocation, Version, code};
use crate::{leases_dir, loopback, socket_path};

/// The plugin's name in a network configuration, and that of its file.
pub const NAME: &str = "svcnet-cni";

/// Runs as the plugin: the call is in the environment and on standard input, the answer goes to standard output.
pub fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut stdin);
    let answer = match read {
        Ok(_) => run(|name| env::var(name).ok(), &stdin),
        Err(e) => Err(CniError::new(code::IO, "failed to read the network configuration").because(e)),
    };
    let (text, exit) = match answer {
        Ok(Value::Null) => (String::new(), ExitCode::SUCCESS),
        Ok(value) => (format!("{value}\n"), ExitCode::SUCCESS),
        Err(error) => (
            format!("{}\n", error.render(&version_of(&stdin))),
            ExitCode::FAILURE,
        ),
    };
    // A runtime that does not read the answer has gone; nothing is left to tell.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    exit
}

/// Errors are told in the version of the configuration as far as there is one.
fn version_of(stdin: &[u8]) -> String {
    let config: Option<Value> = serde_json::from_slice(stdin).ok();
    let version = config
        .as_ref()
        .and_then(|c| c.get("cniVersion"))
        .and_then(Value::as_str);
    version.unwrap_or(Version::V1_0_0.as_str()).to_string()
}

/// The answer to a call: what is to be printed, null for nothing.
///
/// # Errors
/// As runtimes read them.
pub fn run(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Value, CniError> {
    let invocation = Invocation::from_env(&env, stdin)?;
    if invocation.command == Command::Version {
        let asked = invocation.config.get("cniVersion").and_then(Value::as_str);
        let version = asked.unwrap_or(Version::V1_1_0.as_str());
        return Ok(json!({ "cniVersion": version, "supportedVersions": Version::ALL.map(Version::as_str) }));
    }
    let request = invocation.parse()?;
    if invocation.config.get("type").and_then(Value::as_str) == Some(loopback::NAME) {
        return loopback::serve(&request);
    }
    let places = Places::of(&invocation.config, &env);
    match Client::new(&places.socket).call(&invocation) {
        Ok(value) => Ok(value),
        Err(Error::Refused(error)) => Err(error),
        Err(away) => match (&request.attachment, request.command) {
            (Some(attachment), Command::Del) => {
                delete_without_daemon(attachment, &places, away).map(|()| Value::Null)
            }
            (_, Command::Status) => {
                Err(CniError::new(code::UNAVAILABLE, "the svcnet agent is not available").because(away))
            }
            _ => Err(away.into_cni()),
        },
    }
}

/// Where the daemon is: the configuration that it wrote says so; without, the defaults.
struct Places {
    socket: PathBuf,
    /// Unknown when the configuration names a socket alone.
    data_dir: Option<PathBuf>,
}

impl Places {
    fn of(config: &Value, env: impl Fn(&str) -> Option<String>) -> Self {
        let path = |key: &str| config.get(key).and_then(Value::as_str).map(PathBuf::from);
        let dir = |name: &str, default: &str| PathBuf::from(env(name).unwrap_or_else(|| default.to_string()));
        match (path("socket"), path("dataDir")) {
            (Some(socket), data_dir) => Self { socket, data_dir },
            (None, data_dir) => Self {
                socket: socket_path(&dir("SVCNET_RUN_DIR", DEFAULT_RUN_DIR)),
                data_dir: Some(data_dir.unwrap_or_else(|| dir("SVCNET_DATA_DIR", DEFAULT_DATA_DIR))),
            },
        }
    }
}

/// A runtime tears down also when the agent is away, and forgets the container then. The lock on the leases tells
/// whether nobody else works on them; if somebody does, the daemon is about to be there. A lease that is out of reach
/// is freed by the daemon's next start, since neither its link nor its namespace will be there.
fn delete_without_daemon(attachment: &Attachment, places: &Places, away: Error) -> Result<(), CniError> {
    let mut leases = match places
        .data_dir
        .as_deref()
        .map(leases_dir)
        .filter(|dir| dir.exists())
    {
        Some(dir) => match Ipam::open(dir) {
            Ok(leases) => Some(leases),
            Err(_) => return Err(away.into_cni()),
        },
        None => None,
    };
    let mut rt =
        Rtnl::open().map_err(|e| CniError::new(code::KERNEL, "failed to delete the link").because(e))?;
    detach_without_daemon(&mut rt, leases.as_mut(), attachment)
}
