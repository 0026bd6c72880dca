//! ADD: an address, isolation, a link, limits, ports of the host, in this order; and back when one of them fails.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use svcnet_api::types::MacAddr;
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::NetNs;
use tokio::task::JoinError;

use super::serve::{Network, Server, not_yet};
use crate::ipam::{self, Lease, RangeSet, Unsynced, Wish};
use crate::isolation::Subject;
use crate::link::{self, Made, PodLink};
use crate::protocol::{
    AddResult, Attachment, CniError, Dns, Interface, IpConfig, PodRef, Request, Route, code,
};
use crate::{bandwidth, hostport, registrar};

/// How long the API is asked whether it knows a pod. When it is away, what the agent knows of it has to do.
const LOOKUP_WAIT_MAX: Duration = Duration::from_secs(1);

impl Server {
    /// Attaches a container.
    pub(super) fn add(&self, attachment: &Attachment, request: &Request) -> Result<Value, CniError> {
        let network = self.network().ok_or_else(|| not_yet(code::RETRY))?;
        let sets = network.range_sets(&request.config)?;
        let path = request.netns.as_deref().unwrap_or(Path::new(""));
        let netns = NetNs::open_path(path)
            .map_err(|e| CniError::new(code::CONTAINER_GONE, "failed to open netns").because(e))?;
        let _turn = self.busy.enter(attachment.container());
        let mut rt = Rtnl::open().map_err(failed)?;
        self.clear_former(&mut rt, &netns, &network, attachment)?;
        let (lease, unsynced) = self.reserve(attachment, &sets, path, request)?;
        let pod_link = pod_link(&lease, &network);
        // The disk and the kernel work at the same time.
        let syncing = tokio::task::spawn_blocking(|| unsynced.sync());
        let made = self.set_up(&mut rt, &netns, &lease, &pod_link);
        let synced = tokio::runtime::Handle::current().block_on(syncing);
        let made = match made.and_then(|made| durable(synced).map(|()| made)) {
            Ok(made) => made,
            Err(error) => {
                // The error that counts is the first one.
                if let Err(undoing) = self.detach(&mut rt, attachment) {
                    tracing::warn!(%attachment, error = %undoing, "a failed attachment could not be undone");
                }
                return Err(error);
            }
        };
        self.registrar.register(&lease, network.host);
        tracing::info!(%attachment, address = ?lease.addresses, "container attached");
        let result = self.result(&lease, &pod_link, &made, path);
        Ok(result.render(request.config.version, request.config.prev_result.as_ref()))
    }

    /// A container that has a lease was attached already: a second ADD is a mistake. Or its ADD was cut short by a kill:
    /// what there is of it goes, and it begins anew.
    fn clear_former(
        &self,
        rt: &mut Rtnl,
        netns: &NetNs,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<(), CniError> {
        let Some(lease) = self.ipam().get(attachment).cloned() else {
            return Ok(());
        };
        let whole = link::check(rt, netns, &pod_link(&lease, network)).is_ok_and(|wrong| wrong.is_empty());
        if whole {
            return Err(exists(&link::Error::Exists(attachment.ifname().to_string())));
        }
        link::delete(rt, attachment).map_err(failed)?;
        bandwidth::delete(rt, attachment).map_err(failed)
    }

    fn reserve(
        &self,
        attachment: &Attachment,
        sets: &[RangeSet],
        netns: &Path,
        request: &Request,
    ) -> Result<(Lease, Unsynced), CniError> {
        let wish = Wish {
            attachment,
            network: &request.config.name,
            netns,
            pod: request.pod.as_ref(),
            runtime: &request.runtime,
            unpinned: !request.config.macspoofchk,
        };
        let refused = match self.try_reserve(&wish, sets) {
            Err(error) if matches!(error.code, code::EXHAUSTED | code::ADDRESS | code::PORT_TAKEN) => error,
            other => return other,
        };
        // What stands in the way may be of a container that vanished since anybody looked.
        match self.forget_vanished() {
            Ok(0) => Err(refused),
            Ok(_) => self.try_reserve(&wish, sets),
            Err(error) => {
                tracing::warn!(%error, "vanished containers could not be looked for");
                Err(refused)
            }
        }
    }

    fn try_reserve(&self, wish: &Wish<'_>, sets: &[RangeSet]) -> Result<(Lease, Unsynced), CniError> {
        let mut ipam = self.ipam();
        if let Some((mapping, other)) = hostport::conflict(wish, ipam.leases()) {
            let whose = other
                .pod
                .as_ref()
                .map(|p| format!(" (pod {}/{})", p.namespace, p.name));
            let msg = format!("port {mapping} of the host is in use");
            let owner = format!("{}{}", other.attachment, whose.unwrap_or_default());
            return Err(CniError::new(code::PORT_TAKEN, msg).because(format_args!("it leads to {owner}")));
        }
        let refused = |error: ipam::Error| {
            let code = match error {
                ipam::Error::Exhausted { .. } => code::EXHAUSTED,
                ipam::Error::Taken { .. } | ipam::Error::NotAll(_) => code::ADDRESS,
                _ => code::IO,
            };
            CniError::new(code, error.to_string())
        };
        // A lease that an ADD cut short left: of a former pod network of this node, or with other wishes.
        let stale = |lease: &Lease| {
            let outside = |a: &IpAddr| !sets.iter().any(|set| set.contains(*a));
            lease.addresses.iter().any(outside)
                || lease.runtime != *wish.runtime
                || lease.unpinned != wish.unpinned
        };
        if ipam.get(wish.attachment).is_some_and(stale) {
            ipam.release(wish.attachment).map_err(refused)?;
        }
        let (reserved, unsynced) = ipam.reserve(wish, sets).map_err(refused)?;
        Ok((reserved.lease().clone(), unsynced))
    }

    fn set_up(
        &self,
        rt: &mut Rtnl,
        netns: &NetNs,
        lease: &Lease,
        pod_link: &PodLink,
    ) -> Result<Made, CniError> {
        if let Some(isolation) = &self.isolation {
            let subject = Subject {
                late: lease
                    .pod
                    .as_ref()
                    .is_some_and(|pod| !isolation.knows(pod) && self.is_late(pod)),
                ..Subject::from(lease)
            };
            isolation.enforce(subject).map_err(|why| {
                CniError::new(code::ISOLATION, "failed to isolate the container").because(why)
            })?;
        }
        let made = link::add(rt, netns, pod_link).map_err(|error| match error {
            link::Error::Exists(_) => exists(&error),
            other => failed(other),
        })?;
        let limited = bandwidth::apply(rt, &lease.attachment, &lease.runtime.bandwidth, pod_link.mtu);
        limited.map_err(|e| CniError::new(code::KERNEL, "failed to limit the bandwidth").because(e))?;
        self.map_ports_of(lease)?;
        Ok(made)
    }

    /// Whether nobody has told the API of a pod. Without an answer it is taken for one that somebody told of.
    fn is_late(&self, pod: &PodRef) -> bool {
        let Some(uid) = &pod.uid else { return false };
        let asked = tokio::time::timeout(LOOKUP_WAIT_MAX, registrar::is_told(&self.client, pod, uid));
        let told = tokio::runtime::Handle::current().block_on(asked);
        !told.unwrap_or(true)
    }

    fn result(&self, lease: &Lease, link: &PodLink, made: &Made, netns: &Path) -> AddResult {
        let interface = |name: &str, mac: Option<MacAddr>, sandbox: Option<&Path>| Interface {
            name: name.to_string(),
            mac: mac.map(|m| m.to_string()).unwrap_or_default(),
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
        let of_cluster = || Dns::of_pod(&self.cluster_dns, namespace, &self.cluster_domain);
        AddResult {
            interfaces: vec![
                interface(BRIDGE_NAME, made.bridge_mac, None),
                interface(&link.host_name, Some(made.host_mac), None),
                interface(&link.ifname, Some(link.mac), Some(netns)),
            ],
            ips: ips
                .clone()
                .map(|(a, gateway)| IpConfig {
                    interface: Some(2),
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
            dns: lease.runtime.dns.clone().unwrap_or_else(of_cluster),
        }
    }
}

/// The link of a lease on this node.
pub(super) fn pod_link(lease: &Lease, network: &Network) -> PodLink {
    PodLink::new(
        &lease.attachment,
        &lease.addresses,
        lease.runtime.mac,
        &network.cidrs,
        network.mtu,
    )
}

/// Whether the lease is on disk.
fn durable(synced: Result<Result<(), ipam::Error>, JoinError>) -> Result<(), CniError> {
    let why = match synced {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        // The runtime shuts down, and the disk was not waited for.
        Err(error) => error.to_string(),
    };
    Err(CniError::new(code::IO, "failed to write the lease").because(why))
}

fn failed(error: impl ToString) -> CniError {
    CniError::new(code::KERNEL, "failed to attach the container").because(error)
}

fn exists(error: &link::Error) -> CniError {
    CniError {
        code: code::EXISTS,
        ..failed(error)
    }
}
