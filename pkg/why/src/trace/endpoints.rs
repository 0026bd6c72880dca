//! Behind the frontend: who may come, and where the connection can end up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use svcnet_api::types::legacy;
use svcnet_proxy::{Fate, Frontend, FrontendKey, Protocol, Scheduler, inspect};

use super::target::{Place, port_of};
use super::{DnsExpected, End, Origin, Stopped, Tracer, Way};
use crate::ask::{PortAsk, TargetAsk};
use crate::cluster::{key, name, namespace};
use crate::diagnose;
use crate::explain::{Endpoint, What};
use crate::reason::{NotReached, count};

/// Endpoints and pods that a step names one by one.
const NAMED_MAX: usize = 4;

impl Tracer<'_> {
    /// Through a frontend, on the node that translates.
    pub(super) fn frontend(
        &mut self,
        origin: &Origin,
        service: &Service,
        port: &ServicePort,
        place: Place,
        node: Option<String>,
    ) -> Result<End, Stopped> {
        let cluster = self.cluster;
        let shown = key(&service.metadata);
        let protocol = Protocol::parse(port.protocol.as_deref()).unwrap_or(Protocol::Tcp);
        let number = u16::try_from(port.port).unwrap_or_default();
        let (wanted, to) = (place.key(protocol, number), place.socket(number));
        if let Place::Address(ip) = place
            && cluster.proxy.node_local.contains(&ip)
        {
            self.ok(What::Frontend, format!("{ip} is answered by each node's own DNS"));
            return Ok(End::Leads("the DNS server of the client's own node".to_string()));
        }
        let all = inspect::frontends(
            cluster.proxy_on(node.as_deref()),
            cluster.services.clone(),
            cluster.slices.clone(),
        );
        let found = all.into_iter().find(|frontend| frontend.key == wanted);
        let frontend = match found {
            Some(frontend) if is_of(&frontend, &shown) => frontend,
            Some(other) => {
                let reason = NotReached::TakenBy {
                    service: shown,
                    frontend: wanted.to_string(),
                    other: other.name.to_string(),
                };
                return Err((What::Frontend, reason));
            }
            None => {
                let reason = NotReached::NotAccepted {
                    service: shown,
                    frontend: wanted.to_string(),
                };
                return Err((What::Frontend, reason));
            }
        };
        self.tell_frontend(service, port, &frontend, to, node.as_deref());
        // A port of a node is reached from elsewhere by who is not on it.
        let arrives = match (&place, origin.node()) {
            (_, None) => true,
            (Place::NodePort { .. }, Some(own)) => node.as_deref() != Some(own),
            (Place::Address(_), Some(_)) => false,
        };
        self.policy(origin, service, &frontend, arrives)?;
        let endpoints = self.endpoints(service, port, &frontend, arrives, node.as_deref())?;
        let way = Way {
            node,
            arrives,
            to,
            protocol,
            endpoints,
            dead: Vec::new(),
            frontend: Some(frontend),
        };
        let way = self.living(way)?;
        self.permitted(origin, way).map(|way| End::Way(Box::new(way)))
    }

    fn tell_frontend(
        &mut self,
        service: &Service,
        port: &ServicePort,
        frontend: &Frontend,
        to: SocketAddr,
        node: Option<&str>,
    ) {
        let protocol = frontend.key.protocol();
        let mut text = format!("{to}/{protocol}");
        match frontend.key {
            FrontendKey::NodePort { .. } => {
                text += &format!(", node port of {}", key(&service.metadata));
            }
            FrontendKey::Address { .. } if frontend.inside => text += ", cluster IP",
            FrontendKey::Address { ip, .. } if super::target::load_balancer_ips(service).contains(&ip) => {
                text += ", LoadBalancer address";
                let announcer = self.cluster.announcers.get(&key(&service.metadata));
                text += &announcer.map_or_else(String::new, |node| format!(", announced by {node}"));
            }
            FrontendKey::Address { .. } => text += ", external address",
        }
        if let Some(called) = &port.name {
            text += &format!(", port {called}");
        }
        if let Some(node) = node {
            text += &format!("; translated on {node}");
        }
        self.ok(What::Frontend, text);
    }

    fn policy(
        &mut self,
        origin: &Origin,
        service: &Service,
        frontend: &Frontend,
        arrives: bool,
    ) -> Result<(), Stopped> {
        let mut text = match (
            arrives && frontend.outside.is_some(),
            is_internal_local(service, frontend),
        ) {
            (true, _) => "externalTrafficPolicy Local: only endpoints of that node".to_string(),
            (_, true) => "internalTrafficPolicy Local: only endpoints of that node".to_string(),
            _ => "any endpoint".to_string(),
        };
        text += &match frontend.scheduler {
            Scheduler::Random => ", at random".to_string(),
            other => format!(", chosen by {other}"),
        };
        if let Some(seconds) = frontend.affinity_seconds {
            text += &format!("; a client stays with its endpoint for {seconds} s");
        }
        if let Some(sources) = &frontend.sources {
            let source = origin.address(frontend.key.family() == svcnet_netlink::nft::Family::Ip6);
            let in_range = |ip: IpAddr| sources.iter().any(|net| net.contains(&ip));
            let ranges: Vec<String> = sources.iter().map(ToString::to_string).collect();
            match source {
                Some(source) if !in_range(source) => {
                    let reason = NotReached::SourceRange {
                        service: key(&service.metadata),
                        source,
                        ranges: sources.to_vec(),
                    };
                    return Err((What::Policy, reason));
                }
                Some(_) => text += &format!("; let in by loadBalancerSourceRanges {}", ranges.join(", ")),
                None => text += &format!("; only clients from {} are let in", ranges.join(", ")),
            }
        }
        self.ok(What::Policy, text);
        Ok(())
    }

    fn endpoints(
        &mut self,
        service: &Service,
        port: &ServicePort,
        frontend: &Frontend,
        arrives: bool,
        node: Option<&str>,
    ) -> Result<Vec<Endpoint>, Stopped> {
        let fate = match &frontend.outside {
            Some(outside) if arrives => outside,
            _ => &frontend.fate,
        };
        let targets = self.targets(service);
        match fate {
            Fate::Balance(endpoints) => {
                let usable = endpoints.iter().filter(|endpoint| endpoint.weight > 0);
                let shown = by_name(usable.map(|endpoint| endpoint.at), &targets);
                self.tell_endpoints(service, &shown);
                Ok(shown)
            }
            Fate::NoEndpoints => {
                let v6 = frontend.key.family() == svcnet_netlink::nft::Family::Ip6;
                let reason = diagnose::no_endpoints(self.cluster, service, port, v6);
                Err((What::Endpoint, reason))
            }
            Fate::OnlyElsewhere => {
                let mut nodes: Vec<String> = targets.values().filter_map(|(_, node)| node.clone()).collect();
                nodes.sort();
                nodes.dedup();
                let reason = NotReached::OnlyElsewhere {
                    service: key(&service.metadata),
                    policy: if frontend.inside {
                        "internalTrafficPolicy"
                    } else {
                        "externalTrafficPolicy"
                    },
                    node: node.unwrap_or("that node").to_string(),
                    nodes,
                };
                Err((What::Endpoint, reason))
            }
        }
    }

    fn tell_endpoints(&mut self, service: &Service, endpoints: &[Endpoint]) {
        let named: Vec<String> = endpoints
            .iter()
            .take(NAMED_MAX)
            .map(|endpoint| match &endpoint.pod {
                Some(_) => format!("{endpoint} ({})", endpoint.at),
                None => endpoint.to_string(),
            })
            .collect();
        let mut text = format!("{}: {}", endpoints.len(), named.join(", "));
        if endpoints.len() > NAMED_MAX {
            text += &format!(" and {} more", endpoints.len() - NAMED_MAX);
        }
        let troubled = diagnose::troubles(self.cluster, service);
        // A terminating pod may be an endpoint all the same.
        let idle: Vec<String> = troubled
            .iter()
            .filter(|trouble| !endpoints.iter().any(|e| e.pod.as_ref() == Some(&trouble.pod)))
            .take(NAMED_MAX)
            .map(ToString::to_string)
            .collect();
        if !idle.is_empty() {
            text += &format!("; not used: {}", idle.join(", "));
        }
        self.ok(What::Endpoint, text);
    }

    /// Pod and node by address, of the endpoints of a Service.
    fn targets(&self, service: &Service) -> BTreeMap<IpAddr, (Option<String>, Option<String>)> {
        let mut targets = BTreeMap::new();
        for endpoint in self
            .cluster
            .slices_of(service)
            .flat_map(|slice| slice.endpoints.iter().flatten())
        {
            let pod = endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| {
                    Some(format!(
                        "{}/{}",
                        namespace(&service.metadata),
                        target.name.as_ref()?
                    ))
                });
            for ip in endpoint.addresses.iter().filter_map(|text| legacy::address(text)) {
                targets.insert(ip, (pod.clone(), endpoint.node_name.clone()));
            }
        }
        targets
    }

    /// Sorts out endpoints whose nodes are dead.
    pub(super) fn living(&mut self, mut way: Way) -> Result<Way, Stopped> {
        let mut living = Vec::new();
        for endpoint in std::mem::take(&mut way.endpoints) {
            let down = endpoint
                .node
                .clone()
                .and_then(|node| Some((self.cluster.node_down(&node)?, node)));
            match down {
                Some((why, node)) => way.dead.push((endpoint, NotReached::NodeDown { node, why })),
                None => living.push(endpoint),
            }
        }
        way.endpoints = living;
        match way.dead.first() {
            Some((_, reason)) if way.endpoints.is_empty() => Err((What::Endpoint, reason.clone())),
            _ => Ok(way),
        }
    }

    /// A Service without an address: DNS answers with its endpoints, and ports are the pods' own.
    pub(super) fn headless(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        service: &Service,
    ) -> Result<End, Stopped> {
        let shown = key(&service.metadata);
        let dns = format!(
            "{}.{}.svc.{}",
            name(&service.metadata),
            namespace(&service.metadata),
            self.cluster.domain
        );
        let found = self.headless_endpoints(service);
        let mut addresses: Vec<IpAddr> = found.iter().map(|(ip, _)| *ip).collect();
        addresses.sort();
        addresses.dedup();
        self.ok(
            What::Name,
            format!(
                "the Service {shown} is headless: {dns} is {}",
                match addresses.len() {
                    0 => "nobody".to_string(),
                    number => format!("its {}", count(number, "endpoint")),
                }
            ),
        );
        self.dns = Some(DnsExpected {
            name: dns,
            addresses: addresses.clone(),
        });
        if origin.node().is_none() {
            let reason = NotReached::OnlyInside {
                whose: format!("the Service {shown}"),
                address: "each pod's address".to_string(),
            };
            return Err((What::Endpoint, reason));
        }
        let Some(first) = addresses.first() else {
            let port = port_of(service, ask).cloned().unwrap_or_default();
            let reason = diagnose::no_endpoints(self.cluster, service, &port, false);
            return Err((What::Endpoint, reason));
        };
        let v6 = if addresses.iter().any(|ip| origin.address(ip.is_ipv6()).is_some()) {
            origin.address(false).is_none()
        } else {
            first.is_ipv6()
        };
        let endpoints = self.at_own_ports(service, ask, &found, v6)?;
        self.tell_endpoints(service, &endpoints);
        let to = endpoints.first().map_or(SocketAddr::new(*first, 0), |e| e.at);
        self.straight(origin, to, ask.protocol, endpoints)
    }

    /// The ready endpoints with the ports that each listens on: name, protocol, number.
    fn headless_endpoints(&self, service: &Service) -> Vec<(IpAddr, Vec<OwnPort>)> {
        let mut found = Vec::new();
        for slice in self.cluster.slices_of(service) {
            let ports: Vec<OwnPort> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|port| {
                    Some(OwnPort {
                        name: port.name.clone().unwrap_or_default(),
                        protocol: Protocol::parse(port.protocol.as_deref())?,
                        number: u16::try_from(port.port?).ok()?,
                    })
                })
                .collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                let address = endpoint.addresses.first().and_then(|ip| legacy::address(ip));
                found.extend(address.filter(|_| ready).map(|ip| (ip, ports.clone())));
            }
        }
        found
    }

    fn at_own_ports(
        &self,
        service: &Service,
        ask: &TargetAsk,
        found: &[(IpAddr, Vec<OwnPort>)],
        v6: bool,
    ) -> Result<Vec<Endpoint>, Stopped> {
        let targets = self.targets(service);
        let mut endpoints = Vec::new();
        for (ip, ports) in found.iter().filter(|(ip, _)| ip.is_ipv6() == v6) {
            let fits = |port: &&OwnPort| match &ask.port {
                Some(PortAsk::Number(number)) => port.number == *number,
                Some(PortAsk::Name(called)) => port.name == *called,
                None => ports.len() == 1,
            };
            let of_protocol = |port: &&OwnPort| ask.protocol.is_none_or(|p| p == port.protocol);
            // A Service without ports names none: any will do.
            let number = match (ports.is_empty(), &ask.port) {
                (true, Some(PortAsk::Number(number))) => Some(*number),
                _ => ports
                    .iter()
                    .filter(of_protocol)
                    .find(fits)
                    .map(|port| port.number),
            };
            endpoints.extend(number.map(|number| SocketAddr::new(*ip, number)));
        }
        let endpoints = by_name(endpoints.into_iter(), &targets);
        if endpoints.is_empty() {
            let mut ports: Vec<String> = found
                .iter()
                .flat_map(|(_, ports)| ports)
                .map(|port| {
                    format!(
                        "{}/{} (the pods' own: no port is translated)",
                        port.number, port.protocol
                    )
                })
                .collect();
            ports.sort();
            ports.dedup();
            let asked = ask
                .port
                .as_ref()
                .map_or_else(|| "(none was asked)".to_string(), ToString::to_string);
            let reason = NotReached::NoSuchPort {
                service: key(&service.metadata),
                port: asked,
                ports,
            };
            return Err((What::Endpoint, reason));
        }
        Ok(endpoints)
    }
}

/// A port that a pod listens on.
#[derive(Debug, Clone)]
struct OwnPort {
    name: String,
    protocol: Protocol,
    number: u16,
}

/// The endpoints at these addresses, by the names of their pods.
fn by_name(
    addresses: impl Iterator<Item = SocketAddr>,
    targets: &BTreeMap<IpAddr, (Option<String>, Option<String>)>,
) -> Vec<Endpoint> {
    let named = addresses.map(|at| {
        let (pod, node) = targets.get(&at.ip()).cloned().unwrap_or_default();
        Endpoint { at, pod, node }
    });
    let mut endpoints: Vec<Endpoint> = named.collect();
    endpoints.sort_by(|a, b| (&a.pod, a.at).cmp(&(&b.pod, b.at)));
    endpoints
}

/// Whether a frontend is that Service's.
fn is_of(frontend: &Frontend, service: &str) -> bool {
    let name = frontend.name.as_ref();
    name.strip_prefix(service)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

fn is_internal_local(service: &Service, frontend: &Frontend) -> bool {
    let spec = service.spec.as_ref();
    frontend.inside && spec.and_then(|spec| spec.internal_traffic_policy.as_deref()) == Some("Local")
}
