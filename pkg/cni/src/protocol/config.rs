//! The network configuration that a runtime hands over on standard input.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Attachment, CniError, Version, code};

/// The parts of a configuration that svcnet reads; the rest is other plugins'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// The version that the answer must have.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// What ADD answered, or the plugin before this one.
    pub prev_result: Option<Value>,
    /// For GC: what still exists.
    pub valid_attachments: Vec<Attachment>,
    /// `ipam.ranges`: from where containers of this network get their addresses, one of each set; all of the node's pod
    /// networks when there is none.
    pub range_sets: Vec<Vec<RangeConf>>,
    /// `macspoofchk`, as the reference plugin bridge has it, but true when nothing is said: whether containers are pinned to their
    /// addresses. Not where a plugin behind this one gives them another Ethernet address.
    pub macspoofchk: bool,
}

/// A range of addresses, as the reference plugin host-local writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// The network.
    pub subnet: IpNet,
    /// Its first address to use.
    #[serde(default)]
    pub range_start: Option<IpAddr>,
    /// Its last.
    #[serde(default)]
    pub range_end: Option<IpAddr>,
    /// Its gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with it, by the codes of the specification.
    pub fn parse(raw: &Value) -> Result<Self, CniError> {
        let object = raw
            .as_object()
            .ok_or_else(|| CniError::new(code::DECODE, "the network configuration is not a JSON object"))?;
        let text = |field: &str| match object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(
                CniError::new(code::DECODE, "failed to decode the network configuration")
                    .because(format_args!("{field}: {other} is not a string")),
            ),
        };
        // The specification's default for a configuration without a version.
        let version = text("cniVersion")?.unwrap_or("0.1.0").parse()?;
        let name = text("name")?.filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| CniError::new(code::CONFIG, "missing network name"))?;
        if !is_name(name) {
            return Err(
                CniError::new(code::CONFIG, "invalid characters found in network name")
                    .because(format_args!("name: {name:?}")),
            );
        }
        let prev_result = object.get("prevResult").filter(|v| !v.is_null()).cloned();
        let valid_attachments = match object.get("cni.dev/valid-attachments") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => attachments(list)?,
        };
        Ok(Self {
            version,
            name: name.to_string(),
            prev_result,
            valid_attachments,
            range_sets: range_sets(object.get("ipam"))?,
            macspoofchk: flag(object.get("macspoofchk"))?.unwrap_or(true),
        })
    }
}

fn flag(value: Option<&Value>) -> Result<Option<bool>, CniError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(
            CniError::new(code::DECODE, "failed to decode the network configuration")
                .because(format_args!("macspoofchk: {other} is neither true nor false")),
        ),
    }
}

fn range_sets(ipam: Option<&Value>) -> Result<Vec<Vec<RangeConf>>, CniError> {
    match ipam.and_then(|ipam| ipam.get("ranges")) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(sets) => Deserialize::deserialize(sets)
            .map_err(|e| CniError::new(code::CONFIG, "invalid ipam.ranges").because(e)),
    }
}

fn attachments(list: &Value) -> Result<Vec<Attachment>, CniError> {
    let wrong = |what: &Value| {
        CniError::new(code::DECODE, "failed to decode cni.dev/valid-attachments").because(format_args!(
            "{what} is not an object with containerID and ifname"
        ))
    };
    let list = list.as_array().ok_or_else(|| wrong(list))?;
    let read = |item: &Value| {
        let text = |field: &str| item.get(field).and_then(Value::as_str).ok_or_else(|| wrong(item));
        Attachment::new(text("containerID")?, text("ifname")?)
    };
    list.iter().map(read).collect()
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, for networks and containers alike.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
