//! Clusters of any size, made up: each Service has one port, and endpoints on another node.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use svcnet_proxy::{Backend, Engine, Nftables, Report, Settings, Update};
use svcnet_runtime::Change;

/// Endpoints of each Service.
pub(crate) const ENDPOINTS: u32 = 3;

/// A proxy over nf_tables of the calling thread's namespace, which knows no Service yet.
pub(crate) fn nftables() -> Result<Engine> {
    let pods = ["10.244.0.0/16".parse()?];
    let cluster_ips = ["10.96.0.0/12".parse()?];
    engine(Box::new(Nftables::open(&pods, &cluster_ips)?))
}

/// A proxy over any backend.
pub(crate) fn engine(backend: Box<dyn Backend>) -> Result<Engine> {
    let settings = Settings {
        service_cidrs: vec!["10.96.0.0/12".parse()?],
        ..Settings::default()
    };
    Ok(Engine::new("n1", settings, backend))
}

/// The objects of a cluster, as the first lists bring them.
pub(crate) struct Lists {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Lists {
    /// `services` Services with [`ENDPOINTS`] endpoints each.
    pub(crate) fn new(services: u32) -> Result<Self> {
        let mut lists = Self {
            services: Vec::new(),
            slices: Vec::new(),
        };
        for n in 0..services {
            let endpoints: Vec<Ipv4Addr> = (0..ENDPOINTS).map(|i| endpoint_ip(n, i)).collect();
            lists.add(&format!("s{n}"), cluster_ip(n), &[80], &endpoints)?;
        }
        Ok(lists)
    }

    /// One more.
    pub(crate) fn add(
        &mut self,
        name: &str,
        cluster_ip: Ipv4Addr,
        ports: &[u16],
        endpoints: &[Ipv4Addr],
    ) -> Result<()> {
        self.services.push(Arc::new(service_of(name, cluster_ip, ports)?));
        self.slices.push(Arc::new(slice_of(name, ports, endpoints)?));
        Ok(())
    }

    /// Hands them to a proxy and brings them into force.
    pub(crate) fn load(self, engine: &mut Engine) -> Result<Report> {
        engine.apply_change(Update::Services(Change::Reset(self.services)));
        engine.apply_change(Update::Slices(Change::Reset(self.slices)));
        Ok(engine.sync()?)
    }
}

/// The n-th Service.
pub(crate) fn service(n: u32) -> Result<Service> {
    service_of(&format!("s{n}"), cluster_ip(n), &[80])
}

fn service_of(name: &str, cluster_ip: Ipv4Addr, ports: &[u16]) -> Result<Service> {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP", "targetPort": port}))
        .collect();
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": ports,
        },
    }))?)
}

/// The slice of the n-th Service with so many endpoints.
pub(crate) fn slice(n: u32, endpoints: u32) -> Result<Arc<EndpointSlice>> {
    let endpoints: Vec<Ipv4Addr> = (0..endpoints).map(|i| endpoint_ip(n, i)).collect();
    Ok(Arc::new(slice_of(&format!("s{n}"), &[80], &endpoints)?))
}

fn slice_of(service: &str, ports: &[u16], endpoints: &[Ipv4Addr]) -> Result<EndpointSlice> {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}))
        .collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": "n2"}))
        .collect();
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }))?)
}

pub(crate) fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + n)
}

/// From 10.244.16.0 on, so that there is room for real pods below.
pub(crate) fn endpoint_ip(n: u32, i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 16, 0).to_bits() + (n * 8 + i) % 61_440)
}
