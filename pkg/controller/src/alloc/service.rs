//! ClusterIPs and node ports as part of writing a Service: taken on the way in, kept when the write stands, given
//! back when it does not.
//!
//! What the allocator holds equals, at any time, what the stored Services hold plus what writes under way have taken
//! or are about to free. After a restart it is built anew from the store ([`Admission::restore`]), so nothing about
//! it is ever written anywhere.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use serde_json::Value;
use svcnet_api::types::{CidrList, NodePortRange};
use svcnet_api::{Admission, ApiError, Claims, Kind, Operation, Request, Reservation, meta};

use super::addresses::AddressRangeError;
use super::families;
use super::fields::{Family, Fields};
use super::networks::Networks;
use super::objects::{self, Subject};
use super::ports::PortAllocator;
use super::ranges::{Failure, Holdings, Ranges};

/// Gives Services their ClusterIPs and node ports. Cheap to clone.
#[derive(Clone)]
pub struct ServiceAllocator {
    ranges: Arc<Mutex<Ranges>>,
    families: Vec<Family>,
    warnings: Arc<Mutex<Vec<Restored>>>,
}

/// Something that the store holds and the ranges do not allow. The Service keeps it and works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreWarning {
    /// A node port beyond the range, which was another one when it was given.
    PortOutOfRange(i64, NodePortRange),
    /// A node port that two Services have.
    PortAlreadyAllocated(i64),
    /// A ClusterIP beyond the ranges, which were others when it was given.
    ClusterIpOutOfRange(IpAddr, Vec<IpNet>),
    /// A ClusterIP that two Services have.
    ClusterIpAlreadyAllocated(IpAddr),
}

/// A stored Service with something to warn of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Where it lives.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What is wrong.
    pub warning: RestoreWarning,
}

impl RestoreWarning {
    /// The reason of the Event that tells of it, as kube-apiserver's repair loop calls it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PortOutOfRange(..) => "PortOutOfRange",
            Self::PortAlreadyAllocated(_) => "PortAlreadyAllocated",
            Self::ClusterIpOutOfRange(..) => "ClusterIPOutOfRange",
            Self::ClusterIpAlreadyAllocated(_) => "ClusterIPAlreadyAllocated",
        }
    }
}

impl fmt::Display for RestoreWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortOutOfRange(port, range) => {
                write!(
                    f,
                    "Port {port} is not within the port range {range}; please recreate service"
                )
            }
            Self::PortAlreadyAllocated(port) => {
                write!(
                    f,
                    "Port {port} was assigned to multiple services; please recreate service"
                )
            }
            Self::ClusterIpOutOfRange(address, nets) => {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "Cluster IP {address} is not within the service CIDR {}",
                    nets.join(",")
                )?;
                f.write_str("; please recreate service")
            }
            Self::ClusterIpAlreadyAllocated(address) => {
                write!(
                    f,
                    "Cluster IP {address} was assigned to multiple services; please recreate service"
                )
            }
        }
    }
}

impl ServiceAllocator {
    /// Allocators with everything free. `reserved` addresses are given only to who asks for them by name: those of
    /// the Services `kubernetes` and `kube-dns`, which must get them even in a range that is full otherwise.
    ///
    /// # Errors
    /// When a service network has no addresses to give.
    pub fn new(
        service_cidrs: &CidrList,
        node_ports: NodePortRange,
        reserved: &[IpAddr],
    ) -> Result<Self, AddressRangeError> {
        let families = service_cidrs
            .iter()
            .map(|net| Family::of(net.network()))
            .collect();
        let ranges = Ranges {
            addresses: Networks::new(service_cidrs.iter(), reserved)?,
            ports: PortAllocator::new(node_ports),
        };
        Ok(Self {
            ranges: Arc::new(Mutex::new(ranges)),
            families,
            warnings: Arc::default(),
        })
    }

    /// What was wrong with the restored Services since the last call. The log has it already; the controllers tell it at
    /// the Services.
    pub fn take_warnings(&self) -> Vec<Restored> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes `new` and takes what it needs and `old` does not hold. What an update inherits from `old` it has been given
    /// before, as a default of the kind.
    fn allocate(&self, new: &mut Fields, old: Option<&Fields>) -> Result<Option<Held>, Failure> {
        if new.needs_cluster_ip() {
            if !families::is_plausible(new) {
                return Ok(None);
            }
            if !old.is_some_and(|old| families::is_settled(new, old)) {
                families::resolve(new, old, &self.families).map_err(Failure::Invalid)?;
            }
        }
        let mut held = Held {
            ranges: self.ranges.clone(),
            taken: Holdings::default(),
            freed: Holdings::default(),
            committed: false,
        };
        let outcome = self.lock().take(new, old, &mut held.taken);
        outcome?;
        let before = old.map(Holdings::of).unwrap_or_default();
        held.freed = before.without(&Holdings::of(new));
        Ok(Some(held))
    }
}

impl Admission for ServiceAllocator {
    fn admit(
        &self,
        request: &Request<'_>,
        new: Option<&mut Value>,
    ) -> Result<Option<Box<dyn Reservation>>, ApiError> {
        match Subject::of(request.kind) {
            Some(Subject::Service) => {}
            Some(subject) => return objects::admit(&self.ranges, subject, request, new),
            None => return Ok(None),
        }
        let old = request.old.and_then(Fields::read);
        let held = match (request.operation, new) {
            (Operation::Delete, _) | (_, None) => old.as_ref().map(|old| Held {
                ranges: self.ranges.clone(),
                taken: Holdings::default(),
                freed: Holdings::of(old),
                committed: false,
            }),
            (Operation::Create | Operation::Update, Some(new)) => {
                let Some(mut fields) = Fields::read(new) else {
                    return Ok(None);
                };
                let held = self
                    .allocate(&mut fields, old.as_ref())
                    .map_err(|failure| failure.into_error(request.kind, request.name))?;
                fields.write(new);
                held
            }
        };
        if request.dry_run {
            return Ok(None);
        }
        Ok(held.map(|held| Box::new(held) as Box<dyn Reservation>))
    }

    fn claims(&self, kind: &'static Kind, object: &Value) -> Vec<String> {
        match Subject::of(kind) {
            Some(Subject::Service) => {
                let fields = Fields::read(object);
                fields.map_or_else(Vec::new, |fields| Holdings::of(&fields).claims())
            }
            Some(subject) => objects::claims(subject, object),
            None => Vec::new(),
        }
    }

    fn observe(&self, claim: &str, taken: bool) {
        self.lock().observe(claim, taken);
    }

    fn restore(&self, kind: &'static Kind, object: &Value) {
        match Subject::of(kind) {
            Some(Subject::Service) => {}
            Some(subject) => return objects::restore(&mut self.lock(), subject, object),
            None => return,
        }
        let Some(fields) = Fields::read(object) else {
            return;
        };
        let found = self.lock().restore(&Holdings::of(&fields));
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in found {
            tracing::warn!(
                object.kind = "Service",
                object.ns = meta::namespace(object),
                object.name = meta::name(object),
                reason = warning.reason(),
                %warning,
                "a stored Service holds what the ranges do not allow"
            );
            warnings.push(Restored {
                namespace: meta::namespace(object).to_string(),
                name: meta::name(object).to_string(),
                uid: object["metadata"]["uid"].as_str().unwrap_or_default().to_string(),
                warning,
            });
        }
    }
}

/// What a write has taken (given back unless it is committed) and what it frees once it is.
struct Held {
    ranges: Arc<Mutex<Ranges>>,
    taken: Holdings,
    freed: Holdings,
    committed: bool,
}

impl Reservation for Held {
    fn commit(mut self: Box<Self>) {
        self.committed = true;
    }

    fn claims(&self) -> Claims {
        Claims {
            taken: self.taken.claims(),
            freed: self.freed.claims(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let released = if self.committed { &self.freed } else { &self.taken };
        self.ranges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .release(released);
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
