//! Scenarios 15 to 18: LoadBalancer addresses on layer 2.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::time::Instant;

use svcnet_e2e::{Lab, until};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec: {type: LoadBalancer, selector: {app: nginx}, ports: [{port: 80}]}
";

const POOL: &str = "
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first, namespace: metallb-system}
spec: {addresses: [172.30.0.240-172.30.0.250]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: first, namespace: metallb-system}
";

const CONFIG_MAP: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: metallb-system}
data:
  config: |
    address-pools:
    - name: old
      protocol: layer2
      addresses: [172.30.0.230-172.30.0.235]
";

fn external_ip(lab: &Lab) -> String {
    until("the Service has an external address", || {
        lab.value("svc/nginx", "{.status.loadBalancer.ingress[0].ip}")
    })
}

/// The hardware addresses that answer for an address when the client asks once.
fn owners(lab: &Lab, ip: &str) -> Vec<String> {
    let asked = lab.exec("client", &["arping", "-c", "3", "-w", "3", "-I", "eth0", ip]);
    let mut owners: Vec<String> = asked
        .out
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.matches(':').count() == 5)
        })
        .map(str::to_string)
        .collect();
    owners.sort();
    owners.dedup();
    owners
}

/// The node whose link has this hardware address.
fn node_of(lab: &Lab, mac: &str) -> String {
    let node = ["n1", "n2", "n3"]
        .into_iter()
        .find(|node| lab.exec(node, &["ip", "link"]).out.contains(mac));
    node.unwrap_or_else(|| panic!("no node has {mac}")).to_string()
}

/// The nodes that say of themselves that they announce the Service.
fn announcers(lab: &Lab) -> Vec<String> {
    let shown = lab.kubectl(&[
        "get",
        "servicel2statuses",
        "-n",
        "metallb-system",
        "-l",
        "metallb.io/service-name=nginx",
        "-o",
        "jsonpath={.items[*].status.node}",
    ]);
    shown.out.split_whitespace().map(str::to_string).collect()
}

fn with_pool() -> Lab {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(SERVICE);
    lab.apply(POOL);
    lab
}

/// Scenarios 15 and 16.
#[test]
fn an_address_from_the_pool_is_answered_by_one_node() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(SERVICE);
    let pending = lab.kubectl(&["get", "svc", "nginx"]);
    assert!(pending.text().contains("<pending>"), "{pending:?}");
    lab.apply(POOL);
    let ip = external_ip(&lab);
    assert!(ip.starts_with("172.30.0.24"), "{ip}");
    lab.reaches("client", &format!("http://{ip}/"), &["web1", "web2"]);
    let found = owners(&lab, &ip);
    assert_eq!(found.len(), 1, "exactly one node answers");
    let owner = node_of(&lab, &found[0]);
    until("the node that answers says so", || {
        (announcers(&lab) == [owner.as_str()]).then_some(())
    });
    lab.reaches("n1", &format!("http://{ip}/"), &["web1", "web2"]);
    lab.reaches("web1", &format!("http://{ip}/"), &["web1", "web2"]);
    let events = lab.kubectl(&["describe", "svc", "nginx"]);
    assert!(events.text().contains("Assigned IP"), "{events:?}");
    assert!(lab.kubectl(&["delete", "svc", "nginx"]).ok);
    until("nobody answers for a released address", || {
        owners(&lab, &ip).is_empty().then_some(())
    });
    until("nobody says that it announces", || {
        announcers(&lab).is_empty().then_some(())
    });
}

/// Scenario 17, the agent killed.
#[test]
fn another_node_takes_over_when_the_owner_dies() {
    let lab = with_pool();
    let ip = external_ip(&lab);
    let url = format!("http://{ip}/");
    lab.reaches("client", &url, &["web1", "web2"]);
    let mac = until("one node answers", || owners(&lab, &ip).pop());
    let owner = node_of(&lab, &mac);
    // Endpoints stay: the pods of the owner die with it, those elsewhere do not.
    assert!(lab.lab(&["node", "stop"], &[&owner, "--signal", "KILL"]).ok);
    assert!(lab.lab(&["node", "cut"], &[&owner]).ok);
    let died = Instant::now();
    until("the client is answered again", || {
        let answer = lab.exec(
            "client",
            &["curl", "-sS", "--max-time", "0.3", "--noproxy", "*", &url],
        );
        answer.ok.then_some(())
    });
    eprintln!("answered again {:?} after the owner's death", died.elapsed());
    let mac = until("another node answers", || {
        owners(&lab, &ip).into_iter().find(|other| *other != mac)
    });
    let heir = node_of(&lab, &mac);
    assert_ne!(heir, owner);
    if owner != "n1" {
        until("the dead node no longer says that it announces", || {
            (announcers(&lab) == [heir.as_str()]).then_some(())
        });
    }
    assert!(lab.lab(&["node", "heal"], &[&owner]).ok);
    assert!(lab.lab(&["node", "start"], &[&owner]).ok);
    until("one node answers after the return", || {
        (owners(&lab, &ip).len() == 1).then_some(())
    });
    lab.reaches("client", &url, &["web1", "web2"]);
}

/// Scenario 18.
#[test]
fn the_older_config_map_is_understood() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.pod("web1", "n2", "app=nginx");
    lab.apply(SERVICE);
    lab.apply(CONFIG_MAP);
    let ip = external_ip(&lab);
    assert!(ip.starts_with("172.30.0.23"), "{ip}");
    lab.reaches("client", &format!("http://{ip}/"), &["web1"]);
    assert_eq!(owners(&lab, &ip).len(), 1);
}
