//! The table "Service API and allocators" of what kube-apiserver does with Services, row by row, by the way that a write
//! takes in the server: defaults, allocation, validation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use svcnet_api::{Admission, ApiError, Kind, Operation, Request, registry};
use svcnet_controller::alloc::ServiceAllocator;

const SINGLE: &str = "10.0.0.0/24";
const DUAL: &str = "10.0.0.0/24,fd00::/112";
const PORTS: &str = "30000-32767";

struct Server(ServiceAllocator);

fn kind() -> &'static Kind {
    registry::by_kind("v1", "Service").unwrap()
}

impl Server {
    fn new(cidrs: &str, ports: &str) -> Self {
        Self(ServiceAllocator::new(&cidrs.parse().unwrap(), ports.parse().unwrap(), &[]).unwrap())
    }

    fn write(&self, old: Option<&Value>, spec: &Value, dry_run: bool) -> Result<Value, ApiError> {
        let mut new = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec});
        (kind().default)(&mut new, old);
        let request = Request {
            operation: if old.is_some() {
                Operation::Update
            } else {
                Operation::Create
            },
            kind: kind(),
            namespace: "default",
            name: "a",
            old,
            dry_run,
        };
        let reservation = self.0.admit(&request, Some(&mut new))?;
        let errors = (kind().validate)(&new, old);
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind(), "a", &errors));
        }
        if let Some(reservation) = reservation {
            reservation.commit();
        }
        Ok(new)
    }

    fn create(&self, spec: Value) -> Value {
        self.write(None, &spec, false).unwrap()
    }

    /// Changes some fields of a Service.
    fn change(&self, old: &Value, changes: &Value) -> Result<Value, String> {
        let mut spec = old["spec"].clone();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => _ = spec.as_object_mut().unwrap().remove(key),
                value => spec[key] = value.clone(),
            }
        }
        self.write(Some(old), &spec, false).map_err(|e| e.message)
    }

    fn refused(&self, spec: Value) -> String {
        self.write(None, &spec, false).unwrap_err().message
    }
}

fn ports(type_: &str, ports: Value) -> Value {
    json!({"type": type_, "ports": ports})
}

fn one(type_: &str) -> Value {
    ports(type_, json!([{"port": 80}]))
}

fn node_ports(service: &Value) -> Vec<i64> {
    let all = service["spec"]["ports"].as_array().unwrap();
    all.iter().filter_map(|p| p["nodePort"].as_i64()).collect()
}

#[test]
fn node_port_range_and_its_refusals() {
    let server = Server::new(SINGLE, "30000:30017");
    let ask = |port: i64| ports("NodePort", json!([{"port": 80, "nodePort": port}]));
    let head = "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value";
    assert_eq!(
        server.refused(ask(20000)),
        format!(
            "{head}: 20000: provided port is not in the valid range. The range of valid ports is 30000-30017"
        )
    );
    server.create(ask(30003));
    assert_eq!(
        server.refused(ask(30003)),
        format!("{head}: 30003: provided port is already allocated")
    );
    // By number: the other protocol collides too.
    let udp = json!([{"port": 53, "protocol": "UDP", "nodePort": 30003}]);
    assert_eq!(
        server.refused(ports("NodePort", udp)),
        format!("{head}: 30003: provided port is already allocated")
    );
    for _ in 0..17 {
        server.create(one("NodePort"));
    }
    assert_eq!(
        server.refused(one("NodePort")),
        "Internal error occurred: failed to allocate a nodePort: range is full"
    );
}

#[test]
fn one_service_shares_a_number_between_protocols_on_create() {
    let server = Server::new(SINGLE, PORTS);
    let both = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let given = node_ports(&server.create(ports("NodePort", both)));
    assert_eq!(given[0], given[1]);
}

#[test]
fn static_bands_are_left_to_who_asks() {
    let server = Server::new("10.0.0.0/24", PORTS);
    for _ in 0..200 {
        let service = server.create(one("NodePort"));
        assert!(node_ports(&service)[0] >= 30086, "{service}");
        let ip: std::net::Ipv4Addr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!((17..255).contains(&ip.octets()[3]), "{ip}");
    }
    server.create(
        json!({"type": "NodePort", "clusterIP": "10.0.0.16", "ports": [{"port": 80, "nodePort": 30085}]}),
    );
    // The lower band of addresses is used once the upper is full.
    let lower: BTreeSet<String> = (0..45)
        .map(|_| server.create(one("ClusterIP"))["spec"]["clusterIP"].to_string())
        .collect();
    assert!(lower.contains("\"10.0.0.1\""), "{lower:?}");
}

#[test]
fn cluster_ip_refusals() {
    let server = Server::new(SINGLE, PORTS);
    let ask = |ip: &str| json!({"clusterIP": ip, "ports": [{"port": 80}]});
    server.create(ask("10.0.0.7"));
    let head = |ip: &str| {
        format!(
            "Service \"a\" is invalid: spec.clusterIPs: Invalid value: []string{{\"{ip}\"}}: failed to allocate IP {ip}"
        )
    };
    assert_eq!(
        server.refused(ask("10.0.0.7")),
        format!("{}: provided IP is already allocated", head("10.0.0.7"))
    );
    for outside in ["10.1.0.1", "10.0.0.0", "10.0.0.255"] {
        assert_eq!(
            server.refused(ask(outside)),
            format!(
                "{}: provided IP is not in the valid range. The range of valid IPs is 10.0.0.0/24",
                head(outside)
            )
        );
    }
    let full = Server::new("10.0.0.0/30", PORTS);
    full.create(one("ClusterIP"));
    full.create(one("ClusterIP"));
    assert_eq!(
        full.refused(one("ClusterIP")),
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
}

#[test]
fn a_failure_reverts_everything_and_a_dry_run_takes_nothing() {
    let server = Server::new("10.0.0.0/30", "30000-30000");
    for _ in 0..3 {
        server.write(None, &one("NodePort"), true).unwrap();
        // The address is taken before the second port is found to be missing.
        let two = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
        server.refused(ports("NodePort", two));
        // Allocation is right, validation is not.
        server.refused(json!({"type": "NodePort", "sessionAffinity": "Sometimes", "ports": [{"port": 80}]}));
    }
    server.create(one("NodePort"));
    server.create(one("ClusterIP"));
}

#[test]
fn type_changes_release_what_the_type_has_not() {
    let server = Server::new(SINGLE, "30000-30000");
    for type_ in ["NodePort", "LoadBalancer"] {
        let service = server.create(one(type_));
        let plain = server.change(&service, &json!({"type": "ClusterIP"})).unwrap();
        assert_eq!(node_ports(&plain), [0; 0]);
        assert_eq!(plain["spec"]["clusterIP"], service["spec"]["clusterIP"]);
        let external = json!({"type": "ExternalName", "externalName": "a.example"});
        let external = server.change(&plain, &external).unwrap();
        assert_eq!(external["spec"].get("clusterIP"), None);
        let freed = server.create(json!({"clusterIP": plain["spec"]["clusterIP"], "ports": [{"port": 80}]}));
        assert_eq!(freed["spec"]["clusterIP"], plain["spec"]["clusterIP"]);
    }
}

/// Each row is refused with these words.
fn all_refused(rows: impl IntoIterator<Item = (&'static str, Value, &'static str)>) {
    let server = Server::new(SINGLE, PORTS);
    for (row, spec, words) in rows {
        let refused = server.refused(spec);
        assert!(refused.contains(words), "{row}: {refused}");
    }
}

#[test]
fn ports_are_refused_in_the_real_words() {
    all_refused([
        (
            "Ports: a name where there are several",
            ports("ClusterIP", json!([{"port": 80}, {"port": 81, "name": "b"}])),
            "spec.ports[0].name: Required value",
        ),
        (
            "Ports: a DNS label",
            ports("ClusterIP", json!([{"port": 80, "name": "A_b"}])),
            "spec.ports[0].name: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of",
        ),
        (
            "Ports: no duplicates",
            ports(
                "ClusterIP",
                json!([{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]),
            ),
            "spec.ports[1]: Duplicate value",
        ),
        (
            "nodePort on ClusterIP type",
            ports("ClusterIP", json!([{"port": 80, "nodePort": 30500}])),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "Headless + LoadBalancer",
            json!({"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 80}]}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services",
        ),
        (
            "Headless + NodePort",
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            "LB on port 10250",
            ports("LoadBalancer", json!([{"port": 10250}])),
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
        ),
    ]);
}

#[test]
fn policies_are_refused_in_the_real_words() {
    all_refused([
        (
            "Session affinity",
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}},
                   "ports": [{"port": 80}]}),
            "must be greater than 0 and less than 86400",
        ),
        (
            "externalTrafficPolicy",
            json!({"externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            "LB source ranges",
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": [{"port": 80}]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            "Dual stack",
            json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
             services",
        ),
        (
            "trafficDistribution",
            json!({"trafficDistribution": "Far", "ports": [{"port": 80}]}),
            "spec.trafficDistribution: Unsupported value: \"Far\"",
        ),
    ]);
}

#[test]
fn what_is_filled_in_and_accepted() {
    let server = Server::new(SINGLE, PORTS);
    let sticky = server.create(json!({"sessionAffinity": "ClientIP", "ports": [{"port": 80}]}));
    assert_eq!(
        sticky["spec"]["sessionAffinityConfig"],
        json!({"clientIP": {"timeoutSeconds": 10800}})
    );
    let longest = json!({"clientIP": {"timeoutSeconds": 86400}});
    server
        .change(&sticky, &json!({"sessionAffinityConfig": longest}))
        .unwrap();
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        server.create(json!({"trafficDistribution": distribution, "ports": [{"port": 80}]}));
    }
    let padded = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.0/8 "], "ports": [{"port": 80}]});
    server.create(padded);
    let none = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30500}]);
    let none = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": none});
    assert_eq!(node_ports(&server.create(none)), [30500]);
    let headless = server.create(json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    assert_eq!(headless["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(
        server.create(one("ClusterIP"))["spec"]["ipFamilyPolicy"],
        "SingleStack"
    );
}

#[test]
fn a_health_check_port_belongs_to_local_load_balancers_and_stays() {
    let server = Server::new(SINGLE, PORTS);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let service = server.create(local);
    let port = service["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let moved = server
        .change(&service, &json!({"healthCheckNodePort": port + 1}))
        .unwrap_err();
    assert!(moved.contains("field is immutable"), "{moved}");
    let cluster = json!({"externalTrafficPolicy": "Cluster", "healthCheckNodePort": null});
    let service = server.change(&service, &cluster).unwrap();
    assert_eq!(service["spec"].get("healthCheckNodePort"), None);
}

/// What may not change is refused for that, and not for what others happen to hold.
#[test]
fn a_refused_change_does_not_depend_on_other_services() {
    let server = Server::new(DUAL, PORTS);
    let others = json!([{"port": 80, "nodePort": 30999}]);
    let others = json!({"type": "NodePort", "ports": others, "ipFamilyPolicy": "RequireDualStack"});
    let other = server.create(others);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
                       "ipFamilyPolicy": "RequireDualStack"});
    let service = server.create(local);
    let moved = server.change(&service, &json!({"healthCheckNodePort": 30999}));
    assert_eq!(
        moved.unwrap_err(),
        "Service \"a\" is invalid: spec.healthCheckNodePort: Forbidden: field is immutable"
    );
    let ips = |of: &Value, index: usize| of["spec"]["clusterIPs"][index].clone();
    for (index, taken) in [
        (0, [ips(&other, 0), ips(&service, 1)]),
        (1, [ips(&service, 0), ips(&other, 1)]),
    ] {
        let moved = server.change(&service, &json!({"clusterIP": taken[0], "clusterIPs": taken}));
        let words = format!(
            "spec.clusterIPs[{index}]: Invalid value: {}: may not change once set",
            go_list(&taken)
        );
        assert_eq!(moved.unwrap_err(), format!("Service \"a\" is invalid: {words}"));
    }
    server
        .write(
            None,
            &json!({"clusterIP": ips(&service, 0), "ports": [{"port": 80}]}),
            false,
        )
        .unwrap_err();
}

fn go_list(texts: &[Value]) -> String {
    let texts: Vec<String> = texts.iter().map(Value::to_string).collect();
    format!("[]string{{{}}}", texts.join(", "))
}

/// A number is a health check's or a port's, also within one Service.
#[test]
fn a_health_check_port_is_no_node_port_of_its_service() {
    let server = Server::new(SINGLE, PORTS);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30500,
                       "ports": [{"port": 80, "nodePort": 30501}]});
    let service = server.create(local);
    let refused = server.change(&service, &json!({"ports": [{"port": 80, "nodePort": 30500}]}));
    assert_eq!(
        refused.unwrap_err(),
        "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated"
    );
    let cluster = json!({"externalTrafficPolicy": "Cluster", "healthCheckNodePort": null});
    let service = server.change(&service, &cluster).unwrap();
    let refused = server.change(
        &service,
        &json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30501}),
    );
    assert_eq!(
        refused.unwrap_err(),
        "Internal error occurred: failed to allocate requested HealthCheck NodePort 30501: provided port is already allocated"
    );
    // The former number of the health check is free again, for a port as well.
    let moved = server.change(&service, &json!({"ports": [{"port": 80, "nodePort": 30500}]}));
    assert_eq!(node_ports(&moved.unwrap()), [30500]);
}

/// Sharing is for new Services: an update gives each port a number of its own.
#[test]
fn an_update_shares_no_number_between_protocols() {
    let server = Server::new(SINGLE, PORTS);
    let both = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    for before in [
        json!({"ports": both}),
        json!({"type": "ExternalName", "externalName": "a.example", "ports": both}),
    ] {
        let service = server.create(before);
        let changed = server.change(&service, &json!({"type": "NodePort", "externalName": null}));
        let given = node_ports(&changed.unwrap());
        assert!(given.len() == 2 && given[0] != given[1], "{given:?}");
    }
}

#[test]
fn dual_stack_is_gained_and_given_up_by_policy() {
    let server = Server::new(DUAL, PORTS);
    let single = server.create(one("ClusterIP"));
    for policy in ["PreferDualStack", "RequireDualStack"] {
        let dual = server
            .change(&single, &json!({"ipFamilyPolicy": policy}))
            .unwrap();
        let ips = dual["spec"]["clusterIPs"].as_array().unwrap();
        assert_eq!((ips.len(), &ips[0]), (2, &single["spec"]["clusterIP"]));
        let dropped = server
            .change(&dual, &json!({"clusterIPs": [ips[0]], "ipFamilies": ["IPv4"]}))
            .unwrap_err();
        assert!(
            dropped.contains("must be 'SingleStack' to release the secondary cluster IP"),
            "{dropped}"
        );
        let again = server
            .change(&dual, &json!({"ipFamilyPolicy": "SingleStack"}))
            .unwrap();
        assert_eq!(again["spec"]["clusterIPs"], json!([ips[0]]));
        assert_eq!(again["spec"]["ipFamilies"], json!(["IPv4"]));
        // The second one is free again, for who asks for it.
        let taken = server.create(json!({"clusterIP": ips[1], "ports": [{"port": 80}]}));
        assert_eq!(taken["spec"]["ipFamilies"], json!(["IPv6"]));
    }
}

#[test]
fn repair_tells_and_keeps_traffic_working() {
    let server = Server::new(SINGLE, "30000-30010");
    let stored = json!({
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.9.0.1", "clusterIPs": ["10.9.0.1"], "ipFamilies": ["IPv4"],
                 "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 31000}]},
    });
    server.0.restore(kind(), &stored);
    let told: Vec<(&str, String)> = server
        .0
        .take_warnings()
        .iter()
        .map(|r| (r.warning.reason(), r.warning.to_string()))
        .collect();
    assert_eq!(told[0].0, "ClusterIPOutOfRange");
    assert_eq!(
        told[1],
        (
            "PortOutOfRange",
            "Port 31000 is not within the port range 30000-30010; please recreate service".to_string()
        )
    );
    // What it has it keeps, also when it is changed.
    let kept = server
        .change(&stored, &json!({"sessionAffinity": "ClientIP"}))
        .unwrap();
    assert_eq!(node_ports(&kept), [31000]);
    assert_eq!(kept["spec"]["clusterIP"], "10.9.0.1");
}

#[test]
fn ports_that_a_node_reports_are_avoided() {
    let server = Server::new(SINGLE, "30000-30002");
    let node = registry::by_kind("v1", "Node").unwrap();
    let report = |ports: &str| {
        let mut object = json!({"metadata": {"name": "n1", "annotations": {"svcnet.io/host-ports": ports}}});
        let request = Request {
            operation: Operation::Create,
            kind: node,
            namespace: "",
            name: "n1",
            old: None,
            dry_run: false,
        };
        let reservation = server.0.admit(&request, Some(&mut object)).unwrap();
        reservation.unwrap().commit();
    };
    report("22,30000,30001,x");
    assert_eq!(node_ports(&server.create(one("NodePort"))), [30002]);
    assert!(server.refused(one("NodePort")).contains("range is full"));
    let asked = ports("NodePort", json!([{"port": 80, "nodePort": 30001}]));
    assert_eq!(node_ports(&server.create(asked)), [30001]);
    report("30001");
    assert_eq!(node_ports(&server.create(one("NodePort"))), [30000]);
}
