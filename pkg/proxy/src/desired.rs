//! From a Service and its slices to frontends. Pure: the same input gives the same output, in the same order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use svcnet_netlink::nft::Family;

use crate::model::{Endpoint, Fate, Frontend, FrontendKey, Masquerade};
use crate::scheduler::Scheduler;
use crate::view::{Service, ServicePort, Slice, SliceEndpoint, View};

/// What the node adds to the cluster's state.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Networks that ClusterIPs come from; without any, each ClusterIP is listed for masquerading instead.
    pub service_cidrs: Vec<IpNet>,
    /// Service addresses that this node answers itself: nothing is programmed for them.
    pub node_local: Vec<IpAddr>,
    /// How endpoints are chosen for Services that do not say it themselves.
    pub scheduler: Scheduler,
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
            let pools = Pools::new(family, port, view.slices(name));
            let port = PortOfFamily {
                service,
                port,
                family,
                comment: &comment,
                pools: &pools,
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
        for ip in self.service.external_ips.iter().filter(|ip| self.wants(**ip)) {
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
        let of_family = ranges
            .iter()
            .filter(|net| Family::of(net.addr()) == self.family)
            .map(IpNet::trunc);
        // The kernel takes no range that lies within another.
        Some(IpNet::aggregate(&of_family.collect()).into())
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
        Frontend {
            key: self.at(ip),
            name: self.comment.clone(),
            fate: if self.service.internal_local {
                self.pools.local()
            } else {
                self.pools.cluster()
            },
            outside: None,
            scheduler: self.service.scheduler.unwrap_or(self.settings.scheduler),
            affinity_seconds: self.service.affinity_seconds,
            masquerade: if known {
                Masquerade::ByServiceNetwork
            } else {
                Masquerade::AllButPods
            },
            inside: true,
            sources: None,
        }
    }

    /// What is reached from outside the cluster. Policy `Local` binds those outside alone: pods and the node itself go
    /// wherever there is an endpoint.
    fn outside(&self, key: FrontendKey) -> Frontend {
        let fate = self.pools.cluster();
        let local = self.service.external_local && fate != Fate::NoEndpoints;
        Frontend {
            key,
            name: self.comment.clone(),
            outside: local.then(|| self.pools.local()),
            masquerade: if self.service.external_local {
                Masquerade::OwnOnly
            } else {
                Masquerade::AllButPods
            },
            fate,
            scheduler: self.service.scheduler.unwrap_or(self.settings.scheduler),
            affinity_seconds: self.service.affinity_seconds,
            inside: false,
            sources: None,
        }
    }
}

/// The endpoints of a port, by who may use them.
struct Pools {
    cluster: Vec<Endpoint>,
    local: Vec<Endpoint>,
}

impl Pools {
    fn new<'a>(family: Family, port: &ServicePort, slices: impl Iterator<Item = &'a Slice>) -> Self {
        // An endpoint that two slices hold for a moment is one endpoint, ready if either says so.
        let mut all: BTreeMap<SocketAddr, SliceEndpoint> = BTreeMap::new();
        for slice in slices {
            let number = slice
                .ports
                .iter()
                .find(|(n, p, _)| *n == port.name && *p == port.protocol);
            let Some((_, _, number)) = number else { continue };
            for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.ip) == family) {
                let known = all
                    .entry(SocketAddr::new(endpoint.ip, *number))
                    .or_insert(*endpoint);
                known.ready |= endpoint.ready;
                known.local |= endpoint.local;
                known.serving_terminating |= endpoint.serving_terminating;
            }
        }
        Self {
            cluster: usable(&all, |_| true),
            local: usable(&all, |e| e.local),
        }
    }

    fn cluster(&self) -> Fate {
        if self.cluster.is_empty() {
            Fate::NoEndpoints
        } else {
            Fate::Balance(self.cluster.clone())
        }
    }

    fn local(&self) -> Fate {
        match (self.local.is_empty(), self.cluster.is_empty()) {
            (false, _) => Fate::Balance(self.local.clone()),
            (true, false) => Fate::OnlyElsewhere,
            (true, true) => Fate::NoEndpoints,
        }
    }
}

/// The ready endpoints, or if there is none, those that are going away but still serve (KEP-1669).
fn usable(all: &BTreeMap<SocketAddr, SliceEndpoint>, of: impl Fn(&SliceEndpoint) -> bool) -> Vec<Endpoint> {
    let pick = |wanted: fn(&SliceEndpoint) -> bool| -> Vec<Endpoint> {
        let picked = all.iter().filter(|(_, e)| of(e) && wanted(e));
        picked
            .map(|(at, e)| Endpoint {
                at: *at,
                local: e.local,
                weight: 1,
            })
            .collect()
    };
    let ready = pick(|e| e.ready);
    if ready.is_empty() {
        pick(|e| e.serving_terminating)
    } else {
        ready
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
