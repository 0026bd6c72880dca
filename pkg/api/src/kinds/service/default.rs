//! What a Service gets where the writer left it open, and what it loses when its type changes. The steps are those of
//! kube-apiserver (SetDefaults_Service, patchAllocatedValues, normalizeClusterIPs, dropTypeDependentFields), in the
//! order in which they take effect there.

use serde_json::{Map, Value, json};

use super::{externally_accessible, needs_cluster_ip, needs_health_check, needs_node_port};
use crate::rules::{Fields, is_unset, object_in, set_default};

/// How long an affinity lasts that the writer did not time (3 hours).
const AFFINITY_TIMEOUT_S: u32 = 10_800;

pub(super) fn default(new: &mut Value, old: Option<&Value>) {
    object_in(new, "spec");
    let spec = &mut new["spec"];
    drop_zero_values(spec);
    set_defaults(spec);
    if let Some(old) = old.map(|o| &o["spec"]) {
        keep_allocated(spec, old);
        align_cluster_ips(spec, Some(old));
        drop_what_the_type_lost(spec, old);
    } else {
        align_cluster_ips(spec, None);
    }
    object_in(new, "status");
    let load_balancer = new["spec"].text("type") == "LoadBalancer";
    let status = object_in(&mut new["status"], "loadBalancer");
    if let Some(ingress) = status
        .get_mut("ingress")
        .and_then(Value::as_array_mut)
        .filter(|_| load_balancer)
    {
        for item in ingress
            .iter_mut()
            .filter(|i| !i.text("ip").is_empty())
            .filter_map(Value::as_object_mut)
        {
            set_default(item, "ipMode", "VIP");
        }
    }
}

/// Go cannot tell these from absent ones, and does not write them back.
fn drop_zero_values(spec: &mut Value) {
    let Value::Object(fields) = spec else { return };
    fields.retain(|name, value| {
        let empty = value.is_null()
            || value == ""
            || value.as_array().is_some_and(Vec::is_empty)
            || (name == "healthCheckNodePort" && *value == 0)
            || (name == "publishNotReadyAddresses" && *value == false)
            || (name == "selector" && value.as_object().is_some_and(Map::is_empty));
        !empty
    });
    for port in fields
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Value::Object(port) = port {
            port.retain(|name, value| {
                !(value.is_null()
                    || value == ""
                    || (*value == 0 && matches!(name.as_str(), "nodePort" | "targetPort")))
            });
        }
    }
}

fn set_defaults(spec: &mut Value) {
    let accessible = {
        let Value::Object(fields) = &mut *spec else { return };
        set_default(fields, "type", "ClusterIP");
        set_default(fields, "sessionAffinity", "None");
        default_affinity(fields);
        for port in fields
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Value::Object(port) = port {
                set_default(port, "protocol", "TCP");
                let number = port.get("port").cloned().unwrap_or_default();
                set_default(port, "targetPort", number);
            }
        }
        externally_accessible(spec)
    };
    let type_ = spec.text("type").to_string();
    let Value::Object(fields) = spec else { return };
    if accessible {
        set_default(fields, "externalTrafficPolicy", "Cluster");
    }
    if matches!(type_.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_default(fields, "internalTrafficPolicy", "Cluster");
    } else if type_ == "ExternalName" {
        // The real one drops it on read.
        fields.remove("internalTrafficPolicy");
    }
    if type_ == "LoadBalancer" {
        set_default(fields, "allocateLoadBalancerNodePorts", true);
    }
}

fn default_affinity(fields: &mut Map<String, Value>) {
    match fields.get("sessionAffinity").and_then(Value::as_str) {
        Some("None") => {
            fields.remove("sessionAffinityConfig");
        }
        Some("ClientIP") => {
            let timeout = fields
                .get("sessionAffinityConfig")
                .map(|c| &c["clientIP"]["timeoutSeconds"]);
            if is_unset(timeout) {
                let config = json!({"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_S}});
                fields.insert("sessionAffinityConfig".to_string(), config);
            }
        }
        _ => {}
    }
}

/// Whoever submits again what he submitted at first, without the values that were allocated for him, keeps them.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        for field in ["clusterIP", "clusterIPs"] {
            if is_unset(spec.get(field)) && old.has(field) {
                spec[field] = old[field].clone();
            }
        }
    }
    if needs_node_port(old) && needs_node_port(spec) {
        let numbers = |spec: &Value| -> Vec<i64> {
            spec.list("ports")
                .iter()
                .map(|p| p.number("nodePort"))
                .filter(|n| *n != 0)
                .collect()
        };
        let given = numbers(spec);
        let used: Vec<i64> = numbers(old).into_iter().filter(|n| given.contains(n)).collect();
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if port.number("nodePort") == 0 {
                // By name alone: the writer may have changed everything else about the port.
                let same = old
                    .list("ports")
                    .iter()
                    .rev()
                    .find(|o| o.text("name") == port.text("name"));
                let number = same.map_or(0, |p| p.number("nodePort"));
                if number != 0 && !used.contains(&number) {
                    port["nodePort"] = json!(number);
                }
            }
        }
    }
    if needs_health_check(old) && needs_health_check(spec) && spec.number("healthCheckNodePort") == 0 {
        let number = old.number("healthCheckNodePort");
        if number != 0 {
            spec["healthCheckNodePort"] = json!(number);
        }
    }
}

/// `clusterIP` and `clusterIPs[0]` say the same; a client may know only the older of the two.
fn align_cluster_ips(spec: &mut Value, old: Option<&Value>) {
    let single = spec.text("clusterIP").to_string();
    let Some(old) = old else {
        if !single.is_empty() && spec.list("clusterIPs").is_empty() {
            spec["clusterIPs"] = json!([single]);
        }
        return;
    };
    let former = old.text("clusterIP");
    if spec.list("clusterIPs").is_empty() && !old.list("clusterIPs").is_empty() && former == single {
        spec["clusterIPs"] = old["clusterIPs"].clone();
    }
    if former != single && spec.list("clusterIPs") == old.list("clusterIPs") {
        if single.is_empty() {
            remove(spec, "clusterIPs");
        } else {
            spec["clusterIPs"] = json!([single]);
        }
    }
}

/// When the type changes, fields that it no longer uses go, unless the writer changed them too: then he means them,
/// and validation tells him that they do not fit.
fn drop_what_the_type_lost(spec: &mut Value, old: &Value) {
    let mut lost = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if spec["clusterIP"] == old["clusterIP"] && spec["clusterIPs"] == old["clusterIPs"] {
            lost.extend(["clusterIP", "clusterIPs"]);
        }
        lost.extend(
            ["ipFamilies", "ipFamilyPolicy"]
                .into_iter()
                .filter(|f| spec[*f] == old[*f]),
        );
    }
    if needs_health_check(old) && !needs_health_check(spec) {
        lost.push("healthCheckNodePort");
    }
    if old.text("type") == "LoadBalancer" && spec.text("type") != "LoadBalancer" {
        lost.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if externally_accessible(old) && !externally_accessible(spec) {
        lost.push("externalTrafficPolicy");
    }
    for field in lost {
        if spec[field] == old[field] {
            remove(spec, field);
        }
    }
    if needs_node_port(old) && !needs_node_port(spec) {
        let known: Vec<i64> = old.list("ports").iter().map(|p| p.number("nodePort")).collect();
        let added = spec
            .list("ports")
            .iter()
            .map(|p| p.number("nodePort"))
            .any(|n| n != 0 && !known.contains(&n));
        if !added {
            spec.get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
                .for_each(|port| remove(port, "nodePort"));
        }
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Value::Object(fields) = value {
        fields.remove(field);
    }
}
