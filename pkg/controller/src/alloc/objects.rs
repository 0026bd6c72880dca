//! What other objects than Services say about the ranges: ServiceCIDRs extend them, IPAddresses of others than Services
//! take addresses out of them, Nodes tell of ports that their own programs listen on.
//!
//! IPAddresses whose parent is a Service count for nothing here: they say what Services say, and are kept in step with
//! them by a controller.
//!
//! A ServiceCIDR is drawn from as soon as its write stands. It carries its finalizer and its Ready condition from the
//! beginning; a controller takes the finalizer off, and the allocator refuses that while an address needs the range,
//! whoever asks. The flag's own networks are always drawn from; the object `kubernetes` says them and is not changed
//! when the flag changes, so that Services in the old range are still in one.
//!
//! A Node tells (`svcnet.io/host-ports`) all ports that stay open, not the range's: agents need not know the range.
//! Such ports are given only to who asks for them by number.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use serde_json::{Value, json};
use svcnet_api::wellknown::{ANNOTATION_HOST_PORTS, FINALIZER_SERVICE_CIDR};
use svcnet_api::{ApiError, Claims, FieldError, FieldPath, Kind, Operation, Request, Reservation, meta};

use super::addresses::AddressRangeError;
use super::networks::Owner;
use super::ranges::{Ranges, address_claim, listening_claim, network_claim};

/// In the words of kube-apiserver's controller of ServiceCIDRs.
pub(crate) const STILL_IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// What a write is about, as far as allocation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Service,
    ServiceCidr,
    IpAddress,
    Node,
}

impl Subject {
    pub(super) fn of(kind: &Kind) -> Option<Self> {
        Some(match (kind.group, kind.kind) {
            ("", "Service") => Self::Service,
            ("", "Node") => Self::Node,
            ("networking.k8s.io", "ServiceCIDR") => Self::ServiceCidr,
            ("networking.k8s.io", "IPAddress") => Self::IpAddress,
            _ => return None,
        })
    }
}

type Shared = Arc<Mutex<Ranges>>;
type Admitted = Result<Option<Box<dyn Reservation>>, ApiError>;

/// Takes part in a write of such an object.
pub(super) fn admit(
    ranges: &Shared,
    subject: Subject,
    request: &Request<'_>,
    new: Option<&mut Value>,
) -> Admitted {
    let admitted = match subject {
        Subject::Service => None,
        Subject::ServiceCidr => admit_cidr(ranges, request, new)?,
        Subject::IpAddress => admit_address(ranges, request, new.as_deref())?,
        Subject::Node => {
            let ports = new.as_deref().map(host_ports).unwrap_or_default();
            let was = request.old.map(host_ports).unwrap_or_default();
            (ports != was).then(|| Step::Report {
                node: request.name.to_string(),
                ports,
                was,
            })
        }
    };
    let Some(step) = admitted else {
        return Ok(None);
    };
    let pending = Pending {
        claims: step.claims(&ranges.lock().unwrap_or_else(PoisonError::into_inner)),
        ranges: ranges.clone(),
        step,
        committed: false,
    };
    if request.dry_run {
        // Dropped, so that it gives back what it took.
        return Ok(None);
    }
    Ok(Some(Box::new(pending)))
}

/// Takes in a stored one.
pub(super) fn restore(ranges: &mut Ranges, subject: Subject, object: &Value) {
    let name = meta::name(object);
    match subject {
        Subject::Service => {}
        Subject::ServiceCidr => {
            let owner = Owner::Object(name.to_string());
            for net in networks(object) {
                // What is refused on the way in is not stored; an older version may have.
                if let Err(error) = ranges.addresses.open(&owner, net) {
                    tracing::warn!(object.kind = "ServiceCIDR", object.name = name, reason = %error, "a stored range gives no addresses");
                }
            }
            if is_terminating(object) {
                ranges.addresses.set_leaving(&owner, true);
            }
        }
        Subject::IpAddress => {
            if let Some(address) = foreign_address(object) {
                _ = ranges.addresses.restore(address);
            }
        }
        Subject::Node => ranges.ports.report(name, host_ports(object)),
    }
}

fn admit_cidr(
    ranges: &Shared,
    request: &Request<'_>,
    new: Option<&mut Value>,
) -> Result<Option<Step>, ApiError> {
    let owner = Owner::Object(request.name.to_string());
    let mut held = ranges.lock().unwrap_or_else(PoisonError::into_inner);
    let new = match (request.operation, new) {
        (Operation::Delete, _) | (_, None) => {
            if held.addresses.needed_for(&owner).is_some() {
                return Err(ApiError::conflict(request.kind, request.name, STILL_IN_USE));
            }
            // Nothing is drawn from it any more from the moment on that it is known not to be needed.
            let stopped = held.addresses.set_leaving(&owner, true);
            return Ok(Some(Step::Close { owner, stopped }));
        }
        (_, Some(new)) => new,
    };
    if is_terminating(new) {
        return Ok(Some(Step::Leave(owner)));
    }
    let nets = networks(new);
    for (index, net) in nets.iter().enumerate() {
        if let Err(error) = held.addresses.check(*net) {
            let path = FieldPath::new("spec").child("cidrs").index(index);
            let why = match error {
                AddressRangeError::TooLarge(_) => format!(
                    "shortest allowed prefix length for service CIDR is 64, got {}",
                    net.prefix_len()
                ),
                AddressRangeError::TooSmall(_) => error.to_string(),
            };
            let error = FieldError::invalid(path, net.to_string(), why);
            return Err(ApiError::invalid(request.kind, request.name, &[error]));
        }
    }
    hold(new);
    if request.operation == Operation::Create {
        say_ready(new);
    }
    Ok(Some(Step::Open(owner, nets)))
}

/// The finalizer is there from the beginning, and stays until the object is deleted.
fn hold(cidr: &mut Value) {
    let finalizers = &mut cidr["metadata"]["finalizers"];
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == FINALIZER_SERVICE_CIDR)
    {
        list.push(FINALIZER_SERVICE_CIDR.into());
    }
}

/// Addresses are drawn from it as soon as the write stands.
fn say_ready(cidr: &mut Value) {
    cidr["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready",
        "lastTransitionTime": cidr["metadata"]["creationTimestamp"],
    }]});
}

fn admit_address(
    ranges: &Shared,
    request: &Request<'_>,
    new: Option<&Value>,
) -> Result<Option<Step>, ApiError> {
    match (request.operation, new) {
        (Operation::Create, Some(new)) => {
            let Some(address) = foreign_address(new) else {
                return Ok(None);
            };
            let mut held = ranges.lock().unwrap_or_else(PoisonError::into_inner);
            // A Service has it whose IPAddress is not there yet.
            let claimed = held.addresses.claim(address);
            claimed.map_err(|_| ApiError::already_exists(request.kind, request.name))?;
            Ok(Some(Step::Claim(address)))
        }
        // Whose an address is never changes.
        (Operation::Update, _) | (Operation::Create, None) => Ok(None),
        (Operation::Delete, _) => Ok(request.old.and_then(foreign_address).map(Step::Release)),
    }
}

fn networks(cidr: &Value) -> Vec<IpNet> {
    let texts = cidr["spec"]["cidrs"].as_array().into_iter().flatten();
    texts.filter_map(|text| text.as_str()?.parse().ok()).collect()
}

fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The address of an IPAddress that is no Service's.
fn foreign_address(object: &Value) -> Option<IpAddr> {
    let parent = &object["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    if (text("group"), text("resource")) == ("", "services") {
        return None;
    }
    meta::name(object).parse().ok()
}

/// The ports that a Node's annotation names; what is no port is passed over.
fn host_ports(node: &Value) -> Vec<u16> {
    let text = node["metadata"]["annotations"][ANNOTATION_HOST_PORTS].as_str();
    let ports = text.unwrap_or_default().split(',');
    ports.filter_map(|port| port.trim().parse().ok()).collect()
}

/// What becomes of a write once it stands.
enum Step {
    Open(Owner, Vec<IpNet>),
    /// It is being deleted.
    Leave(Owner),
    /// It is gone. `stopped`: it was drawn from until now, and is again if it stays.
    Close {
        owner: Owner,
        stopped: bool,
    },
    /// Taken already.
    Claim(IpAddr),
    Release(IpAddr),
    Report {
        node: String,
        ports: Vec<u16>,
        was: Vec<u16>,
    },
}

impl Step {
    /// What other servers are to know of it.
    fn claims(&self, ranges: &Ranges) -> Claims {
        let of = |owner: &Owner, net| match owner {
            Owner::Flag => None,
            Owner::Object(name) => Some(network_claim(name, net)),
        };
        let mut claims = Claims::default();
        match self {
            Self::Open(owner, nets) => {
                let new = nets.iter().filter(|net| !ranges.addresses.is_owner(owner, **net));
                claims.taken = new.filter_map(|net| of(owner, *net)).collect();
            }
            Self::Leave(owner) | Self::Close { owner, .. } => {
                let nets = ranges.addresses.of(owner).into_iter();
                claims.freed = nets.filter_map(|net| of(owner, net)).collect();
            }
            Self::Claim(address) => claims.taken.push(address_claim(*address)),
            Self::Release(address) => claims.freed.push(address_claim(*address)),
            Self::Report { node, ports, was } => {
                claims.taken.extend(listening_claim(node, ports));
                claims.freed.extend(listening_claim(node, was));
            }
        }
        claims
    }
}

/// The claims of a stored object.
pub(super) fn claims(subject: Subject, object: &Value) -> Vec<String> {
    let name = meta::name(object);
    match subject {
        Subject::ServiceCidr if !is_terminating(object) => {
            let nets = networks(object).into_iter();
            nets.map(|net| network_claim(name, net)).collect()
        }
        Subject::IpAddress => foreign_address(object).map(address_claim).into_iter().collect(),
        Subject::Node => listening_claim(name, &host_ports(object)).into_iter().collect(),
        Subject::Service | Subject::ServiceCidr => Vec::new(),
    }
}

struct Pending {
    ranges: Shared,
    step: Step,
    claims: Claims,
    committed: bool,
}

impl Reservation for Pending {
    fn commit(mut self: Box<Self>) {
        self.committed = true;
    }

    fn claims(&self) -> Claims {
        self.claims.clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = &mut ranges.addresses;
        match (&self.step, self.committed) {
            (Step::Open(owner, nets), true) => {
                for net in nets {
                    // Was tried before the write.
                    _ = addresses.open(owner, *net);
                }
                addresses.set_leaving(owner, false);
            }
            (Step::Leave(owner), true) => {
                addresses.set_leaving(owner, true);
            }
            (Step::Close { owner, .. }, true) => addresses.close(owner),
            (Step::Close { owner, stopped }, false) => {
                if *stopped {
                    addresses.set_leaving(owner, false);
                }
            }
            (Step::Claim(address), false) | (Step::Release(address), true) => addresses.release(*address),
            (Step::Report { node, ports, .. }, true) => ranges.ports.report(node, ports.clone()),
            (Step::Open(..) | Step::Leave(_) | Step::Release(_) | Step::Report { .. }, false)
            | (Step::Claim(_), true) => {}
        }
    }
}
