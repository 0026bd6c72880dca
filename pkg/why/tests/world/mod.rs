//! A cluster of three nodes as the API would tell it, and what node n3 sees when all is well.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use svcnet_netlink::neigh::Resolution;
use svcnet_why::confirm::confirm;
use svcnet_why::seen::{
    AgentSeen, DnsSeen, FrontendSeen, Hop, LinkSeen, LinkWanted, PathSeen, Seen, Tunnel, WaySeen,
};
use svcnet_why::{Cluster, Explanation, trace};

/// The moment of everything.
const NOW: &str = "2026-11-26T12:00:00Z";

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) seen: Seen,
}

fn object<K: DeserializeOwned>(yaml: &str) -> K {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}: {yaml}"))
}

impl World {
    pub(crate) fn new() -> Self {
        let nets = |text: &str| vec![text.parse().unwrap()];
        let mut world = Self {
            cluster: Cluster {
                proxy: svcnet_proxy::Config {
                    cluster_cidrs: nets("10.244.0.0/16"),
                    service_cidrs: nets("10.96.0.0/12"),
                    ..svcnet_proxy::Config::default()
                },
                now: NOW.parse().unwrap(),
                ..Cluster::default()
            },
            seen: Seen::on(
                "n3",
                AgentSeen::Runs {
                    roles: ["cni", "dns", "overlay", "proxy"].map(str::to_string).to_vec(),
                    not_ready: Vec::new(),
                },
            ),
        };
        for number in 1..=3 {
            world.cluster.nodes.push(object::<Node>(&format!(
                "{{metadata: {{name: n{number}}}, status: {{conditions: [{{type: Ready, status: 'True'}}], \
                 addresses: [{{type: InternalIP, address: 172.30.0.1{number}}}]}}}}"
            )));
            world.lease(&format!("n{number}"), "2026-11-26T11:59:58Z");
        }
        world.seen.frontend = Some(FrontendSeen::Held(None));
        world.pod("visitor", "n3", "10.244.2.3", "app: visitor", "")
    }

    fn lease(&mut self, node: &str, renewed: &str) {
        self.cluster
            .leases
            .retain(|lease| lease.metadata.name.as_deref() != Some(node));
        self.cluster.leases.push(object::<Lease>(&format!(
            "{{metadata: {{name: {node}}}, spec: {{leaseDurationSeconds: 6, renewTime: '{renewed}'}}}}"
        )));
    }

    pub(crate) fn stale_lease(mut self, node: &str) -> Self {
        self.lease(node, "2026-11-26T11:58:20Z");
        // The dead node's endpoint is not looked at.
        self.seen.paths.remove(0);
        self
    }

    fn add(mut self, yaml: &str) -> Self {
        self.cluster.services.push(Arc::new(object::<Service>(yaml)));
        self
    }

    pub(crate) fn service(self, name: &str, spec: &str) -> Self {
        let address = if spec.contains("clusterIP: None") {
            ""
        } else {
            "clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80],"
        };
        let node_port = if spec.contains("NodePort") {
            "nodePort: 30080,"
        } else {
            ""
        };
        self.add(&format!(
            "{{metadata: {{namespace: default, name: {name}}}, spec: {{{spec} {address} selector: {{app: nginx}}, \
             ports: [{{name: http, port: 80, {node_port} targetPort: 8080}}]}}}}"
        ))
    }

    pub(crate) fn network_policy(mut self, yaml: &str) -> Self {
        self.cluster.policies.push(object::<NetworkPolicy>(yaml));
        // The endpoint that is denied is not looked at.
        self.seen.paths.clear();
        self
    }

    pub(crate) fn service_without_selector(self, name: &str) -> Self {
        self.add(&format!(
            "{{metadata: {{namespace: default, name: {name}}}, spec: {{clusterIP: 10.96.0.81, \
             clusterIPs: [10.96.0.81], ports: [{{port: 80}}]}}}}"
        ))
    }

    pub(crate) fn load_balancer(self, name: &str, spec: &str, address: &str) -> Self {
        self.add(&format!(
            "{{metadata: {{namespace: default, name: {name}}}, spec: {{type: LoadBalancer, {spec} \
             clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80], selector: {{app: nginx}}, \
             ports: [{{name: http, port: 80, targetPort: 8080}}]}}, \
             status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}}}"
        ))
    }

    pub(crate) fn external_name(self, name: &str, leads_to: &str) -> Self {
        self.add(&format!(
            "{{metadata: {{namespace: default, name: {name}}}, spec: {{type: ExternalName, externalName: {leads_to}}}}}"
        ))
    }

    pub(crate) fn target_port(mut self, name: &str) -> Self {
        for service in &mut self.cluster.services {
            let spec = Arc::make_mut(service).spec.as_mut().unwrap();
            for port in spec.ports.iter_mut().flatten() {
                port.target_port = Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(
                    name.to_string(),
                ));
            }
        }
        self
    }

    /// A pod, ready unless `status` says otherwise.
    pub(crate) fn pod(mut self, name: &str, node: &str, ip: &str, label: &str, status: &str) -> Self {
        let ready = if status.contains("conditions") {
            ""
        } else {
            "conditions: [{type: Ready, status: 'True'}],"
        };
        self.cluster.pods.push(object::<Pod>(&format!(
            "{{metadata: {{namespace: default, name: {name}, labels: {{{label}}}}}, \
             spec: {{nodeName: {node}, containers: [{{name: main, ports: [{{name: http, containerPort: 8080}}]}}]}}, \
             status: {{{status} {ready} phase: Running, podIP: {ip}}}}}"
        )));
        self
    }

    /// Two pods behind the Service, and the ways to them.
    pub(crate) fn pods(self) -> Self {
        let mut world = self.pod("web1", "n2", "10.244.1.2", "app: nginx", "").pod(
            "web2",
            "n3",
            "10.244.2.2",
            "app: nginx",
            "",
        );
        let endpoint = |pod: &str, node: &str, ip: &str| {
            format!(
                "{{addresses: [{ip}], nodeName: {node}, conditions: {{ready: true}}, \
                 targetRef: {{kind: Pod, namespace: default, name: {pod}}}}}"
            )
        };
        let headless = world
            .cluster
            .services
            .iter()
            .any(|service| service.spec.as_ref().unwrap().cluster_ip.as_deref() == Some("None"));
        let label = if headless {
            "service.kubernetes.io/headless: '',"
        } else {
            ""
        };
        world.cluster.slices.push(Arc::new(object::<EndpointSlice>(&format!(
            "{{metadata: {{namespace: default, name: web-1, labels: {{{label} kubernetes.io/service-name: web}}}}, \
             addressType: IPv4, ports: [{{name: http, port: 8080, protocol: TCP}}], endpoints: [{}, {}]}}",
            endpoint("web1", "n2", "10.244.1.2"),
            endpoint("web2", "n3", "10.244.2.2"),
        ))));
        let far = Hop {
            tunnel: Some(Tunnel {
                destination: Some([172, 30, 0, 12].into()),
                below: WaySeen::Along(Box::new(hop(
                    None,
                    "172.30.0.12",
                    "eth0",
                    "172.30.0.13",
                    Some(mac(12)),
                ))),
            }),
            ..hop(
                Some("10.244.1.0"),
                "10.244.1.2",
                "svcnet.1",
                "10.244.2.0",
                Some(Resolution::Permanent([10, 0, 0, 0, 1, 0])),
            )
        };
        world.seen.paths = vec![
            PathSeen {
                wanted: Some(wanted("svcnet.1", true)),
                way: WaySeen::Along(Box::new(far)),
            },
            PathSeen {
                wanted: Some(wanted("svcnet0", true)),
                way: WaySeen::Along(Box::new(hop(None, "10.244.2.2", "svcnet0", "10.244.2.1", None))),
            },
        ];
        let address = if headless {
            vec![[10, 244, 1, 2].into(), [10, 244, 2, 2].into()]
        } else {
            vec![[10, 96, 0, 80].into()]
        };
        world.seen.dns = Some(DnsSeen::Answered(address));
        world
    }

    pub(crate) fn silence(&mut self) {
        self.seen.agent = AgentSeen::Silent("connection refused".to_string());
    }

    /// The hop to the first endpoint.
    pub(crate) fn hop(&mut self) -> &mut Hop {
        match &mut self.seen.paths[0].way {
            WaySeen::Along(hop) => hop,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn explain(&self, source: &str, target: &str) -> Explanation {
        let trace = trace(&self.cluster, &source.parse().unwrap(), &target.parse().unwrap());
        confirm(&self.cluster, trace, Some(&self.seen))
    }

    pub(crate) fn why(&self, source: &str, target: &str) -> String {
        self.explain(source, target).to_string()
    }
}

pub(crate) fn mac(last: u8) -> Resolution {
    Resolution::Found([10, 0, 0, 0, 0, last])
}

pub(crate) fn wanted(name: &str, up: bool) -> LinkWanted {
    LinkWanted {
        name: name.to_string(),
        link: Some(link(name, up)),
    }
}

fn link(name: &str, up: bool) -> LinkSeen {
    LinkSeen {
        name: name.to_string(),
        up,
        carrier: up,
    }
}

pub(crate) fn hop(
    gateway: Option<&str>,
    to: &str,
    dev: &str,
    source: &str,
    resolution: Option<Resolution>,
) -> Hop {
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    Hop {
        gateway: gateway.map(address),
        link: link(dev, true),
        source: Some(address(source)),
        next: address(gateway.unwrap_or(to)),
        resolution,
        tunnel: None,
    }
}
