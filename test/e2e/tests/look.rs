//! Scenarios 1 to 3 and the ways of kubectl that the first tour uses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, until};

/// The words of a line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Scenario 1.
#[test]
fn the_first_look_shows_what_kubernetes_shows() {
    let lab = Lab::up(&[]);
    let services = lab.kubectl(&["get", "svc", "-o", "wide"]);
    let lines: Vec<Vec<&str>> = services.text().lines().map(words).collect();
    assert_eq!(
        lines[0],
        [
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "AGE",
            "SELECTOR"
        ]
    );
    assert_eq!(
        lines[1][..5],
        ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"]
    );
    assert_eq!(lines[1][6], "<none>");
    let endpoints = lab.kubectl(&["get", "ep", "kubernetes"]);
    assert!(endpoints.text().contains("172.30.0.11:6443"), "{endpoints:?}");
    let answer = lab.exec(
        "n3",
        &["curl", "-sSk", "--noproxy", "*", "https://10.96.0.1/version"],
    );
    assert!(answer.text().contains("gitVersion"), "{answer:?}");

    let nodes = lab.kubectl(&["get", "nodes", "-o", "wide"]);
    for (node, address) in [
        ("n1", "172.30.0.11"),
        ("n2", "172.30.0.12"),
        ("n3", "172.30.0.13"),
    ] {
        let line = nodes
            .text()
            .lines()
            .map(words)
            .find(|line| line[0] == node)
            .unwrap();
        assert_eq!((line[1], line[5]), ("Ready", address));
    }
}

/// Scenarios 2 and 3.
#[test]
fn pods_and_services_are_shown_as_by_kubernetes() {
    let lab = Lab::up(&[]);
    lab.web();
    let pods = lab.kubectl(&["get", "pod", "-o", "wide", "--show-labels"]);
    let lines: Vec<&str> = pods.text().lines().collect();
    let headings = [
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "NODE",
        "NOMINATED",
        "NODE",
        "READINESS",
    ];
    assert_eq!(words(lines[0])[..10], headings);
    let web1 = words(lines.iter().find(|line| line.starts_with("web1")).unwrap());
    assert_eq!(web1[1..4], ["1/1", "Running", "0"]);
    assert_eq!(
        web1[5..],
        [&lab.pod_ip("web1"), "n2", "<none>", "<none>", "app=nginx"]
    );

    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {selector: {app: nginx}, ports: [{port: 80, targetPort: 80}]}\n",
    );
    let both = [lab.pod_ip("web1"), lab.pod_ip("web2")].map(|ip| format!("{ip}:80"));
    let described = until("describe shows both endpoints", || {
        let described = lab.kubectl(&["describe", "svc", "nginx"]);
        both.iter()
            .all(|endpoint| described.out.contains(endpoint))
            .then_some(described.out)
    });
    for part in [
        "Selector:",
        "app=nginx",
        "Type:",
        "IP Family Policy:",
        "IP Families:",
        "IP:",
        "IPs:",
        "Port:",
        "TargetPort:",
        "Session Affinity:",
        "Events:",
    ] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }
}

/// `create service` and `expose pod` (their bodies are protobuf from kubectl 1.32 on).
#[test]
fn kubectl_makes_services() {
    let lab = Lab::up(&["--nodes", "1"]);
    lab.pod_with("web1", "n1", "app=nginx", &["--container-port", "80=http"]);
    let made = lab.kubectl(&["create", "service", "nodeport", "made", "--tcp=80:8080"]);
    assert_eq!(made.text(), "service/made created");
    assert_eq!(
        lab.value("svc/made", "{.spec.ports[0].targetPort}").as_deref(),
        Some("8080")
    );
    let exposed = lab.kubectl(&["expose", "pod", "web1", "--name", "exposed", "--port", "80"]);
    assert_eq!(exposed.text(), "service/exposed exposed");
    assert_eq!(
        lab.value("svc/exposed", "{.spec.selector.app}").as_deref(),
        Some("nginx")
    );
}

fn patches_merge_as_their_kind_says(lab: &Lab) {
    let patch = r#"[{"op":"replace","path":"/spec/ports/0/port","value":81}]"#;
    assert!(
        lab.kubectl(&["patch", "svc", "made", "--type=json", "-p", patch])
            .ok
    );
    assert!(
        lab.kubectl(&[
            "patch",
            "svc",
            "made",
            "--type=merge",
            "-p",
            r#"{"spec":{"externalName":null}}"#
        ])
        .ok
    );
    let strategic = r#"{"spec":{"ports":[{"port":81,"name":"web"},{"port":82,"name":"more"}]}}"#;
    assert!(lab.kubectl(&["patch", "svc", "made", "-p", strategic]).ok);
    assert_eq!(
        lab.value("svc/made", "{.spec.ports[*].name}").as_deref(),
        Some("web more")
    );
    assert_eq!(
        lab.value("svc/made", "{.spec.ports[0].targetPort}").as_deref(),
        Some("8080")
    );
}

/// label, edit and the three kinds of patch, and delete.
#[test]
fn kubectl_changes_objects() {
    let lab = Lab::up(&["--nodes", "1"]);
    for name in ["made", "exposed"] {
        assert!(
            lab.kubectl(&["create", "service", "clusterip", name, "--tcp=80:8080"])
                .ok
        );
    }
    assert_eq!(
        lab.kubectl(&["label", "svc", "made", "tier=front"]).text(),
        "service/made labeled"
    );
    let selected = lab.kubectl(&["get", "svc", "-l", "tier=front", "-o", "name"]);
    assert_eq!(selected.text(), "service/made");
    let fields = lab.kubectl(&[
        "get",
        "svc",
        "--field-selector",
        "metadata.name=exposed",
        "-o",
        "name",
    ]);
    assert_eq!(fields.text(), "service/exposed");
    let edited = lab.exec(
        "n1",
        &[
            "env",
            "KUBE_EDITOR=sed -i s/front/back/",
            "kubectl",
            "edit",
            "svc",
            "made",
        ],
    );
    assert!(edited.text().contains("service/made edited"), "{edited:?}");
    assert_eq!(
        lab.value("svc/made", "{.metadata.labels.tier}").as_deref(),
        Some("back")
    );
    patches_merge_as_their_kind_says(&lab);
    assert_eq!(
        lab.kubectl(&["delete", "svc", "made"]).text(),
        "service \"made\" deleted"
    );
    let gone = lab.kubectl(&["get", "svc", "made"]);
    assert_eq!(
        gone.err.trim(),
        "Error from server (NotFound): services \"made\" not found"
    );
}

/// `kubectl get -w` shows changes as they come.
#[test]
fn a_watch_shows_changes() {
    let lab = Lab::up(&["--nodes", "1"]);
    let mut watch = lab.exec_command(
        "n1",
        &["timeout", "20", "kubectl", "get", "configmap", "-w", "-o", "name"],
    );
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    for name in ["first", "second"] {
        assert!(
            lab.kubectl(&["create", "configmap", name, "--from-literal=a=b"])
                .ok
        );
    }
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    for name in ["first", "second"] {
        let wanted = format!("configmap/{name}");
        assert!(
            lines.by_ref().map_while(Result::ok).any(|line| line == wanted),
            "{wanted} was not shown"
        );
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// A namespace goes with all that is in it.
#[test]
fn a_deleted_namespace_takes_its_contents_along() {
    let lab = Lab::up(&["--nodes", "1"]);
    assert!(lab.kubectl(&["create", "namespace", "shop"]).ok);
    assert!(
        lab.kubectl(&["-n", "shop", "create", "configmap", "stock", "--from-literal=a=b"])
            .ok
    );
    assert!(
        lab.kubectl(&["-n", "shop", "create", "service", "clusterip", "till", "--tcp=80"])
            .ok
    );
    assert!(lab.kubectl(&["delete", "namespace", "shop"]).ok);
    let gone = lab.kubectl(&["get", "namespace", "shop"]);
    assert!(gone.err.contains("namespaces \"shop\" not found"), "{gone:?}");
    let missing = lab.kubectl(&["-n", "shop", "create", "configmap", "late", "--from-literal=a=b"]);
    assert!(
        missing.err.contains("namespaces \"shop\" not found"),
        "{missing:?}"
    );
}
