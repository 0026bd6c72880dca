//! What the ConfigMap `kube-proxy` asks for: kube-proxy's own configuration file, of which we read what concerns us.

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;

use crate::backend::{Mode, UnknownMode};
use crate::ipvs::{BadTimeout, Timeouts};
use crate::node_ports::{BadNodePortAddresses, NodePortAddresses};
use crate::scheduler::{Scheduler, UnknownScheduler};

/// Name of the ConfigMap, in `kube-system`.
pub const CONFIG_MAP: &str = "kube-proxy";
/// The key that holds the configuration.
const KEY: &str = "config.conf";

/// What is asked for; what is not asked for is as the flags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) mode: Option<Mode>,
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) node_ports: Option<NodePortAddresses>,
    pub(crate) strict_arp: Option<bool>,
    pub(crate) timeouts: Option<Timeouts>,
    /// It says iptables, for which nftables stands in.
    pub(crate) iptables: bool,
}

/// Why the ConfigMap can not be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is nothing to read.
    #[error("there is no key {KEY}, which holds a KubeProxyConfiguration")]
    NoKey,
    /// It is no such file.
    #[error("{KEY}: {0}")]
    Yaml(String),
    /// There is no such mode.
    #[error("{KEY}: mode: {0}")]
    Mode(#[from] UnknownMode),
    /// There is no such scheduler.
    #[error("{KEY}: ipvs.scheduler: {0}")]
    Scheduler(#[from] UnknownScheduler),
    /// There is no such timeout.
    #[error("{KEY}: ipvs.{0}: {1}")]
    Timeout(&'static str, #[source] BadTimeout),
    /// There are no such addresses.
    #[error("{KEY}: nodePortAddresses: {0}")]
    NodePorts(#[from] BadNodePortAddresses),
}

/// The fields of a KubeProxyConfiguration that we read; kube-proxy has many more.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    mode: Option<String>,
    ipvs: Option<Ipvs>,
    node_port_addresses: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipvs {
    scheduler: Option<String>,
    #[serde(rename = "strictARP")]
    strict_arp: Option<bool>,
    tcp_timeout: Option<String>,
    tcp_fin_timeout: Option<String>,
    udp_timeout: Option<String>,
}

impl Ipvs {
    /// The timeouts, unless all are left to the kernel.
    fn timeouts(&self) -> Result<Option<Timeouts>, Error> {
        let seconds = |field, text: &Option<String>| {
            let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty());
            let seconds = text.map(Timeouts::seconds).transpose();
            let seconds = seconds.map_err(|why| Error::Timeout(field, why))?;
            Ok::<u32, Error>(seconds.unwrap_or_default())
        };
        let timeouts = Timeouts {
            tcp: seconds("tcpTimeout", &self.tcp_timeout)?,
            tcp_fin: seconds("tcpFinTimeout", &self.tcp_fin_timeout)?,
            udp: seconds("udpTimeout", &self.udp_timeout)?,
        };
        Ok(Some(timeouts).filter(|timeouts| *timeouts != Timeouts::default()))
    }
}

impl Wish {
    /// What the text of the key asks for.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let file: Option<File> =
            serde_saphyr::from_str(text).map_err(|error| Error::Yaml(error.to_string()))?;
        let file = file.unwrap_or_default();
        let said = |text: Option<String>| {
            text.map(|text| text.trim().to_string())
                .filter(|text| !text.is_empty())
        };
        let mode = said(file.mode);
        let iptables = mode.as_deref() == Some("iptables");
        let mode = if iptables {
            Some(Mode::Nftables)
        } else {
            mode.map(|mode| mode.parse()).transpose()?
        };
        let ipvs = file.ipvs.unwrap_or_default();
        let timeouts = ipvs.timeouts()?;
        let scheduler = said(ipvs.scheduler);
        let node_ports = file.node_port_addresses.filter(|all| !all.is_empty());
        Ok(Self {
            mode,
            scheduler: scheduler.map(|scheduler| scheduler.parse()).transpose()?,
            node_ports: node_ports.map(|all| all.join(",").parse()).transpose()?,
            // false is what kubeadm writes where nobody asked for anything: the flag may ask for it.
            strict_arp: ipvs.strict_arp.filter(|strict| *strict),
            timeouts,
            iptables,
        })
    }

    /// The same, and for what is not asked for the other.
    pub(crate) fn or(self, other: &Self) -> Self {
        Self {
            mode: self.mode.or(other.mode),
            scheduler: self.scheduler.or(other.scheduler),
            node_ports: self.node_ports.or_else(|| other.node_ports.clone()),
            strict_arp: self.strict_arp.or(other.strict_arp),
            timeouts: self.timeouts.or(other.timeouts),
            iptables: self.iptables,
        }
    }

    /// The text that a ConfigMap holds.
    pub(crate) fn text(config_map: &ConfigMap) -> Result<&str, Error> {
        let data = config_map.data.as_ref().and_then(|data| data.get(KEY));
        data.map(String::as_str).ok_or(Error::NoKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubeadm writes it, shortened.
    const KUBEADM: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
clientConnection:
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
conntrack:
  maxPerCore: null
iptables: {masqueradeAll: false}
ipvs:
  excludeCIDRs: null
  scheduler: \"SCHEDULER\"
  strictARP: false
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
mode: \"MODE\"
nodePortAddresses: null
";

    fn parse(mode: &str, scheduler: &str) -> Result<Wish, String> {
        let text = KUBEADM.replace("MODE", mode).replace("SCHEDULER", scheduler);
        Wish::parse(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn kube_proxys_own_file_is_understood() {
        assert_eq!(parse("", ""), Ok(Wish::default()));
        let wish = parse("ipvs", "wlc").unwrap();
        assert_eq!(
            (wish.mode, wish.scheduler),
            (Some(Mode::Ipvs), Some(Scheduler::Wlc))
        );
        let wish = parse("iptables", "").unwrap();
        assert_eq!((wish.mode, wish.iptables), (Some(Mode::Nftables), true));
        assert_eq!(Wish::parse("").unwrap(), Wish::default());
        assert_eq!(
            Wish::parse("ipvs: {strictARP: true}").unwrap().strict_arp,
            Some(true)
        );
        let wish = Wish::parse("ipvs: {tcpTimeout: 15m0s, udpTimeout: 60s}").unwrap();
        let timeouts = Timeouts {
            tcp: 900,
            tcp_fin: 0,
            udp: 60,
        };
        assert_eq!(wish.timeouts, Some(timeouts));
        let wish = Wish::parse("nodePortAddresses: [10.0.0.0/8, primary]").unwrap();
        assert_eq!(wish.node_ports.unwrap().to_string(), "primary,10.0.0.0/8");
    }

    #[test]
    fn what_is_wrong_names_the_field() {
        let error = parse("ipsv", "").unwrap_err();
        assert_eq!(
            error,
            "config.conf: mode: \"ipsv\" is no proxy mode: nftables, ipvs or userspace"
        );
        assert!(
            parse("", "fastest")
                .unwrap_err()
                .starts_with("config.conf: ipvs.scheduler: \"fastest\"")
        );
        assert!(
            Wish::parse("mode: [")
                .unwrap_err()
                .to_string()
                .starts_with("config.conf: ")
        );
        assert_eq!(
            Wish::parse("ipvs: {tcpFinTimeout: 2 min}")
                .unwrap_err()
                .to_string(),
            "config.conf: ipvs.tcpFinTimeout: \"2 min\" is no duration, which is like 15m or 1h30m0s"
        );
        assert!(matches!(Wish::text(&ConfigMap::default()), Err(Error::NoKey)));
    }
}
