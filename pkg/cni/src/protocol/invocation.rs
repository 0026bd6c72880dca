//! One call of the plugin: the environment and the configuration, and what they mean.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use svcnet_api::types::IfName;

use super::args::Args;
use super::config::is_name;
use super::{CniError, NetConf, RuntimeConfig, Version, code};

/// Longer container names do not fit the name of a lease's file.
const CONTAINER_LENGTH_MAX: usize = 200;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it still attached as it was?
    Check,
    /// Free what no container uses.
    Gc,
    /// Could a container be attached now?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The version that brought it.
    fn since(self) -> Version {
        match self {
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
            _ => Version::V0_3_1,
        }
    }
}

/// A call as it arrives: the same on the plugin's side and, over the socket, on the daemon's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`: a path.
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE;…`.
    #[serde(default)]
    pub args: String,
    /// Standard input.
    pub config: Value,
}

impl Invocation {
    /// Reads a call from the environment and standard input.
    ///
    /// # Errors
    /// When the command is missing or unknown, or the configuration is no JSON.
    pub fn from_env(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Self, CniError> {
        let value = |name: &str| env(name).unwrap_or_default();
        let command = value("CNI_COMMAND");
        if command.is_empty() {
            return Err(CniError::new(
                code::ENVIRONMENT,
                "CNI_COMMAND env variable missing",
            ));
        }
        let command = Command::parse(&command)
            .ok_or_else(|| CniError::new(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {command}")))?;
        let config = if stdin.iter().all(u8::is_ascii_whitespace) && command == Command::Version {
            Value::Object(serde_json::Map::default())
        } else {
            serde_json::from_slice(stdin).map_err(|e| {
                CniError::new(code::DECODE, "failed to decode the network configuration").because(e)
            })?
        };
        Ok(Self {
            command,
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: value("CNI_ARGS"),
            config,
        })
    }

    /// What the call means.
    ///
    /// # Errors
    /// What is missing or wrong, by the codes of the specification.
    pub fn parse(&self) -> Result<Request, CniError> {
        let config = NetConf::parse(&self.config)?;
        if config.version < self.command.since() {
            return Err(CniError::new(
                code::VERSION,
                format!(
                    "config version does not allow {}",
                    format!("{:?}", self.command).to_uppercase()
                ),
            )
            .because(format_args!("it came with version {}", self.command.since())));
        }
        let needs_attachment = matches!(self.command, Command::Add | Command::Del | Command::Check);
        let needs_netns = matches!(self.command, Command::Add | Command::Check);
        let missing: Vec<&str> = [
            (
                "CNI_CONTAINERID",
                needs_attachment && self.container_id.is_empty(),
            ),
            ("CNI_NETNS", needs_netns && self.netns.is_empty()),
            ("CNI_IFNAME", needs_attachment && self.ifname.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            let list = missing.join(",");
            return Err(CniError::new(
                code::ENVIRONMENT,
                format!("required env variables [{list}] missing"),
            ));
        }
        let attachment = if needs_attachment {
            Some(Attachment::new(&self.container_id, &self.ifname)?)
        } else {
            None
        };
        let args = Args::parse(&self.args)?;
        // What is torn down is torn down however it was asked for.
        let runtime = match self.command {
            Command::Add | Command::Check => RuntimeConfig::parse(&self.config, &args)?,
            _ => RuntimeConfig::default(),
        };
        Ok(Request {
            command: self.command,
            attachment,
            netns: (!self.netns.is_empty()).then(|| PathBuf::from(&self.netns)),
            pod: args.pod,
            config,
            runtime,
        })
    }
}

/// One interface of one container: what ADD makes and DEL takes away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawAttachment", into = "RawAttachment")]
pub struct Attachment {
    container: String,
    ifname: IfName,
}

#[derive(Serialize, Deserialize)]
struct RawAttachment {
    container: String,
    ifname: String,
}

impl TryFrom<RawAttachment> for Attachment {
    type Error = CniError;

    fn try_from(raw: RawAttachment) -> Result<Self, CniError> {
        Self::new(&raw.container, &raw.ifname)
    }
}

impl From<Attachment> for RawAttachment {
    fn from(attachment: Attachment) -> Self {
        Self {
            container: attachment.container,
            ifname: attachment.ifname.to_string(),
        }
    }
}

impl Attachment {
    /// An interface of a container.
    ///
    /// # Errors
    /// When one of the names is none.
    pub fn new(container: &str, ifname: &str) -> Result<Self, CniError> {
        if !is_name(container) || container.len() > CONTAINER_LENGTH_MAX {
            return Err(
                CniError::new(code::ENVIRONMENT, "invalid characters in containerID")
                    .because(format_args!("CNI_CONTAINERID: {container:?}")),
            );
        }
        let ifname = ifname.parse::<IfName>().map_err(|e| {
            CniError::new(code::ENVIRONMENT, "invalid interface name")
                .because(format_args!("CNI_IFNAME: {e}"))
        })?;
        Ok(Self {
            container: container.to_string(),
            ifname,
        })
    }

    /// The container.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The interface's name within it.
    pub fn ifname(&self) -> &str {
        self.ifname.as_str()
    }
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

/// The pod that a container belongs to, as runtimes tell in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity, if the runtime knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// A call that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// For ADD, DEL and CHECK.
    pub attachment: Option<Attachment>,
    /// The container's network namespace. DEL may come without.
    pub netns: Option<PathBuf>,
    /// The pod, if the runtime says one.
    pub pod: Option<PodRef>,
    /// The configuration.
    pub config: NetConf,
    /// What the runtime asks for beside an address.
    pub runtime: RuntimeConfig,
}
