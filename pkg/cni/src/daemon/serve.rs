//! What the daemon does for each call.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use svcnet_api::types::PodCidr;
use tokio::sync::Notify;

use super::busy::Busy;
use crate::Config;
use crate::client::Answer;
use crate::hostport::{self, Empty, HostPorts};
use crate::ipam::{Ipam, Lease, RangeSet};
use crate::isolation::Isolation;
use crate::protocol::{Attachment, CniError, Command, Invocation, NetConf, Request, code};
use crate::registrar::Registrar;

/// This node's pod networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    /// The networks.
    pub(super) cidrs: Vec<PodCidr>,
    /// The largest packet of a pod.
    pub(super) mtu: u32,
    /// The node's address, for `status.hostIP`.
    pub(super) host: Option<IpAddr>,
}

impl Network {
    /// The range sets of a configuration on this node.
    pub(super) fn range_sets(&self, config: &NetConf) -> Result<Vec<RangeSet>, CniError> {
        RangeSet::of(&config.range_sets, &self.cidrs)
            .map_err(|e| CniError::new(code::CONFIG, "invalid network configuration").because(e))
    }
}

/// Answers calls, on as many threads as there are calls.
pub(super) struct Server {
    ipam: Mutex<Ipam>,
    network: Mutex<Option<Network>>,
    /// Why the pod network, which was in place once, is not any more.
    trouble: Mutex<Option<String>>,
    /// Taken before `ipam`, so that no older state overwrites a younger one.
    host_ports: Mutex<HostPorts>,
    /// Told when a table without a port is left.
    pub(super) untidy: Notify,
    /// Links of containers without a lease that were told of.
    pub(super) unleased: Mutex<BTreeSet<String>>,
    pub(super) busy: Busy,
    pub(super) isolation: Option<Arc<dyn Isolation>>,
    pub(super) cluster_dns: Vec<IpAddr>,
    pub(super) cluster_domain: String,
    pub(super) registrar: Registrar,
    pub(super) client: kube::Client,
}

/// Nothing that a panic may leave half done is behind these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub(super) fn new(ipam: Ipam, config: &Config, registrar: Registrar, client: kube::Client) -> Self {
        Self {
            ipam: Mutex::new(ipam),
            network: Mutex::new(None),
            trouble: Mutex::new(None),
            host_ports: Mutex::new(HostPorts::new(&config.cluster_dns)),
            untidy: Notify::new(),
            unleased: Mutex::default(),
            busy: Busy::default(),
            isolation: config.isolation.clone(),
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            registrar,
            client,
        }
    }

    pub(super) fn ipam(&self) -> MutexGuard<'_, Ipam> {
        lock(&self.ipam)
    }

    pub(super) fn set_network(&self, network: Network) {
        *lock(&self.trouble) = None;
        let mut current = lock(&self.network);
        if current.as_ref() == Some(&network) {
            return;
        }
        let host = network.host;
        *current = Some(network);
        drop(current);
        // The API may have missed any of them.
        for lease in self.ipam().leases() {
            self.registrar.register(lease, host);
        }
    }

    /// The pod network is not in place.
    pub(super) fn set_trouble(&self, why: &str) {
        *lock(&self.trouble) = Some(why.to_string());
    }

    pub(super) fn network(&self) -> Option<Network> {
        lock(&self.network).clone()
    }

    /// Everybody who has a lease.
    pub(super) fn attachments(&self) -> Vec<Attachment> {
        self.ipam().leases().map(|l| l.attachment.clone()).collect()
    }

    /// The pods that have a lease.
    pub(super) fn pods(&self) -> Vec<(String, String)> {
        let ipam = self.ipam();
        let pods = ipam.leases().filter_map(|l| l.pod.as_ref());
        pods.map(|p| (p.namespace.clone(), p.name.clone())).collect()
    }

    /// Makes the host's ports lead where the leases say, whatever somebody else may have changed, and tidies up.
    pub(super) fn look_at_host_ports(&self) -> Result<(), hostport::Error> {
        let mut host_ports = lock(&self.host_ports);
        host_ports.doubt();
        let desired = hostport::desired(self.ipam().leases());
        sync(&mut host_ports, &desired, Empty::Goes)
    }

    /// The same after a lease came.
    pub(super) fn map_ports_of(&self, lease: &Lease) -> Result<(), CniError> {
        if lease.runtime.port_mappings.is_empty() {
            return Ok(());
        }
        let mut host_ports = lock(&self.host_ports);
        let desired = hostport::desired(self.ipam().leases());
        sync(&mut host_ports, &desired, Empty::Stays)
            .map_err(|e| CniError::new(code::KERNEL, "failed to map ports of the host").because(e))
    }

    /// Frees the addresses of an attachment: once no port of the host leads there any more.
    pub(super) fn unmap_and_release(
        &self,
        attachment: &Attachment,
        lease: Option<&Lease>,
    ) -> Result<(), CniError> {
        let mapped = lease.filter(|l| !l.runtime.port_mappings.is_empty());
        // Held until the lease is gone: nobody else is to map what it says meanwhile.
        let mut host_ports = mapped.map(|_| lock(&self.host_ports));
        if let Some(host_ports) = &mut host_ports {
            let desired = hostport::desired(self.ipam().leases().filter(|l| l.attachment != *attachment));
            sync(host_ports, &desired, Empty::Stays)
                .map_err(|e| CniError::new(code::KERNEL, "failed to unmap ports of the host").because(e))?;
        }
        if host_ports.as_ref().is_some_and(|h| h.has_empty()) {
            self.untidy.notify_one();
        }
        let released = self.ipam().release(attachment);
        released
            .map(drop)
            .map_err(|e| CniError::new(code::IO, "failed to release the address").because(e))
    }

    /// The bytes that answer the bytes of a call.
    pub(super) fn answer(&self, call: &[u8]) -> Vec<u8> {
        let start = Instant::now();
        let parsed = serde_json::from_slice::<Invocation>(call)
            .map_err(|e| CniError::new(code::DECODE, "failed to decode the plugin's call").because(e))
            .and_then(|invocation| invocation.parse());
        let (command, answer) = match parsed {
            Ok(request) => (Some(request.command), self.serve(&request)),
            Err(error) => (None, Err(error)),
        };
        let elapsed = start.elapsed();
        let label = command.map_or_else(|| "invalid".to_string(), |c| format!("{c:?}").to_uppercase());
        let failure = answer.as_ref().err().map_or(0, |e| e.code).to_string();
        metrics::counter!("svcnet_cni_requests_total", "command" => label.clone(), "code" => failure)
            .increment(1);
        metrics::histogram!("svcnet_cni_request_duration_seconds", "command" => label).record(elapsed);
        let answer = match answer {
            Ok(value) => Answer::Result(value),
            Err(error) => {
                tracing::warn!(?command, %error, "a call of the plugin failed");
                Answer::Error(error)
            }
        };
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    fn serve(&self, request: &Request) -> Result<Value, CniError> {
        match (&request.attachment, request.command) {
            (Some(attachment), Command::Add) => self.add(attachment, request),
            (Some(attachment), Command::Del) => self.del(attachment, request).map(|()| Value::Null),
            (Some(attachment), Command::Check) => self.check(attachment, request).map(|()| Value::Null),
            (_, Command::Gc) => self.gc(&request.config).map(|()| Value::Null),
            (_, Command::Status) => self.status(&request.config).map(|()| Value::Null),
            (_, command) => Err(CniError::new(
                code::ENVIRONMENT,
                format!("{command:?} is not the daemon's"),
            )),
        }
    }

    /// Whether ADD would succeed.
    fn status(&self, config: &NetConf) -> Result<(), CniError> {
        let network = self.network().ok_or_else(|| not_yet(code::UNAVAILABLE))?;
        if let Some(why) = lock(&self.trouble).clone() {
            let none = self.ipam().leases().next().is_none();
            let code = if none { code::UNAVAILABLE } else { code::CUT_OFF };
            return Err(CniError::new(code, "this node's pod network is not in place").because(why));
        }
        let room = self.ipam().has_room(&network.range_sets(config)?);
        room.map_err(|e| CniError::new(code::UNAVAILABLE, e.to_string()))
    }
}

fn sync(
    host_ports: &mut HostPorts,
    desired: &hostport::Desired,
    empty: Empty,
) -> Result<(), hostport::Error> {
    let plan = host_ports.sync(desired, empty)?;
    if !plan.is_empty() {
        tracing::info!(plan.ops = plan.0.len(), "host ports changed");
        tracing::debug!(%plan, "applied");
    }
    Ok(())
}

/// The pod network has never been in place since the agent started.
pub(super) fn not_yet(code: u32) -> CniError {
    CniError::new(code, "this node's pod network is not in place yet")
        .because("the agent waits for the node's pod CIDR or its link: see its log or /readyz")
}
