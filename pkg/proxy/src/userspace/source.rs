//! The addresses that relays connect from where policies have been asked: made local with the first connection that needs
//! one, and taken back when the mode has ended and the last such connection too.
//!
//! To pods elsewhere that is the last address of this node's network, which nothing else uses and which the set
//! `relays` of each node's policies lets in; nobody has to announce it. What is not known to be a pod is reached from
//! the node's usual address, and judged where it is. To IPv4 the last address is the bridge's broadcast address: a
//! local route before the kernel's own makes it an ordinary one (`Rtnl::claim_local_address`). A process of a node in
//! this mode may bind to it and pass policies elsewhere, as it may pass those of its own node's pods.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use svcnet_netlink::local::LocalFor;
use svcnet_netlink::{Rtnl, rt};

struct Inner {
    rtnl: Rtnl,
    /// How many connections have each.
    held: HashMap<IpAddr, usize>,
    /// How many backends there are: addresses stay while there is one.
    backends: usize,
}

/// The addresses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sources(Arc<Mutex<Inner>>);

/// Keeps an address while it is there.
pub(crate) struct Source {
    sources: Sources,
    pub(crate) ip: IpAddr,
}

impl Sources {
    pub(crate) fn open() -> Result<Self, rt::Error> {
        let inner = Inner {
            rtnl: Rtnl::open()?,
            held: HashMap::new(),
            backends: 0,
        };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address to connect from; none where it can not be had, which takes CAP_NET_ADMIN.
    pub(crate) fn hold(&self, ip: IpAddr) -> Option<Source> {
        let mut inner = self.lock();
        if !inner.held.contains_key(&ip) {
            if let Err(error) = inner.rtnl.claim_local_address(LocalFor::RelaySource, ip) {
                tracing::debug!(%error, "no address for relays to connect from");
                return None;
            }
            tracing::info!(src.addr = %ip, "relays connect from this address to pods of other nodes");
            inner.held.insert(ip, 0);
        }
        *inner.held.entry(ip).or_default() += 1;
        Some(Source {
            sources: self.clone(),
            ip,
        })
    }

    /// A backend begins: addresses are kept.
    pub(crate) fn begin(&self) {
        self.lock().backends += 1;
    }

    /// One ends. With the last, addresses are kept for connections only.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.backends = inner.backends.saturating_sub(1);
        inner.tidy();
    }

    /// Makes the addresses local again that somebody has taken away.
    pub(crate) fn mend(&self) {
        let mut inner = self.lock();
        for ip in inner.held.keys().copied().collect::<Vec<_>>() {
            if let Err(error) = inner.rtnl.claim_local_address(LocalFor::RelaySource, ip) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "relays can not connect from the address that other nodes expect"
                );
            }
        }
    }
}

impl Inner {
    fn tidy(&mut self) {
        if self.backends > 0 {
            return;
        }
        let rtnl = &mut self.rtnl;
        self.held.retain(|ip, count| {
            if *count > 0 {
                return true;
            }
            if let Err(error) = rtnl.delete_local_address(LocalFor::RelaySource, *ip) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an address stays that nothing needs"
                );
            }
            false
        });
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut inner = self.sources.lock();
        if let Some(count) = inner.held.get_mut(&self.ip) {
            *count -= 1;
        }
        inner.tidy();
    }
}

/// Takes back what an earlier process left, and says whether there was anything. Not while relays run.
pub(crate) fn cleanup(rtnl: &mut Rtnl) -> Result<bool, rt::Error> {
    let left = rtnl.local_addresses(LocalFor::RelaySource)?;
    for ip in &left {
        rtnl.delete_local_address(LocalFor::RelaySource, *ip)?;
    }
    Ok(!left.is_empty())
}
