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
use serde_json::{Value, json};
use svcnet_api::types::{CidrList, NodePortRange};
use svcnet_api::{Admission, ApiError, FieldError, FieldPath, Kind, Operation, Request, Reservation, meta};

use super::addresses::{AddressAllocator, AddressRangeError};
use super::families;
use super::fields::{Family, Fields};
use super::ports::PortAllocator;
use super::range::Refusal;

/// Gives Services their ClusterIPs and node ports. Cheap to clone.
#[derive(Clone)]
pub struct ServiceAllocator {
    ranges: Arc<Mutex<Ranges>>,
    families: Vec<Family>,
    warnings: Arc<Mutex<Vec<RestoreWarning>>>,
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
        let addresses: Vec<AddressAllocator> = service_cidrs
            .iter()
            .map(|net| AddressAllocator::new(net, reserved))
            .collect::<Result<_, _>>()?;
        let families = addresses
            .iter()
            .map(|allocator| Family::of(allocator.net().network()))
            .collect();
        let ranges = Ranges {
            addresses,
            ports: PortAllocator::new(node_ports),
        };
        Ok(Self {
            ranges: Arc::new(Mutex::new(ranges)),
            families,
            warnings: Arc::default(),
        })
    }

    /// What was wrong with the restored Services since the last call, also said in the log.
    pub fn take_warnings(&self) -> Vec<RestoreWarning> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes `new` and takes what it needs and `old` does not hold. What an update inherits from `old` it has been given
    /// before, as a default of the kind.
    fn allocate(&self, new: &mut Fields, old: Option<&Fields>) -> Result<Option<Held>, Failure> {
        if new.needs_cluster_ip() {
            if !families::is_plausible(new) || old.is_some_and(|old| moves_address(new, old)) {
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
        let before = old.map(Holdings::of).unwrap_or_default();
        let outcome = self.lock().take(new, &before, &mut held.taken);
        outcome?;
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
        if !is_service(request.kind) {
            return Ok(None);
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

    fn restore(&self, kind: &'static Kind, object: &Value) {
        if !is_service(kind) {
            return;
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
            warnings.push(warning);
        }
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// A change of the first address is refused by validation, and has better words there than "already allocated".
fn moves_address(new: &Fields, old: &Fields) -> bool {
    old.needs_cluster_ip() && !old.cluster_ip.is_empty() && new.cluster_ip != old.cluster_ip
}

#[derive(Debug)]
struct Ranges {
    addresses: Vec<AddressAllocator>,
    ports: PortAllocator,
}

/// Addresses and node ports that belong to a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Holdings {
    addresses: Vec<IpAddr>,
    ports: Vec<i64>,
}

impl Holdings {
    fn of(fields: &Fields) -> Self {
        Self {
            addresses: fields.held_addresses(),
            ports: fields.held_ports(),
        }
    }

    fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.addresses
            .retain(|address| !other.addresses.contains(address));
        rest.ports.retain(|port| !other.ports.contains(port));
        rest
    }
}

enum Failure {
    Invalid(Vec<FieldError>),
    Internal(String),
}

impl Failure {
    fn into_error(self, kind: &Kind, name: &str) -> ApiError {
        match self {
            Self::Invalid(errors) => ApiError::invalid(kind, name, &errors),
            Self::Internal(why) => ApiError::internal(why),
        }
    }
}

impl Ranges {
    fn take(&mut self, new: &mut Fields, before: &Holdings, taken: &mut Holdings) -> Result<(), Failure> {
        if new.needs_cluster_ip() && !new.is_headless() {
            self.take_addresses(new, before, taken)?;
        }
        if new.needs_node_ports() {
            self.take_ports(new, before, taken)?;
        }
        if new.needs_health_check() {
            self.take_health_check(new, before, taken)?;
        }
        Ok(())
    }

    fn take_addresses(
        &mut self,
        new: &mut Fields,
        before: &Holdings,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        for (index, family) in new.families.clone().into_iter().enumerate() {
            let Some(allocator) = self
                .addresses
                .iter_mut()
                .find(|a| Family::of(a.net().network()) == family)
            else {
                // The cluster had this family once; what the Service has of it, it keeps.
                continue;
            };
            let Some(wish) = new.cluster_ips.get(index) else {
                let address = allocator.take_any(rand::random()).map_err(|refusal| {
                    Failure::Internal(format!("failed to allocate a serviceIP: {}", no_number(refusal)))
                })?;
                taken.addresses.push(address);
                new.cluster_ips.push(address.to_string());
                continue;
            };
            let Ok(address) = wish.parse::<IpAddr>() else {
                continue;
            };
            if before.addresses.contains(&address) {
                continue;
            }
            if let Err(refusal) = allocator.take(address) {
                let why = match refusal {
                    Refusal::OutOfRange => {
                        format!(
                            "provided IP is not in the valid range. The range of valid IPs is {}",
                            allocator.net()
                        )
                    }
                    Refusal::Taken | Refusal::Full => "provided IP is already allocated".to_string(),
                };
                let why = format!("failed to allocate IP {wish}: {why}");
                let path = FieldPath::new("spec").child("clusterIPs");
                return Err(Failure::Invalid(vec![FieldError::invalid(
                    path,
                    json!(new.cluster_ips),
                    why,
                )]));
            }
            taken.addresses.push(address);
        }
        if let Some(first) = new.cluster_ips.first() {
            new.cluster_ip.clone_from(first);
        }
        Ok(())
    }

    fn take_ports(
        &mut self,
        new: &mut Fields,
        before: &Holdings,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        let is_new = before == &Holdings::default();
        // On create, one number serves TCP and UDP of the same port.
        let mut shared: Vec<(i64, i64)> = Vec::new();
        let allocates = new.allocates_node_ports();
        for index in 0..new.ports.len() {
            let Some(port) = new.ports.get(index).cloned() else {
                continue;
            };
            let requested = |number: i64| new.ports.iter().find(|p| p.port == number && p.node_port != 0);
            let sibling = shared
                .iter()
                .find(|(number, _)| *number == port.port)
                .map(|(_, node_port)| *node_port);
            let wish = match port.node_port {
                0 if !allocates => continue,
                0 if is_new => sibling.or_else(|| requested(port.port).map(|p| p.node_port)),
                0 => None,
                wish => Some(wish),
            };
            let given = match wish {
                None => {
                    let given = self.any_port()?;
                    taken.ports.push(given);
                    given
                }
                Some(wish) => {
                    let kept = before.ports.contains(&wish) || (sibling == Some(wish));
                    if !kept && (is_new || !taken.ports.contains(&wish)) {
                        self.ports
                            .take(wish)
                            .map_err(|refusal| self.port_refused(index, wish, refusal))?;
                        taken.ports.push(wish);
                    }
                    wish
                }
            };
            shared.push((port.port, given));
            if let Some(port) = new.ports.get_mut(index) {
                port.node_port = given;
            }
        }
        Ok(())
    }

    fn take_health_check(
        &mut self,
        new: &mut Fields,
        before: &Holdings,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        let wish = new.health_check_node_port;
        if before.ports.contains(&wish) {
            return Ok(());
        }
        if wish == 0 {
            let given = self.ports.take_any(rand::random()).map_err(|refusal| {
                Failure::Internal(format!(
                    "failed to allocate a HealthCheck NodePort 0: {}",
                    no_number(refusal)
                ))
            })?;
            taken.ports.push(given);
            new.health_check_node_port = given;
            return Ok(());
        }
        self.ports.take(wish).map_err(|refusal| {
            let why = self.port_words(refusal);
            Failure::Internal(format!(
                "failed to allocate requested HealthCheck NodePort {wish}: {why}"
            ))
        })?;
        taken.ports.push(wish);
        Ok(())
    }

    fn any_port(&mut self) -> Result<i64, Failure> {
        self.ports.take_any(rand::random()).map_err(|refusal| {
            Failure::Internal(format!("failed to allocate a nodePort: {}", no_number(refusal)))
        })
    }

    fn port_refused(&self, index: usize, wish: i64, refusal: Refusal) -> Failure {
        let path = FieldPath::new("spec")
            .child("ports")
            .index(index)
            .child("nodePort");
        Failure::Invalid(vec![FieldError::invalid(path, wish, self.port_words(refusal))])
    }

    fn port_words(&self, refusal: Refusal) -> String {
        match refusal {
            Refusal::OutOfRange => {
                let range = self.ports.range();
                format!("provided port is not in the valid range. The range of valid ports is {range}")
            }
            Refusal::Taken | Refusal::Full => "provided port is already allocated".to_string(),
        }
    }

    fn restore(&mut self, held: &Holdings) -> Vec<RestoreWarning> {
        let nets: Vec<IpNet> = self.addresses.iter().map(AddressAllocator::net).collect();
        let mut warnings = Vec::new();
        for address in held.addresses.iter().copied() {
            let allocator = self
                .addresses
                .iter_mut()
                .find(|a| Family::of(a.net().network()) == Family::of(address));
            match allocator.map_or(Err(Refusal::OutOfRange), |allocator| allocator.restore(address)) {
                Ok(()) => {}
                Err(Refusal::OutOfRange) => {
                    warnings.push(RestoreWarning::ClusterIpOutOfRange(address, nets.clone()));
                }
                Err(_) => warnings.push(RestoreWarning::ClusterIpAlreadyAllocated(address)),
            }
        }
        for port in held.ports.iter().copied() {
            match self.ports.restore(port) {
                Ok(()) => {}
                Err(Refusal::OutOfRange) => {
                    warnings.push(RestoreWarning::PortOutOfRange(port, self.ports.range()));
                }
                Err(_) => warnings.push(RestoreWarning::PortAlreadyAllocated(port)),
            }
        }
        warnings
    }

    fn release(&mut self, held: &Holdings) {
        for address in &held.addresses {
            for allocator in &mut self.addresses {
                allocator.release(*address);
            }
        }
        for port in &held.ports {
            self.ports.release(*port);
        }
        self.publish();
    }

    fn publish(&self) {
        for allocator in &self.addresses {
            metrics::gauge!("svcnet_controller_clusterips_allocated", "cidr" => allocator.net().to_string())
                .set(count(allocator.taken()));
        }
        metrics::gauge!("svcnet_controller_nodeports_allocated").set(count(self.ports.taken()));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of far fewer than 2^52 things")]
fn count(number: u64) -> f64 {
    number as f64
}

/// Why no number could be picked freely. Only exhaustion can be the reason.
fn no_number(_: Refusal) -> &'static str {
    "range is full"
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
