use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use svcnet_api::wellknown::LABEL_MANAGED_BY;

use super::*;
use crate::endpoints::desired::{mirrored, selected};
use crate::endpoints::model::{Pod, Service};

fn service(spec: Value) -> Service {
    let mut spec = spec;
    let fields = spec.as_object_mut().unwrap();
    fields.entry("selector").or_insert(json!({"app": "nginx"}));
    fields
        .entry("ports")
        .or_insert(json!([{"port": 80, "targetPort": "http", "protocol": "TCP"}]));
    fields.entry("clusterIP").or_insert(json!("10.96.0.9"));
    fields.entry("ipFamilies").or_insert(json!(["IPv4"]));
    let object = json!({
        "metadata": {"name": "nginx", "namespace": "default", "uid": "svc-uid", "labels": {"team": "a"}},
        "spec": spec,
    });
    Service::from_object(&serde_json::from_value(object).unwrap())
}

fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Pod {
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "nginx"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::9"}],
                   "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    Pod::from_object(&serde_json::from_value(object).unwrap())
}

fn desired(service: &Service, pods: &[Pod]) -> Desired {
    let pods: Vec<&Pod> = pods.iter().collect();
    selected(service, &pods, |node| (node == "n1").then_some("zone-a"))
}

/// What a server would hold.
#[derive(Default)]
struct Held {
    slices: BTreeMap<String, (Version, Slice)>,
    endpoints: Option<(Version, Endpoints)>,
    writes: u64,
}

impl Held {
    fn plan(&self, desired: &Desired) -> Vec<Op> {
        let slices = self
            .slices
            .iter()
            .map(|(name, (version, slice))| (name.as_str(), (version, slice)));
        let observed = Observed {
            slices: slices.collect(),
            endpoints: self
                .endpoints
                .as_ref()
                .map(|(version, endpoints)| (version, endpoints)),
            orphan: None,
        };
        plan(&ObjectKey::new("default", "nginx"), desired, &observed)
    }

    /// Carries out a plan, as a server that refuses dangling references; then there must be nothing left to do.
    fn converge(&mut self, desired: &Desired) -> String {
        let ops = self.plan(desired);
        let text = Plan {
            service: ObjectKey::new("default", "nginx"),
            trigger: None,
            ops: ops.clone(),
        }
        .to_string();
        for op in ops {
            self.writes += 1;
            let version = Version {
                uid: format!("u{}", self.writes),
                revision: self.writes.to_string(),
            };
            match op {
                Op::WriteSlice { name, slice, over } => {
                    assert_eq!(
                        self.slices.get(&name).map(|(version, _)| version),
                        over.as_ref(),
                        "{name}"
                    );
                    let before = self.slices.insert(name, (version, slice.clone()));
                    assert!(
                        before.is_none_or(|(_, before)| before.family == slice.family),
                        "the family cannot change"
                    );
                }
                Op::DeleteSlice { name, version } => {
                    assert_eq!(
                        self.slices.remove(&name).map(|(version, _)| version),
                        Some(version)
                    );
                }
                Op::WriteEndpoints { endpoints, over } => {
                    assert_eq!(self.endpoints.as_ref().map(|(version, _)| version), over.as_ref());
                    self.endpoints = Some((version, endpoints));
                }
                Op::DeleteEndpoints { version } => {
                    assert_eq!(self.endpoints.take().map(|(version, _)| version), Some(version));
                }
            }
        }
        assert_eq!(self.plan(desired), vec![], "nothing to do at the fixed point");
        text
    }

    fn slice(&self) -> &Slice {
        &self.slices.values().next().unwrap().1
    }
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let mut held = Held::default();
    let text = held.converge(&desired(&service(json!({})), &[]));
    let (first, rest) = text.split_once(" IPv4").unwrap();
    assert!(
        first.starts_with("create slice nginx-") && first.len() == "create slice nginx-".len() + 5,
        "{first}"
    );
    assert_eq!(
        rest,
        " ports [] endpoints 0; create endpoints ready 0 not ready 0"
    );
    let text = held.converge(&desired(&service(json!({})), &[pod("a", "10.244.1.5", true, 80)]));
    assert!(
        text.starts_with("update slice"),
        "the empty one is filled: {text}"
    );
}

#[test]
fn slices_and_endpoints_are_written_as_kubernetes_does() {
    let mut held = Held::default();
    held.converge(&desired(
        &service(json!({})),
        &[
            pod("a", "10.244.1.5", true, 80),
            pod("b", "10.244.1.6", false, 80),
        ],
    ));
    let object = serde_json::to_value(held.slice().to_object(Default::default())).unwrap();
    assert_eq!(
        object,
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "annotations": {},
                "labels": {"team": "a", "kubernetes.io/service-name": "nginx",
                           "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "nginx", "uid": "svc-uid",
                                     "controller": true, "blockOwnerDeletion": true}],
            },
            "endpoints": [
                {"addresses": ["10.244.1.5"], "conditions": {"ready": true, "serving": true, "terminating": false},
                 "nodeName": "n1", "zone": "zone-a",
                 "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "uid-a"}},
                {"addresses": ["10.244.1.6"], "conditions": {"ready": false, "serving": false, "terminating": false},
                 "nodeName": "n1", "zone": "zone-a",
                 "targetRef": {"kind": "Pod", "namespace": "default", "name": "b", "uid": "uid-b"}},
            ],
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        })
    );
    let object = serde_json::to_value(held.endpoints.unwrap().1.to_object(Default::default())).unwrap();
    let address = |ip: &str, name: &str| {
        json!({"ip": ip, "nodeName": "n1",
               "targetRef": {"kind": "Pod", "namespace": "default", "name": name, "uid": format!("uid-{name}")}})
    };
    assert_eq!(
        object["subsets"],
        json!([{"addresses": [address("10.244.1.5", "a")], "notReadyAddresses": [address("10.244.1.6", "b")],
                "ports": [{"port": 80, "protocol": "TCP"}]}])
    );
    assert_eq!(
        object["metadata"]["labels"],
        json!({"team": "a", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
    );
}

#[test]
fn pods_that_name_their_port_differently_get_slices_of_their_own() {
    let mut held = Held::default();
    let pods = [
        pod("a", "10.244.1.5", true, 80),
        pod("b", "10.244.1.6", true, 8080),
    ];
    let text = held.converge(&desired(&service(json!({})), &pods));
    assert_eq!(text.matches("create slice").count(), 2, "{text}");
    // Both on one port again: one slice is left, and the other one's endpoint moves into it before it goes.
    let pods = [pod("a", "10.244.1.5", true, 80), pod("b", "10.244.1.6", true, 80)];
    let text = held.converge(&desired(&service(json!({})), &pods));
    let (update, delete) = (
        text.find("update slice").unwrap(),
        text.find("delete slice").unwrap(),
    );
    assert!(update < delete && held.slices.len() == 1, "{text}");
}

#[test]
fn publishing_not_ready_addresses_makes_them_ready() {
    let mut held = Held::default();
    let mut unready = pod("a", "10.244.1.5", false, 80);
    unready.terminating = true;
    held.converge(&desired(
        &service(json!({"publishNotReadyAddresses": true})),
        &[unready.clone()],
    ));
    let endpoint = &held.slice().endpoints[0];
    assert_eq!(
        (endpoint.ready, endpoint.serving, endpoint.terminating),
        (true, Some(false), Some(true))
    );
    assert_eq!(held.endpoints.as_ref().unwrap().1.subsets[0].ready.len(), 1);
    held.converge(&desired(&service(json!({})), &[unready]));
    assert!(!held.slice().endpoints[0].ready);
    assert!(
        held.endpoints.unwrap().1.subsets.is_empty(),
        "Endpoints know no terminating pods"
    );
}

#[test]
fn both_families_have_slices() {
    let mut held = Held::default();
    let dual = service(json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]}));
    held.converge(&desired(&dual, &[pod("a", "10.244.1.5", true, 80)]));
    let families: Vec<&str> = held
        .slices
        .values()
        .map(|(_, slice)| slice.family.as_str())
        .collect();
    assert_eq!(families.len(), 2);
    assert!(families.contains(&"IPv6"));
    held.converge(&desired(&service(json!({})), &[pod("a", "10.244.1.5", true, 80)]));
    assert_eq!(held.slices.len(), 1);
}

#[test]
fn pods_that_ran_out_or_have_no_address_serve_nobody() {
    let mut finished = pod("a", "10.244.1.5", true, 80);
    finished.finished = true;
    let mut homeless = pod("b", "10.244.1.6", true, 80);
    homeless.addresses.clear();
    let Desired::Selected { groups, .. } = desired(&service(json!({})), &[finished, homeless]) else {
        panic!()
    };
    assert!(groups.iter().all(|group| group.endpoints.is_empty()));
}

#[test]
fn headless_services_are_marked_and_give_pods_their_names() {
    let mut held = Held::default();
    let mut named = pod("a", "10.244.1.5", true, 80);
    named.hostname = Some("web-0".to_string());
    named.subdomain = Some("nginx".to_string());
    held.converge(&desired(
        &service(json!({"clusterIP": "None", "ports": []})),
        &[named],
    ));
    assert_eq!(
        held.slice()
            .labels
            .get("service.kubernetes.io/headless")
            .map(String::as_str),
        Some("")
    );
    assert_eq!(held.slice().endpoints[0].hostname.as_deref(), Some("web-0"));
    let endpoints = &held.endpoints.unwrap().1;
    assert_eq!(
        (endpoints.subsets[0].ready.len(), endpoints.subsets[0].ports.len()),
        (1, 0)
    );
}

#[test]
fn endpoints_beyond_a_thousand_are_cut_and_say_so() {
    let mut held = Held::default();
    let mut pods: Vec<Pod> = (0..1200u32)
        .map(|n| {
            pod(
                &format!("p{n}"),
                &format!("10.244.{}.{}", n / 250, n % 250 + 1),
                true,
                80,
            )
        })
        .collect();
    held.converge(&desired(&service(json!({})), &pods));
    let lengths: Vec<usize> = held
        .slices
        .values()
        .map(|(_, slice)| slice.endpoints.len())
        .collect();
    assert_eq!((lengths.len(), lengths.iter().sum::<usize>()), (12, 1200));
    let endpoints = &held.endpoints.as_ref().unwrap().1;
    assert_eq!(endpoints.subsets[0].ready.len(), 1000);
    assert_eq!(
        endpoints
            .annotations
            .get(ANNOTATION_OVER_CAPACITY)
            .map(String::as_str),
        Some("truncated")
    );
    pods.truncate(1000);
    let text = held.converge(&desired(&service(json!({})), &pods));
    assert!(!text.contains("create slice"), "{text}");
    assert!(held.endpoints.unwrap().1.annotations.is_empty());
}

#[test]
fn one_pod_that_changes_rewrites_one_slice() {
    let mut held = Held::default();
    let mut pods: Vec<Pod> = (0..250u32)
        .map(|n| pod(&format!("p{n}"), &format!("10.244.0.{n}"), true, 80))
        .collect();
    held.converge(&desired(&service(json!({})), &pods));
    pods[7].ready = false;
    let text = held.converge(&desired(&service(json!({})), &pods));
    assert_eq!(
        (
            text.matches("slice").count(),
            text.matches("update slice").count()
        ),
        (1, 1),
        "{text}"
    );
}

fn endpoints(value: Value) -> Endpoints {
    Endpoints::from_object(&serde_json::from_value(value).unwrap())
}

#[test]
fn hand_made_endpoints_are_mirrored_and_left_alone() {
    let mut held = Held::default();
    let by_hand = endpoints(json!({
        "metadata": {"name": "nginx", "labels": {"l": "1"}, "annotations": {"a": "2",
                     "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}},
        "subsets": [
            {"addresses": [{"ip": "192.168.1.23"}, {"ip": "fd00::23"}], "notReadyAddresses": [{"ip": "192.168.1.24"}],
             "ports": [{"port": 3306}]},
            {"addresses": [{"ip": "192.168.1.25"}], "ports": [{"port": 3306}]},
        ],
    }));
    held.endpoints = Some((
        Version {
            uid: "e".to_string(),
            revision: "1".to_string(),
        },
        by_hand.clone(),
    ));
    let text = held.converge(&mirrored("nginx", "e", &by_hand));
    assert_eq!(text.matches("create slice").count(), 2, "{text}");
    assert!(
        !text.contains("endpoints ready"),
        "the Endpoints are not ours to write: {text}"
    );
    let (_, v4) = held
        .slices
        .values()
        .find(|(_, slice)| slice.family == Family::V4)
        .unwrap();
    assert_eq!(
        v4.labels.get(LABEL_MANAGED_BY).map(String::as_str),
        Some(MANAGER_MIRRORED)
    );
    assert_eq!((v4.labels.contains_key("l"), v4.annotations.len()), (true, 1));
    assert_eq!(v4.owner.as_ref().unwrap().kind, "Endpoints");
    let ready: Vec<bool> = v4.endpoints.iter().map(|endpoint| endpoint.ready).collect();
    assert_eq!(ready, [true, false, true]);
    // The Service gets a selector: the mirrors go, and the Endpoints are the controller's from now on.
    let text = held.converge(&desired(&service(json!({})), &[pod("a", "10.244.1.5", true, 80)]));
    assert!(
        text.contains("delete slice") && text.contains("update endpoints ready 1"),
        "{text}"
    );
    let text = held.converge(&Desired::Nothing);
    assert_eq!(text.matches("delete").count(), 2, "{text}");
    assert!(held.slices.is_empty() && held.endpoints.is_none());
}

#[test]
fn endpoints_that_say_so_are_not_mirrored() {
    for metadata in [
        json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}),
        json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}),
        json!({"labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}}),
    ] {
        let object = json!({"metadata": metadata, "subsets": [{"addresses": [{"ip": "1.2.3.4"}]}]});
        assert_eq!(mirrored("nginx", "e", &endpoints(object)), Desired::Nothing);
    }
}

#[test]
fn names_are_the_same_each_time_and_not_taken() {
    let first = free_name("nginx", "uid", Family::V4, &HashSet::new());
    assert_eq!(free_name("nginx", "uid", Family::V4, &HashSet::new()), first);
    let second = free_name("nginx", "uid", Family::V4, &[first.clone()].into());
    assert_ne!(first, second);
    assert_ne!(free_name("nginx", "other", Family::V4, &HashSet::new()), first);
    assert!(free_name(&"x".repeat(63), "u", Family::V4, &HashSet::new()).len() <= 63);
}

/// Name, hints for zones and hints for nodes of each endpoint that is written.
fn hints(distribution: &str, pods: &[Pod]) -> Vec<String> {
    let service = service(json!({ "trafficDistribution": distribution }));
    let mut held = Held::default();
    held.converge(&desired(&service, pods));
    let slices = held
        .slices
        .values()
        .map(|(_, slice)| slice.to_object(ObjectMeta::default()));
    let endpoints = slices.flat_map(|slice| slice.endpoints.unwrap_or_default());
    let mut words: Vec<String> = endpoints
        .map(|endpoint| {
            let hints = endpoint.hints.unwrap_or_default();
            let zones: Vec<String> = hints
                .for_zones
                .into_iter()
                .flatten()
                .map(|zone| zone.name)
                .collect();
            let nodes: Vec<String> = hints
                .for_nodes
                .into_iter()
                .flatten()
                .map(|node| node.name)
                .collect();
            format!("{} {zones:?} {nodes:?}", endpoint.addresses[0])
        })
        .collect();
    words.sort();
    words
}

#[test]
fn traffic_distribution_becomes_hints_of_ready_endpoints() {
    let mut elsewhere = pod("c", "10.244.2.4", true, 80);
    elsewhere.node = Some("n2".to_string());
    let pods = [
        pod("a", "10.244.1.2", true, 80),
        pod("b", "10.244.1.3", false, 80),
        elsewhere,
    ];
    let same_zone = [
        "10.244.1.2 [\"zone-a\"] []",
        "10.244.1.3 [] []",
        "10.244.2.4 [] []",
    ];
    assert_eq!(hints("PreferClose", &pods), same_zone);
    assert_eq!(hints("PreferSameZone", &pods), same_zone);
    let same_node = [
        "10.244.1.2 [\"zone-a\"] [\"n1\"]",
        "10.244.1.3 [] []",
        "10.244.2.4 [] [\"n2\"]",
    ];
    assert_eq!(hints("PreferSameNode", &pods), same_node);
    assert_eq!(
        hints("", &pods),
        ["10.244.1.2 [] []", "10.244.1.3 [] []", "10.244.2.4 [] []"]
    );
}

#[test]
fn hints_that_are_not_wanted_any_more_are_taken_out() {
    let pods = [pod("a", "10.244.1.2", true, 80)];
    let mut held = Held::default();
    held.converge(&desired(
        &service(json!({ "trafficDistribution": "PreferClose" })),
        &pods,
    ));
    let text = held.converge(&desired(&service(json!({})), &pods));
    assert!(text.starts_with("update slice"), "{text}");
}
