//! The fields of a Service that allocation reads and writes, out of its JSON and back.
//!
//! Admission sees objects before validation: what cannot be read here is left as it is, for validation to refuse.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use svcnet_api::types::legacy;

pub(super) const HEADLESS: &str = "None";

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// An entry of `spec.ipFamilies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// `spec.ipFamilyPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyPolicy {
    Single,
    Prefer,
    Require,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) port: i64,
    /// 0 where there is none.
    pub(super) node_port: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) type_: ServiceType,
    /// Empty where it is still open.
    pub(super) cluster_ip: String,
    pub(super) cluster_ips: Vec<String>,
    pub(super) families: Vec<Family>,
    pub(super) policy: Option<FamilyPolicy>,
    pub(super) has_selector: bool,
    pub(super) ports: Vec<Port>,
    pub(super) traffic_local: bool,
    pub(super) allocate_node_ports: bool,
    /// 0 where there is none.
    pub(super) health_check_node_port: i64,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::V4, Self::V6]
            .into_iter()
            .find(|family| family.as_str() == text)
    }
}

impl FamilyPolicy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Single => "SingleStack",
            Self::Prefer => "PreferDualStack",
            Self::Require => "RequireDualStack",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Single, Self::Prefer, Self::Require]
            .into_iter()
            .find(|policy| policy.as_str() == text)
    }
}

impl ServiceType {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "ClusterIP" => Some(Self::ClusterIp),
            "NodePort" => Some(Self::NodePort),
            "LoadBalancer" => Some(Self::LoadBalancer),
            "ExternalName" => Some(Self::ExternalName),
            _ => None,
        }
    }
}

impl Fields {
    /// The fields of a Service, or nothing where one of them makes no sense.
    pub(super) fn read(service: &Value) -> Option<Self> {
        let empty = Map::new();
        let spec = match service.get("spec") {
            None | Some(Value::Null) => &empty,
            Some(spec) => spec.as_object()?,
        };
        let families = texts(spec.get("ipFamilies"))?;
        let policy = text(spec.get("ipFamilyPolicy"))?;
        let fields = Self {
            type_: ServiceType::parse(text(spec.get("type"))?)?,
            cluster_ip: text(spec.get("clusterIP"))?.to_string(),
            cluster_ips: texts(spec.get("clusterIPs"))?,
            families: families
                .iter()
                .map(|family| Family::parse(family))
                .collect::<Option<_>>()?,
            policy: if policy.is_empty() {
                None
            } else {
                Some(FamilyPolicy::parse(policy)?)
            },
            has_selector: spec
                .get("selector")
                .and_then(Value::as_object)
                .is_some_and(|s| !s.is_empty()),
            ports: items(spec.get("ports"))?
                .iter()
                .map(port)
                .collect::<Option<_>>()?,
            traffic_local: text(spec.get("externalTrafficPolicy"))? == "Local",
            allocate_node_ports: flag(spec.get("allocateLoadBalancerNodePorts"), true)?,
            health_check_node_port: number(spec.get("healthCheckNodePort"))?,
        };
        Some(fields)
    }

    /// Puts what was decided into the object; everything else stays as it was.
    pub(super) fn write(&self, service: &mut Value) {
        if !service.get("spec").is_some_and(Value::is_object) {
            service["spec"] = json!({});
        }
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return;
        };
        let families: Vec<&str> = self.families.iter().map(|family| family.as_str()).collect();
        put(
            spec,
            "clusterIP",
            !self.cluster_ip.is_empty(),
            json!(self.cluster_ip),
        );
        put(
            spec,
            "clusterIPs",
            !self.cluster_ips.is_empty(),
            json!(self.cluster_ips),
        );
        put(spec, "ipFamilies", !families.is_empty(), json!(families));
        put(
            spec,
            "ipFamilyPolicy",
            self.policy.is_some(),
            json!(self.policy.map(FamilyPolicy::as_str)),
        );
        let health = self.health_check_node_port;
        put(spec, "healthCheckNodePort", health != 0, json!(health));
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for (port, fields) in ports.into_iter().flatten().zip(&self.ports) {
            if let Some(port) = port.as_object_mut() {
                put(port, "nodePort", fields.node_port != 0, json!(fields.node_port));
            }
        }
    }

    pub(super) fn needs_cluster_ip(&self) -> bool {
        self.type_ != ServiceType::ExternalName
    }

    pub(super) fn is_headless(&self) -> bool {
        self.cluster_ip == HEADLESS || self.cluster_ips.first().is_some_and(|first| first == HEADLESS)
    }

    pub(super) fn needs_node_ports(&self) -> bool {
        matches!(self.type_, ServiceType::NodePort | ServiceType::LoadBalancer)
    }

    /// Whether ports without a node port get one.
    pub(super) fn allocates_node_ports(&self) -> bool {
        match self.type_ {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => self.allocate_node_ports,
            ServiceType::ClusterIp | ServiceType::ExternalName => false,
        }
    }

    pub(super) fn needs_health_check(&self) -> bool {
        self.type_ == ServiceType::LoadBalancer && self.traffic_local
    }

    /// The addresses that the Service holds.
    pub(super) fn held_addresses(&self) -> Vec<IpAddr> {
        if !self.needs_cluster_ip() {
            return Vec::new();
        }
        let singular = self.cluster_ips.is_empty().then_some(&self.cluster_ip);
        let mut held: Vec<IpAddr> = self
            .cluster_ips
            .iter()
            .chain(singular)
            .filter_map(|text| legacy::address(text))
            .collect();
        held.dedup();
        held
    }

    /// The node ports of the Service's ports.
    pub(super) fn held_node_ports(&self) -> Vec<i64> {
        if !self.needs_node_ports() {
            return Vec::new();
        }
        let given = self.ports.iter().map(|port| port.node_port);
        given.filter(|port| *port != 0).collect()
    }

    /// The node ports that the Service holds, that of its health check among them, each once.
    pub(super) fn held_ports(&self) -> Vec<i64> {
        let mut held = self.held_node_ports();
        if self.needs_health_check() && self.health_check_node_port != 0 {
            held.push(self.health_check_node_port);
        }
        held.sort_unstable();
        held.dedup();
        held
    }
}

fn put(object: &mut Map<String, Value>, key: &str, wanted: bool, value: Value) {
    if wanted {
        object.insert(key.to_string(), value);
    } else {
        object.remove(key);
    }
}

fn port(value: &Value) -> Option<Port> {
    let port = value.as_object()?;
    Some(Port {
        name: text(port.get("name"))?.to_string(),
        port: number(port.get("port"))?,
        node_port: number(port.get("nodePort"))?,
    })
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value {
        None | Some(Value::Null) => Some(""),
        Some(value) => value.as_str(),
    }
}

fn number(value: Option<&Value>) -> Option<i64> {
    match value {
        None | Some(Value::Null) => Some(0),
        Some(value) => value.as_i64(),
    }
}

fn flag(value: Option<&Value>, default: bool) -> Option<bool> {
    match value {
        None | Some(Value::Null) => Some(default),
        Some(value) => value.as_bool(),
    }
}

fn items(value: Option<&Value>) -> Option<&[Value]> {
    match value {
        None | Some(Value::Null) => Some(&[]),
        Some(value) => value.as_array().map(Vec::as_slice),
    }
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    items(value)?
        .iter()
        .map(|item| item.as_str().map(ToString::to_string))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_back_changes_nothing() {
        let service = json!({
            "metadata": {"name": "a"},
            "spec": {
                "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "selector": {"a": "b"},
                "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"name": "x", "port": 81}],
            },
        });
        let fields = Fields::read(&service).unwrap();
        let mut written = service.clone();
        fields.write(&mut written);
        assert_eq!(written, service);
        assert_eq!(fields.held_ports(), [30001]);
    }

    #[test]
    fn nonsense_is_left_to_validation() {
        for spec in [
            json!({"type": "Magic"}),
            json!({"ports": "80"}),
            json!({"ports": [{"nodePort": "http"}]}),
            json!({"ipFamilies": ["IPv5"]}),
            json!("no"),
        ] {
            assert_eq!(Fields::read(&json!({"spec": spec})), None);
        }
        assert!(Fields::read(&json!({})).is_some());
    }
}
