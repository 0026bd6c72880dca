//! What the daemon does for each call.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use serde_json::Value;
use svcnet_api::types::PodCidr;
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::NetNs;

use crate::Config;
use crate::client::Answer;
use crate::guard::{Guard, Guarded};
use crate::ipam::{self, Ipam, Lease, Reserved};
use crate::link::{self, Made, PodLink};
use crate::protocol::{
    AddResult, Attachment, CniError, Command, Dns, Interface, Invocation, IpConfig, NetConf, Request, Route,
    code,
};
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

/// Answers calls, on as many threads as there are calls.
pub(super) struct Server {
    ipam: Mutex<Ipam>,
    network: Mutex<Option<Network>>,
    busy: Busy,
    cluster_dns: Vec<IpAddr>,
    cluster_domain: String,
    guard: Option<Arc<dyn Guard>>,
    pub(super) registrar: Registrar,
}

impl Server {
    pub(super) fn new(ipam: Ipam, config: &Config, registrar: Registrar) -> Self {
        Self {
            ipam: Mutex::new(ipam),
            network: Mutex::new(None),
            busy: Busy::default(),
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            guard: config.guard.clone(),
            registrar,
        }
    }

    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_network(&self, network: Network) {
        let mut current = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref() == Some(&network) {
            return;
        }
        let host = network.host;
        *current = Some(network);
        drop(current);
        // The API may have missed any of them.
        for lease in self.ipam().leases() {
            if let Some(pod) = &lease.pod {
                self.registrar.register(pod, &lease.addresses, host);
            }
        }
    }

    fn network(&self) -> Option<Network> {
        self.network
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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

    /// Tells the guard of everybody who has a lease.
    pub(super) fn tell_guard(&self) {
        if let Some(guard) = &self.guard {
            let all = self.ipam().leases().filter_map(Guarded::restored).collect();
            guard.restore(all);
        }
    }

    /// Has the guard isolate a pod before it has a link. A pod that it can not isolate gets none.
    fn isolate(&self, reserved: &Reserved, link: &PodLink) -> Result<(), CniError> {
        let (Some(guard), lease) = (&self.guard, reserved.lease()) else {
            return Ok(());
        };
        guard.attach(Guarded::of(lease, link.mac)).map_err(|why| {
            CniError::new(code::RETRY, "failed to isolate the container before it starts").because(why)
        })
    }

    fn unguard(&self, attachment: &Attachment) {
        if let Some(guard) = &self.guard {
            guard.detach(&link::host_name(attachment));
        }
    }

    /// Frees the leases of containers that are gone without a trace: neither their namespace nor their link is there.
    /// So it is after a reboot.
    pub(super) fn forget_vanished(&self, rt: &mut Rtnl) -> Result<(), super::Error> {
        let links: HashSet<String> = rt.links()?.into_iter().map(|l| l.name).collect();
        let mut ipam = self.ipam();
        let vanished: Vec<Attachment> = ipam
            .leases()
            .filter(|l| !links.contains(&link::host_name(&l.attachment)) && !l.netns.exists())
            .map(|l| l.attachment.clone())
            .collect();
        for attachment in vanished {
            tracing::info!(%attachment, "a container vanished: its address is free");
            ipam.release(&attachment)?;
        }
        Ok(())
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
            (_, Command::Status) => self
                .network()
                .map(|_| Value::Null)
                .ok_or_else(|| not_yet(code::UNAVAILABLE)),
            (_, command) => Err(CniError::new(
                code::ENVIRONMENT,
                format!("{command:?} is not the daemon's"),
            )),
        }
    }

    fn add(&self, attachment: &Attachment, request: &Request) -> Result<Value, CniError> {
        let failed = || CniError::new(code::KERNEL, "failed to attach the container");
        let network = self.network().ok_or_else(|| not_yet(code::RETRY))?;
        let path = request.netns.as_deref().unwrap_or(Path::new(""));
        let netns = NetNs::open_path(path)
            .map_err(|e| CniError::new(code::CONTAINER_GONE, "failed to open netns").because(e))?;
        let _turn = self.busy.enter(attachment.container());
        let reserved = self.reserve(attachment, &network, path, request)?;
        let lease = reserved.lease();
        let pod_link = PodLink::new(attachment, &lease.addresses, &network.cidrs, network.mtu);
        if let Err(error) = self.isolate(&reserved, &pod_link) {
            if matches!(reserved, Reserved::New(_)) {
                self.release(attachment)?;
            }
            return Err(error);
        }
        let mut rt = Rtnl::open().map_err(|e| failed().because(e))?;
        let mut adding = link::add(&mut rt, &netns, &pod_link);
        if let (Err(link::Error::Exists(_)), Reserved::Kept(_)) = (&adding, &reserved) {
            // Either a second ADD, which is a mistake, or the first one, which a kill cut short.
            let whole = link::check(&mut rt, &netns, &pod_link).is_ok_and(|wrong| wrong.is_empty());
            if !whole && link::delete(&mut rt, attachment).is_ok() {
                adding = link::add(&mut rt, &netns, &pod_link);
            }
        }
        let made = match adding {
            Ok(made) => made,
            Err(error) => {
                // A container that has the interface keeps its addresses.
                let exists = matches!(error, link::Error::Exists(_));
                if !exists || matches!(reserved, Reserved::New(_)) {
                    self.release(attachment)?;
                    self.unguard(attachment);
                }
                let code = if exists { code::EXISTS } else { code::KERNEL };
                return Err(CniError {
                    code,
                    ..failed().because(error)
                });
            }
        };
        if let Some(pod) = &lease.pod {
            self.registrar.register(pod, &lease.addresses, network.host);
        }
        tracing::info!(%attachment, address = ?lease.addresses, "container attached");
        Ok(self
            .result(lease, &pod_link, &made, path)
            .render(request.config.version))
    }

    fn reserve(
        &self,
        attachment: &Attachment,
        network: &Network,
        netns: &Path,
        request: &Request,
    ) -> Result<Reserved, CniError> {
        let refused = |error: ipam::Error| {
            let code = if matches!(error, ipam::Error::Exhausted { .. }) {
                code::EXHAUSTED
            } else {
                code::IO
            };
            CniError {
                code,
                msg: error.to_string(),
                details: String::new(),
            }
        };
        let mut ipam = self.ipam();
        // Of a former pod network of this node: left by an ADD that did not finish.
        let stale = |lease: &Lease| {
            lease
                .addresses
                .iter()
                .any(|a| !network.cidrs.iter().any(|c| c.contains(*a)))
        };
        if ipam.get(attachment).is_some_and(stale) {
            ipam.release(attachment).map_err(refused)?;
        }
        ipam.reserve(attachment, &network.cidrs, netns, request.pod.as_ref())
            .map_err(refused)
    }

    fn release(&self, attachment: &Attachment) -> Result<Option<Lease>, CniError> {
        self.ipam()
            .release(attachment)
            .map_err(|e| CniError::new(code::IO, "failed to release the address").because(e))
    }

    fn result(&self, lease: &Lease, link: &PodLink, made: &Made, netns: &Path) -> AddResult {
        let interface = |name: &str, mac: Option<_>, sandbox: Option<&Path>| Interface {
            name: name.to_string(),
            mac: mac
                .map(|m: svcnet_api::types::MacAddr| m.to_string())
                .unwrap_or_default(),
            mtu: Some(link.mtu),
            sandbox: sandbox.map(|p| p.display().to_string()),
        };
        let default = |gateway: &IpAddr| {
            if gateway.is_ipv4() {
                IpNet::V4(Default::default())
            } else {
                IpNet::V6(Default::default())
            }
        };
        let ips = link.addresses.iter();
        let namespace = lease.pod.as_ref().map_or("default", |p| p.namespace.as_str());
        AddResult {
            interfaces: vec![
                interface(BRIDGE_NAME, made.bridge_mac, None),
                interface(&link.host_name, made.host_mac, None),
                interface(&link.ifname, Some(link.mac), Some(netns)),
            ],
            ips: ips
                .clone()
                .map(|(a, gateway)| IpConfig {
                    interface: 2,
                    address: IpNet::from(*a),
                    gateway: Some(*gateway),
                })
                .collect(),
            routes: ips
                .map(|(_, gateway)| Route {
                    dst: default(gateway),
                    gw: Some(*gateway),
                })
                .collect(),
            dns: Dns::of_pod(&self.cluster_dns, namespace, &self.cluster_domain),
        }
    }

    /// Detaches a container: by name alone, whatever of it there still is.
    fn del(&self, attachment: &Attachment, request: &Request) -> Result<(), CniError> {
        let _turn = self.busy.enter(attachment.container());
        let failed = |e: svcnet_netlink::rt::Error| {
            CniError::new(code::KERNEL, "failed to delete the link").because(e)
        };
        let mut rt = Rtnl::open().map_err(failed)?;
        // Before the address is free for others.
        link::delete(&mut rt, attachment).map_err(failed)?;
        self.unguard(attachment);
        let lease = self.release(attachment)?;
        let pod = lease
            .as_ref()
            .and_then(|l| l.pod.as_ref())
            .or(request.pod.as_ref());
        if let Some(pod) = pod {
            self.registrar.unregister(pod);
        }
        if let Some(lease) = lease {
            tracing::info!(%attachment, address = ?lease.addresses, "container detached");
        }
        Ok(())
    }

    fn check(&self, attachment: &Attachment, request: &Request) -> Result<(), CniError> {
        let differs = |why: String| {
            CniError::new(code::CHECK, "the container's network is not as it was made").because(why)
        };
        let prev = request
            .config
            .prev_result
            .as_ref()
            .map(|v| serde_json::from_value::<AddResult>(v.clone()));
        let prev = prev
            .transpose()
            .map_err(|e| CniError::new(code::DECODE, "failed to decode prevResult").because(e))?;
        let network = self.network().ok_or_else(|| not_yet(code::RETRY))?;
        let _turn = self.busy.enter(attachment.container());
        let lease = self.ipam().get(attachment).cloned();
        let lease = lease.ok_or_else(|| differs(format!("{attachment} has no address")))?;
        // Runtimes must say what ADD answered; where one does not, the lease alone tells.
        let untold = |prev: &AddResult| {
            let told = |a: &IpAddr| prev.ips.iter().any(|ip| ip.address.addr() == *a);
            lease.addresses.iter().find(|a| !told(a)).copied()
        };
        if let Some(address) = prev.as_ref().and_then(untold) {
            return Err(differs(format!("prevResult lacks the address {address}")));
        }
        let path = request.netns.as_deref().unwrap_or(Path::new(""));
        let netns = NetNs::open_path(path)
            .map_err(|e| CniError::new(code::CONTAINER_GONE, "failed to open netns").because(e))?;
        let link = PodLink::new(attachment, &lease.addresses, &network.cidrs, network.mtu);
        let failed =
            |e: link::Error| CniError::new(code::KERNEL, "failed to read the container's network").because(e);
        let mut rt = Rtnl::open().map_err(|e| failed(e.into()))?;
        let wrong = link::check(&mut rt, &netns, &link).map_err(failed)?;
        if wrong.is_empty() {
            return Ok(());
        }
        let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        Err(differs(wrong.join("; ")))
    }

    /// Frees what no container uses, past failures.
    fn gc(&self, config: &NetConf) -> Result<(), CniError> {
        let stale = self
            .attachments()
            .into_iter()
            .filter(|a| !config.valid_attachments.contains(a));
        let mut failures = Vec::new();
        for attachment in stale {
            let request = Request {
                command: Command::Del,
                attachment: Some(attachment.clone()),
                netns: None,
                pod: None,
                config: config.clone(),
            };
            if let Err(error) = self.del(&attachment, &request) {
                failures.push(format!("{attachment}: {error}"));
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(CniError::new(code::KERNEL, "failed to free some attachments").because(failures.join("; ")))
    }
}

fn not_yet(code: u32) -> CniError {
    CniError::new(code, "this node's pod network is not in place yet")
        .because("the agent waits for the node's pod CIDR or its link: see its log or /readyz")
}

/// The containers that a call is being served for: the next call for the same one waits its turn.
#[derive(Default)]
struct Busy {
    containers: Mutex<HashSet<String>>,
    left: Condvar,
}

struct Turn<'a> {
    busy: &'a Busy,
    container: &'a str,
}

impl Busy {
    fn enter<'a>(&'a self, container: &'a str) -> Turn<'a> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.left.wait_while(containers, |c| c.contains(container));
        free.unwrap_or_else(PoisonError::into_inner)
            .insert(container.to_string());
        Turn {
            busy: self,
            container,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.container);
        self.busy.left.notify_all();
    }
}
