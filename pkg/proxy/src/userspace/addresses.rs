//! Service addresses, made local so that sockets can be bound to them and packets to them end here.
//!
//! An address stays while a connection goes through it, also when no Service has it any more: without it the kernel
//! would not deliver the connection's packets. The last one to let go takes it back.
//!
//! They are local routes, not addresses of a link: a route carries the mark of who made it, so that a crash leaves
//! nothing that cannot be told from the host's own.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use svcnet_netlink::local::LocalFor;
use svcnet_netlink::{Rtnl, rt};

use super::SYSCTLS;
use crate::backend::Mode;
use crate::sysctls::Sysctls;

#[derive(Debug, Default)]
struct Place {
    wanted: bool,
    holds: usize,
}

struct Inner {
    rtnl: Rtnl,
    places: HashMap<IpAddr, Place>,
    sysctls: Sysctls,
}

impl Inner {
    /// An address that nothing needs: away with it, and with the last one what was set for all.
    fn remove(&mut self, ip: IpAddr) -> Result<(), rt::Error> {
        self.rtnl.delete_local_address(LocalFor::Relays, ip)?;
        self.places.remove(&ip);
        if self.places.is_empty()
            && let Err(error) = self
                .sysctls
                .restore(Mode::Userspace, &SYSCTLS.map(|(name, _)| name))
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "strict ARP stays");
        }
        Ok(())
    }
}

/// The addresses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Addresses(Arc<Mutex<Inner>>);

/// Keeps an address while it is there.
pub(crate) struct Hold {
    addresses: Addresses,
    ip: IpAddr,
}

impl Addresses {
    pub(crate) fn open(sysctls: Sysctls) -> Result<Self, rt::Error> {
        let inner = Inner {
            rtnl: Rtnl::open()?,
            places: HashMap::new(),
            sysctls,
        };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an address local, or leaves it so.
    pub(crate) fn place(&self, ip: IpAddr) -> Result<(), rt::Error> {
        let mut inner = self.lock();
        if inner.places.is_empty() {
            // Before anybody can ask for the first of them.
            for (name, value) in SYSCTLS {
                if let Err(error) = inner.sysctls.set(Mode::Userspace, name, value) {
                    tracing::debug!(%error, "strict ARP");
                }
            }
        }
        // As it would be if the address were none of this host: a connection that is translated must not come from an
        // address that goes again.
        let way = inner.rtnl.route_to(ip)?;
        let source = way.and_then(|way| way.source).filter(|source| *source != ip);
        inner.rtnl.add_local_address(LocalFor::Relays, ip, source)?;
        inner.places.entry(ip).or_default().wanted = true;
        Ok(())
    }

    /// Gives an address up.
    pub(crate) fn release(&self, ip: IpAddr) -> Result<(), rt::Error> {
        let mut inner = self.lock();
        if let Some(place) = inner.places.get_mut(&ip).filter(|place| place.holds > 0) {
            place.wanted = false;
            return Ok(());
        }
        inner.remove(ip)
    }

    /// Keeps an address, if it is one that was placed.
    pub(crate) fn hold(&self, ip: IpAddr) -> Option<Hold> {
        self.lock().places.get_mut(&ip)?.holds += 1;
        Some(Hold {
            addresses: self.clone(),
            ip,
        })
    }

    /// The addresses that are local by our doing, without those that only wait for their last connection to end.
    pub(crate) fn observe(&self) -> Result<BTreeSet<IpAddr>, rt::Error> {
        let mut inner = self.lock();
        let mut there: BTreeSet<IpAddr> = inner
            .rtnl
            .local_addresses(LocalFor::Relays)?
            .into_iter()
            .collect();
        there.retain(|ip| inner.places.get(ip).is_none_or(|place| place.wanted));
        Ok(there)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.addresses.lock();
        let Some(place) = inner.places.get_mut(&self.ip) else {
            return;
        };
        place.holds -= 1;
        if place.holds > 0 || place.wanted {
            return;
        }
        if let Err(error) = inner.remove(self.ip) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an address stays that nothing needs"
            );
        }
    }
}
