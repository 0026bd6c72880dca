//! Crashes, cut cables, killed processes: traffic through what remains goes on, and all is consistent again by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use svcnet_e2e::{Lab, until};

const NGINX: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  selector: {app: nginx}
  ports: [{port: 80, targetPort: 80}]
";

fn kill_and_start(lab: &Lab, node: &str) {
    let stop = lab.lab(&["node", "stop"], &[node, "--signal", "KILL", "--keep-pods"]);
    assert!(stop.ok, "{stop:?}");
    let start = lab.lab(&["node", "start"], &[node]);
    assert!(start.ok, "{start:?}");
}

/// A connection that is open while its node's agent dies and comes back goes on; so do new ones.
#[test]
fn a_killed_agent_breaks_no_connection() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let ip = lab.cluster_ip("nginx");
    let url = format!("http://{ip}/");
    lab.reaches("n2", &url, &["web1", "web2"]);
    let mut open = lab
        .exec_command("n2", &["nc", &ip, "80"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ask = open.stdin.take().unwrap();
    let mut answers = BufReader::new(open.stdout.take().unwrap());
    let mut hostname = || {
        ask.write_all(b"hostname\n").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim().to_string()
    };
    let first = hostname();
    assert!(first.starts_with("web"), "{first}");
    let rules = lab.exec("n2", &["nft", "list", "ruleset"]).text().to_string();
    kill_and_start(&lab, "n2");
    assert_eq!(hostname(), first, "the open connection goes on");
    lab.reaches("n2", &url, &["web1", "web2"]);
    assert_eq!(
        lab.exec("n2", &["nft", "list", "ruleset"]).text(),
        rules,
        "the kernel holds what it held"
    );
    assert_eq!(hostname(), first);
    // And the agent that came back still follows.
    lab.pod("web3", "n1", "app=nginx");
    lab.reaches("n2", &url, &["web1", "web2", "web3"]);
    open.kill().unwrap();
    open.wait().unwrap();
}

/// The server dies: nodes go on with what they know; it comes back with every acknowledged write, and is followed.
#[test]
fn a_killed_server_loses_nothing() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    lab.reaches("n3", &url, &["web1", "web2"]);
    for n in 0..20 {
        assert!(
            lab.kubectl(&["create", "configmap", &format!("kept-{n}"), "--from-literal=a=b"])
                .ok
        );
    }
    let stop = lab.lab(&["node", "stop"], &["n1", "--signal", "KILL"]);
    assert!(stop.ok, "{stop:?}");
    for _ in 0..10 {
        assert!(
            lab.curl("n3", &url).text().starts_with("web"),
            "n3 goes on without the server"
        );
    }
    let ip = lab.cluster_ip_of_dns("n3", "nginx");
    assert!(url.contains(&ip), "names too");
    // An agent that starts while the server is away works from what it last knew.
    let stop = lab.lab(&["node", "stop"], &["n2", "--signal", "KILL", "--keep-pods"]);
    assert!(stop.ok, "{stop:?}");
    let start = lab.lab(&["node", "start"], &["n2", "--no-wait"]);
    assert!(start.ok, "{start:?}");
    until("the name resolves on n2", || {
        (lab.cluster_ip_of_dns("n2", "nginx") == ip).then_some(())
    });
    let start = lab.lab(&["node", "start"], &["n1"]);
    assert!(start.ok, "{start:?}");
    let kept = lab.kubectl(&["get", "configmap", "-o", "name"]);
    assert_eq!(kept.text().matches("configmap/kept-").count(), 20, "{kept:?}");
    lab.pod("web3", "n1", "app=nginx");
    lab.reaches("n3", &url, &["web1", "web2", "web3"]);
    lab.reaches("n2", &url, &["web1", "web2", "web3"]);
}

/// A node's cable is cut: its pods leave the Service, and come back with it.
#[test]
fn a_cut_node_is_left_out_until_it_heals() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    lab.reaches("n1", &url, &["web1", "web2"]);
    assert!(lab.lab(&["node", "cut"], &["n3"]).ok);
    until("n3 is not ready", || {
        let ready = lab.value("node/n3", "{.status.conditions[?(@.type==\"Ready\")].status}");
        (ready? != "True").then_some(())
    });
    until("the pod on n3 is not ready", || {
        let not_ready = lab.value(
            "endpoints/nginx",
            "{.subsets[0].notReadyAddresses[0].targetRef.name}",
        );
        (not_ready? == "web2").then_some(())
    });
    until("ten requests in a row are answered", || {
        (0..10)
            .all(|_| lab.curl("n1", &url).out.trim() == "web1")
            .then_some(())
    });
    assert!(lab.lab(&["node", "heal"], &["n3"]).ok);
    lab.reaches("n1", &url, &["web1", "web2"]);
    lab.reaches("n3", &url, &["web1", "web2"]);
}

/// Somebody flushes the node's rules and deletes its overlay link: both are put back.
#[test]
fn what_others_break_is_repaired() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    lab.reaches("n2", &url, &["web1", "web2"]);
    assert!(lab.exec("n2", &["nft", "flush", "ruleset"]).ok);
    lab.reaches("n2", &url, &["web1", "web2"]);
    assert!(lab.exec("n2", &["ip", "link", "del", "svcnet.1"]).ok);
    lab.reaches("n2", &url, &["web1", "web2"]);
}
