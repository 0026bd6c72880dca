//! Policies hold for what goes to Services through relays on sockets, which connect from their node's address: rows of the truth
//! table through ClusterIPs, and connections that stand.

use std::net::IpAddr;

use serde_json::{Value, json};
use svcnet_e2e::{Lab, until};
use svcnet_policy::model::{ObjectKey, Protocol};

use crate::probe::{connect, echo, echoes};
use crate::truth::{NAMESPACES, Stage, policy, questions};

/// What relays relay.
const PORTS: [(Protocol, u16); 3] = [(Protocol::TCP, 80), (Protocol::TCP, 81), (Protocol::UDP, 80)];
/// The numbers of the first of three policies each. Among them are all peers and ports of the table.
const POLICIES: [usize; 5] = [0, 3, 9, 24, 42];

/// Nine pods, each behind a Service of its own name.
fn stage() -> Stage {
    let mut stage = Stage::new(Lab::up_in("userspace", &["--dual-stack"]));
    let service = |(key, _): &(ObjectKey, Vec<IpAddr>)| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": key.namespace, "name": key.name},
            "spec": {
                "ipFamilyPolicy": "RequireDualStack",
                "selector": {"pod": key.name.trim_start_matches(key.namespace.as_str())},
                "ports": [
                    {"name": "one", "port": 80}, {"name": "two", "port": 81},
                    {"name": "three", "port": 80, "protocol": "UDP"},
                ],
            },
        })
    };
    let services: Vec<Value> = stage.pods.iter().map(service).collect();
    stage
        .lab
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": services}).to_string());
    let behind = |(key, _): &(ObjectKey, Vec<IpAddr>)| {
        let got = stage
            .lab
            .kubectl(&["-n", &key.namespace, "get", "service", &key.name, "-o", "json"]);
        let object: Value = serde_json::from_str(got.text()).unwrap();
        let list = object["spec"]["clusterIPs"].as_array().unwrap().iter();
        let addresses = list.map(|ip| ip.as_str().unwrap().parse().unwrap()).collect();
        (key.clone(), addresses)
    };
    let services: Vec<(ObjectKey, Vec<IpAddr>)> = stage.pods.iter().map(behind).collect();
    stage.questions = questions(&services, &PORTS);
    stage
}

#[test]
fn relays_let_through_what_policies_allow() {
    let mut stage = stage();
    stage.check("without a policy");
    let (mut allowed, mut denied) = (0, 0);
    for first in POLICIES {
        let of = |(at, namespace): (usize, &&str)| policy(first + at, "t", namespace);
        stage.apply(&NAMESPACES.iter().enumerate().map(of).collect::<Vec<_>>());
        stage.check(&format!("policies {first} to {}", first + NAMESPACES.len() - 1));
        let expected = stage.expected();
        allowed += expected.iter().filter(|it| **it).count();
        denied += expected.iter().filter(|it| !**it).count();
    }
    assert!(
        allowed > 300 && denied > 300,
        "{allowed} and {denied}: both are tested"
    );
    let gone = stage.lab.kubectl(&["delete", "networkpolicies", "--all", "-A"]);
    assert!(gone.ok, "{gone:?}");
    stage.view.policies.clear();
    stage.check("after all of them");
}

fn deny(what: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: deny}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [{what}]}}}}"
    )
}

/// As in the kernel: what stands is held while it is denied, and goes on when it is not.
#[test]
fn a_relayed_connection_follows_a_change_of_policies() {
    let lab = Lab::up_in("userspace", &[]);
    for (name, node, label) in [
        ("web", "n1", "app=web"),
        ("near", "n1", "app=near"),
        ("far", "n2", "app=far"),
    ] {
        lab.pod(name, node, label);
    }
    for pod in ["web", "far"] {
        echo(&lab.namespace(pod), 7);
        lab.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {pod}}}, \
             spec: {{selector: {{app: {pod}}}, ports: [{{port: 7}}]}}}}"
        ));
    }
    let [web, far]: [IpAddr; 2] = ["web", "far"].map(|name| lab.cluster_ip(name).parse().unwrap());
    let begin = |from: &str, to: IpAddr| {
        until("a connection is relayed", || {
            let mut stream = connect(&lab.namespace(from), (to, 7)).ok()?;
            echoes(&mut stream).then_some(stream)
        })
    };
    let mut streams = ["near", "far", "n1"].map(|from| begin(from, web));
    let mut out = begin("web", far);
    lab.apply(&deny("Ingress"));
    let [near, from_far, node] = &mut streams;
    for stream in [&mut *near, &mut *from_far] {
        until("the connection is held", || (!echoes(stream)).then_some(()));
        assert!(!echoes(stream), "and stays so");
    }
    assert!(echoes(node), "its own node reaches a pod whatever policies say");
    assert!(echoes(&mut out), "the way out is another matter");
    // One that begins meanwhile waits, as one does that the kernel drops.
    let mut late = connect(&lab.namespace("far"), (web, 7)).unwrap();
    assert!(!echoes(&mut late));
    assert!(lab.kubectl(&["delete", "networkpolicy", "deny"]).ok);
    for stream in [near, from_far, &mut late] {
        until("the connection goes on", || echoes(stream).then_some(()));
    }
    lab.apply(&deny("Egress"));
    until("the connection out is held", || (!echoes(&mut out)).then_some(()));
    assert!(lab.kubectl(&["delete", "networkpolicy", "deny"]).ok);
    until("the connection out goes on", || echoes(&mut out).then_some(()));
    // What the relays connected from goes with them.
    let sources = |node: &str| {
        let list = lab.exec(node, &["ip", "route", "show", "table", "local", "proto", "119"]);
        list.text().to_string()
    };
    assert!(sources("n2").contains("local 10.244."), "{}", sources("n2"));
    drop((streams, out, late));
    lab.set_proxy_mode("nftables");
    until("the address is given back", || {
        sources("n2").is_empty().then_some(())
    });
}
