//! What every cluster has: its first namespaces, and the Services of the API and of DNS. Put in at start, and again
//! whenever somebody has taken it away.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use svcnet_api::wellknown::{
    DEFAULT_SERVICE_CIDR_NAME, LABEL_SERVICE_NAME, NAMESPACE_METALLB, NAMESPACE_NODE_LEASE, NAMESPACE_SYSTEM,
};
use svcnet_api::{ApiError, Kind, Reason, registry};

use crate::auth::User;
use crate::delete::DeleteOptions;
use crate::peers::Peer;
use crate::server::Server;
use crate::write::{MANAGER, Place};
use crate::{object, pki, traits};

/// How often is looked whether all of it is there.
const REPAIR_EVERY: Duration = Duration::from_secs(5);
/// How often is looked for objects that have outlived their kind's lifetime.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// MetalLB's own is there because its users' manifests put pools into it.
const NAMESPACES: [&str; 5] = [
    "default",
    NAMESPACE_SYSTEM,
    "kube-public",
    NAMESPACE_NODE_LEASE,
    NAMESPACE_METALLB,
];

/// As kubeadm writes it, without what svcnet does not read.
const PROXY_CONFIG: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
# nftables, ipvs or userspace. Empty is what each node's --proxy-mode says: nftables, if nothing else.
mode: \"\"
ipvs:
  # For Services that name no scheduler: random, rr, wrr, lc, wlc, dh, sh, sed, nq, mh. Empty is random.
  scheduler: \"\"
";

/// Parts of an object that must be as given, and nothing else of it.
struct Wanted {
    group: &'static str,
    plural: &'static str,
    namespace: &'static str,
    name: &'static str,
    object: Value,
    /// Made anew, rather than changed, when this differs: a field that cannot be changed.
    fixed: Option<&'static str>,
    /// Put in where it is missing, and the user's from then on.
    yielded: bool,
}

/// Puts in what is missing and repairs what differs. `port` is that of the API.
pub(crate) async fn repair(server: &Server, port: u16) -> Result<(), ApiError> {
    let mut failed = None;
    for wanted in desired(server, port) {
        let done = ensure(server, &wanted).await;
        // Another server is at the same.
        let raced = |e: &ApiError| {
            matches!(
                e.reason,
                Reason::AlreadyExists | Reason::Conflict | Reason::NotFound
            )
        };
        if let Err(error) = done
            && !(server.store.is_shared() && raced(&error))
        {
            let (namespace, name) = (wanted.namespace, wanted.name);
            tracing::warn!(object.ns = namespace, object.name = name, reason = %error, "cannot put in what every cluster has");
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Repairs until shutdown.
pub(crate) async fn keep(server: Arc<Server>, port: u16) {
    let mut repair_tick = tokio::time::interval(REPAIR_EVERY);
    let mut expire_tick = tokio::time::interval(EXPIRE_EVERY);
    let mut advertised = server.advertised.subscribe();
    loop {
        tokio::select! {
            Ok(()) = advertised.changed() => {
                let address = *advertised.borrow_and_update();
                tracing::info!(%address, "others reach this server at another address");
                server.announce(port);
                _ = repair(&server, port).await;
            }
            _ = repair_tick.tick() => {
                _ = repair(&server, port).await;
                server.end_overdue().await;
            }
            _ = expire_tick.tick() => {
                expire(&server).await;
                server.tokens.sweep(&server.authority).await;
            }
            () = server.shutdown.cancelled() => return,
        }
    }
}

fn desired(server: &Server, port: u16) -> Vec<Wanted> {
    let config = &server.config;
    let mut wanted: Vec<Wanted> = NAMESPACES
        .into_iter()
        .map(|name| Wanted {
            group: "",
            plural: "namespaces",
            namespace: "",
            name,
            object: json!({"metadata": {"labels": {"kubernetes.io/metadata.name": name}}}),
            fixed: None,
            yielded: false,
        })
        .collect();
    wanted.push(service_cidr(&config.service_cidrs));
    if let Some(first) = config.service_cidrs.first().and_then(|c| pki::first_host(*c)) {
        wanted.push(service("default", "kubernetes", first, api_service()));
        // Nobody else reaches a server at loopback, and Endpoints must not hold such addresses.
        if !server.advertised().is_loopback() {
            wanted.extend(api_endpoints(&server.peers(port)));
        }
    }
    if let Some(dns) = config.cluster_dns.first() {
        wanted.push(service(NAMESPACE_SYSTEM, "kube-dns", *dns, dns_service()));
    }
    wanted.push(proxy_config());
    wanted
}

/// When the flag has changed, the one that is there stays, for the Services that have addresses of it. When it is deleted,
/// it goes with the last of them, and this one takes its place.
fn service_cidr(cidrs: &[ipnet::IpNet]) -> Wanted {
    let cidrs: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    Wanted {
        group: "networking.k8s.io",
        plural: "servicecidrs",
        namespace: "",
        name: DEFAULT_SERVICE_CIDR_NAME,
        object: json!({"spec": {"cidrs": cidrs}}),
        fixed: None,
        yielded: true,
    }
}

/// For users to edit: every node's proxy follows it.
fn proxy_config() -> Wanted {
    Wanted {
        group: "",
        plural: "configmaps",
        namespace: NAMESPACE_SYSTEM,
        name: "kube-proxy",
        object: json!({
            "metadata": {"labels": {"app": "kube-proxy"}},
            "data": {"config.conf": PROXY_CONFIG},
        }),
        fixed: None,
        yielded: true,
    }
}

fn service(namespace: &'static str, name: &'static str, address: IpAddr, mut object: Value) -> Wanted {
    object["spec"]["clusterIP"] = address.to_string().into();
    Wanted {
        group: "",
        plural: "services",
        namespace,
        name,
        object,
        fixed: Some("clusterIP"),
        yielded: false,
    }
}

fn api_service() -> Value {
    json!({
        "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    })
}

/// Without a selector: DNS answers on each node itself, at the Service's address, and no proxy is to interfere.
fn dns_service() -> Value {
    json!({
        "metadata": {"labels": {
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
        }},
        "spec": {
            "type": "ClusterIP",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

/// Of all servers that are there. A slice has one set of ports: should they differ, it is that of the first.
fn api_endpoints(peers: &BTreeSet<Peer>) -> [Wanted; 2] {
    let ports: BTreeSet<u16> = peers.iter().map(|peer| peer.port).collect();
    let with = |port: u16| peers.iter().filter(move |peer| peer.port == port);
    let subset = |port: &u16| {
        let addresses: Vec<Value> = with(*port)
            .map(|peer| json!({"ip": peer.address.to_string()}))
            .collect();
        json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
    };
    let subsets: Vec<Value> = ports.iter().map(subset).collect();
    let port = ports.first().copied().unwrap_or_default();
    let endpoint =
        |peer: &Peer| json!({"addresses": [peer.address.to_string()], "conditions": {"ready": true}});
    let in_slice: Vec<Value> = with(port).map(endpoint).collect();
    let is_v4 = peers.first().is_none_or(|peer| peer.address.is_ipv4());
    let endpoints = Wanted {
        group: "",
        plural: "endpoints",
        namespace: "default",
        name: "kubernetes",
        object: json!({
            "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": subsets,
        }),
        fixed: None,
        yielded: false,
    };
    let slice = Wanted {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        namespace: "default",
        name: "kubernetes",
        object: json!({
            "metadata": {"labels": {LABEL_SERVICE_NAME: "kubernetes"}},
            "addressType": if is_v4 { "IPv4" } else { "IPv6" },
            "endpoints": in_slice,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
        fixed: Some("addressType"),
        yielded: false,
    };
    [endpoints, slice]
}

async fn ensure(server: &Server, wanted: &Wanted) -> Result<(), ApiError> {
    let Some(kind) = registry::by_resource(wanted.group, "v1", wanted.plural) else {
        return Ok(());
    };
    let place = |verb| Place {
        user: User::apiserver(),
        verb,
        kind,
        namespace: wanted.namespace.to_string(),
        name: wanted.name.to_string(),
        subresource: String::new(),
        dry_run: false,
        manager: MANAGER.to_string(),
        applies: false,
    };
    let Some(entry) = server.get(kind, wanted.namespace, wanted.name) else {
        return create(server, place("create"), kind, &wanted.object).await;
    };
    if wanted.yielded {
        return Ok(());
    }
    let is = object::parse(&entry)?;
    if holds(&is, &wanted.object) || object::is_terminating(&is) {
        return Ok(());
    }
    let fixed = |object: &Value| {
        let field = wanted.fixed?;
        object
            .get("spec")
            .and_then(|s| s.get(field))
            .or_else(|| object.get(field))
            .cloned()
    };
    if fixed(&is) != fixed(&wanted.object) {
        server.delete(place("delete"), &DeleteOptions::default()).await?;
        return create(server, place("create"), kind, &wanted.object).await;
    }
    let changed = server.modify(place("update"), |old| {
        let mut new = old.clone();
        overlay(&mut new, &wanted.object);
        Ok(new)
    });
    changed.await.map(|_| ())
}

async fn create(server: &Server, place: Place, kind: &Kind, object: &Value) -> Result<(), ApiError> {
    let mut object = object.clone();
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.into();
    server.create(place, object).await.map(|_| ())
}

/// Whether an object holds all that is wanted; it may hold more, in maps at any depth.
fn holds(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| is.get(key).is_some_and(|is| holds(is, value))),
        (Value::Array(is), Value::Array(wanted)) => {
            is.len() == wanted.len() && is.iter().zip(wanted).all(|(is, wanted)| holds(is, wanted))
        }
        (is, wanted) => is == wanted,
    }
}

fn overlay(is: &mut Value, wanted: &Value) {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => {
            for (key, value) in wanted {
                overlay(is.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (is, wanted) if !holds(is, wanted) => *is = wanted.clone(),
        _ => {}
    }
}

/// Takes away objects that have outlived the lifetime of their kind.
async fn expire(server: &Server) {
    for kind in registry::kinds() {
        let Some(lifetime) = traits::of(kind).lifetime else {
            continue;
        };
        let limit =
            jiff::Timestamp::now().as_second() - i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let snapshot = server
            .store
            .list(server.collection(kind), &svcnet_store::Range::default(), None);
        for (_, entry) in snapshot.map(|s| s.entries).unwrap_or_default() {
            let Ok(object) = object::parse(&entry) else {
                continue;
            };
            let last = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
            let last = last
                .iter()
                .find_map(|p| object.pointer(p)?.as_str()?.parse::<jiff::Timestamp>().ok());
            if last.is_none_or(|at| at.as_second() > limit) {
                continue;
            }
            let place = Place {
                user: User::apiserver(),
                verb: "delete",
                kind,
                namespace: object::meta_text(&object, "namespace").to_string(),
                name: object::meta_text(&object, "name").to_string(),
                subresource: String::new(),
                dry_run: false,
                manager: MANAGER.to_string(),
                applies: false,
            };
            match server.delete(place, &DeleteOptions::default()).await {
                Err(error) if error.reason != Reason::NotFound => {
                    tracing::warn!(object.kind = kind.kind, reason = %error, "cannot take away what has expired");
                    return;
                }
                _ => {}
            }
        }
    }
}
