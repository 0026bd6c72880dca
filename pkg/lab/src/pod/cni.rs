//! The CNI plugin, called as a container runtime calls it: `svcnet cni` with its environment and a configuration.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;
use svcnet_netlink::netns;

use super::traces::Note;

/// The plugin did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// It could not be run.
    #[error("run the CNI plugin")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("CNI {command}: {message} (code {code})")]
    Refused {
        /// ADD or DEL.
        command: &'static str,
        /// Code of the CNI specification.
        code: u32,
        /// Its words.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("CNI {command} answered {answer:?}")]
    Answer {
        /// ADD or DEL.
        command: &'static str,
        /// What it printed.
        answer: String,
    },
}

impl CniError {
    /// Whether the agent is not there (yet): codes 5 (I/O), 11 (try again) and 50, 51 (not available).
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: 5 | 11 | 50 | 51,
                ..
            }
        )
    }
}

/// What ADD gave, as far as it is of use here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Added {
    ips: Vec<AddedIp>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct AddedIp {
    /// With its prefix length, as in 10.244.1.2/32.
    address: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Dns {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Added {
    /// The pod's address: the first one.
    pub fn address(&self) -> Option<IpAddr> {
        let text = self.ips.first()?.address.split('/').next()?;
        text.parse().ok()
    }

    /// The pod's `/etc/resolv.conf`; none when the plugin says nothing about names.
    pub fn resolv_conf(&self) -> Option<String> {
        if self.dns.nameservers.is_empty() {
            return None;
        }
        let mut text = String::new();
        if !self.dns.search.is_empty() {
            text += &format!("search {}\n", self.dns.search.join(" "));
        }
        for server in &self.dns.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.dns.options.is_empty() {
            text += &format!("options {}\n", self.dns.options.join(" "));
        }
        Some(text)
    }
}

/// Connects the pod of a note.
///
/// # Errors
/// When the plugin refuses, or can not be run.
pub fn add(note: &Note, run_dir: &Path) -> Result<Added, CniError> {
    let answer = call("ADD", note, run_dir)?;
    serde_json::from_str(&answer).map_err(|_| CniError::Answer {
        command: "ADD",
        answer,
    })
}

/// Disconnects the pod of a note; that it is not connected is right too.
///
/// # Errors
/// When the plugin refuses, or can not be run.
pub fn del(note: &Note, run_dir: &Path) -> Result<(), CniError> {
    call("DEL", note, run_dir).map(drop)
}

fn call(command: &'static str, note: &Note, run_dir: &Path) -> Result<String, CniError> {
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "svcnet-lab",
        "type": "svcnet",
        "socket": run_dir.join("cni.sock"),
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        note.namespace,
        note.pod,
        note.container_id,
        note.uid.as_deref().unwrap_or_default(),
    );
    let netns = netns::path_of(&note.netns).unwrap_or_else(|_| PathBuf::new());
    let mut plugin = Command::new("/proc/self/exe")
        .arg("cni")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &note.container_id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(CniError::Run)?;
    if let Some(mut stdin) = plugin.stdin.take() {
        // It may end without reading: then its answer says why.
        _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = plugin.wait_with_output().map_err(CniError::Run)?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(answer);
    }
    Err(match serde_json::from_str::<Refusal>(&answer) {
        Ok(refusal) => CniError::Refused {
            command,
            code: refusal.code,
            message: match refusal.details.as_str() {
                "" => refusal.msg,
                details => format!("{}: {details}", refusal.msg),
            },
        },
        Err(_) => CniError::Answer { command, answer },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_becomes_an_address_and_a_resolv_conf() {
        let added: Added = serde_json::from_value(json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0"}],
            "ips": [{"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 0}],
            "dns": {
                "nameservers": ["10.96.0.10"],
                "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": ["ndots:5"],
            },
        }))
        .unwrap();
        assert_eq!(added.address(), Some("10.244.1.2".parse().unwrap()));
        let text = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(added.resolv_conf().as_deref(), Some(text));
    }

    #[test]
    fn without_name_servers_there_is_no_resolv_conf() {
        let added: Added = serde_json::from_value(json!({"ips": []})).unwrap();
        assert_eq!((added.address(), added.resolv_conf()), (None, None));
    }
}
