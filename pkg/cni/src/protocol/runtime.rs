//! What a runtime asks for beside an address: the capabilities in `runtimeConfig`, and what older runtimes say in
//! `args` and `CNI_ARGS` (<https://www.cni.dev/docs/conventions/>).
//!
//! containerd writes the names of fields with a capital letter, podman with a small one: case is ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use svcnet_api::types::MacAddr;

use super::args::Args;
use super::{CniError, Dns, code};

/// Annotation of a pod with its labels, `app=web,tier=front`, for runtimes that tell annotations and no labels.
pub const ANNOTATION_LABELS: &str = "svcnet.io/labels";
/// Capabilities that the configuration for runtimes declares.
pub const CAPABILITIES: [&str; 7] = [
    "aliases",
    "bandwidth",
    "dns",
    "io.kubernetes.cri.pod-annotations",
    "ips",
    "mac",
    "portMappings",
];

/// What a runtime asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// These addresses and no others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// This Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none", with = "mac_text")]
    pub mac: Option<MacAddr>,
    /// Ports of the host that lead to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast it may be.
    #[serde(skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// Its resolver, in place of the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Further names in this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The pod's labels, as far as the runtime tells.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The host's.
    pub host_port: NonZeroU16,
    /// The container's.
    pub container_port: NonZeroU16,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The host's address that it is on; all of them when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<HostIp>,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(HostIp::One(IpAddr::V6(ip))) => write!(f, "[{ip}]:")?,
            Some(HostIp::One(IpAddr::V4(ip))) => write!(f, "{ip}:")?,
            Some(HostIp::All4) | Some(HostIp::All6) | None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// Addresses of the host that a port is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "IpAddr", into = "IpAddr")]
pub enum HostIp {
    /// All IPv4 ones, written `0.0.0.0`.
    All4,
    /// All IPv6 ones, written `::`.
    All6,
    /// This one.
    One(IpAddr),
}

impl From<IpAddr> for HostIp {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => Self::All4,
            IpAddr::V6(ip) if ip.is_unspecified() => Self::All6,
            ip => Self::One(ip),
        }
    }
}

impl From<HostIp> for IpAddr {
    fn from(host: HostIp) -> Self {
        match host {
            HostIp::All4 => Ipv4Addr::UNSPECIFIED.into(),
            HostIp::All6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            HostIp::One(ip) => ip,
        }
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// `IPPROTO_…`
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// How fast a container may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// To it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// From it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// Whether there is no limit, either way.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A rate with what may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Bits per second; above zero.
    pub rate_bits: u64,
    /// Bits at once; above zero.
    pub burst_bits: u64,
}

impl RuntimeConfig {
    /// Reads what is asked for from a configuration and `CNI_ARGS`. Where both say something, `runtimeConfig` counts.
    ///
    /// # Errors
    /// What is wrong, with the field ([`code::CONFIG`]).
    pub(super) fn parse(config: &Value, args: &Args) -> Result<Self, CniError> {
        let none = Map::new();
        let runtime = match config.get("runtimeConfig") {
            None | Some(Value::Null) => &none,
            Some(Value::Object(object)) => object,
            Some(other) => return Err(invalid("runtimeConfig", other, "an object")),
        };
        let conventional = config.get("args").and_then(|a| a.get("cni"));
        let older = |key: &str| conventional.and_then(|cni| cni.get(key));
        let given = |value: &&Value| !value.is_null();
        let ips = match runtime.get("ips").filter(given).or_else(|| older("ips")) {
            Some(list) => addresses("runtimeConfig.ips", list)?,
            None => addresses("CNI_ARGS IP", &args.ips())?,
        };
        let mac = match (
            runtime.get("mac").filter(given).or_else(|| older("mac")),
            &args.mac,
        ) {
            (None | Some(Value::Null), None) => None,
            (Some(Value::String(text)), _) if text.is_empty() => None,
            (Some(Value::String(text)), _) => Some(mac("runtimeConfig.mac", text)?),
            (None | Some(Value::Null), Some(text)) => Some(mac("CNI_ARGS MAC", text)?),
            (Some(other), _) => return Err(invalid("runtimeConfig.mac", other, "an Ethernet address")),
        };
        let annotations = runtime.get("io.kubernetes.cri.pod-annotations");
        let mut labels = annotated_labels(annotations);
        labels.extend(conventional_labels(older("labels")));
        Ok(Self {
            ips,
            mac,
            port_mappings: port_mappings(runtime.get("portMappings"))?,
            bandwidth: bandwidth(runtime.get("bandwidth"))?,
            dns: dns(runtime.get("dns"))?,
            aliases: aliases(runtime.get("aliases"), config.get("name").and_then(Value::as_str))?,
            labels,
        })
    }
}

fn invalid(field: &str, is: &Value, wanted: &str) -> CniError {
    CniError::new(code::CONFIG, format!("invalid {field}")).because(format_args!("{is} is not {wanted}"))
}

/// A field whose name may begin with a capital letter.
fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = object.as_object()?.iter();
    let mut found = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value).filter(|v| !v.is_null())
}

/// Each with or without a prefix length, which means nothing here: a pod has its address alone.
fn addresses(what: &str, list: &Value) -> Result<Vec<IpAddr>, CniError> {
    let wanted = "a list of addresses like 10.244.1.50 or 10.244.1.50/24";
    let read = |item: &Value| {
        let text = item.as_str()?.trim();
        let net = text.parse::<IpNet>().map(|net| net.addr());
        net.or_else(|_| text.parse()).ok()
    };
    match list {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items
            .iter()
            .map(|item| read(item).ok_or_else(|| invalid(what, item, "an address like 10.244.1.50")))
            .collect(),
        other => Err(invalid(what, other, wanted)),
    }
}

fn mac(what: &str, text: &str) -> Result<MacAddr, CniError> {
    let wanted = || {
        invalid(
            what,
            &text.into(),
            "an Ethernet address of one host, like 02:00:00:00:00:01",
        )
    };
    let mac: MacAddr = text.parse().map_err(|_| wanted())?;
    let is_group = mac.octets()[0] & 1 == 1;
    if is_group || mac.octets() == [0; 6] {
        return Err(wanted());
    }
    Ok(mac)
}

fn port_mappings(list: Option<&Value>) -> Result<Vec<PortMapping>, CniError> {
    let items = match list {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(invalid("runtimeConfig.portMappings", other, "a list")),
    };
    let mut mappings = Vec::new();
    for item in items {
        mappings.extend(port_mapping(item)?);
    }
    Ok(mappings)
}

/// One mapping; none where the port of the host is 0, which runtimes write for ports that only the container has.
fn port_mapping(item: &Value) -> Result<Option<PortMapping>, CniError> {
    let what = |name: &str| format!("runtimeConfig.portMappings: {name}");
    let port = |name: &str| match field(item, name) {
        None => Ok(0),
        Some(number) => number
            .as_u64()
            .and_then(|n| u16::try_from(n).ok())
            .ok_or_else(|| invalid(&what(name), number, "a port from 1 to 65535")),
    };
    let Some(host_port) = NonZeroU16::new(port("hostPort")?) else {
        return Ok(None);
    };
    let container_port = NonZeroU16::new(port("containerPort")?).ok_or_else(|| {
        CniError::new(code::CONFIG, "Invalid container port number: 0").because(format_args!("in {item}"))
    })?;
    let protocol = match field(item, "protocol") {
        None => Protocol::Tcp,
        Some(text) => match text.as_str().unwrap_or_default().to_ascii_lowercase().as_str() {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(invalid(&what("protocol"), text, "tcp, udp or sctp")),
        },
    };
    let host_ip = match field(item, "hostIP") {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(text) => {
            let ip: Option<IpAddr> = text.as_str().and_then(|t| t.parse().ok());
            Some(
                ip.ok_or_else(|| invalid(&what("hostIP"), text, "an address"))?
                    .into(),
            )
        }
    };
    Ok(Some(PortMapping {
        host_port,
        container_port,
        protocol,
        host_ip,
    }))
}

fn bandwidth(object: Option<&Value>) -> Result<Bandwidth, CniError> {
    let Some(object) = object.filter(|o| !o.is_null()) else {
        return Ok(Bandwidth::default());
    };
    if !object.is_object() {
        return Err(invalid("runtimeConfig.bandwidth", object, "an object"));
    }
    let number = |name: &str| match field(object, name) {
        None => Ok(0),
        Some(number) => number.as_u64().ok_or_else(|| {
            let what = format!("runtimeConfig.bandwidth: {name}");
            invalid(&what, number, "a number of bits that is not negative")
        }),
    };
    // The reference plugin's words.
    let rate = |rate_bits: u64, burst_bits: u64| match (rate_bits, burst_bits) {
        (0, 0) => Ok(None),
        (0, _) => Err(CniError::new(
            code::CONFIG,
            "if burst is set, rate must also be set",
        )),
        (_, 0) => Err(CniError::new(
            code::CONFIG,
            "if rate is set, burst must also be set",
        )),
        (rate_bits, burst_bits) => Ok(Some(Rate {
            rate_bits,
            burst_bits,
        })),
    };
    Ok(Bandwidth {
        ingress: rate(number("ingressRate")?, number("ingressBurst")?)?,
        egress: rate(number("egressRate")?, number("egressBurst")?)?,
    })
}

fn dns(object: Option<&Value>) -> Result<Option<Dns>, CniError> {
    let Some(object) = object.filter(|o| !o.is_null()) else {
        return Ok(None);
    };
    if !object.is_object() {
        return Err(invalid("runtimeConfig.dns", object, "an object"));
    }
    let texts = |name: &str| match field(object, name) {
        None => Ok(Vec::new()),
        Some(list) => strings(list)
            .ok_or_else(|| invalid(&format!("runtimeConfig.dns: {name}"), list, "a list of texts")),
    };
    let dns = Dns {
        nameservers: texts("servers")?,
        domain: None,
        search: texts("searches")?,
        options: texts("options")?,
    };
    Ok((dns != Dns::default()).then_some(dns))
}

/// Those in this network.
fn aliases(object: Option<&Value>, network: Option<&str>) -> Result<Vec<String>, CniError> {
    let Some(object) = object.filter(|o| !o.is_null()) else {
        return Ok(Vec::new());
    };
    let wanted = "an object of lists of names, by network";
    let networks = object
        .as_object()
        .ok_or_else(|| invalid("runtimeConfig.aliases", object, wanted))?;
    let Some(list) = network
        .and_then(|name| networks.get(name))
        .filter(|l| !l.is_null())
    else {
        return Ok(Vec::new());
    };
    strings(list).ok_or_else(|| invalid("runtimeConfig.aliases", list, "a list of names"))
}

fn strings(list: &Value) -> Option<Vec<String>> {
    let items = list.as_array()?.iter();
    items.map(|item| item.as_str().map(str::to_string)).collect()
}

/// Labels are worth no failed start: what is none is left out.
fn annotated_labels(annotations: Option<&Value>) -> BTreeMap<String, String> {
    let text = annotations
        .and_then(|a| a.get(ANNOTATION_LABELS))
        .and_then(Value::as_str);
    let pairs = text.unwrap_or_default().split(',');
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(key, value)| (key.trim().to_string(), value.trim().to_string()))
        .collect()
}

/// `"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}`
fn conventional_labels(list: Option<&Value>) -> BTreeMap<String, String> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    let pair = |item: &Value| {
        let text = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_string);
        Some((text("key")?, text("value")?))
    };
    items.filter_map(pair).collect()
}

mod mac_text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use svcnet_api::types::MacAddr;

    #[expect(clippy::ref_option, reason = "the shape that serde calls")]
    pub(super) fn serialize<S: Serializer>(mac: &Option<MacAddr>, to: S) -> Result<S::Ok, S::Error> {
        match mac {
            Some(mac) => to.collect_str(mac),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MacAddr>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|t| t.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests;
