//! What is to run, as the command line says it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use svcnet_api::types::NodeIps;

/// A part of a pod's description that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A port.
    #[error(
        "{0:?} is not a container port: wanted NUMBER[/tcp|/udp][=NAME], as in 80, 53/udp, 8080/tcp=http"
    )]
    Port(String),
    /// A port's name.
    #[error("{0:?} is not a name for a port: 1 to 15 of a-z, 0-9 and '-', with a letter in it")]
    PortName(String),
    /// A label.
    #[error("{0:?} is not a label: wanted KEY=VALUE, as in app=nginx")]
    Label(String),
}

/// A pod to run.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Its name.
    pub name: String,
    /// Its namespace in the API.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The ports that its containers listen on.
    pub ports: Vec<ContainerPort>,
    /// Name of the network namespace that it gets.
    pub netns: String,
    /// Program and arguments; none runs the built-in responder on all ports.
    pub command: Vec<String>,
    /// The node that it runs on.
    pub node: String,
    /// The node's addresses, if they are known.
    pub host_ips: Option<NodeIps>,
    /// `--run-dir` of the node's agent.
    pub run_dir: PathBuf,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port that a container listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its name, which a Service's `targetPort` may be.
    pub name: Option<String>,
}

impl FromStr for ContainerPort {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Port(text.to_string());
        let (port, name) = match text.split_once('=') {
            Some((port, name)) => (port, Some(name)),
            None => (text, None),
        };
        let (number, protocol) = match port.split_once('/') {
            None => (port, Protocol::Tcp),
            Some((number, protocol)) if protocol.eq_ignore_ascii_case("tcp") => (number, Protocol::Tcp),
            Some((number, protocol)) if protocol.eq_ignore_ascii_case("udp") => (number, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let number = number
            .parse()
            .ok()
            .filter(|number| *number != 0)
            .ok_or_else(wrong)?;
        if let Some(name) = name.filter(|name| !is_port_name(name)) {
            return Err(SpecError::PortName(name.to_string()));
        }
        Ok(Self {
            number,
            protocol,
            name: name.map(str::to_string),
        })
    }
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.to_string().to_lowercase())?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, "={name}"))
    }
}

/// An IANA service name (RFC 6335, as the Kubernetes API reads it).
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.contains(|c: char| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// A label as typed: KEY=VALUE. Whether key and value are right is the API server's to say.
///
/// # Errors
/// Without a `=`, or without a key.
pub fn parse_label(text: &str) -> Result<(String, String), SpecError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(SpecError::Label(text.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_print_as_they_parse() {
        for (text, printed) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("8080=http", "8080/tcp=http"),
            ("53/udp=dns", "53/udp=dns"),
        ] {
            assert_eq!(text.parse::<ContainerPort>().unwrap().to_string(), printed);
        }
        for bad in [
            "", "0", "70000", "80/sctp", "http", "80=", "80=HTTP", "80=8080", "80=a--b",
        ] {
            assert!(bad.parse::<ContainerPort>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_are_keys_and_values() {
        assert_eq!(
            parse_label("app=nginx"),
            Ok(("app".to_string(), "nginx".to_string()))
        );
        assert_eq!(parse_label("app="), Ok(("app".to_string(), String::new())));
        assert!(parse_label("app").is_err());
        assert!(parse_label("=x").is_err());
    }
}
