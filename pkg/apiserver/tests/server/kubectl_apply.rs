//! Server-side apply as kubectl does it: the oldest and the newest kubectl of this machine.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::harness::{Running, kubectls, text};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, labels: {tier: front}}
spec:
  clusterIP: 10.96.7.7
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: admin, port: 81, targetPort: 8081}
";

const SERVER_SIDE: [&str; 4] = ["apply", "--server-side", "-f", "-"];

async fn started(program: &std::path::Path) -> Running {
    let mut server = Running::start().await;
    server.program = program.to_path_buf();
    println!("{}", server.kubectl(&["version", "--client"]).await);
    server
}

async fn web(server: &Running) -> Value {
    server.get("/api/v1/namespaces/default/services/web").await.1
}

/// Manager and operation of each entry.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let name = |e: &Value| {
        format!(
            "{} {}",
            e["manager"].as_str().unwrap(),
            e["operation"].as_str().unwrap()
        )
    };
    let mut owners: Vec<String> = entries.iter().map(name).collect();
    owners.sort();
    owners
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_on_the_server_conflicts_and_edits() {
    for program in kubectls() {
        let server = started(&program).await;
        let said = server.kubectl_in(&SERVER_SIDE, WEB).await;
        assert_eq!(said.trim(), "service/web serverside-applied");
        let first = web(&server).await;
        assert_eq!(owners(&first), ["kubectl Apply"]);
        server.kubectl_in(&SERVER_SIDE, WEB).await;
        assert_eq!(web(&server).await, first, "applied again, nothing is written");

        let editor = server.path("editor");
        std::fs::write(
            &editor,
            "#!/bin/sh\nexec sed -i 's/targetPort: 8080/targetPort: 7070/' \"$1\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
        server.kubectl(&["edit", "svc", "web"]).await;
        assert_eq!(
            owners(&web(&server).await),
            ["kubectl Apply", "kubectl-edit Update"]
        );
        let refused = server.kubectl_refused(&SERVER_SIDE, WEB).await;
        assert!(
            refused.starts_with(
                "error: Apply failed with 1 conflict: conflict with \"kubectl-edit\" using v1: \
                 .spec.ports[port=80,protocol=\"TCP\"].targetPort\n"
            ),
            "{refused}"
        );
        let shown = server
            .kubectl_full(&["diff", "--server-side", "--force-conflicts", "-f", "-"], WEB)
            .await;
        assert_eq!(shown.status.code(), Some(1), "{}", text(&shown.stderr));
        assert!(
            text(&shown.stdout).contains("+    targetPort: 8080"),
            "{}",
            text(&shown.stdout)
        );
        let forced = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        server.kubectl_in(&forced, WEB).await;
        let taken = web(&server).await;
        assert_eq!(
            (owners(&taken), &taken["spec"]["ports"][0]["targetPort"]),
            (vec!["kubectl Apply".to_string()], &8080.into())
        );

        // What is left out goes; what another manager applies stays.
        let mine = "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {mine: x}}\n";
        let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
        server.kubectl_in(&other, mine).await;
        let fewer = WEB
            .replace("  - {name: admin, port: 81, targetPort: 8081}\n", "")
            .replace("tier: front", "tier: back");
        server.kubectl_in(&SERVER_SIDE, &fewer).await;
        let now = web(&server).await;
        assert_eq!(now["spec"]["ports"].as_array().unwrap().len(), 1);
        assert_eq!(
            now["metadata"]["labels"],
            serde_json::json!({"tier": "back", "mine": "x"})
        );
        let dry = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        let said = server.kubectl_in(&dry, WEB).await;
        assert_eq!(said.trim(), "service/web serverside-applied (server dry run)");
        assert_eq!(web(&server).await, now);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_client_side_apply_to_server_side_and_back() {
    for program in kubectls() {
        let server = started(&program).await;
        let client_side = ["apply", "-f", "-"];
        server.kubectl_in(&client_side, WEB).await;
        assert_eq!(owners(&web(&server).await), ["kubectl-client-side-apply Update"]);
        let changed = WEB.replace("8080", "8082");
        server.kubectl_in(&SERVER_SIDE, &changed).await;
        let over = web(&server).await;
        assert_eq!(over["spec"]["ports"][0]["targetPort"], 8082);
        let note = over["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
            .as_str()
            .unwrap();
        assert!(note.contains("8082"), "the annotation is kept up: {note}");
        // Fields that only client-side apply owned can be given up.
        let fewer = changed.replace(", labels: {tier: front}", "");
        server.kubectl_in(&SERVER_SIDE, &fewer).await;
        let less = web(&server).await;
        if owners(&less).contains(&"kubectl-last-applied Apply".to_string()) {
            assert_eq!(less["metadata"].get("labels"), None, "{less:#}");
        }
        let said = server
            .kubectl_in(&client_side, &fewer.replace("8082", "8083"))
            .await;
        assert_eq!(said.trim(), "service/web configured");
        assert_eq!(web(&server).await["spec"]["ports"][0]["targetPort"], 8083);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_asks_for_in_vain_it_is_told_why() {
    for program in kubectls() {
        let server = started(&program).await;
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n\
                   spec: {nodeName: n1, containers: [{name: c, image: i}]}\n";
        server.kubectl_in(&["apply", "-f", "-"], pod).await;
        for (args, words) in [
            (
                vec!["logs", "p"],
                "svcnet runs no containers and keeps no logs of them",
            ),
            (
                vec!["exec", "p", "--", "true"],
                "svcnet runs no containers: use the container runtime",
            ),
            (
                vec!["create", "deployment", "d", "--image=i"],
                "svcnet is a network without workloads",
            ),
            (vec!["top", "pods"], "Metrics API not available"),
        ] {
            let refused = server.kubectl_refused(&args, "").await;
            println!("{args:?}: {refused}");
            assert!(refused.contains(words), "{args:?}: {refused}");
        }
        server
            .kubectl(&["delete", "pod", "p", "--force", "--grace-period=0"])
            .await;
        server.stop().await;
    }
}
