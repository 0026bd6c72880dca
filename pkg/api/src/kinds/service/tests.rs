use proptest::prelude::*;
use serde_json::{Value, json};

use super::KIND;

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "default"}, "spec": spec})
}

/// As the API server does it, with an address in place of the allocator's.
fn write(spec: Value, old: Option<&Value>) -> (Value, Vec<String>) {
    let mut new = service(spec);
    (KIND.default)(&mut new, old);
    let errors = (KIND.validate)(&new, old)
        .iter()
        .map(ToString::to_string)
        .collect();
    (new, errors)
}

fn refused(spec: Value) -> Vec<String> {
    write(spec, None).1
}

fn port() -> Value {
    json!([{"port": 80}])
}

#[test]
fn the_plain_service_is_filled_in() {
    let (new, errors) = write(
        json!({"selector": {"app": "nginx"}, "ports": [{"port": 80}]}),
        None,
    );
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        new["spec"],
        json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "selector": {"app": "nginx"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        })
    );
    assert_eq!(new["status"], json!({"loadBalancer": {}}));
}

#[test]
fn types_bring_their_fields() {
    let (new, errors) = write(
        json!({"type": "LoadBalancer", "ports": port(), "sessionAffinity": "ClientIP"}),
        None,
    );
    assert_eq!(errors, [""; 0]);
    let spec = &new["spec"];
    assert_eq!(spec["externalTrafficPolicy"], "Cluster");
    assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
    assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
    let (new, _) = write(
        json!({"type": "ExternalName", "externalName": "www.example.com."}),
        None,
    );
    assert_eq!(
        new["spec"],
        json!({"type": "ExternalName", "externalName": "www.example.com.", "sessionAffinity": "None"})
    );
    let (new, _) = write(json!({"ports": port(), "externalIPs": ["192.0.2.1"]}), None);
    assert_eq!(new["spec"]["externalTrafficPolicy"], "Cluster");
    let (new, errors) = write(json!({"clusterIP": "None"}), None);
    assert_eq!(
        (new["spec"]["clusterIPs"].clone(), errors),
        (json!(["None"]), Vec::new())
    );
}

#[test]
fn wrong_services_are_refused_in_the_real_words() {
    for (spec, words) in [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 0, "targetPort": 80}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81}]}),
            "spec.ports[1].name: Required value",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1]: Duplicate value: core.ServicePort{Name:\"\", Protocol:\"TCP\", \
             AppProtocol:(*string)(nil), Port:80, TargetPort:intstr.IntOrString{Type:0, IntVal:0, StrVal:\"\"}, \
             NodePort:0}",
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": "a--b"}]}),
            "spec.ports[0].targetPort: Invalid value: \"a--b\": must not contain consecutive hyphens",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30001}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 10250}]}),
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": port()}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            json!({"type": "ExternalName"}),
            "spec.externalName: Required value",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.5"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"type": "Ingress", "ports": port()}),
            "spec.type: Unsupported value: \"Ingress\": supported values: \"ClusterIP\", \"ExternalName\", \
             \"LoadBalancer\", \"NodePort\"",
        ),
    ] {
        assert_eq!(refused(spec), [words]);
    }
}

#[test]
fn policies_and_ranges_are_refused_in_the_real_words() {
    let affinity = |seconds: i64| {
        json!({"ports": port(), "sessionAffinity": "ClientIP",
               "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
    };
    assert_eq!(refused(affinity(86_400)), [""; 0]);
    for (spec, words) in [
        (
            affinity(86_401),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and \
             less than 86400",
        ),
        (
            json!({"ports": port(), "sessionAffinity": "Cookie"}),
            "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"",
        ),
        (
            json!({"ports": port(), "externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({"type": "NodePort", "ports": port(), "healthCheckNodePort": 30001}),
            "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and \
             `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"ports": port(), "loadBalancerSourceRanges": [" 10.0.0.0/8 "]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"type": "LoadBalancer", "ports": port(), "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "x"]}),
            "spec.LoadBalancerSourceRanges[1]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
             2001:db8::/64)",
        ),
        (
            json!({"ports": port(), "externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"ports": port(), "allocateLoadBalancerNodePorts": false}),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": port(), "loadBalancerClass": "a/b"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": port(), "trafficDistribution": "Near"}),
            "spec.trafficDistribution: Unsupported value: \"Near\": supported values: \"PreferClose\", \
             \"PreferSameNode\", \"PreferSameZone\"",
        ),
    ] {
        assert_eq!(refused(spec), [words]);
    }
}

#[test]
fn addresses_and_families_must_fit() {
    for (spec, words) in [
        (
            json!({"ports": port(), "clusterIP": "x"}),
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"ports": port(), "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.6"]}),
            "spec.clusterIPs: Invalid value: []string{\"10.96.0.6\"}: first value must match `clusterIP`",
        ),
        (
            json!({"ports": port(), "clusterIPs": ["10.96.0.6"]}),
            "spec.clusterIPs: Invalid value: []string{\"10.96.0.6\"}: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"ports": port(), "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "10.96.0.6"]}),
            "spec.clusterIPs: Invalid value: []string{\"10.96.0.5\", \"10.96.0.6\"}: may specify no more than one IP \
             for each IP family",
        ),
        (
            json!({"ports": port(), "clusterIP": "10.96.0.5", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.5\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            json!({"ports": port(), "ipFamilyPolicy": "Dual"}),
            "spec.ipFamilyPolicy: Unsupported value: \"Dual\": supported values: \"PreferDualStack\", \
             \"RequireDualStack\", \"SingleStack\"",
        ),
    ] {
        assert_eq!(refused(spec), [words]);
    }
}

fn stored(spec: Value) -> Value {
    let (new, errors) = write(spec, None);
    assert_eq!(errors, [""; 0]);
    new
}

#[test]
fn the_cluster_ip_is_immutable_but_may_be_left_out() {
    let old = stored(json!({"ports": port(), "clusterIP": "10.96.0.5"}));
    let (new, errors) = write(json!({"ports": port(), "clusterIP": ""}), Some(&old));
    assert_eq!((new["spec"].clone(), errors), (old["spec"].clone(), Vec::new()));
    // As kubectl apply sends it: one field changed in what is stored.
    let mut spec = old["spec"].clone();
    spec["clusterIP"] = json!("10.96.0.6");
    let words = "spec.clusterIPs[0]: Invalid value: []string{\"10.96.0.6\"}: may not change once set";
    assert_eq!(write(spec, Some(&old)).1, [words]);
}

#[test]
fn type_changes_release_what_they_do_not_need() {
    let old = stored(json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.5", "loadBalancerClass": "a.b/c",
        "ports": [{"port": 80, "nodePort": 30001}], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
    }));
    let mut spec = old["spec"].clone();
    spec["type"] = json!("ClusterIP");
    let (new, errors) = write(spec.clone(), Some(&old));
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        new["spec"],
        json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        })
    );
    spec["type"] = json!("ExternalName");
    spec["externalName"] = json!("a.b");
    let (new, errors) = write(spec.clone(), Some(&old));
    assert_eq!(errors, [""; 0]);
    assert!(new["spec"].get("clusterIP").is_none() && new["spec"].get("ipFamilies").is_none());
    // A node port that was not there before is meant, hence told about.
    spec["type"] = json!("ClusterIP");
    spec["ports"][0]["nodePort"] = json!(30002);
    let words = "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'";
    assert_eq!(write(spec, Some(&old)).1, [words]);
}

#[test]
fn node_ports_stay_with_their_names() {
    let old = stored(json!({
        "type": "NodePort",
        "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}],
    }));
    let spec = json!({
        "type": "NodePort", "ports": [{"name": "b", "port": 8081}, {"name": "c", "port": 82}, {"name": "a", "port": 80}],
    });
    let (new, _) = write(spec, Some(&old));
    let ports: Vec<Value> = new["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["nodePort"].clone())
        .collect();
    assert_eq!(ports, [json!(30002), Value::Null, json!(30001)]);
}

#[test]
fn dual_stack_is_given_up_only_on_purpose() {
    let dual = json!(["10.96.0.5", "fd00::5"]);
    let old = stored(json!({
        "ports": port(), "clusterIP": "10.96.0.5", "clusterIPs": dual, "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
    }));
    let mut spec = old["spec"].clone();
    spec["clusterIPs"] = json!(["10.96.0.5"]);
    spec["ipFamilies"] = json!(["IPv4"]);
    let errors = write(spec.clone(), Some(&old)).1;
    assert_eq!(
        errors,
        [
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing \
             the secondary clusterIP",
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing \
             the secondary ipFamily",
        ]
    );
    spec["ipFamilyPolicy"] = json!("SingleStack");
    assert_eq!(write(spec, Some(&old)).1, [""; 0]);
}

prop_compose! {
    fn any_spec()(
        type_ in prop::option::of(prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
        ports in prop::collection::btree_set(1u16.., 1..4),
        affinity in prop::option::of(prop::sample::select(vec!["None", "ClientIP"])),
        named_target: bool,
        external_ip: bool,
    ) -> Value {
        let port = |(i, n): (usize, u16)| {
            let target = if named_target { json!("http") } else { Value::Null };
            json!({"name": format!("p{i}"), "port": if n == 10_250 { 1 } else { n }, "targetPort": target})
        };
        let ports: Vec<Value> = ports.into_iter().enumerate().map(port).collect();
        let external_ips = if external_ip { json!(["192.0.2.1"]) } else { Value::Null };
        let mut spec = json!({"type": type_, "ports": ports, "sessionAffinity": affinity, "externalIPs": external_ips});
        if type_ == Some("ExternalName") {
            spec["externalName"] = json!("a.b");
        }
        spec
    }
}

proptest! {
    #[test]
    fn defaulting_is_idempotent_and_makes_right_objects(spec in any_spec()) {
        let (once, errors) = write(spec, None);
        prop_assert_eq!(errors, Vec::<String>::new());
        let mut twice = once.clone();
        (KIND.default)(&mut twice, None);
        prop_assert_eq!(&twice, &once);
        // Writing back what was read changes nothing.
        (KIND.default)(&mut twice, Some(&once));
        prop_assert_eq!(&twice, &once);
    }

    #[test]
    fn any_change_of_type_that_touches_nothing_else_is_accepted(from in any_spec(), to in 0usize..4) {
        let (old, _) = write(from, None);
        let mut spec = old["spec"].clone();
        spec["type"] = json!(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][to]);
        if to == 3 {
            spec["externalName"] = json!("a.b");
        }
        prop_assert_eq!(write(spec, Some(&old)).1, Vec::<String>::new());
    }
}
