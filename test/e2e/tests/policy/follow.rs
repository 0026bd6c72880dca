//! Connections that stand when policies change, and pods that start.

use std::net::IpAddr;

use svcnet_e2e::{Lab, until};

use crate::probe::{connect, echo, echoes};

fn deny(what: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: deny}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [{what}]}}}}"
    )
}

#[test]
fn an_established_connection_follows_a_change_of_policies() {
    let lab = Lab::up(&[]);
    for (name, node, label) in [
        ("web", "n1", "app=web"),
        ("near", "n1", "app=near"),
        ("far", "n2", "app=far"),
    ] {
        lab.pod(name, node, label);
    }
    echo(&lab.namespace("web"), 7);
    let web: IpAddr = lab.pod_ip("web").parse().unwrap();
    let mut streams = ["near", "far", "n1"].map(|from| connect(&lab.namespace(from), (web, 7)).unwrap());
    assert!(streams.iter_mut().all(echoes));
    let [near, far, node] = &mut streams;
    lab.apply(&deny("Ingress"));
    for stream in [&mut *near, &mut *far] {
        until("the connection is cut", || (!echoes(stream)).then_some(()));
        assert!(!echoes(stream), "and stays so");
    }
    assert!(echoes(node), "its own node reaches a pod whatever policies say");
    // Each packet is judged by what is in force when it comes, so that a mistake costs no connection.
    assert!(lab.kubectl(&["delete", "networkpolicy", "deny"]).ok);
    for stream in [near, far] {
        until("the connection goes on", || echoes(stream).then_some(()));
    }
    // The way out likewise.
    echo(&lab.namespace("far"), 7);
    let far: IpAddr = lab.pod_ip("far").parse().unwrap();
    let mut out = connect(&lab.namespace("web"), (far, 7)).unwrap();
    assert!(echoes(&mut out));
    lab.apply(&deny("Egress"));
    until("the connection out is cut", || (!echoes(&mut out)).then_some(()));
}

#[test]
fn a_pod_that_starts_is_isolated() {
    let lab = Lab::up(&[]);
    lab.apply(&deny("Ingress"));
    lab.pod("visitor", "n1", "app=visitor");
    // Asked for as fast as can be from when the pod has an address: not once is there an answer.
    lab.pod_with("web", "n2", "app=web", &["--container-port", "80", "--no-wait"]);
    let url = || format!("http://{}/", lab.pod_ip("web"));
    let never = |when: &str| {
        let url = url();
        for _ in 0..10 {
            let args = ["curl", "-s", "--connect-timeout", "0.2", "--noproxy", "*", &url];
            assert!(!lab.exec("visitor", &args).ok, "an answer {when}");
        }
    };
    let ready = || {
        until("it is ready, and its node reaches it", || {
            lab.curl("n2", &url()).ok.then_some(())
        });
    };
    never("while it starts");
    ready();
    never("when it runs");
    assert!(lab.lab(&["node", "stop"], &["n2"]).ok);
    assert!(lab.lab(&["node", "start"], &["n2"]).ok);
    ready();
    never("after its node has started anew");
    assert!(lab.kubectl(&["delete", "networkpolicy", "deny"]).ok);
    lab.reaches("visitor", &url(), &["web"]);
}
