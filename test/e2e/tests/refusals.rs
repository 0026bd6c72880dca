//! Bad input is refused, with words that name what is wrong and what would be right.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, Ran, svcnet};

#[track_caller]
fn refused(ran: &Ran, words: &[&str]) {
    assert!(!ran.ok, "accepted: {ran:?}");
    for word in words {
        assert!(ran.err.contains(word), "{word:?} is not in: {}", ran.err);
    }
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
}

#[test]
fn a_manifest_with_a_wrong_field_names_it() {
    let lab = Lab::up(&["--nodes", "1"]);
    let manifest =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: wrong}}\nspec: {spec}\n");
    refused(
        &lab.try_apply(&manifest("{prots: [{port: 80}]}")),
        &["unknown field \"spec.prots\""],
    );
    refused(
        &lab.try_apply(&manifest("{ports: [{port: 99999}]}")),
        &["spec.ports[0].port", "99999", "65535"],
    );
    refused(&lab.try_apply(&manifest("{ports: [{port: eighty}]}")), &["port"]);
    refused(
        &lab.try_apply(&manifest("{ports: [{port: 80}, {port: 81}]}")),
        &["spec.ports[0].name", "Required value"],
    );
    refused(
        &lab.try_apply(&manifest("{type: Nodeport, ports: [{port: 80}]}")),
        &["spec.type", "Nodeport", "NodePort"],
    );
    refused(
        &lab.try_apply(
            "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p, namespace: default}\n\
                        spec: {addresses: [172.30.0.250-172.30.0.240]}\n",
        ),
        &["spec.addresses[0]", "172.30.0.250-172.30.0.240"],
    );
    let stale = lab.kubectl(&["create", "configmap", "c", "--from-literal=a=b"]);
    assert!(stale.ok, "{stale:?}");
    let replaced = lab.exec(
        "n1",
        &[
            "bash",
            "-c",
            "kubectl get cm c -o json | sed 's/\"resourceVersion\": \"[0-9]*\"/\"resourceVersion\": \"1\"/' \
                         | kubectl replace -f -",
        ],
    );
    refused(
        &replaced,
        &["the object has been modified; please apply your changes to the latest version"],
    );
}

#[test]
fn flags_that_make_no_sense_are_explained() {
    refused(
        &svcnet(&["server", "--service-node-port-range", "33000-30000"]),
        &["33000-30000", "30000-32767"],
    );
    refused(
        &svcnet(&["server", "--service-cluster-ip-range", "10.96.0.0"]),
        &["--service-cluster-ip-range", "10.96.0.0"],
    );
    refused(
        &svcnet(&["server", "--service-cluster-ip-range", "10.96.0.1/12"]),
        &["10.96.0.0/12"],
    );
    refused(
        &svcnet(&[
            "server",
            "--service-cluster-ip-range",
            "10.244.0.0/16",
            "--cluster-cidr",
            "10.244.0.0/16",
        ]),
        &["--service-cluster-ip-range", "--cluster-cidr", "overlap"],
    );
    refused(
        &svcnet(&[
            "agent",
            "--server",
            "https://127.0.0.1:6443",
            "--token",
            "nonsense",
        ]),
        &["token", "K10"],
    );
    refused(&svcnet(&["agent"]), &["--server", "--kubeconfig"]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "cluster-cird: 10.244.0.0/16\n").unwrap();
    let path = config.to_str().unwrap();
    refused(
        &svcnet(&["server", "--config", path]),
        &[path, "cluster-cird", "cluster-cidr"],
    );
}

/// A second server on a data directory, a busy port, a wrong token: each inside a lab, where all is at hand.
#[test]
fn what_is_taken_is_said_to_be_taken() {
    let lab = Lab::up(&["--nodes", "2"]);
    let bin = svcnet_e2e::binary();
    let bin = bin.to_str().unwrap();
    let state = lab.state();
    let member = |name: &str| {
        let members = state["members"].as_array().unwrap();
        members
            .iter()
            .find(|member| member["name"] == name)
            .unwrap()
            .clone()
    };
    let data = member("n1")["dataDir"].as_str().unwrap().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_string();
    let (other, run, kubeconfig) = (path("other"), path("run"), path("kubeconfig"));
    let server = |data: &str, port: &str| {
        let args = [
            "timeout",
            "60",
            bin,
            "apiserver",
            "--data-dir",
            data,
            "--run-dir",
            &run,
            "--secure-port",
            port,
        ];
        lab.exec(
            "n1",
            &[
                &args[..],
                &["--kubeconfig-out", &kubeconfig, "--node-ip", "172.30.0.11"],
            ]
            .concat(),
        )
    };
    refused(&server(&data, "7443"), &[&data, "another"]);
    refused(&server(&other, "6443"), &["6443", "in use"]);

    let token = std::fs::read_to_string(format!("{data}/token")).unwrap();
    let (hash, _) = token.trim().split_once("::").unwrap();
    let join = |token: &str| {
        let args = [
            "timeout",
            "60",
            bin,
            "agent",
            "--server",
            "https://172.30.0.11:6443",
            "--token",
            token,
        ];
        let dirs = ["--data-dir", &other, "--run-dir", &run, "--node-name", "stranger"];
        lab.exec(
            "n2",
            &[&args[..], &dirs, &["--metrics-bind-address", "127.0.0.1:0"]].concat(),
        )
    };
    refused(&join(&format!("{hash}::server:wrong")), &["token"]);
    let other_ca = format!("K10{}::server:wrong", "ab".repeat(32));
    refused(&join(&other_ca), &["https://172.30.0.11:6443", "CA", "token"]);
    assert!(
        lab.kubectl(&["get", "node", "stranger"])
            .err
            .contains("not found")
    );
}
