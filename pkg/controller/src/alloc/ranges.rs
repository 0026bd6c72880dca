//! All allocators of a cluster together, and what one Service takes of them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;
use svcnet_api::types::legacy;
use svcnet_api::{ApiError, FieldError, FieldPath, Kind};

use super::fields::Fields;
use super::networks::{Networks, Owner};
use super::ports::PortAllocator;
use super::range::Refusal;
use super::service::RestoreWarning;

/// Every address and node port there is.
#[derive(Debug)]
pub(super) struct Ranges {
    pub(super) addresses: Networks,
    pub(super) ports: PortAllocator,
}

/// Addresses and node ports that belong to a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    addresses: Vec<IpAddr>,
    ports: Vec<i64>,
}

impl Holdings {
    pub(super) fn of(fields: &Fields) -> Self {
        Self {
            addresses: fields.held_addresses(),
            ports: fields.held_ports(),
        }
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.addresses
            .retain(|address| !other.addresses.contains(address));
        rest.ports.retain(|port| !other.ports.contains(port));
        rest
    }

    /// What they are called in a datastore that several servers share.
    pub(super) fn claims(&self) -> Vec<String> {
        let addresses = self.addresses.iter().copied().map(address_claim);
        let ports = self.ports.iter().map(|port| format!("{PORT}{port}"));
        addresses.chain(ports).collect()
    }
}

const ADDRESS: &str = "ip-";
const PORT: &str = "port-";
const NETWORK: &str = "net-";
const LISTENING: &str = "listening-";

/// What an address is called in a datastore that several servers share.
pub(super) fn address_claim(address: IpAddr) -> String {
    format!("{ADDRESS}{address}")
}

/// What a network of a ServiceCIDR is called there.
pub(super) fn network_claim(name: &str, net: IpNet) -> String {
    format!("{NETWORK}{}_{}-{name}", net.addr(), net.prefix_len())
}

fn network_of(claim: &str) -> Option<(IpNet, Owner)> {
    let (net, name) = claim.split_once('-')?;
    let net = net.replace('_', "/").parse().ok()?;
    Some((net, Owner::Object(name.to_string())))
}

/// What the ports are called there that programs of a node listen on; nothing where there are none.
pub(super) fn listening_claim(node: &str, ports: &[u16]) -> Option<String> {
    let texts: Vec<String> = ports.iter().map(u16::to_string).collect();
    (!ports.is_empty()).then(|| format!("{LISTENING}{}-{node}", texts.join(".")))
}

fn listening_of(claim: &str) -> Option<(Vec<u16>, &str)> {
    let (ports, node) = claim.split_once('-')?;
    let ports: Result<Vec<u16>, _> = ports.split('.').map(str::parse).collect();
    Some((ports.ok()?, node))
}

/// Why a Service does not get what it needs.
pub(super) enum Failure {
    Invalid(Vec<FieldError>),
    Internal(String),
}

impl Failure {
    pub(super) fn into_error(self, kind: &Kind, name: &str) -> ApiError {
        match self {
            Self::Invalid(errors) => ApiError::invalid(kind, name, &errors),
            Self::Internal(why) => ApiError::internal(why),
        }
    }
}

impl Ranges {
    /// Takes what `new` needs and `old` does not hold. A number that may not change is not taken even where it has: validation
    /// comes behind this, and "already allocated" would depend on who else happens to hold it.
    pub(super) fn take(
        &mut self,
        new: &mut Fields,
        old: Option<&Fields>,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        if new.needs_cluster_ip() && !new.is_headless() {
            self.take_addresses(new, old, taken)?;
        }
        if new.needs_node_ports() {
            self.take_ports(new, old, taken)?;
        }
        if new.needs_health_check() {
            self.take_health_check(new, old, taken)?;
        }
        Ok(())
    }

    fn take_addresses(
        &mut self,
        new: &mut Fields,
        old: Option<&Fields>,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        let had = old
            .filter(|old| old.needs_cluster_ip())
            .map_or(0, |old| old.cluster_ips.len());
        for (index, family) in new.families.clone().into_iter().enumerate() {
            if !self.addresses.has(family) {
                // The cluster had this family once; what the Service has of it, it keeps.
                continue;
            }
            let Some(wish) = new.cluster_ips.get(index) else {
                let address = self
                    .addresses
                    .take_any(family, rand::random())
                    .map_err(|refusal| {
                        Failure::Internal(format!("failed to allocate a serviceIP: {}", no_number(refusal)))
                    })?;
                taken.addresses.push(address);
                new.cluster_ips.push(address.to_string());
                continue;
            };
            let Some(address) = legacy::address(wish).filter(|_| index >= had) else {
                continue;
            };
            if let Err(refusal) = self.addresses.take(address) {
                let why = match refusal {
                    Refusal::OutOfRange => {
                        let nets = list(&self.addresses.open_nets(family));
                        format!("provided IP is not in the valid range. The range of valid IPs is {nets}")
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
        old: Option<&Fields>,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        let is_new = old.is_none();
        let before = old.map(Fields::held_node_ports).unwrap_or_default();
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
                    let kept = before.contains(&wish) || (sibling == Some(wish));
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
        old: Option<&Fields>,
        taken: &mut Holdings,
    ) -> Result<(), Failure> {
        let wish = new.health_check_node_port;
        if old.is_some_and(|old| old.needs_health_check() && old.health_check_node_port != 0) {
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

    pub(super) fn restore(&mut self, held: &Holdings) -> Vec<RestoreWarning> {
        let mut warnings = Vec::new();
        for address in held.addresses.iter().copied() {
            match self.addresses.restore(address) {
                Ok(()) => {}
                Err(Refusal::OutOfRange) => {
                    let nets: Vec<IpNet> = self.addresses.usage().map(|(net, _)| net).collect();
                    warnings.push(RestoreWarning::ClusterIpOutOfRange(address, nets));
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

    pub(super) fn release(&mut self, held: &Holdings) {
        for address in &held.addresses {
            self.addresses.release(*address);
        }
        for port in &held.ports {
            self.ports.release(*port);
        }
        self.publish();
    }

    /// Takes in what another server has taken or given back.
    pub(super) fn observe(&mut self, claim: &str, taken: bool) {
        if let Some(Ok(address)) = claim.strip_prefix(ADDRESS).map(str::parse) {
            self.addresses.observe(address, taken);
        } else if let Some((net, owner)) = claim.strip_prefix(NETWORK).and_then(network_of) {
            self.observe_network(&owner, net, taken);
        } else if let Some((ports, node)) = claim.strip_prefix(LISTENING).and_then(listening_of) {
            self.ports.observe_report(node, ports, taken);
        } else if let Some(Ok(port)) = claim.strip_prefix(PORT).map(str::parse) {
            self.ports.observe(port, taken);
        }
        self.publish();
    }

    /// A network whose object is being deleted elsewhere gives nothing more, and is known as long as it may hold something.
    fn observe_network(&mut self, owner: &Owner, net: IpNet, open: bool) {
        if !open {
            self.addresses.set_leaving(owner, true);
        } else if let Err(error) = self.addresses.open(owner, net) {
            tracing::warn!(object.kind = "ServiceCIDR", reason = %error, "a range of another server gives no addresses");
        }
    }

    fn publish(&self) {
        for (net, taken) in self.addresses.usage() {
            metrics::gauge!("svcnet_controller_clusterips_allocated", "cidr" => net.to_string())
                .set(count(taken));
        }
        metrics::gauge!("svcnet_controller_nodeports_allocated").set(count(self.ports.taken()));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of far fewer than 2^52 things")]
fn count(number: u64) -> f64 {
    number as f64
}

fn list(nets: &[IpNet]) -> String {
    let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
    nets.join(",")
}

/// Why no number could be picked freely. Only exhaustion can be the reason.
fn no_number(_: Refusal) -> &'static str {
    "range is full"
}
