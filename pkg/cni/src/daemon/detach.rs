//! DEL and GC, and what is freed without them: containers that vanished, links that nobody has a lease for.

use std::collections::HashSet;
use std::path::Path;

use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::Rtnl;
use svcnet_netlink::link::Link;
use svcnet_netlink::netns::NetNs;

use super::serve::{Server, lock};
use crate::ipam::Lease;
use crate::isolation::Subject;
use crate::protocol::{Attachment, CniError, NetConf, Request, code};
use crate::{bandwidth, ipam, link};

impl Server {
    /// Detaches a container: by name alone, whatever of it there still is.
    pub(super) fn del(&self, attachment: &Attachment, request: &Request) -> Result<(), CniError> {
        let _turn = self.busy.enter(attachment.container());
        let mut rt = Rtnl::open()
            .map_err(|e| CniError::new(code::KERNEL, "failed to detach the container").because(e))?;
        let lease = self.detach(&mut rt, attachment)?;
        let pod = lease.as_ref().and_then(|l| l.pod.as_ref());
        if let Some(pod) = pod.or(request.pod.as_ref()) {
            self.registrar.unregister(pod);
        }
        if let Some(lease) = lease {
            tracing::info!(%attachment, address = ?lease.addresses, "container detached");
        }
        Ok(())
    }

    /// Takes away what ADD made, in reverse, and says what the lease was. The address comes last: nobody else is to have it
    /// while anything of the container is left.
    pub(super) fn detach(&self, rt: &mut Rtnl, attachment: &Attachment) -> Result<Option<Lease>, CniError> {
        let failed = |e: svcnet_netlink::rt::Error| {
            CniError::new(code::KERNEL, "failed to delete the link").because(e)
        };
        link::delete(rt, attachment).map_err(failed)?;
        let lease = self.ipam().get(attachment).cloned();
        // A lease says what was made; without one there may be anything.
        if lease.as_ref().is_none_or(|l| !l.runtime.bandwidth.is_unlimited()) {
            bandwidth::delete(rt, attachment).map_err(failed)?;
        }
        if let (Some(isolation), Some(lease)) = (&self.isolation, &lease) {
            isolation.release(Subject::from(lease));
        }
        self.unmap_and_release(attachment, lease.as_ref())?;
        Ok(lease)
    }

    /// Frees what no container of the network uses, past failures.
    pub(super) fn gc(&self, config: &NetConf) -> Result<(), CniError> {
        let is_stale =
            |l: &&Lease| l.network == config.name && !config.valid_attachments.contains(&l.attachment);
        let stale: Vec<Lease> = self.ipam().leases().filter(is_stale).cloned().collect();
        let mut failures = Vec::new();
        for Lease { attachment, pod, .. } in stale {
            match self.free(&attachment) {
                Ok(()) => {
                    tracing::info!(%attachment, "no container uses it: its address is free");
                    pod.iter().for_each(|pod| self.registrar.unregister(pod));
                }
                Err(error) => failures.push(format!("{attachment}: {error}")),
            }
        }
        if let Err(error) = self.forget_vanished() {
            failures.push(error.to_string());
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(CniError::new(code::KERNEL, "failed to free some attachments").because(failures.join("; ")))
    }

    fn free(&self, attachment: &Attachment) -> Result<(), CniError> {
        let _turn = self.busy.enter(attachment.container());
        let mut rt = Rtnl::open()
            .map_err(|e| CniError::new(code::KERNEL, "failed to detach the container").because(e))?;
        self.detach(&mut rt, attachment).map(drop)
    }

    /// Frees the leases of containers that are gone without a trace: neither their namespace nor their link is there. So
    /// it is after a reboot, and where a runtime lost a container. Says how many there were.
    pub(super) fn forget_vanished(&self) -> Result<usize, super::Error> {
        let mut rt = Rtnl::open()?;
        let links: HashSet<String> = rt.links()?.into_iter().map(|l| l.name).collect();
        let leases: Vec<Lease> = self.ipam().leases().cloned().collect();
        let mut count = 0;
        for lease in leases {
            let attachment = &lease.attachment;
            if links.contains(&link::host_name(attachment)) || !is_gone(&lease) {
                continue;
            }
            // Whoever works on it knows better.
            let Some(_turn) = self.busy.try_enter(attachment.container()) else {
                continue;
            };
            let same = self.ipam().get(attachment) == Some(&lease);
            if !same || rt.link(&link::host_name(attachment))?.is_some() {
                continue;
            }
            match self.detach(&mut rt, attachment) {
                Ok(_) => {
                    count += 1;
                    tracing::info!(%attachment, address = ?lease.addresses, "a container vanished: its address is free");
                    lease.pod.iter().for_each(|pod| self.registrar.unregister(pod));
                }
                Err(error) => {
                    tracing::warn!(%attachment, %error, "a container vanished, and its address is still taken")
                }
            }
        }
        Ok(count)
    }

    /// Tells whoever isolates containers which are attached: it has started with this process.
    pub(super) fn tell_attached(&self) {
        let Some(isolation) = &self.isolation else { return };
        let leases: Vec<Lease> = self.ipam().leases().cloned().collect();
        let all: Vec<Subject<'_>> = leases.iter().map(Subject::from).collect();
        isolation.restore(&all);
    }

    /// Deletes links of ours that nobody has a lease for: ADD writes the lease first, so that they are leftovers. One with a
    /// container behind it stays, since it works: the leases were lost, not the container.
    pub(super) fn delete_orphans(&self) -> Result<(), super::Error> {
        let mut rt = Rtnl::open()?;
        let links = rt.links()?;
        let bridge = links.iter().find(|l| l.name == BRIDGE_NAME).map(|l| l.index);
        let is_port = |l: &Link| link::is_host_name(&l.name) && bridge.is_some() && l.master == bridge;
        let lives = |l: &&Link| is_port(l) && l.lower_up;
        for live in links.iter().filter(lives) {
            let leased = self.ipam().leases().any(|l| has_link(l, &live.name));
            if !leased && lock(&self.unleased).insert(live.name.clone()) {
                let link = &live.name;
                tracing::warn!(%link, "a container has no lease: its address may be given to another one");
            }
        }
        let belongs_to_live = |detour: &Link| {
            let hash = detour
                .name
                .get(detour.name.len().saturating_sub(link::HASH_LENGTH)..);
            let mut live = links.iter().filter(lives);
            live.any(|l| hash.is_some_and(|hash| l.name.ends_with(hash)))
        };
        let is_left = |l: &&Link| {
            let detour = bandwidth::is_ifb_name(&l.name) && !belongs_to_live(l);
            detour || (is_port(l) && !l.lower_up)
        };
        for link in links.iter().filter(is_left) {
            // No ADD can reserve an address while the leases are locked, hence none makes a link of that name.
            let ipam = self.ipam();
            if ipam.leases().any(|l| has_link(l, &link.name)) {
                continue;
            }
            tracing::info!(link = %link.name, "a link belongs to no container: it goes");
            rt.delete_link(link.index)?;
        }
        Ok(())
    }
}

fn has_link(lease: &Lease, name: &str) -> bool {
    link::host_name(&lease.attachment) == name || bandwidth::ifb_name(&lease.attachment) == name
}

/// Whether a container's namespace is gone. One that is there without the link is a container's that runs, and its DEL will
/// come. But a path below `/proc` may be another process's by now: there the link itself must be seen.
fn is_gone(lease: &Lease) -> bool {
    use svcnet_netlink::netns::Error;
    match NetNs::open_path(&lease.netns) {
        Ok(netns) if lease.netns.starts_with(Path::new("/proc")) => {
            let found = Rtnl::open_in(&netns).and_then(|mut rt| rt.link(lease.attachment.ifname()));
            found.is_ok_and(|link| link.is_none())
        }
        Ok(_) => false,
        Err(error) => error.is_gone() || matches!(error, Error::NotANamespace(_)),
    }
}

/// What a plugin without a daemon takes away: what [`Server::detach`] does, but for what only the agent knows.
pub(crate) fn detach_without_daemon(
    rt: &mut Rtnl,
    leases: Option<&mut ipam::Ipam>,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let failed =
        |e: svcnet_netlink::rt::Error| CniError::new(code::KERNEL, "failed to delete the link").because(e);
    link::delete(rt, attachment).map_err(failed)?;
    bandwidth::delete(rt, attachment).map_err(failed)?;
    let Some(leases) = leases else { return Ok(()) };
    let lease = leases
        .release(attachment)
        .map_err(|e| CniError::new(code::IO, "failed to release the address").because(e))?;
    let mapped = lease.filter(|l| !l.runtime.port_mappings.is_empty());
    mapped.map_or(Ok(()), |lease| {
        crate::hostport::forget(&lease.addresses)
            .map_err(|e| CniError::new(code::KERNEL, "failed to unmap ports of the host").because(e))
    })
}
