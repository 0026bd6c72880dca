//! Scenarios 12 to 14: NodePort.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, until};

fn service(port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: nginx}}\n\
         spec: {{type: NodePort, selector: {{app: nginx}}, ports: [{{port: 80, targetPort: 80{port}}}]}}\n"
    )
}

/// Scenario 12: from outside, on every node, also the one without a pod; and on a node's own loopback.
#[test]
fn a_node_port_answers_on_every_node() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(&service(""));
    let port = lab.value("svc/nginx", "{.spec.ports[0].nodePort}").unwrap();
    assert!((30000..=32767).contains(&port.parse::<u16>().unwrap()));
    let shown = lab.kubectl(&["get", "svc", "nginx"]);
    assert!(shown.text().contains(&format!("80:{port}/TCP")), "{shown:?}");
    for node in ["172.30.0.11", "172.30.0.12", "172.30.0.13"] {
        lab.reaches("client", &format!("http://{node}:{port}/"), &["web1", "web2"]);
    }
    lab.reaches("n1", &format!("http://172.30.0.11:{port}/"), &["web1", "web2"]);
    lab.reaches("n1", &format!("http://172.30.0.12:{port}/"), &["web1", "web2"]);
    lab.reaches("web1", &format!("http://172.30.0.13:{port}/"), &["web1", "web2"]);
}

/// Scenario 13.
#[test]
fn the_range_is_kept_and_can_be_widened() {
    let lab = Lab::up(&["--nodes", "1"]);
    lab.apply(&service(", nodePort: 30078"));
    assert_eq!(
        lab.value("svc/nginx", "{.spec.ports[0].nodePort}").as_deref(),
        Some("30078")
    );
    let other = |port: u16| service(&format!(", nodePort: {port}")).replace("name: nginx", "name: other");
    let taken = lab.try_apply(&other(30078));
    let words = "spec.ports[0].nodePort: Invalid value: 30078: provided port is already allocated";
    assert!(!taken.ok && taken.err.contains(words), "{taken:?}");
    let outside = lab.try_apply(&other(33333));
    let words = "Invalid value: 33333: provided port is not in the valid range. The range of valid ports is 30000-32767";
    assert!(!outside.ok && outside.err.contains(words), "{outside:?}");
    assert!(lab.lab(&["node", "stop"], &["n1"]).ok);
    let start = lab.lab(
        &["node", "start"],
        &["n1", "--server-arg=--service-node-port-range=30000-40000"],
    );
    assert!(start.ok, "{start:?}");
    lab.apply(&other(33333));
    assert_eq!(
        lab.value("svc/nginx", "{.spec.ports[0].nodePort}").as_deref(),
        Some("30078")
    );
}

/// Scenario 14: both protocols on one number, and each reaches the pods.
#[test]
fn udp_works_like_tcp() {
    let lab = Lab::up(&[]);
    for (pod, node) in [("web1", "n2"), ("web2", "n3")] {
        lab.pod_with(
            pod,
            node,
            "app=echo",
            &["--container-port", "7000", "--container-port", "7000/udp"],
        );
    }
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec:\n  type: NodePort\n  selector: {app: echo}\n  \
         ports: [{name: tcp, port: 7000, protocol: TCP}, {name: udp, port: 7000, protocol: UDP}]\n",
    );
    let ports = lab.value("svc/echo", "{.spec.ports[*].nodePort}").unwrap();
    let (tcp, udp) = ports.split_once(' ').unwrap();
    assert_eq!(tcp, udp, "one number for both protocols of one port");
    let ip = lab.cluster_ip("echo");
    for (member, host, port) in [
        ("n1", ip.as_str(), "7000"),
        ("web1", &ip, "7000"),
        ("client", "172.30.0.11", tcp),
        ("client", "172.30.0.12", tcp),
    ] {
        for flags in ["-Nw2", "-uw1"] {
            let ask = format!("echo hostname | nc {flags} {host} {port}");
            for pod in ["web1", "web2"] {
                until(&format!("{pod} answers {member} on {ask}"), || {
                    lab.exec(member, &["bash", "-c", &ask])
                        .out
                        .contains(pod)
                        .then_some(())
                });
            }
        }
    }
}
