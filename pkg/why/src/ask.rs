//! The question.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use svcnet_proxy::Protocol;

/// Something that can not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The source says nothing.
    #[error("the source is empty: a pod (NAME or NAMESPACE/NAME), a node, an address, or `outside`")]
    NoSource,
    /// The target names nobody.
    #[error("{0:?} names nobody: NAME:PORT, as in web:80, shop/web:http, 10.96.0.10:53/udp or n2:30080")]
    NoName(String),
    /// The port can not be one.
    #[error("{port:?} in {target:?} is no port: a number from 1 to 65535, or the name of a port")]
    Port {
        /// What was asked.
        target: String,
        /// Its port.
        port: String,
    },
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAsk {
    /// Somebody outside the cluster.
    Outside,
    /// Who has that address.
    Address(IpAddr),
    /// A pod or a node.
    Named {
        /// The pod's namespace, if it was said.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
}

impl FromStr for SourceAsk {
    type Err = AskError;

    fn from_str(text: &str) -> Result<Self, AskError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AskError::NoSource);
        }
        if text == "outside" {
            return Ok(Self::Outside);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (namespace, name) = split_name(text.strip_prefix("pod/").unwrap_or(text));
        Ok(Self::Named { namespace, name })
    }
}

impl fmt::Display for SourceAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("outside"),
            Self::Address(address) => address.fmt(f),
            Self::Named { namespace, name } => write_name(f, namespace.as_deref(), name),
        }
    }
}

/// What they connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetAsk {
    /// To whom.
    pub host: Host,
    /// To which port; a Service with one port needs none.
    pub port: Option<PortAsk>,
    /// By which protocol; TCP where the Service has the port in both.
    pub protocol: Option<Protocol>,
}

/// Whom they connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Who has that address.
    Address(IpAddr),
    /// A Service, a node or a pod; the name may be one of DNS.
    Named {
        /// The namespace, if it was said with a slash.
        namespace: Option<String>,
        /// The name.
        name: String,
    },
}

/// A port as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortAsk {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl FromStr for TargetAsk {
    type Err = AskError;

    fn from_str(text: &str) -> Result<Self, AskError> {
        let whole = text.trim();
        let (rest, protocol) = split_protocol(whole);
        if let Ok(at) = rest.parse::<SocketAddr>() {
            return Ok(Self {
                host: Host::Address(at.ip()),
                port: Some(port(whole, &at.port().to_string())?),
                protocol,
            });
        }
        // An IPv6 address without brackets has no port.
        if let Ok(address) = rest.trim_matches(['[', ']']).parse() {
            return Ok(Self {
                host: Host::Address(address),
                port: None,
                protocol,
            });
        }
        let (name, asked) = match rest.rsplit_once(':') {
            Some((name, asked)) => (name, Some(port(whole, asked)?)),
            None => (rest, None),
        };
        if name.is_empty() || name.ends_with('/') {
            return Err(AskError::NoName(whole.to_string()));
        }
        let host = match name.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => {
                let (namespace, name) = split_name(name.strip_prefix("svc/").unwrap_or(name));
                Host::Named { namespace, name }
            }
        };
        Ok(Self {
            host,
            port: asked,
            protocol,
        })
    }
}

fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let split = text.rsplit_once('/').and_then(|(rest, word)| {
        let protocol = Protocol::ALL
            .into_iter()
            .find(|p| p.to_string().eq_ignore_ascii_case(word))?;
        Some((rest, protocol))
    });
    // `shop/tcp` is a Service called tcp: a protocol comes behind a port or an address.
    match split {
        Some((rest, protocol)) if rest.contains(':') || rest.parse::<IpAddr>().is_ok() => {
            (rest, Some(protocol))
        }
        _ => (text, None),
    }
}

fn port(target: &str, text: &str) -> Result<PortAsk, AskError> {
    let wrong = || AskError::Port {
        target: target.to_string(),
        port: text.to_string(),
    };
    match text.parse::<u32>() {
        Ok(number) => match u16::try_from(number) {
            Ok(number) if number != 0 => Ok(PortAsk::Number(number)),
            _ => Err(wrong()),
        },
        Err(_) if svcnet_api::names::dns_label(text).is_empty() => Ok(PortAsk::Name(text.to_string())),
        Err(_) => Err(wrong()),
    }
}

fn split_name(text: &str) -> (Option<String>, String) {
    match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_string()), name.to_string()),
        None => (None, text.to_string()),
    }
}

fn write_name(f: &mut fmt::Formatter<'_>, namespace: Option<&str>, name: &str) -> fmt::Result {
    match namespace {
        Some(namespace) => write!(f, "{namespace}/{name}"),
        None => f.write_str(name),
    }
}

impl fmt::Display for TargetAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) if self.port.is_some() => write!(f, "[{address}]")?,
            Host::Address(address) => address.fmt(f)?,
            Host::Named { namespace, name } => write_name(f, namespace.as_deref(), name)?,
        }
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

impl fmt::Display for PortAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_come_back_as_they_were_asked() {
        for text in [
            "web:80",
            "web",
            "shop/web:http",
            "web.shop.svc.cluster.local:53/udp",
            "10.96.0.10:53/udp",
            "[fd00::1]:80",
            "fd00::1",
            "n2:30080/tcp",
        ] {
            let target: TargetAsk = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        let target: TargetAsk = "shop/tcp".parse().unwrap();
        assert_eq!(target.protocol, None);
    }

    #[test]
    fn what_can_not_be_asked_is_told_with_what_can() {
        let wrong = |text: &str| text.parse::<TargetAsk>().unwrap_err().to_string();
        assert!(wrong(":80").contains("NAME:PORT"), "{}", wrong(":80"));
        assert!(wrong("web:0").contains("1 to 65535"));
        assert!(wrong("web:70000").contains("\"70000\""));
        assert!(wrong("web:a b").contains("name of a port"));
        assert!("".parse::<SourceAsk>().is_err());
    }

    #[test]
    fn sources_are_pods_nodes_addresses_or_outside() {
        assert_eq!("outside".parse(), Ok(SourceAsk::Outside));
        assert_eq!(
            "10.244.1.2".parse(),
            Ok(SourceAsk::Address([10, 244, 1, 2].into()))
        );
        for text in ["web1", "shop/web1"] {
            assert_eq!(text.parse::<SourceAsk>().unwrap().to_string(), text);
        }
    }
}
