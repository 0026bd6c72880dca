use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;
use svcnet_api::registry;

use super::*;

const DUAL: &str = "10.0.0.0/24,fd00::/112";

fn allocator(cidrs: &str, ports: &str) -> ServiceAllocator {
    ServiceAllocator::new(&cidrs.parse().unwrap(), ports.parse().unwrap(), &[]).unwrap()
}

fn kind() -> &'static Kind {
    registry::by_kind("v1", "Service").unwrap()
}

type Admitted = Result<Option<Box<dyn Reservation>>, ApiError>;

fn admit(
    all: &ServiceAllocator,
    operation: Operation,
    old: Option<&Value>,
    mut new: Option<&mut Value>,
    dry_run: bool,
) -> Admitted {
    let request = Request {
        operation,
        kind: kind(),
        namespace: "default",
        name: "a",
        old,
        dry_run,
    };
    // As the server does before it asks.
    if let Some(new) = &mut new {
        (kind().default)(new, old);
    }
    all.admit(&request, new)
}

/// Creates and commits.
fn create(all: &ServiceAllocator, spec: Value) -> Result<Value, String> {
    let mut new = json!({"metadata": {"name": "a"}, "spec": spec});
    let reservation =
        admit(all, Operation::Create, None, Some(&mut new), false).map_err(|e| e.to_string())?;
    if let Some(reservation) = reservation {
        reservation.commit();
    }
    Ok(new)
}

fn update(all: &ServiceAllocator, old: &Value, spec: Value) -> Result<Value, String> {
    let mut new = json!({"metadata": {"name": "a"}, "spec": spec});
    let reservation =
        admit(all, Operation::Update, Some(old), Some(&mut new), false).map_err(|e| e.to_string())?;
    if let Some(reservation) = reservation {
        reservation.commit();
    }
    Ok(new)
}

fn delete(all: &ServiceAllocator, old: &Value) {
    admit(all, Operation::Delete, Some(old), None, false)
        .unwrap()
        .unwrap()
        .commit();
}

fn node_port(service: &Value, index: usize) -> i64 {
    service["spec"]["ports"][index]["nodePort"]
        .as_i64()
        .unwrap_or_default()
}

#[test]
fn a_plain_service_gets_an_address_and_no_node_port() {
    let all = allocator("10.96.0.0/12", "30000-32767");
    let service = create(&all, json!({"ports": [{"port": 80}]})).unwrap();
    let spec = &service["spec"];
    let address: IpAddr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
    assert!("10.96.0.0/12".parse::<IpNet>().unwrap().contains(&address));
    assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(node_port(&service, 0), 0);
}

#[test]
fn addresses_are_refused_in_the_real_words() {
    let all = allocator("10.0.0.0/24", "30000-32767");
    create(&all, json!({"clusterIP": "10.0.0.7"})).unwrap();
    assert_eq!(
        create(&all, json!({"clusterIP": "10.0.0.7"})).unwrap_err(),
        "Service \"a\" is invalid: spec.clusterIPs: Invalid value: []string{\"10.0.0.7\"}: failed to allocate IP \
         10.0.0.7: provided IP is already allocated"
    );
    for outside in ["10.0.1.1", "10.0.0.0", "10.0.0.255"] {
        assert_eq!(
            create(&all, json!({"clusterIP": outside})).unwrap_err(),
            format!(
                "Service \"a\" is invalid: spec.clusterIPs: Invalid value: []string{{\"{outside}\"}}: failed to allocate \
                 IP {outside}: provided IP is not in the valid range. The range of valid IPs is 10.0.0.0/24"
            )
        );
    }
    let tiny = allocator("10.0.0.0/30", "30000-32767");
    create(&tiny, json!({})).unwrap();
    create(&tiny, json!({})).unwrap();
    assert_eq!(
        create(&tiny, json!({})).unwrap_err(),
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
}

#[test]
fn node_ports_are_refused_in_the_real_words() {
    let all = allocator("10.0.0.0/24", "30000-30001");
    let ask =
        |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": port}]});
    let prefix = "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value";
    assert_eq!(
        create(&all, ask(20000)).unwrap_err(),
        format!(
            "{prefix}: 20000: provided port is not in the valid range. The range of valid ports is 30000-30001"
        )
    );
    create(&all, ask(30000)).unwrap();
    let udp = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30000}]});
    assert_eq!(
        create(&all, udp).unwrap_err(),
        format!("{prefix}: 30000: provided port is already allocated")
    );
    create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    assert_eq!(
        create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap_err(),
        "Internal error occurred: failed to allocate a nodePort: range is full"
    );
}

#[test]
fn a_refused_write_takes_nothing() {
    let all = allocator("10.0.0.0/30", "30000-30000");
    let both = json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]});
    create(&all, both).unwrap_err();
    create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    create(&all, json!({})).unwrap();
    assert!(create(&all, json!({})).is_err());
}

#[test]
fn tcp_and_udp_of_one_port_share_a_number() {
    let all = allocator("10.0.0.0/24", "30000-32767");
    let ports = json!([
        {"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"},
        {"name": "m", "port": 9153, "protocol": "TCP"},
    ]);
    let service = create(&all, json!({"type": "NodePort", "ports": ports})).unwrap();
    assert_eq!(node_port(&service, 0), node_port(&service, 1));
    assert_ne!(node_port(&service, 0), node_port(&service, 2));
    let wished = json!([
        {"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30005},
    ]);
    let service = create(&all, json!({"type": "NodePort", "ports": wished})).unwrap();
    assert_eq!((node_port(&service, 0), node_port(&service, 1)), (30005, 30005));
}

#[test]
fn types_without_an_address_get_none() {
    let all = allocator("10.0.0.0/24", "30000-32767");
    let external = create(&all, json!({"type": "ExternalName", "externalName": "a.example"})).unwrap();
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert!(external["spec"].get(field).is_none(), "{field}");
    }
    let headless = create(&all, json!({"clusterIP": "None", "selector": {"a": "b"}})).unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4"]));
}

#[test]
fn load_balancers_may_do_without_node_ports() {
    let all = allocator("10.0.0.0/24", "30000-32767");
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30500}]);
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports});
    let service = create(&all, spec).unwrap();
    assert_eq!((node_port(&service, 0), node_port(&service, 1)), (0, 30500));
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let service = create(&all, local).unwrap();
    let health = service["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&health) && health != node_port(&service, 0));
    let taken =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30500});
    assert_eq!(
        create(&all, taken).unwrap_err(),
        "Internal error occurred: failed to allocate requested HealthCheck NodePort 30500: provided port is already allocated"
    );
}

#[test]
fn a_change_of_type_frees_what_it_has_no_use_for() {
    let all = allocator("10.0.0.0/30", "30000-30000");
    create(&all, json!({})).unwrap();
    let service = create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    assert_eq!(node_port(&service, 0), 30000);
    let mut spec = service["spec"].clone();
    spec["type"] = json!("ClusterIP");
    let plain = update(&all, &service, spec).unwrap();
    assert_eq!(node_port(&plain, 0), 0);
    assert_eq!(plain["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert!(create(&all, json!({})).is_err(), "the address is still held");
    let mut spec = plain["spec"].clone();
    spec["type"] = json!("ExternalName");
    let external = update(&all, &plain, spec).unwrap();
    assert!(external["spec"].get("clusterIP").is_none());
    let freed = create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    assert_eq!(freed["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert_eq!(node_port(&freed, 0), 30000);
}

#[test]
fn an_update_keeps_what_it_has() {
    let all = allocator("10.0.0.0/24", "30000-32767");
    let service = create(
        &all,
        json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}]}),
    )
    .unwrap();
    let new = json!({"type": "NodePort", "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 81}]});
    let changed = update(&all, &service, new).unwrap();
    assert_eq!(node_port(&changed, 0), node_port(&service, 0));
    assert!(node_port(&changed, 1) != 0 && node_port(&changed, 1) != node_port(&service, 0));
    assert_eq!(changed["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    // Whatever the address is changed to, refusing it is validation's.
    for other in ["10.0.0.9", "192.0.2.1"] {
        let mut spec = service["spec"].clone();
        spec["clusterIP"] = json!(other);
        assert_eq!(
            update(&all, &service, spec).unwrap()["spec"]["clusterIPs"],
            json!([other])
        );
        create(&all, json!({"clusterIP": "10.0.0.9"}))
            .map(|taken| delete(&all, &taken))
            .unwrap();
    }
}

#[test]
fn dual_stack_is_gained_and_given_up() {
    let all = allocator(DUAL, "30000-32767");
    let service = create(&all, json!({"ports": [{"port": 80}]})).unwrap();
    let mut spec = service["spec"].clone();
    spec["ipFamilyPolicy"] = json!("RequireDualStack");
    let dual = update(&all, &service, spec.clone()).unwrap();
    let ips = dual["spec"]["clusterIPs"].as_array().unwrap().clone();
    assert_eq!((ips.len(), &ips[0]), (2, &service["spec"]["clusterIP"]));
    assert!(ips[1].as_str().unwrap().starts_with("fd00::"));
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let mut spec = dual["spec"].clone();
    spec["ipFamilyPolicy"] = json!("SingleStack");
    let single = update(&all, &dual, spec).unwrap();
    assert_eq!(single["spec"]["clusterIPs"], json!([ips[0]]));
    create(&all, json!({"clusterIP": ips[1]})).expect("the second address is free again");
}

/// What one server says of an object, another one takes in.
#[test]
fn servers_follow_each_others_ranges_addresses_and_taken_ports() {
    let all = allocator("10.96.0.0/28", "30000-30010");
    let claim = |version: &str, name: &str, object: Value| {
        let claims = all.claims(registry::by_kind(version, name).unwrap(), &object);
        assert_eq!(claims.len(), 1, "{claims:?}");
        claims[0].clone()
    };
    let with_address = |address: &str| create(&all, json!({"ports": [{"port": 80}], "clusterIP": address}));
    let v1 = "networking.k8s.io/v1";
    let more = json!({"metadata": {"name": "more-of-it"}, "spec": {"cidrs": ["10.200.0.0/28"]}});
    let network = claim(v1, "ServiceCIDR", more);
    assert!(with_address("10.200.0.5").is_err());
    all.observe(&network, true);
    with_address("10.200.0.5").unwrap();
    all.observe(&network, false);
    assert!(
        with_address("10.200.0.6").is_err(),
        "its object is being deleted elsewhere"
    );

    let foreign = json!({"metadata": {"name": "10.96.0.9"}, "spec": {"parentRef": {"group": "x.io", "resource": "things"}}});
    let address = claim(v1, "IPAddress", foreign);
    all.observe(&address, true);
    assert!(with_address("10.96.0.9").is_err());
    all.observe(&address, false);
    with_address("10.96.0.9").unwrap();

    let node = |ports: &str| {
        let annotations = json!({"svcnet.io/host-ports": ports});
        claim(
            "v1",
            "Node",
            json!({"metadata": {"name": "n-1", "annotations": annotations}}),
        )
    };
    let (former, listening) = (node("30001"), node("30003,30004"));
    all.observe(&former, true);
    // In one transaction, in either order.
    all.observe(&listening, true);
    all.observe(&former, false);
    let given: Vec<i64> = (0..9)
        .map(|_| {
            node_port(
                &create(&all, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap(),
                0,
            )
        })
        .collect();
    assert!(
        given.contains(&30001) && !given.contains(&30003) && !given.contains(&30004),
        "{given:?}"
    );
}

#[test]
fn dry_runs_show_and_take_nothing() {
    let all = allocator("10.0.0.0/30", "30000-30000");
    for _ in 0..5 {
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        assert!(
            admit(&all, Operation::Create, None, Some(&mut new), true)
                .unwrap()
                .is_none()
        );
        assert_eq!(node_port(&new, 0), 30000);
    }
}

#[test]
fn restored_services_keep_what_the_ranges_no_longer_allow() {
    let all = allocator("10.0.0.0/24", "30000-30010");
    let stored = |ip: &str, port: i64| {
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"type": "NodePort",
               "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
               "ports": [{"port": 80, "nodePort": port}]}})
    };
    let outside = stored("10.1.0.1", 33333);
    all.restore(kind(), &outside);
    all.restore(kind(), &stored("10.0.0.1", 30001));
    all.restore(kind(), &stored("10.0.0.1", 30001));
    let said: Vec<String> = all
        .take_warnings()
        .iter()
        .map(|restored| format!("{}: {}", restored.warning.reason(), restored.warning))
        .collect();
    assert_eq!(
        said,
        [
            "ClusterIPOutOfRange: Cluster IP 10.1.0.1 is not within the service CIDR 10.0.0.0/24; please recreate service",
            "PortOutOfRange: Port 33333 is not within the port range 30000-30010; please recreate service",
            "ClusterIPAlreadyAllocated: Cluster IP 10.0.0.1 was assigned to multiple services; please recreate service",
            "PortAlreadyAllocated: Port 30001 was assigned to multiple services; please recreate service",
        ]
    );
    let mut spec = outside["spec"].clone();
    spec["sessionAffinity"] = json!("ClientIP");
    let kept = update(&all, &outside, spec).expect("what it has, it may keep");
    assert_eq!(node_port(&kept, 0), 33333);
    assert!(create(&all, json!({"clusterIP": "10.0.0.1"})).is_err());
}

/// A write, as a writer may make it, on one of a few Services.
#[derive(Debug, Clone)]
struct Write {
    service: usize,
    spec: Value,
    gone: bool,
    stands: bool,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let type_ = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]);
    let policy = prop::sample::select(vec!["SingleStack", "PreferDualStack", "RequireDualStack"]);
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    let port = (1i64..4, protocol, prop::option::of(30000i64..30012));
    let write = (
        0usize..5,
        type_,
        policy,
        prop::collection::vec(port, 0..4),
        any::<[bool; 4]>(),
        0u8..9,
        prop::option::of(30000i64..30012),
    );
    let write = write.prop_map(
        |(service, type_, policy, ports, [gone, stands, local, wish], ip, health)| {
            let port = |(i, (port, protocol, node)): (usize, (i64, &str, Option<i64>))| {
                let mut port = json!({"name": format!("p{i}"), "port": port, "protocol": protocol});
                if let Some(node) = node {
                    port["nodePort"] = json!(node);
                }
                port
            };
            let ports: Vec<Value> = ports.into_iter().enumerate().map(port).collect();
            let mut spec = json!({"type": type_, "ports": ports});
            if type_ == "ExternalName" {
                spec["externalName"] = json!("a.example");
            } else {
                spec["ipFamilyPolicy"] = json!(policy);
                if wish {
                    spec["clusterIP"] = json!(format!("10.0.0.{ip}"));
                }
            }
            if local && matches!(type_, "NodePort" | "LoadBalancer") {
                spec["externalTrafficPolicy"] = json!("Local");
            }
            if let Some(health) = health.filter(|_| local && type_ == "LoadBalancer") {
                spec["healthCheckNodePort"] = json!(health);
            }
            Write {
                service,
                spec,
                gone,
                stands,
            }
        },
    );
    prop::collection::vec(write, 0..60)
}

proptest! {
    /// Whatever is written, refused and rolled back: nothing is held twice, and the live state is the one that a
    /// restart would build from the stored objects.
    #[test]
    fn live_state_is_restored_state(steps in writes()) {
        let live = allocator(DUAL, "30000-30011");
        let mut stored: HashMap<usize, Value> = HashMap::new();
        for write in steps {
            let old = stored.get(&write.service).cloned();
            let mut new = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": write.spec});
            let outcome = match (&old, write.gone) {
                (Some(old), true) => admit(&live, Operation::Delete, Some(old), None, false),
                (Some(old), false) => admit(&live, Operation::Update, Some(old), Some(&mut new), false),
                (None, _) => admit(&live, Operation::Create, None, Some(&mut new), false),
            };
            let Ok(Some(reservation)) = outcome else { continue };
            let gone = write.gone && old.is_some();
            if !write.stands || (!gone && !(kind().validate)(&new, old.as_ref()).is_empty()) {
                continue;
            }
            reservation.commit();
            if gone {
                stored.remove(&write.service);
            } else {
                stored.insert(write.service, new);
            }
        }
        let restored = allocator(DUAL, "30000-30011");
        for service in stored.values() {
            restored.restore(kind(), service);
        }
        prop_assert_eq!(restored.take_warnings(), vec![]);
        let (live, restored) = (live.lock(), restored.lock());
        prop_assert_eq!(&live.addresses, &restored.addresses);
        prop_assert_eq!(&live.ports, &restored.ports);
    }
}
