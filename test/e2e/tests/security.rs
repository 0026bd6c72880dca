//! Who may do what in a whole cluster: tokens from the command line with the audit log, and certificates that last for seconds
//! and are renewed under running agents.
#![allow(clippy::unwrap_used, reason = "a test says what it expects")]

use std::time::{SystemTime, UNIX_EPOCH};

use svcnet_e2e::{Lab, binary, until};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `svcnet token …` on the server's node.
fn token(lab: &Lab, args: &[&str]) -> svcnet_e2e::Ran {
    let binary = binary();
    lab.exec("n1", &[&[binary.to_str().unwrap(), "token"], args].concat())
}

#[test]
fn tokens_are_made_and_revoked_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.log");
    let lab = Lab::up(&[
        "--nodes",
        "1",
        &format!("--server-arg=--audit-log-path={}", audit.display()),
    ]);
    let config = dir.path().join("alice.yaml");
    let made = token(
        &lab,
        &[
            "create",
            "--role",
            "viewer",
            "--user",
            "alice",
            "-o",
            "kubeconfig",
        ],
    );
    std::fs::write(&config, made.text()).unwrap();
    let alice = |args: &[&str]| lab.kubectl(&[&["--kubeconfig", config.to_str().unwrap()], args].concat());
    assert!(alice(&["get", "nodes", "-o", "name"]).text().contains("node/"));
    assert_eq!(alice(&["auth", "can-i", "get", "secrets"]).out.trim(), "no");
    assert!(alice(&["auth", "whoami"]).text().contains("alice"));
    let refused = alice(&["create", "configmap", "m"]).err;
    assert!(
        refused.contains("User \"alice\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""),
        "{refused}"
    );
    let log = until("the refusal is in the audit log", || {
        let log = std::fs::read_to_string(&audit).ok()?;
        log.lines()
            .any(|l| l.contains("\"alice\"") && l.contains("configmaps") && l.contains("403"))
            .then_some(log)
    });
    assert!(
        log.lines()
            .any(|l| l.contains("tokens") && l.contains("svcnet-admin")),
        "{log}"
    );

    let listed = token(&lab, &["list"]);
    let line = listed
        .text()
        .lines()
        .find(|l| l.contains("alice"))
        .unwrap()
        .to_string();
    let id = line.split_whitespace().next().unwrap();
    assert_eq!(token(&lab, &["revoke", id]).text(), format!("token/{id} revoked"));
    let refused = alice(&["get", "nodes"]).err;
    assert!(
        refused.contains("You must be logged in to the server"),
        "{refused}"
    );
    let wrong = token(&lab, &["create", "--role", "node"]).err;
    assert!(
        wrong.contains("node: Required value") && wrong.contains("--node NAME"),
        "{wrong}"
    );
}

#[test]
fn agents_outlive_their_certificates() {
    let lab = Lab::up(&["--nodes", "2", "--server-arg=--cluster-signing-duration=20s"]);
    lab.pod("web1", "n2", "app=nginx");
    let begun = now();
    // Whatever was signed when the lab came up has ended by then, and much of what came after it.
    until("two lives of a certificate have passed", || {
        (now() > begun + 42).then_some(())
    });
    let renewed = || {
        let time = lab.kubectl(&[
            "get",
            "lease",
            "-n",
            "kube-node-lease",
            "n2",
            "-o",
            "jsonpath={.spec.renewTime}",
        ]);
        time.ok.then(|| time.out.trim().to_string())
    };
    // The server's agent, n2's, and the controllers all go on.
    let before = until("n2 has a Lease", renewed);
    until("n2 refreshes its Lease", || {
        renewed().filter(|time| *time != before)
    });
    for node in ["n1", "n2"] {
        let ready = "{.status.conditions[?(@.type=='Ready')].status}";
        until("the node is ready", || {
            lab.value(&format!("node/{node}"), ready).filter(|s| s == "True")
        });
    }
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\nspec: {selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    let address = lab.cluster_ip("nginx");
    lab.reaches("n1", &format!("http://{address}/"), &["web1"]);
    lab.reaches("n2", &format!("http://{address}/"), &["web1"]);
}
