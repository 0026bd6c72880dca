//! From a Service and its slices to frontends. Pure: the same input gives the same output, in the same order.
//!
//! What each client may reach is decided here, by kube-proxy's rules: `internalTrafficPolicy` binds who connects to a
//! ClusterIP, `externalTrafficPolicy` those from outside the cluster (pods and this node are taken for a load balancer's
//! clients, which may go anywhere), and hints narrow `Cluster` alone. See `pools.rs` for the endpoints of each.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use svcnet_netlink::nft::Family;

use crate::model::{Fate, Frontend, FrontendKey, Masquerade};
use crate::pools::Pools;
use crate::scheduler::Scheduler;
use crate::view::{NodeFacts, Service, ServicePort, View};

/// What the node adds to the cluster's state.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Networks that ClusterIPs come from; without any, each ClusterIP is listed for masquerading instead.
    pub service_cidrs: Vec<IpNet>,
    /// Service addresses that this node answers itself: nothing is programmed for them.
    pub node_local: Vec<IpAddr>,
    /// How endpoints are chosen for Services that do not say it themselves.
    pub scheduler: Scheduler,
    /// Networks that `externalIPs` may lie in (`--external-ip-range`): whoever may write a Service could else take any
    /// address over, of the cluster and of the world (CVE-2020-8554).
    pub external_ranges: Vec<IpNet>,
}

impl Settings {
    /// The external addresses of a Service that are left aside.
    pub fn refused_addresses<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = IpAddr> + 'a {
        let addresses = service.external_ips.iter().copied();
        addresses.filter(|ip| !self.accepts_external(*ip))
    }

    fn accepts_external(&self, ip: IpAddr) -> bool {
        self.external_ranges.iter().any(|net| net.contains(&ip))
    }
}

/// The frontends of a Service, ordered by where they are.
pub fn frontends(name: &str, view: &View, settings: &Settings) -> Vec<Frontend> {
    let Some(service) = view.service(name) else {
        return Vec::new();
    };
    let mut frontends = Vec::new();
    for port in &service.ports {
        let comment: Arc<str> = if port.name.is_empty() {
            name.into()
        } else {
            format!("{name}:{}", port.name).into()
        };
        for family in [Family::Ip, Family::Ip6] {
            if !addresses(service).any(|ip| Family::of(ip) == family) {
                continue;
            }
            let weights = service.weights.as_deref();
            let pools = Pools::new(family, port, view.slices(name), weights, view.node());
            let port = PortOfFamily {
                service,
                port,
                family,
                comment: &comment,
                pools: &pools,
                node: view.node(),
                settings,
            };
            port.frontends(&mut frontends);
        }
    }
    frontends.sort_by_key(|f| f.key);
    // The same address twice (an external address that is also the LoadBalancer's) is one frontend.
    frontends.dedup_by_key(|f| f.key);
    frontends
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    [
        &service.cluster_ips,
        &service.external_ips,
        &service.load_balancer_ips,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// A port of a Service in one address family.
struct PortOfFamily<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    comment: &'a Arc<str>,
    pools: &'a Pools,
    node: &'a NodeFacts,
    settings: &'a Settings,
}

impl PortOfFamily<'_> {
    fn frontends(&self, frontends: &mut Vec<Frontend>) {
        for ip in self.service.cluster_ips.iter().filter(|ip| self.wants(**ip)) {
            frontends.push(self.inside(*ip));
        }
        for ip in self
            .service
            .load_balancer_ips
            .iter()
            .filter(|ip| self.wants(**ip))
        {
            frontends.push(Frontend {
                sources: self.sources(),
                ..self.outside(self.at(*ip))
            });
        }
        let external = self.service.external_ips.iter();
        for ip in external.filter(|ip| self.wants(**ip) && self.settings.accepts_external(**ip)) {
            frontends.push(self.outside(self.at(*ip)));
        }
        let has_cluster_ip = self
            .service
            .cluster_ips
            .iter()
            .any(|ip| Family::of(*ip) == self.family);
        if let Some(port) = self.port.node_port.filter(|_| has_cluster_ip) {
            let protocol = self.port.protocol;
            frontends.push(self.outside(FrontendKey::NodePort {
                family: self.family,
                protocol,
                port,
            }));
        }
    }

    /// Who may come to a LoadBalancer address. Ranges of the other family alone leave nobody.
    fn sources(&self) -> Option<Box<[IpNet]>> {
        let ranges = self.service.source_ranges.as_ref()?;
        let is_of_family = |ip: &&IpAddr| Family::of(**ip) == self.family;
        let mut sources: Vec<IpNet> = ranges
            .iter()
            .filter(|net| Family::of(net.addr()) == self.family)
            .map(IpNet::trunc)
            .collect();
        let is_in = |ip: &IpAddr| sources.iter().any(|net| net.contains(ip));
        // Where the address is put on a link of this node, what the node sends to it comes from it.
        if self.node.addresses.iter().filter(is_of_family).any(is_in) {
            let own = self.service.load_balancer_ips.iter().filter(is_of_family);
            sources.extend(own.map(|ip| IpNet::from(*ip)));
        }
        // The kernel takes no range that lies within another.
        Some(IpNet::aggregate(&sources).into())
    }

    fn wants(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family && !self.settings.node_local.contains(&ip)
    }

    fn at(&self, ip: IpAddr) -> FrontendKey {
        FrontendKey::Address {
            ip,
            protocol: self.port.protocol,
            port: self.port.port,
        }
    }

    /// A ClusterIP.
    fn inside(&self, ip: IpAddr) -> Frontend {
        let known = self.settings.service_cidrs.iter().any(|net| net.contains(&ip));
        let fate = if self.service.internal_local {
            self.pools.local()
        } else {
            self.pools.cluster()
        };
        Frontend {
            masquerade: if known {
                Masquerade::ByServiceNetwork
            } else {
                Masquerade::AllButPods
            },
            ..self.frontend(self.at(ip), true, fate, None)
        }
    }

    /// What is reached from outside the cluster. Policy `Local` binds those outside alone: pods and the node itself go
    /// wherever there is an endpoint.
    fn outside(&self, key: FrontendKey) -> Frontend {
        let fate = self.pools.cluster();
        let local = self.service.external_local && fate != Fate::NoEndpoints;
        Frontend {
            masquerade: if self.service.external_local {
                Masquerade::OwnOnly
            } else {
                Masquerade::AllButPods
            },
            ..self.frontend(key, false, fate, local.then(|| self.pools.local()))
        }
    }

    /// What all frontends of the port have in common.
    fn frontend(&self, key: FrontendKey, inside: bool, fate: Fate, outside: Option<Fate>) -> Frontend {
        let draining = if key.protocol().outlives_endpoints() {
            let local_alone = inside && self.service.internal_local;
            self.pools.draining(&fate, outside.as_ref(), local_alone)
        } else {
            Box::default()
        };
        Frontend {
            key,
            name: self.comment.clone(),
            draining,
            fate,
            outside,
            scheduler: self.service.scheduler.unwrap_or(self.settings.scheduler),
            affinity_seconds: self.service.affinity_seconds,
            masquerade: Masquerade::AllButPods,
            inside,
            sources: None,
        }
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
