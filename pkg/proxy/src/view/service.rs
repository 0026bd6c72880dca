//! What a proxy needs of a Service.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use svcnet_api::types::legacy;
use svcnet_api::wellknown::{ANNOTATION_SCHEDULER, ANNOTATION_WEIGHTS, LABEL_SERVICE_PROXY_NAME};

use crate::model::Protocol;
use crate::scheduler::Scheduler;
use crate::weights::Weights;

/// How long ClientIP affinity lasts where the Service does not say (`DefaultClientIPServiceAffinitySeconds`).
const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;

/// `loadBalancerSourceRanges` in former times (`v1.AnnotationLoadBalancerSourceRangesKey`).
const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where there is but one.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// The port on each node, if it has one.
    pub node_port: Option<u16>,
}

/// What a proxy needs of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its addresses inside the cluster.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses that others route to a node.
    pub external_ips: Box<[IpAddr]>,
    /// LoadBalancer addresses that nodes answer for.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// How endpoints are chosen, if the Service says it.
    pub scheduler: Option<Scheduler>,
    /// Which endpoints take how many connections, if the Service says it.
    pub weights: Option<Box<Weights>>,
    /// `sessionAffinity: ClientIP` with its time.
    pub affinity_seconds: Option<u32>,
    /// `healthCheckNodePort`, where load balancers ask for endpoints of this node.
    pub health_port: Option<u16>,
    /// `loadBalancerSourceRanges`, if there are any.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// What makes no sense in it and is left aside, in words.
    pub complaints: Box<[Box<str>]>,
}

/// Why nothing is programmed for a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// `clusterIP: None`: DNS answers with the pods themselves.
    Headless,
    /// `type: ExternalName`: DNS answers with a name.
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
    /// It has no address yet.
    NoClusterIp,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Headless => "it is headless, DNS answers with the pods themselves",
            Self::ExternalName => "it is an ExternalName, DNS answers with the name",
            Self::OtherProxy => {
                "its label service.kubernetes.io/service-proxy-name gives it to another proxy"
            }
            Self::NoClusterIp => "it has no cluster IP yet",
        })
    }
}

impl Service {
    /// The compact form of a Service.
    ///
    /// # Errors
    /// The reason why a proxy has nothing to do with it.
    pub fn new(service: &core::Service) -> Result<Self, Skipped> {
        let labels = service.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(LABEL_SERVICE_PROXY_NAME)) {
            return Err(Skipped::OtherProxy);
        }
        let spec = service.spec.as_ref().ok_or(Skipped::NoClusterIp)?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(Skipped::ExternalName);
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return Err(Skipped::Headless);
        }
        let mut cluster_ips = addresses(spec.cluster_ips.as_deref().unwrap_or_default());
        if cluster_ips.is_empty() {
            cluster_ips = spec
                .cluster_ip
                .iter()
                .filter_map(|ip| legacy::address(ip))
                .collect();
        }
        if cluster_ips.is_empty() {
            return Err(Skipped::NoClusterIp);
        }
        let ports = spec.ports.iter().flatten().filter_map(service_port).collect();
        let mut complaints = Vec::new();
        Ok(Self {
            cluster_ips,
            external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer_ips: load_balancer_ips(service),
            ports,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            scheduler: annotation(service, ANNOTATION_SCHEDULER, str::parse, &mut complaints),
            weights: annotation(service, ANNOTATION_WEIGHTS, Weights::parse, &mut complaints).map(Box::new),
            affinity_seconds: affinity_seconds(spec),
            health_port: health_port(spec),
            source_ranges: source_ranges(service, &mut complaints),
            complaints: complaints.into(),
        })
    }
}

/// What the annotation says. With one that makes no sense the Service is as those that have none.
fn annotation<T, E: std::fmt::Display>(
    service: &core::Service,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    complaints: &mut Vec<Box<str>>,
) -> Option<T> {
    let text = service.metadata.annotations.as_ref()?.get(name)?;
    match parse(text.trim()) {
        Ok(value) => Some(value),
        Err(error) => {
            complaints.push(format!("annotation {name}: {error}").into());
            None
        }
    }
}

fn affinity_seconds(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS_DEFAULT))
}

/// Only a LoadBalancer with policy `Local` has one.
fn health_port(spec: &core::ServiceSpec) -> Option<u16> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec
        .health_check_node_port
        .and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port != 0 && local && spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Of the field, or else of the annotation that it had before. What does not parse allows nobody.
fn source_ranges(service: &core::Service, complaints: &mut Vec<Box<str>>) -> Option<Box<[IpNet]>> {
    let field = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_source_ranges.as_ref());
    let annotation = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ANNOTATION_SOURCE_RANGES));
    let texts: Vec<&str> = match (field, annotation) {
        (Some(field), _) if !field.is_empty() => field.iter().map(String::as_str).collect(),
        (_, Some(annotation)) if !annotation.trim().is_empty() => annotation.split(',').collect(),
        _ => return None,
    };
    let network = |text: &&str| match legacy::network(text.trim()) {
        Some(network) => Some(network),
        None => {
            complaints.push(format!("source range {text:?} is no network as in 192.0.2.0/24").into());
            None
        }
    };
    Some(texts.iter().filter_map(network).collect())
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port
            .node_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0),
    })
}

fn load_balancer_ips(service: &core::Service) -> Box<[IpAddr]> {
    let is_load_balancer = service
        .spec
        .as_ref()
        .is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .filter(|_| is_load_balancer);
    status
        .into_iter()
        .flat_map(|status| status.ingress.iter().flatten())
        // `ipMode: Proxy` says that a balancer outside terminates connections: not ours to short-cut.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| legacy::address(ingress.ip.as_ref()?))
        .collect()
}

fn addresses(texts: &[String]) -> Box<[IpAddr]> {
    texts.iter().filter_map(|text| legacy::address(text)).collect()
}
