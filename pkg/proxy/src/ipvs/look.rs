//! Looking at IPVS from beside the proxy: what differs, and all that there is.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use svcnet_netlink::Rtnl;
use svcnet_netlink::ipvs::{self as kernel, Connections, Destination, Identity, Info, Op, Service, Virtual};
use svcnet_netlink::nft::{Family, Listing};

use super::can::PROBE_MARK_BESIDE;
use super::desired::{self, Host};
use super::plan::{Balancer, Plan, Touch};
use super::{Config, Error, Ipvs, LINK, State, Unavailable, layout, observe};
use crate::model::{Frontend, FrontendKey};
use crate::nftables;

/// What the kernel would have to be told, and what it holds.
pub struct Difference {
    plan: Plan,
    host: Host,
    observed: Balancer,
}

impl Ipvs {
    /// A way to look, which leaves all as it is; the parts of a backend that has done nothing yet.
    ///
    /// # Errors
    /// When IPVS can not be asked.
    pub fn beside(config: &Config) -> Result<Self, Error> {
        let balancer = kernel::Socket::open()?.ok_or(Unavailable::NoIpvs)?;
        let mut ipvs = Self::over(config, balancer)?;
        ipvs.probe_mark = PROBE_MARK_BESIDE;
        Ok(ipvs)
    }

    /// What the kernel would have to be told for it to hold these frontends and nothing else. For a scheduler that no
    /// service has, a service is made for a moment, for a mark that nothing carries, as the backend does it.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn diff(&mut self, frontends: impl IntoIterator<Item = Frontend>) -> Result<Difference, Error> {
        let families = &self.families;
        let frontends: Vec<Frontend> = frontends
            .into_iter()
            .filter(|frontend| families.contains(&frontend.key.family()))
            .collect();
        let addresses = observe::addresses(&mut self.kernel.links)?;
        let there = observe::balancer(&mut self.kernel.balancer, &addresses)?;
        let used = there.services.values().map(|held| &held.service.scheduler);
        let used: BTreeSet<&str> = used.map(AsRef::as_ref).collect();
        let unseen = frontends.iter().filter(|f| !used.contains(f.scheduler.name()));
        self.learn(unseen)?;
        let (observed, tables, host) = self.observe()?;
        let mut state = State::new(frontends.into_iter(), host.clone());
        let (mut plan, _) = state.converge(&observed, tables, &State::default());
        plan.sysctls = self.wrong_sysctls()?;
        plan.timeouts = self.wrong_timeouts()?;
        plan.ops.retain(|op| !is_tidying(op, &observed));
        Ok(Difference { plan, host, observed })
    }
}

/// Whether it takes away a destination whose last connection has ended, which is done once a second.
fn is_tidying(op: &Op, observed: &Balancer) -> bool {
    let Op::DeleteDestination(Identity::Address(at), to) = op else {
        return false;
    };
    let held = observed
        .services
        .get(at)
        .and_then(|held| held.destinations.get(to));
    held.is_some_and(|(destination, _)| destination.weight == 0)
}

impl Difference {
    /// What there is to do.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What all of it needs and is not there.
    pub fn missing(&self, family: Family) -> Option<String> {
        if self.plan.rebuild.contains(&family) {
            return Some(format!("the table {}", layout::table(family)));
        }
        self.plan.add_link.then(|| format!("the link {LINK}"))
    }

    /// What there is to do for a frontend.
    pub fn of(&self, key: FrontendKey) -> Vec<String> {
        let virtuals = desired::virtuals(key, &self.host);
        let concerns = |touch: &Touch| match touch {
            Touch::All => false,
            Touch::Family(family) => *family == key.family(),
            Touch::Address(ip) => virtuals.iter().any(|at| at.ip == *ip),
            Touch::Service(at) => virtuals.contains(at),
        };
        let operations = self.plan.operations().into_iter();
        operations
            .filter(|(touch, _)| concerns(touch))
            .map(|(_, text)| text)
            .collect()
    }

    /// Whether there is anything to do for a frontend, or for what all need.
    pub fn concerns(&self, key: FrontendKey) -> bool {
        self.missing(key.family()).is_some() || !self.of(key).is_empty()
    }

    /// What the kernel holds of a frontend, in short.
    pub fn held(&self, key: FrontendKey) -> Option<String> {
        let at = desired::virtuals(key, &self.host)
            .into_iter()
            .find(|at| self.observed.services.contains_key(at))?;
        let held = self.observed.services.get(&at)?;
        let mut text = format!("IPVS sends {at} by {} to ", held.service.scheduler);
        let destinations = held.destinations.iter();
        let all: Vec<String> = destinations
            .map(|(to, (destination, _))| format!("{to} (weight {})", destination.weight))
            .collect();
        text += if all.is_empty() { "nobody" } else { "" };
        text += &all.join(", ");
        if self.observed.bound.contains(&at.ip) {
            let _infallible = write!(text, "; {} is on {LINK}", at.ip);
        }
        Some(text)
    }
}

/// All that IPVS holds, whoever made it, and the addresses on our link.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What the kernel says of itself.
    pub info: Info,
    /// How long idle connections are kept.
    pub timeouts: kernel::Timeouts,
    /// The services by address, with their destinations.
    pub services: Vec<(Service, Vec<(Destination, Connections)>)>,
    /// The addresses on our link; nothing when there is no such link.
    pub bound: Option<BTreeSet<std::net::IpAddr>>,
}

/// Reads all of it; nothing where the kernel has no IPVS, or it holds nothing.
///
/// # Errors
/// When the kernel can not be asked.
pub fn listed() -> Result<Option<Listed>, Error> {
    let addresses = observe::addresses(&mut Rtnl::open()?)?;
    let Some(mut socket) = kernel::Socket::open()? else {
        return Ok(None);
    };
    let mut services = socket.services()?;
    let bound = addresses.link.map(|_| addresses.bound);
    if services.is_empty() && bound.is_none() {
        return Ok(None);
    }
    services.sort_by_key(|service| service.identity);
    let with_destinations = services.into_iter().map(|service| {
        let mut destinations = socket.destinations(service.identity)?;
        destinations.sort_by_key(|(destination, _)| destination.at);
        Ok((service, destinations))
    });
    let services = with_destinations.collect::<Result<Vec<_>, kernel::Error>>()?;
    Ok(Some(Listed {
        info: socket.info()?,
        timeouts: socket.timeouts()?,
        services,
        bound,
    }))
}

/// Our tables as the kernel holds them, in full; those that are not there are left out.
///
/// # Errors
/// When the kernel has no nf_tables or permission is lacking.
pub fn listings() -> Result<Vec<Listing>, svcnet_netlink::nft::Error> {
    nftables::listings_of(layout::table)
}

/// A service as `ipvsadm -Ln` names it: the protocol, and the place.
pub(crate) fn words(identity: Identity) -> (&'static str, String) {
    match identity {
        Identity::Address(Virtual { ip, protocol, port }) => {
            let protocol = match protocol {
                6 => "TCP",
                17 => "UDP",
                132 => "SCTP",
                _ => "?",
            };
            (protocol, std::net::SocketAddr::new(ip, port).to_string())
        }
        Identity::Mark { mark, .. } => ("FWM", mark.to_string()),
    }
}
