//! Whom the client means, and by which address and port the connection goes there.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use svcnet_api::types::legacy;
use svcnet_api::wellknown::LABEL_SERVICE_PROXY_NAME;
use svcnet_proxy::{FrontendKey, Protocol};

use super::{DnsExpected, End, Origin, Stopped, Tracer, Way};
use crate::ask::{Host, PortAsk, TargetAsk};
use crate::cluster::{key, name, node_addresses, pod_addresses};
use crate::explain::{Endpoint, What};
use crate::names;
use crate::reason::{NoAddress, NotReached};

/// ExternalNames that lead to each other.
const HOPS_MAX: usize = 8;

/// By which of a Service's addresses the client comes.
#[derive(Debug, Clone)]
pub(super) enum By<'a> {
    /// By an address that belongs to it.
    Address(IpAddr),
    /// By a port of a node.
    Node(&'a Node),
    /// By its name: whichever address fits the client.
    Name,
}

impl Tracer<'_> {
    pub(super) fn target(&mut self, origin: &Origin, ask: &TargetAsk) -> Result<End, Stopped> {
        match &ask.host {
            Host::Address(address) => self.by_address(origin, ask, *address),
            Host::Named { namespace, name } => self.by_name(origin, ask, namespace.as_deref(), name),
        }
    }

    fn by_address(&mut self, origin: &Origin, ask: &TargetAsk, address: IpAddr) -> Result<End, Stopped> {
        let cluster = self.cluster;
        if cluster.proxy.node_local.contains(&address) {
            self.ok(
                What::Name,
                format!("{address} is the cluster's DNS, which each node answers itself"),
            );
            return Ok(End::Leads("the DNS server of the client's own node".to_string()));
        }
        let services = cluster.services.iter();
        if let Some(service) = services
            .map(AsRef::as_ref)
            .find(|service| has_address(service, address))
        {
            self.ok(
                What::Name,
                format!("{address} is the Service {}", key(&service.metadata)),
            );
            return self.service(origin, ask, service, &By::Address(address), 0);
        }
        if let Some(node) = cluster.node_at(address) {
            self.ok(
                What::Name,
                format!("{address} is the node {}", name(&node.metadata)),
            );
            return self.node_port(origin, ask, node);
        }
        if let Some(pod) = cluster.pod_at(address) {
            self.ok(What::Name, format!("{address} is the pod {}", key(&pod.metadata)));
            return self.pod(origin, ask, pod, address);
        }
        let (of_services, of_pods) = (cluster.is_of_services(address), cluster.is_of_pods(address));
        if of_services || of_pods {
            let reason = NotReached::UnknownAddress {
                address,
                of_services,
                of_pods,
            };
            return Err((What::Name, reason));
        }
        self.ok(What::Name, format!("{address} is nobody's in the cluster"));
        Ok(End::Leads(format!("{address}, outside the cluster")))
    }

    fn by_name(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        namespace: Option<&str>,
        called: &str,
    ) -> Result<End, Stopped> {
        let cluster = self.cluster;
        let own = namespace.unwrap_or_else(|| Self::namespace_of(origin));
        if let Some(service) = cluster.service(own, called) {
            return self.service(origin, ask, service, &By::Name, 0);
        }
        if namespace.is_none() {
            if let Some(node) = cluster.node(called) {
                self.ok(What::Name, format!("{called} is a node"));
                return self.node_port(origin, ask, node);
            }
            if let Some(pod) = cluster.pod(own, called)
                && let Some(address) = pod_addresses(pod).next()
            {
                self.ok(What::Name, format!("{called} is the pod {}", key(&pod.metadata)));
                return self.pod(origin, ask, pod, address);
            }
            if let Some(named) = names::of_dns(called, &cluster.domain).map_err(|why| (What::Name, why))? {
                return self.by_dns(origin, ask, called, &named, 0);
            }
        }
        Err((What::Name, self.unknown(own, called)))
    }

    fn unknown(&self, namespace: &str, called: &str) -> NotReached {
        NotReached::UnknownName {
            name: called.to_string(),
            namespace: namespace.to_string(),
            near: names::services_like(self.cluster, namespace, called),
        }
    }

    fn by_dns(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        asked: &str,
        named: &names::Named,
        hops: usize,
    ) -> Result<End, Stopped> {
        let cluster = self.cluster;
        let Some(service) = cluster.service(&named.namespace, &named.service) else {
            return Err((What::Name, self.unknown(&named.namespace, &named.service)));
        };
        let Some(host) = &named.endpoint else {
            return self.service(origin, ask, service, &By::Name, hops);
        };
        let found = cluster
            .slices_of(service)
            .flat_map(|slice| slice.endpoints.iter())
            .flatten()
            .find(|endpoint| {
                let dashed = endpoint.addresses.first().map(|ip| ip.replace(['.', ':'], "-"));
                endpoint.hostname.as_ref().or(dashed.as_ref()) == Some(host)
            });
        let address = found.and_then(|endpoint| legacy::address(endpoint.addresses.first()?));
        let Some(address) = address else {
            return Err((What::Name, self.unknown(&named.namespace, asked)));
        };
        self.ok(
            What::Name,
            format!("{asked} is one endpoint of {}: {address}", key(&service.metadata)),
        );
        match cluster.pod_at(address) {
            Some(pod) => self.pod(origin, ask, pod, address),
            None => Ok(End::Leads(format!("{address}, which is no pod"))),
        }
    }

    fn service(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        service: &Service,
        by: &By<'_>,
        hops: usize,
    ) -> Result<End, Stopped> {
        let shown = key(&service.metadata);
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let leads_to = spec.external_name.unwrap_or_default();
            return self.external_name(origin, ask, &shown, &leads_to, hops);
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return self.headless(origin, ask, service);
        }
        let addresses = cluster_ips(service);
        if matches!(by, By::Name) {
            self.named(service, &addresses);
        }
        if let Some(proxy) = label(service, LABEL_SERVICE_PROXY_NAME) {
            let proxy = proxy.to_string();
            return Err((
                What::Frontend,
                NotReached::OtherProxy {
                    service: shown,
                    proxy,
                },
            ));
        }
        if addresses.is_empty() {
            let why = NoAddress::ClusterIp;
            return Err((
                What::Frontend,
                NotReached::NoServiceAddress { service: shown, why },
            ));
        }
        let port = port_of(service, ask).map_err(|reason| (What::Frontend, reason))?;
        let (at, node) = self.place(origin, service, port, by)?;
        self.frontend(origin, service, port, at, node)
    }

    /// Says what the name is, and what DNS should answer.
    fn named(&mut self, service: &Service, addresses: &[IpAddr]) {
        let (namespace, called) = (
            crate::cluster::namespace(&service.metadata),
            name(&service.metadata),
        );
        let dns = format!("{called}.{namespace}.svc.{}", self.cluster.domain);
        let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let text = if listed.is_empty() {
            format!("the Service {namespace}/{called}")
        } else {
            format!("the Service {namespace}/{called}: {dns} is {}", listed.join(", "))
        };
        self.ok(What::Name, text);
        if !addresses.is_empty() {
            self.dns = Some(DnsExpected {
                name: dns,
                addresses: addresses.to_vec(),
            });
        }
    }

    fn external_name(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        shown: &str,
        leads_to: &str,
        hops: usize,
    ) -> Result<End, Stopped> {
        self.ok(
            What::Name,
            format!("the Service {shown} is an ExternalName: DNS answers with the name {leads_to}"),
        );
        let inside = leads_to
            .trim_end_matches('.')
            .ends_with(&format!(".{}", self.cluster.domain));
        if inside && hops < HOPS_MAX {
            let named = names::of_dns(leads_to, &self.cluster.domain).map_err(|why| (What::Name, why))?;
            if let Some(named) = named {
                return self.by_dns(origin, ask, leads_to, &named, hops + 1);
            }
        }
        Ok(End::Leads(format!(
            "{leads_to}, outside the cluster: DNS says where that is, and svcnet has no part in the connection"
        )))
    }

    /// Where the client connects to, and the node that translates it.
    fn place(
        &mut self,
        origin: &Origin,
        service: &Service,
        port: &ServicePort,
        by: &By<'_>,
    ) -> Result<(Place, Option<String>), Stopped> {
        let own_node = origin.node().map(str::to_string);
        let outside = own_node.is_none();
        let shown = key(&service.metadata);
        let balanced = load_balancer_ips(service);
        match by {
            By::Node(node) => Ok((
                Place::of_node(node, port).ok_or_else(|| {
                    let why = NoAddress::NodePort;
                    (
                        What::Frontend,
                        NotReached::NoServiceAddress { service: shown, why },
                    )
                })?,
                Some(name(&node.metadata).to_string()),
            )),
            By::Address(address) if outside && cluster_ips(service).contains(address) => Err((
                What::Frontend,
                NotReached::OnlyInside {
                    whose: format!("the Service {shown}"),
                    address: address.to_string(),
                },
            )),
            By::Address(address) => Ok((
                Place::Address(*address),
                own_node.or_else(|| self.announcer(&shown)),
            )),
            By::Name if !outside => {
                let all = cluster_ips(service);
                let fits = |ip: &&IpAddr| origin.address(ip.is_ipv6()).is_some();
                let address = all.iter().find(fits).or(all.first()).copied();
                Ok((
                    Place::Address(address.unwrap_or_else(|| IpAddr::from([0, 0, 0, 0]))),
                    own_node,
                ))
            }
            By::Name => match (balanced.first(), port.node_port) {
                (Some(address), _) => Ok((Place::Address(*address), self.announcer(&shown))),
                (None, Some(_)) => self.any_node(&shown, port),
                (None, None) => Err((What::Frontend, outside_reason(service))),
            },
        }
    }

    fn announcer(&self, service: &str) -> Option<String> {
        self.cluster.announcers.get(service).cloned()
    }

    /// A node port of the first node that lives: somebody outside who only knows the name asks there.
    fn any_node(&self, shown: &str, port: &ServicePort) -> Result<(Place, Option<String>), Stopped> {
        let mut nodes = self.cluster.nodes.iter();
        let node = nodes
            .find(|node| self.cluster.node_down(name(&node.metadata)).is_none())
            .and_then(|node| Some((Place::of_node(node, port)?, name(&node.metadata).to_string())));
        node.map(|(place, node)| (place, Some(node))).ok_or_else(|| {
            let service = shown.to_string();
            let why = NoAddress::NodePort;
            (What::Frontend, NotReached::NoServiceAddress { service, why })
        })
    }

    fn node_port(&mut self, origin: &Origin, ask: &TargetAsk, node: &Node) -> Result<End, Stopped> {
        let services = self.cluster.services.iter().map(AsRef::as_ref);
        let mut taken: Vec<String> = Vec::new();
        for service in services {
            for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
                let Some(number) = port.node_port.and_then(|port| u16::try_from(port).ok()) else {
                    continue;
                };
                let fits = ask
                    .protocol
                    .is_none_or(|p| Some(p) == Protocol::parse(port.protocol.as_deref()));
                if ask.port == Some(PortAsk::Number(number)) && fits {
                    let (at, by) = self.place(origin, service, port, &By::Node(node))?;
                    return self.frontend(origin, service, port, at, by);
                }
                let shown = key(&service.metadata);
                taken.push(format!("{number} ({shown})"));
            }
        }
        let port = ask
            .port
            .as_ref()
            .map_or_else(|| "(none was asked)".to_string(), ToString::to_string);
        Err((What::Frontend, NotReached::NoSuchNodePort { port, ports: taken }))
    }

    /// Straight to a pod.
    fn pod(
        &mut self,
        origin: &Origin,
        ask: &TargetAsk,
        pod: &k8s_openapi::api::core::v1::Pod,
        address: IpAddr,
    ) -> Result<End, Stopped> {
        let shown = key(&pod.metadata);
        if origin.node().is_none() {
            let reason = NotReached::OnlyInside {
                whose: format!("the pod {shown}"),
                address: address.to_string(),
            };
            return Err((What::Endpoint, reason));
        }
        if let Some(why) = crate::cluster::pod_trouble(pod) {
            return Err((What::Endpoint, NotReached::PodNotReady { pod: shown, why }));
        }
        let Some(PortAsk::Number(port)) = ask.port else {
            let reason = NotReached::NoSuchPort {
                service: shown,
                port: ask
                    .port
                    .as_ref()
                    .map_or_else(|| "(none was asked)".to_string(), ToString::to_string),
                ports: vec!["numbers only: it is a pod".to_string()],
            };
            return Err((What::Frontend, reason));
        };
        let endpoint = Endpoint {
            at: SocketAddr::new(address, port),
            pod: Some(shown),
            node: crate::cluster::pod_node(pod).map(str::to_string),
        };
        self.ok(What::Endpoint, format!("{endpoint}, ready"));
        self.straight(origin, endpoint.at, ask.protocol, vec![endpoint])
    }

    /// A way without a frontend.
    pub(super) fn straight(
        &mut self,
        origin: &Origin,
        to: SocketAddr,
        protocol: Option<Protocol>,
        endpoints: Vec<Endpoint>,
    ) -> Result<End, Stopped> {
        let way = Way {
            node: origin.node().map(str::to_string),
            arrives: false,
            frontend: None,
            to,
            protocol: protocol.unwrap_or(Protocol::Tcp),
            endpoints,
            dead: Vec::new(),
        };
        let way = self.living(way)?;
        self.permitted(origin, way).map(|way| End::Way(Box::new(way)))
    }
}

/// Where a client connects to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Address(IpAddr),
    NodePort { node: IpAddr, port: u16 },
}

impl Place {
    fn of_node(node: &Node, port: &ServicePort) -> Option<Self> {
        Some(Self::NodePort {
            node: node_addresses(node).next()?,
            port: u16::try_from(port.node_port?).ok()?,
        })
    }

    /// The frontend there.
    pub(super) fn key(self, protocol: Protocol, port: u16) -> FrontendKey {
        match self {
            Self::Address(ip) => FrontendKey::Address { ip, protocol, port },
            Self::NodePort { node, port } => FrontendKey::NodePort {
                family: svcnet_netlink::nft::Family::of(node),
                protocol,
                port,
            },
        }
    }

    pub(super) fn socket(self, port: u16) -> SocketAddr {
        match self {
            Self::Address(ip) => SocketAddr::new(ip, port),
            Self::NodePort { node, port } => SocketAddr::new(node, port),
        }
    }
}

fn outside_reason(service: &Service) -> NotReached {
    let shown = key(&service.metadata);
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    if kind == Some("LoadBalancer") {
        return NotReached::NoServiceAddress {
            service: shown,
            why: NoAddress::LoadBalancer,
        };
    }
    let listed: Vec<String> = cluster_ips(service).iter().map(ToString::to_string).collect();
    NotReached::OnlyInside {
        whose: format!("the Service {shown}"),
        address: listed.join(", "),
    }
}

fn label<'a>(service: &'a Service, of: &str) -> Option<&'a str> {
    let labels = service.metadata.labels.as_ref()?;
    labels.get(of).map(String::as_str)
}

/// A Service's addresses inside the cluster.
pub(super) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = all.iter().filter_map(|ip| legacy::address(ip)).collect();
    if found.is_empty() {
        found.extend(spec.cluster_ip.iter().filter_map(|ip| legacy::address(ip)));
    }
    found
}

pub(super) fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref());
    let addresses = ingress.unwrap_or_default().iter();
    addresses
        .filter_map(|entry| legacy::address(entry.ip.as_ref()?))
        .collect()
}

fn has_address(service: &Service, address: IpAddr) -> bool {
    let external = service
        .spec
        .iter()
        .flat_map(|spec| spec.external_ips.iter().flatten());
    cluster_ips(service).contains(&address)
        || load_balancer_ips(service).contains(&address)
        || external
            .filter_map(|ip| legacy::address(ip))
            .any(|ip| ip == address)
}

/// The port that was asked for.
pub(super) fn port_of<'a>(service: &'a Service, ask: &TargetAsk) -> Result<&'a ServicePort, NotReached> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref());
    let ports = ports.unwrap_or_default();
    let of_protocol = |port: &ServicePort| Protocol::parse(port.protocol.as_deref());
    let mut fitting: Vec<&ServicePort> = ports
        .iter()
        .filter(|port| {
            ask.protocol
                .is_none_or(|wanted| of_protocol(port) == Some(wanted))
        })
        .filter(|port| match &ask.port {
            Some(PortAsk::Number(number)) => port.port == i32::from(*number),
            Some(PortAsk::Name(called)) => port.name.as_ref() == Some(called),
            None => ports.len() == 1,
        })
        .collect();
    fitting.sort_by_key(|port| of_protocol(port));
    fitting.first().copied().ok_or_else(|| {
        let asked = match (&ask.port, ask.protocol) {
            (Some(port), Some(protocol)) => format!("{port}/{protocol}"),
            (Some(port), None) => port.to_string(),
            (None, _) => "(none was asked)".to_string(),
        };
        NotReached::NoSuchPort {
            service: key(&service.metadata),
            port: asked,
            ports: ports.iter().map(port_text).collect(),
        }
    })
}

fn port_text(port: &ServicePort) -> String {
    let protocol = Protocol::parse(port.protocol.as_deref()).unwrap_or(Protocol::Tcp);
    let number = port.port;
    match &port.name {
        Some(called) => format!("{number}/{protocol} ({called})"),
        None => format!("{number}/{protocol}"),
    }
}
