//! Objects to build zones from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod, PodIP, PodStatus, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::wire::RecordType;
use crate::zone::{Question, Settings, Verdict, View, Zone};

pub(super) fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..ObjectMeta::default()
    }
}

/// A Service with these addresses (`None`: headless), and ports like `http/TCP/80`.
pub(super) fn service(namespace: &str, name: &str, addresses: &[&str], ports: &[&str]) -> Service {
    let spec = ServiceSpec {
        cluster_ip: addresses.first().map(|ip| (*ip).to_string()),
        cluster_ips: Some(addresses.iter().map(|ip| (*ip).to_string()).collect()),
        ports: Some(ports.iter().map(|port| service_port(port)).collect()),
        ..ServiceSpec::default()
    };
    Service {
        metadata: meta(namespace, name),
        spec: Some(spec),
        ..Service::default()
    }
}

pub(super) fn external(namespace: &str, name: &str, target: &str) -> Service {
    let spec = ServiceSpec {
        type_: Some("ExternalName".into()),
        external_name: Some(target.into()),
        ..ServiceSpec::default()
    };
    Service {
        metadata: meta(namespace, name),
        spec: Some(spec),
        ..Service::default()
    }
}

fn service_port(text: &str) -> ServicePort {
    let parts: Vec<&str> = text.split('/').collect();
    ServicePort {
        name: Some(parts[0].to_string()).filter(|name| !name.is_empty()),
        protocol: Some(parts[1].to_string()),
        port: parts[2].parse().unwrap(),
        ..ServicePort::default()
    }
}

/// A slice of endpoints like `10.244.1.2`, `10.244.1.2 not ready`, `10.244.1.2 named db-0`.
pub(super) fn slice(
    namespace: &str,
    service: &str,
    name: &str,
    endpoints: &[&str],
    ports: &[&str],
) -> EndpointSlice {
    let labels = BTreeMap::from([("kubernetes.io/service-name".to_string(), service.to_string())]);
    let v6 = endpoints.first().is_some_and(|text| text.contains(':'));
    EndpointSlice {
        address_type: if v6 { "IPv6" } else { "IPv4" }.to_string(),
        endpoints: Some(endpoints.iter().map(|text| endpoint(text)).collect()),
        metadata: ObjectMeta {
            labels: Some(labels),
            ..meta(namespace, name)
        },
        ports: Some(ports.iter().map(|port| endpoint_port(port)).collect()),
    }
}

fn endpoint(text: &str) -> Endpoint {
    let (address, rest) = text.split_once(' ').unwrap_or((text, ""));
    let conditions = EndpointConditions {
        ready: Some(rest != "not ready"),
        ..EndpointConditions::default()
    };
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(conditions),
        hostname: rest.strip_prefix("named ").map(str::to_string),
        ..Endpoint::default()
    }
}

fn endpoint_port(text: &str) -> EndpointPort {
    let port = service_port(text);
    EndpointPort {
        name: port.name,
        protocol: port.protocol,
        port: Some(port.port),
        ..EndpointPort::default()
    }
}

pub(super) fn namespace(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

pub(super) fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Pod {
    let status = PodStatus {
        phase: Some("Running".into()),
        pod_ip: addresses.first().map(|ip| (*ip).to_string()),
        pod_ips: Some(
            addresses
                .iter()
                .map(|ip| PodIP {
                    ip: (*ip).to_string(),
                })
                .collect(),
        ),
        ..PodStatus::default()
    };
    Pod {
        metadata: meta(namespace, name),
        status: Some(status),
        ..Pod::default()
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        apex: "cluster.local".parse().unwrap(),
        ttl: 30,
        servers: ["10.96.0.10".parse().unwrap()].into(),
        pods: true,
    }
}

/// A cluster with one of everything.
pub(super) fn example() -> Zone {
    let mut view = View::default();
    for name in ["default", "kube-system", "prod", "empty"] {
        view.apply_namespace(&namespace(name));
    }
    let dual = ["10.96.0.80", "fd00:96::80"];
    for object in [
        service("default", "kubernetes", &["10.96.0.1"], &["https/TCP/443"]),
        service("default", "web", &["10.96.0.20"], &["http/TCP/80", "dns/UDP/53"]),
        service("default", "dual", &dual, &["/TCP/80"]),
        service("default", "unallocated", &[""], &["http/TCP/80"]),
        service("prod", "db", &["None"], &["mysql/TCP/3306"]),
        service("prod", "starting", &["None"], &["http/TCP/80"]),
        service("prod", "six", &["None"], &["http/TCP/80"]),
        external("default", "out", "www.Example.com"),
        external("default", "alias", "web.default.svc.cluster.local"),
        external("default", "alias-of-alias", "alias.default.svc.cluster.local."),
        external("default", "to-nothing", "gone.default.svc.cluster.local"),
        external("default", "ping", "pong.default.svc.cluster.local"),
        external("default", "pong", "ping.default.svc.cluster.local"),
        external("default", "broken", "no..name"),
    ] {
        view.apply_service(&object);
    }
    let mut early = service("prod", "early", &["None"], &[]);
    early.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    view.apply_service(&early);
    for object in [
        slice(
            "default",
            "web",
            "web-1",
            &["10.244.1.2", "10.244.2.2 named zwei"],
            &["http/TCP/8080"],
        ),
        slice(
            "prod",
            "db",
            "db-1",
            &["10.244.1.3 named db-0", "10.244.2.3 named db-1"],
            &["mysql/TCP/3307"],
        ),
        slice(
            "prod",
            "db",
            "db-2",
            &["10.244.3.3", "10.244.3.4 not ready"],
            &["mysql/TCP/3307"],
        ),
        slice(
            "prod",
            "starting",
            "starting-1",
            &["10.244.1.4 not ready"],
            &["http/TCP/80"],
        ),
        slice("prod", "six", "six-1", &["fd00:244::1"], &["http/TCP/80"]),
        slice("prod", "early", "early-1", &["10.244.1.5 not ready"], &[]),
    ] {
        view.apply_slice(&object);
    }
    view.apply_pod(&pod("default", "web-a", &["10.244.1.2", "fd00:244::12"]));
    let zone = Zone::empty(settings());
    let plan = view.plan(&zone);
    zone.with(plan, 7).into_synced()
}

pub(super) fn ask(zone: &Zone, name: &str, record_type: RecordType) -> Verdict {
    let name: crate::name::Name = name.parse().unwrap();
    zone.answer(Question {
        name: name.wire(),
        record_type,
        rotation: 0,
    })
}

/// The answer as text; `elsewhere` for names that are not the zone's.
pub(super) fn told(zone: &Zone, name: &str, record_type: RecordType) -> String {
    match ask(zone, name, record_type) {
        Verdict::Elsewhere => "elsewhere".to_string(),
        Verdict::Ours {
            answer,
            chase: Some(target),
            ..
        } => format!("{answer}\nchase {target}"),
        Verdict::Ours {
            answer, chase: None, ..
        } => answer.to_string(),
    }
}
