//! The real kubectl against the server. The one on the PATH is used; it says which it is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod harness;

use harness::Running;

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

#[tokio::test(flavor = "multi_thread")]
async fn explore() {
    let server = Running::start().await;
    for args in [
        &["version"][..],
        &["api-resources"],
        &["get", "svc", "-A", "-o", "wide"],
        &["get", "ep,endpointslices,ns"],
        &["get", "all", "-A"],
        &["create", "ns", "x"],
        &[
            "create",
            "service",
            "clusterip",
            "foo",
            "--tcp=80:8080",
            "--clusterip=10.96.9.9",
        ],
        &["create", "configmap", "c", "--from-literal=a=b"],
        &["get", "svc", "foo", "-o", "yaml"],
        &["describe", "svc", "foo"],
        &["label", "svc", "foo", "x=y"],
        &["annotate", "svc", "foo", "x=y"],
        &["get", "svc", "-l", "x=y"],
        &["get", "svc", "--field-selector", "metadata.name=foo"],
        &["explain", "service.spec.ports"],
        &["delete", "svc", "foo"],
        &["delete", "ns", "x", "--wait=false"],
        &["get", "ns", "x", "-o", "yaml"],
        &["create", "configmap", "c", "-n", "x"],
        &["create", "configmap", "c", "-n", "nope"],
    ] {
        let out = server.kubectl_full(args, "").await;
        println!(
            "$ kubectl {}\n{}{}",
            args.join(" "),
            harness::text(&out.stdout),
            harness::text(&out.stderr)
        );
    }
    println!("{:?}", server.kubectl_full(&["apply", "-f", "-"], NGINX).await);
    println!(
        "{:?}",
        server
            .kubectl_full(&["apply", "-f", "-"], &NGINX.replace("8080", "8081"))
            .await
    );
    println!(
        "{:?}",
        server
            .kubectl_full(&["apply", "-f", "-"], &NGINX.replace("ports:", "prots:"))
            .await
    );
    println!(
        "{:?}",
        server
            .kubectl_full(&["diff", "-f", "-"], &NGINX.replace("8080", "8082"))
            .await
    );
    println!(
        "{:?}",
        server
            .kubectl_full(
                &["apply", "--server-side", "-f", "-"],
                &NGINX.replace("8080", "8083")
            )
            .await
    );
    server.stop().await;
}
