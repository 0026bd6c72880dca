//! What an update inherits: values that the server had filled in and the writer did not repeat are kept, and those
//! that the new type has no use for are dropped (kube-apiserver's patchAllocatedValues, normalizeClusterIPs and
//! dropTypeDependentFields).

use std::collections::{HashMap, HashSet};

use super::fields::Fields;

/// Brings `clusterIP` and `clusterIPs` of a new Service together.
pub(super) fn on_create(new: &mut Fields) {
    if !new.cluster_ip.is_empty() && new.cluster_ips.is_empty() {
        new.cluster_ips = vec![new.cluster_ip.clone()];
    }
}

/// Lets a changed Service have what the old one had.
pub(super) fn on_update(new: &mut Fields, old: &Fields) {
    drop_unused(new, old);
    keep_addresses(new, old);
    keep_node_ports(new, old);
    if old.needs_health_check() && new.needs_health_check() && new.health_check_node_port == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
}

// Only what was not changed in the same write: a value given on purpose is for validation to refuse.
fn drop_unused(new: &mut Fields, old: &Fields) {
    if old.needs_cluster_ip() && !new.needs_cluster_ip() {
        if new.cluster_ip == old.cluster_ip && new.cluster_ips == old.cluster_ips {
            new.cluster_ip.clear();
            new.cluster_ips.clear();
        }
        if new.families == old.families {
            new.families.clear();
        }
        if new.policy == old.policy {
            new.policy = None;
        }
    }
    if old.needs_node_ports() && !new.needs_node_ports() && node_ports(new).is_subset(&node_ports(old)) {
        for port in &mut new.ports {
            port.node_port = 0;
        }
    }
    let same_health = new.health_check_node_port == old.health_check_node_port;
    if old.needs_health_check() && !new.needs_health_check() && same_health {
        new.health_check_node_port = 0;
    }
}

fn keep_addresses(new: &mut Fields, old: &Fields) {
    if !old.needs_cluster_ip() || !new.needs_cluster_ip() {
        on_create(new);
        return;
    }
    if new.cluster_ip.is_empty() && (new.cluster_ips.is_empty() || new.cluster_ips == old.cluster_ips) {
        new.cluster_ip.clone_from(&old.cluster_ip);
    }
    if new.cluster_ips.is_empty() && new.cluster_ip == old.cluster_ip {
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    // A client that knows only the singular field has changed it.
    if new.cluster_ip != old.cluster_ip && new.cluster_ips == old.cluster_ips {
        new.cluster_ips = vec![new.cluster_ip.clone()];
    }
    on_create(new);
}

fn keep_node_ports(new: &mut Fields, old: &Fields) {
    if !old.needs_node_ports() || !new.needs_node_ports() {
        return;
    }
    let mut used: HashSet<i64> = node_ports(old).intersection(&node_ports(new)).copied().collect();
    let by_name: HashMap<&str, i64> = old
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.node_port))
        .collect();
    for port in &mut new.ports {
        let Some(before) = by_name
            .get(port.name.as_str())
            .copied()
            .filter(|_| port.node_port == 0)
        else {
            continue;
        };
        if before != 0 && used.insert(before) {
            port.node_port = before;
        }
    }
}

fn node_ports(fields: &Fields) -> HashSet<i64> {
    fields
        .ports
        .iter()
        .map(|port| port.node_port)
        .filter(|port| *port != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn updated(old: Value, new: Value) -> Fields {
        let old = Fields::read(&json!({"spec": old})).unwrap();
        let mut new = Fields::read(&json!({"spec": new})).unwrap();
        on_update(&mut new, &old);
        new
    }

    #[test]
    fn what_is_not_repeated_is_kept() {
        let old = json!({
            "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}],
        });
        let new = json!({"type": "NodePort", "ports": [
            {"name": "b", "port": 82}, {"name": "c", "port": 83, "nodePort": 30001}, {"name": "a", "port": 80}]});
        let new = updated(old, new);
        assert_eq!(new.cluster_ips, ["10.0.0.1"]);
        let ports: Vec<i64> = new.ports.iter().map(|port| port.node_port).collect();
        assert_eq!(
            ports,
            [30002, 30001, 0],
            "what another port now has is not given twice"
        );
    }

    #[test]
    fn what_the_type_has_no_use_for_goes() {
        let old = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30009,
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "nodePort": 30001}],
        });
        let mut new = old.clone();
        new["type"] = json!("ExternalName");
        let gone = updated(old.clone(), new.clone());
        assert_eq!(
            (
                gone.cluster_ip.as_str(),
                gone.cluster_ips.len(),
                gone.families.len()
            ),
            ("", 0, 0)
        );
        assert_eq!(
            (gone.policy, gone.ports[0].node_port, gone.health_check_node_port),
            (None, 0, 0)
        );
        // But not what was changed on purpose in the same write.
        new["clusterIP"] = json!("10.0.0.7");
        assert_eq!(updated(old, new).cluster_ip, "10.0.0.7");
    }

    #[test]
    fn the_singular_address_leads() {
        let old = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        let new = json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.1"]});
        assert_eq!(updated(old.clone(), new).cluster_ips, ["10.0.0.2"]);
        assert_eq!(updated(old, json!({"clusterIP": ""})).cluster_ip, "10.0.0.1");
        assert_eq!(
            updated(json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({})).cluster_ips,
            ["None"]
        );
    }
}
