//! What ADD answers.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Version;

/// The answer to ADD.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct AddResult {
    /// What was made or used: the bridge, the node's end, the container's end.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// The routes in the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What its `resolv.conf` is to say.
    #[serde(default)]
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default)]
    pub mac: String,
    /// Its largest packet; said since version 1.1.0.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The network namespace that it is in; none for the node's.
    #[serde(default)]
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct IpConfig {
    /// Index into the interfaces.
    #[serde(default)]
    pub interface: usize,
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Through whom.
    #[serde(default)]
    pub gw: Option<IpAddr>,
}

/// Resolver configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The first of the search list, as older readers want it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// A pod's: names of its namespace first, then services, then the cluster.
    pub fn of_pod(servers: &[IpAddr], namespace: &str, cluster_domain: &str) -> Self {
        if servers.is_empty() {
            return Self::default();
        }
        Self {
            nameservers: servers.iter().map(IpAddr::to_string).collect(),
            domain: None,
            search: vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_string(),
            ],
            options: vec!["ndots:5".to_string()],
        }
    }

    /// The text of a `resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

impl AddResult {
    /// As a version writes it.
    pub fn render(&self, version: Version) -> Value {
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|interface| {
                let mut value = json!({ "name": interface.name, "mac": interface.mac });
                if let Some(sandbox) = &interface.sandbox {
                    value["sandbox"] = json!(sandbox);
                }
                if let Some(mtu) = interface.mtu.filter(|_| version >= Version::V1_1_0) {
                    value["mtu"] = json!(mtu);
                }
                value
            })
            .collect();
        let ips: Vec<Value> = self
            .ips
            .iter()
            .map(|ip| {
                let mut value = json!({ "interface": ip.interface, "address": ip.address.to_string() });
                if let Some(gateway) = ip.gateway {
                    value["gateway"] = json!(gateway);
                }
                if version < Version::V1_0_0 {
                    value["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
                }
                value
            })
            .collect();
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|route| {
                let mut value = json!({ "dst": route.dst.to_string() });
                if let Some(gw) = route.gw {
                    value["gw"] = json!(gw);
                }
                value
            })
            .collect();
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        })
    }
}
