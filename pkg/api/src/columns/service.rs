//! Columns of Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{AGE, NAME, NONE, column, or_none, wide};
use crate::kind::Column;
use crate::rules::Fields;

pub(crate) const SERVICE: [Column; 7] = [
    NAME,
    column(
        "Type",
        "type determines how the Service is exposed.",
        |service, _| service["spec"]["type"].clone(),
    ),
    column(
        "Cluster-IP",
        "clusterIP is the IP address of the service.",
        |service, _| or_none(service["spec"].text("clusterIP")),
    ),
    column(
        "External-IP",
        "Addresses at which the service is reached from outside the cluster.",
        |service, _| json!(external_ip(service)),
    ),
    column(
        "Port(s)",
        "The list of ports that are exposed by this service.",
        |service, _| or_none(&ports(&service["spec"])),
    ),
    AGE,
    wide(column(
        "Selector",
        "Route service traffic to pods with these labels.",
        |service, _| or_none(&selector(&service["spec"])),
    )),
];

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let given: Vec<&str> = spec
        .list("externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match spec.text("type") {
        "ClusterIP" | "NodePort" if given.is_empty() => NONE.to_string(),
        "ClusterIP" | "NodePort" => given.join(","),
        "LoadBalancer" => {
            let ingress = service["status"]["loadBalancer"].list("ingress");
            let shown = |i: &'_ Value| match i.text("ip") {
                "" => i.text("hostname").to_string(),
                ip => ip.to_string(),
            };
            let own: BTreeSet<String> = ingress
                .iter()
                .map(shown)
                .filter(|text| !text.is_empty())
                .collect();
            let all: Vec<&str> = own.iter().map(String::as_str).chain(given).collect();
            if all.is_empty() {
                "<pending>".to_string()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => spec.text("externalName").to_string(),
        _ => "<unknown>".to_string(),
    }
}

fn ports(spec: &Value) -> String {
    let port = |port: &Value| {
        let (number, node, protocol) = (
            port.number("port"),
            port.number("nodePort"),
            port.text("protocol"),
        );
        if node > 0 {
            format!("{number}:{node}/{protocol}")
        } else {
            format!("{number}/{protocol}")
        }
    };
    spec.list("ports").iter().map(port).collect::<Vec<_>>().join(",")
}

fn selector(spec: &Value) -> String {
    spec.entries("selector")
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(spec: Value, status: Value) -> Vec<String> {
        let service = json!({"metadata": {"name": "a"}, "spec": spec, "status": status});
        let cells = SERVICE.iter().map(|c| (c.cell)(&service, 0));
        cells
            .map(|cell| cell.as_str().unwrap_or_default().to_string())
            .collect()
    }

    #[test]
    fn the_api_servers_own_service() {
        let spec = json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 443, "protocol": "TCP"}],
        });
        let wanted = [
            "a",
            "ClusterIP",
            "10.96.0.1",
            "<none>",
            "443/TCP",
            "<unknown>",
            "<none>",
        ];
        assert_eq!(printed(spec, Value::Null), wanted);
    }

    #[test]
    fn addresses_from_outside() {
        let external = |spec: Value, status: Value| printed(spec, status)[3].clone();
        let ingress = |items: Value| json!({"loadBalancer": {"ingress": items}});
        let balancer = || json!({"type": "LoadBalancer"});
        assert_eq!(external(balancer(), Value::Null), "<pending>");
        assert_eq!(
            external(balancer(), ingress(json!([{"ip": "172.30.0.240"}]))),
            "172.30.0.240"
        );
        assert_eq!(
            external(balancer(), ingress(json!([{"ip": "b"}, {"hostname": "a"}]))),
            "a,b"
        );
        let both = json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.1"]});
        assert_eq!(
            external(both, ingress(json!([{"ip": "172.30.0.240"}]))),
            "172.30.0.240,192.0.2.1"
        );
        assert_eq!(
            external(
                json!({"type": "NodePort", "externalIPs": ["1", "2"]}),
                Value::Null
            ),
            "1,2"
        );
        assert_eq!(
            external(
                json!({"type": "ExternalName", "externalName": "a.b"}),
                Value::Null
            ),
            "a.b"
        );
    }

    #[test]
    fn ports_headless_and_selectors() {
        let cells = printed(
            json!({
                "type": "NodePort", "clusterIP": "None", "selector": {"b": "2", "a": "1"},
                "ports": [{"port": 80, "nodePort": 31853, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            }),
            Value::Null,
        );
        assert_eq!(cells[2..5], ["None", "<none>", "80:31853/TCP,53/UDP"]);
        assert_eq!(cells[6], "a=1,b=2");
        assert_eq!(printed(json!({"type": "ExternalName"}), Value::Null)[4], "<none>");
    }
}
