//! What the role is told: plain data, already parsed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use svcnet_api::types::IfName;

use crate::name::Name;

/// How the server answers, where, and whom it asks for the rest.
#[derive(Debug, Clone)]
pub struct Config {
    /// The zone that the cluster's names live in: `cluster.local`.
    pub cluster_domain: Name,
    /// The cluster DNS addresses, at most one of each family. The server puts them on [`Config::bind_interface`].
    pub addresses: Vec<IpAddr>,
    /// Port at [`Config::addresses`].
    pub port: u16,
    /// More addresses to listen at. The server binds these and leaves it to others that the host has them.
    pub extra_listen: Vec<SocketAddr>,
    /// Servers that know the names outside the cluster; `None`: those that [`Config::resolv_conf`] names.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Read for upstreams, and again when it changes.
    pub resolv_conf: PathBuf,
    /// Time to live of the cluster's records, in seconds.
    pub ttl: u32,
    /// The link that carries the cluster DNS addresses; `None`: only bind, something else puts them there.
    pub bind_interface: Option<IfName>,
    /// Whether `a-b-c-d.NAMESPACE.pod.ZONE` names exist.
    pub pods: PodRecords,
    /// Threads that answer over UDP at one address; `None`: one for each core, at most four.
    pub threads: Option<usize>,
    /// Questions that may wait for upstreams at a time; more are refused.
    pub concurrent_max: usize,
}

/// Records for the addresses of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodRecords {
    /// There are none.
    Disabled,
    /// One for each pod that exists in the namespace with that address.
    Verified,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_domain: Name::from_lower_wire(b"\x07cluster\x05local\x00".to_vec()),
            addresses: vec![IpAddr::from([10, 96, 0, 10])],
            port: 53,
            extra_listen: Vec::new(),
            upstreams: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            ttl: 30,
            bind_interface: "lo".parse().ok(),
            pods: PodRecords::Verified,
            threads: None,
            concurrent_max: 1000,
        }
    }
}

impl Config {
    /// Everything that cannot work, all at once.
    ///
    /// # Errors
    /// One line for each wrong field.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        if self.cluster_domain == Name::root() {
            wrong.push("cluster domain: the root zone cannot be the cluster's".to_string());
        }
        if self.addresses.is_empty() && self.extra_listen.is_empty() {
            wrong.push("addresses: none to listen at".to_string());
        }
        for address in &self.addresses {
            if address.is_unspecified() || address.is_multicast() {
                wrong.push(format!("addresses: {address} cannot be a cluster DNS address"));
            }
        }
        if self
            .upstreams
            .as_ref()
            .is_some_and(|list| list.len() > UPSTREAMS_MAX)
        {
            wrong.push(format!("upstreams: more than {UPSTREAMS_MAX}"));
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    }

    /// Every socket address to answer at.
    pub(crate) fn listen(&self) -> Vec<SocketAddr> {
        let cluster = self.addresses.iter().map(|&ip| SocketAddr::new(ip, self.port));
        cluster.chain(self.extra_listen.iter().copied()).collect()
    }
}

/// CoreDNS's limit.
pub(crate) const UPSTREAMS_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_told_together() {
        let config = Config {
            cluster_domain: Name::root(),
            addresses: vec!["0.0.0.0".parse().unwrap()],
            ..Config::default()
        };
        let error = config.check().unwrap_err();
        assert!(
            error.contains("cluster domain") && error.contains("0.0.0.0"),
            "{error}"
        );
        assert_eq!(Config::default().check(), Ok(()));
    }
}
