use serde_json::{Value, json};

use super::super::{OnNode, frontends};
use super::*;
use crate::config::Config;

fn service(name: &str, spec: &Value, status: &Value) -> Arc<core::Service> {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec, "status": status});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn slice(service: &str, endpoints: &[(&str, &str, &str)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, pod, node)| {
            json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": node,
                   "targetRef": {"kind": "Pod", "name": pod}})
        })
        .collect();
    let object = json!({
        "metadata": {"namespace": "default", "name": format!("{service}-1"),
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn shown(services: &[Arc<core::Service>], slices: &[Arc<EndpointSlice>]) -> String {
    let config = Config::default();
    let on = OnNode {
        name: "n2",
        config: &config,
        node: None,
    };
    let frontends = frontends(on, services.to_vec(), slices.to_vec());
    let counted = Connections::default();
    let holds = |key: FrontendKey| Some(key.port() != 443);
    let shown = show(&frontends, services, slices, Some(&counted), holds);
    shown.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_is_its_frontends_and_its_endpoints() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.104.3.7", "clusterIPs": ["10.104.3.7"],
        "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [{"name": "http", "port": 80, "nodePort": 31853, "protocol": "TCP"}],
    });
    let status = json!({"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}});
    let services = [service("web", &spec, &status)];
    let slices = [slice(
        "web",
        &[("10.244.1.2", "web1", "n2"), ("10.244.2.2", "web2", "n3")],
    )];
    assert_eq!(
        shown(&services, &slices),
        "\
default/web:http   clients stay for 10800 s
  10.104.3.7:80/tcp     cluster IP
  172.30.0.200:80/tcp   load balancer   from outside to endpoints here only   only from 192.0.2.0/24
  *:31853/tcp           node port       from outside to endpoints here only
  -> 10.244.1.2:8080    web1 on n2 (here)   0 connections
  -> 10.244.2.2:8080    web2 on n3          0 connections
"
    );
}

#[test]
fn what_goes_nowhere_and_what_the_kernel_lacks_is_said() {
    let spec = |address: &str, port: u16| {
        json!({"clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Local",
               "ports": [{"name": "http", "port": port, "protocol": "TCP"}]})
    };
    let none = Value::Null;
    let services = [
        service("empty", &spec("10.96.0.5", 80), &none),
        service("far", &spec("10.96.0.6", 443), &none),
    ];
    let slices = [slice("far", &[("10.244.2.2", "web2", "n3")])];
    assert_eq!(
        shown(&services, &slices),
        "\
default/empty:http
  10.96.0.5:80/tcp   cluster IP      refused: no endpoints
default/far:http
  10.96.0.6:443/tcp   cluster IP      dropped: endpoints on other nodes only   NOT AS IT SHOULD BE IN THE KERNEL
"
    );
}
