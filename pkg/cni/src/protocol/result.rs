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
    pub interface: Option<usize>,
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
    /// As a version writes it, behind what the plugin before this one in the chain had answered.
    pub fn render(&self, version: Version, previous: Option<&Value>) -> Value {
        let listed = |field: &str| {
            let list = previous.and_then(|p| p.get(field)).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        let (mut interfaces, mut ips, mut routes) = (listed("interfaces"), listed("ips"), listed("routes"));
        let before = interfaces.len();
        interfaces.extend(self.interfaces.iter().map(|i| i.render(version)));
        ips.extend(self.ips.iter().map(|ip| ip.render(version, before)));
        routes.extend(self.routes.iter().map(Route::render));
        let their_dns = previous.and_then(|p| p.get("dns"));
        let dns = match their_dns {
            Some(theirs) if self.dns == Dns::default() => theirs.clone(),
            _ => json!(self.dns),
        };
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": dns,
        })
    }
}

impl Interface {
    fn render(&self, version: Version) -> Value {
        let mut value = json!({ "name": self.name, "mac": self.mac });
        if let Some(sandbox) = &self.sandbox {
            value["sandbox"] = json!(sandbox);
        }
        if let Some(mtu) = self.mtu.filter(|_| version >= Version::V1_1_0) {
            value["mtu"] = json!(mtu);
        }
        value
    }
}

impl IpConfig {
    fn render(&self, version: Version, interfaces_before: usize) -> Value {
        let mut value = json!({ "address": self.address.to_string() });
        if let Some(interface) = self.interface {
            value["interface"] = json!(interfaces_before + interface);
        }
        if let Some(gateway) = self.gateway {
            value["gateway"] = json!(gateway);
        }
        if version < Version::V1_0_0 {
            value["version"] = json!(if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        value
    }
}

impl Route {
    fn render(&self) -> Value {
        let mut value = json!({ "dst": self.dst.to_string() });
        if let Some(gw) = self.gw {
            value["gw"] = json!(gw);
        }
        value
    }
}
