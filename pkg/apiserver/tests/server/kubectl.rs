//! The real kubectl against the server; the one on the PATH.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Running, text};

const NGINX: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx, labels: {app: nginx}}
spec:
  clusterIP: 10.96.7.7
  selector: {app: nginx}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: nginx}}
spec:
  nodeName: n1
  containers:
  - {name: c, image: i, ports: [{containerPort: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn looking_around() {
    let server = Running::start().await;
    let version = server.kubectl(&["version"]).await;
    println!("{version}");
    assert!(version.contains("v1.33.0+svcnet"));
    let services = server.kubectl(&["get", "svc", "-A", "-o", "wide"]).await;
    let line = services.lines().find(|l| l.contains("kubernetes")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        words[..6],
        [
            "default",
            "kubernetes",
            "ClusterIP",
            "10.96.0.1",
            "<none>",
            "443/TCP"
        ]
    );
    assert!(services.contains("53/UDP,53/TCP"));
    let resources = server.kubectl(&["api-resources"]).await;
    assert!(resources.contains("endpointslices") && resources.contains("metallb.io/v1beta1"));
    let explained = server.kubectl(&["explain", "service.spec.ports.nodePort"]).await;
    assert!(explained.contains("nodePort <integer>"), "{explained}");
    server.kubectl(&["get", "namespaces", "--chunk-size=1"]).await;
    server.kubectl(&["api-versions"]).await;
    server.kubectl(&["cluster-info"]).await;
    let raw = server.kubectl(&["get", "--raw", "/readyz?verbose"]).await;
    assert!(raw.contains("readyz check passed"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_change_and_apply_again() {
    let server = Running::start().await;
    assert_eq!(
        server.kubectl_in(&["apply", "-f", "-"], NGINX).await.trim(),
        "service/nginx created"
    );
    assert_eq!(
        server.kubectl_in(&["apply", "-f", "-"], NGINX).await.trim(),
        "service/nginx unchanged"
    );
    let changed = NGINX.replace("port: 80, targetPort: 8080", "port: 81, targetPort: 8081");
    let diff = server.kubectl_full(&["diff", "-f", "-"], &changed).await;
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff.stderr));
    assert!(text(&diff.stdout).contains("+    targetPort: 8081"));
    assert_eq!(
        server.kubectl_in(&["apply", "-f", "-"], &changed).await.trim(),
        "service/nginx configured"
    );
    let ports = server
        .kubectl(&["get", "svc", "nginx", "-o", "jsonpath={.spec.ports[*].port}"])
        .await;
    assert_eq!(ports, "81");
    let dry = server
        .kubectl_in(&["apply", "--dry-run=server", "-f", "-"], NGINX)
        .await;
    assert_eq!(dry.trim(), "service/nginx configured (server dry run)");
    let wrong = server
        .kubectl_refused(&["apply", "-f", "-"], &NGINX.replace("ports:", "prots:"))
        .await;
    assert!(wrong.contains("unknown field \"spec.prots\""), "{wrong}");
    server.kubectl_in(&["replace", "-f", "-"], NGINX).await;
    let manifest = NGINX.replace("8080", "8082");
    let applied = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let applied = server.kubectl_in(&applied, &manifest).await;
    assert_eq!(applied.trim(), "service/nginx serverside-applied");
    let missing = server
        .kubectl_refused(&["create", "configmap", "c", "-n", "nope"], "")
        .await;
    assert!(missing.contains("namespaces \"nope\" not found"), "{missing}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn making_services_and_changing_them_by_hand() {
    let server = Running::start().await;
    // kubectl 1.32 and later send this one in protobuf.
    let made = [
        "create",
        "service",
        "clusterip",
        "foo",
        "--tcp=80:8080",
        "--clusterip=10.96.9.9",
    ];
    assert_eq!(server.kubectl(&made).await.trim(), "service/foo created");
    server
        .kubectl(&[
            "create",
            "service",
            "externalname",
            "ext",
            "--external-name",
            "www.example.com",
        ])
        .await;
    let shown = server.kubectl(&["describe", "svc", "foo"]).await;
    let shown: Vec<String> = shown
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for line in ["IP: 10.96.9.9", "TargetPort: 8080/TCP", "Selector: app=foo"] {
        assert!(shown.iter().any(|l| l == line), "{shown:#?}");
    }
    server.kubectl(&["label", "svc", "foo", "x=y"]).await;
    server.kubectl(&["annotate", "svc", "foo", "note=1"]).await;
    assert_eq!(
        server
            .kubectl(&["get", "svc", "-l", "x=y", "-o", "name"])
            .await
            .trim(),
        "service/foo"
    );
    server
        .kubectl(&["set", "selector", "svc", "foo", "app=other"])
        .await;
    server
        .kubectl(&[
            "patch",
            "svc",
            "foo",
            "-p",
            r#"{"spec":{"ports":[{"port":80,"targetPort":9090}]}}"#,
        ])
        .await;
    server
        .kubectl(&[
            "patch",
            "svc",
            "foo",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/metadata/labels/x"}]"#,
        ])
        .await;
    let template = "jsonpath={.spec.selector.app} {.spec.ports[0].targetPort} {.metadata.labels.x}";
    assert_eq!(
        server.kubectl(&["get", "svc", "foo", "-o", template]).await,
        "other 9090 "
    );

    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn editing_and_exposing() {
    let server = Running::start().await;
    server.kubectl_in(&["apply", "-f", "-"], NGINX).await;
    let editor = server.path("editor");
    std::fs::write(
        &editor,
        "#!/bin/sh\nexec sed -i 's/targetPort: 8080/targetPort: 7070/' \"$1\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        server.kubectl(&["edit", "svc", "nginx"]).await.trim(),
        "service/nginx edited"
    );
    let port = server
        .kubectl(&[
            "get",
            "svc",
            "nginx",
            "-o",
            "jsonpath={.spec.ports[0].targetPort}",
        ])
        .await;
    assert_eq!(port, "7070");

    server.kubectl_in(&["apply", "-f", "-"], POD).await;
    let pods = server
        .kubectl(&["get", "pods", "-o", "wide", "--show-labels"])
        .await;
    let head: Vec<&str> = pods
        .lines()
        .next()
        .unwrap()
        .split("   ")
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .collect();
    assert_eq!(
        head,
        [
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "NODE",
            "NOMINATED NODE",
            "READINESS GATES",
            "LABELS"
        ]
    );
    let exposed = server
        .kubectl(&[
            "expose",
            "pod",
            "web",
            "--port=80",
            "--overrides",
            r#"{"spec":{"clusterIP":"10.96.8.8"}}"#,
        ])
        .await;
    assert_eq!(exposed.trim(), "service/web exposed");
    server.kubectl(&["get", "all"]).await;

    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_watching() {
    let server = Running::start().await;
    server.kubectl_in(&["apply", "-f", "-"], POD).await;
    let watch = server.kubectl_spawn(&["get", "pods", "-w"], "watch.out");
    let outside = server.kubectl_spawn(
        &["get", "pods", "--watch-only", "-l", "app=nginx", "-o", "name"],
        "only.out",
    );
    watch.until(|out| out.contains("web ")).await;
    let wait = server.kubectl_spawn(
        &["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"],
        "wait.out",
    );
    let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    server
        .kubectl(&[
            "patch",
            "pod",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .await;
    wait.until(|out| out.contains("condition met")).await;
    assert!(wait.ended().await);
    watch
        .until(|out| out.lines().filter(|l| l.starts_with("web ")).count() >= 2)
        .await;
    outside.until(|out| out.contains("pod/web")).await;
    let gone = server.kubectl_spawn(&["wait", "--for=delete", "pod/web", "--timeout=60s"], "gone.out");
    assert_eq!(
        server.kubectl(&["delete", "pod", "web"]).await.trim(),
        "pod \"web\" deleted"
    );
    assert!(gone.ended().await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_in_all_ways() {
    let server = Running::start().await;
    for name in ["a", "b", "c"] {
        server
            .kubectl(&["create", "configmap", name, "--from-literal=k=v"])
            .await;
    }
    server.kubectl(&["label", "configmap", "a", "b", "x=y"]).await;
    server
        .kubectl(&["delete", "configmap", "-l", "x=y", "--wait"])
        .await;
    assert_eq!(
        server.kubectl(&["get", "configmaps", "-o", "name"]).await.trim(),
        "configmap/c"
    );
    server
        .kubectl(&["delete", "configmap", "--all", "--cascade=foreground"])
        .await;
    let none = server.kubectl_refused(&["get", "configmap", "c"], "").await;
    assert_eq!(
        none.trim(),
        "Error from server (NotFound): configmaps \"c\" not found"
    );
    let default = server
        .kubectl_refused(&["delete", "namespace", "default"], "")
        .await;
    assert!(default.contains("this namespace may not be deleted"), "{default}");
    server.kubectl(&["create", "namespace", "x"]).await;
    server
        .kubectl(&["delete", "namespace", "x", "--wait=false"])
        .await;
    let dying = server.kubectl(&["get", "namespace", "x"]).await;
    assert!(dying.contains("Terminating"), "{dying}");
    server.stop().await;
}
