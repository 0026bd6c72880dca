//! `kubectl auth can-i` and `auth whoami`, by the kubectl on the PATH: the answers are those that requests get.

use http::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::harness::{Running, text};

/// A kubeconfig for a token, beside the administrator's.
fn kubeconfig(server: &Running, name: &str, token: &str) -> std::path::PathBuf {
    let admin = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let users = admin.find("users:").unwrap();
    let path = server.path(name);
    std::fs::write(
        &path,
        format!(
            "{}users:\n- name: svcnet\n  user:\n    token: {token}\n",
            &admin[..users]
        ),
    )
    .unwrap();
    path
}

async fn as_role(server: &mut Running, wanted: Value) -> String {
    let admin = Client::of(server, "etc/kubeconfig.yaml");
    let (_, token) = admin.token(wanted).await;
    server.as_whom = Some(kubeconfig(server, "other.yaml", &token));
    token
}

/// What `kubectl auth can-i` says, whichever way it ends.
async fn can_i(server: &Running, question: &str) -> String {
    let mut args = vec!["auth", "can-i"];
    args.extend(question.split_whitespace());
    let output = server.kubectl_full(&args, "").await;
    let said = text(&output.stdout);
    assert_eq!(
        output.status.success(),
        said.starts_with("yes"),
        "{question}: {said}{}",
        text(&output.stderr)
    );
    said.trim().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_may_do_everything() {
    let server = Running::start().await;
    for question in [
        "* *",
        "delete secrets -A",
        "create services/status",
        "get /metrics",
        "post /svcnet/v1/tokens",
    ] {
        assert_eq!(can_i(&server, question).await, "yes", "{question}");
    }
    let listed = server.kubectl(&["auth", "can-i", "--list"]).await;
    assert!(listed.contains("*.*") && listed.contains("[*]"), "{listed}");
    let resources = server.kubectl(&["api-resources", "--verbs=create"]).await;
    assert!(resources.contains("selfsubjectaccessreviews"), "{resources}");
    let who = server.kubectl(&["auth", "whoami"]).await;
    assert!(
        who.contains("svcnet-admin") && who.contains("[system:masters system:authenticated]"),
        "{who}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_are_told_the_truth() {
    let mut server = Running::start().await;
    as_role(&mut server, json!({"role": "viewer", "user": "alice"})).await;
    for (question, answer) in [
        ("list pods -A", "yes"),
        ("watch endpointslices", "yes"),
        ("get services/status", "yes"),
        ("get secrets", "no"),
        ("create services", "no"),
        ("delete nodes/n1", "no"),
        ("get /metrics", "yes"),
        ("post /svcnet/v1/tokens", "no"),
        ("create selfsubjectaccessreviews.authorization.k8s.io", "yes"),
        ("create subjectaccessreviews.authorization.k8s.io", "no"),
        ("* *", "no"),
    ] {
        assert_eq!(can_i(&server, question).await, answer, "{question}");
    }
    let listed = server.kubectl(&["auth", "can-i", "--list"]).await;
    assert!(
        listed.contains("[get list watch]") && !listed.contains("secrets"),
        "{listed}"
    );
    let who = server.kubectl(&["auth", "whoami", "-o", "json"]).await;
    let who: Value = serde_json::from_str(&who).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "alice");
    assert_eq!(
        who["status"]["userInfo"]["groups"],
        json!(["svcnet:viewers", "system:authenticated"])
    );
    let refused = server.kubectl_refused(&["get", "secrets"], "").await;
    assert_eq!(
        refused.trim(),
        "Error from server (Forbidden): secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \
         \"\" in the namespace \"default\""
    );
    let refused = server.kubectl_refused(&["get", "pods", "--as", "bob"], "").await;
    assert!(
        refused.contains("cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
        "{refused}"
    );
    server.as_whom = Some(kubeconfig(&server, "wrong.yaml", "no.token"));
    let refused = server.kubectl_refused(&["get", "pods"], "").await;
    assert!(
        refused.contains("You must be logged in to the server"),
        "{refused}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_told_the_truth_about_each_object() {
    let mut server = Running::start().await;
    let admin = Client::of(&server, "etc/kubeconfig.yaml");
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        let pod = json!({
            "metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        assert_eq!(
            admin
                .send(Method::POST, "/api/v1/namespaces/default/pods", "", &pod)
                .await
                .0,
            201
        );
    }
    as_role(&mut server, json!({"role": "node", "node": "n1"})).await;
    let own = "no - node \"n1\" may do that to its own pods alone";
    let theirs = "no - pods \"theirs\" is forbidden: node \"n1\" can only delete pods with spec.nodeName set to itself";
    for (question, answer) in [
        ("list services -A", "yes"),
        ("update services", "no"),
        ("update nodes/n1", "yes"),
        (
            "update nodes/n2",
            "no - nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"",
        ),
        ("create pods", "yes"),
        ("delete pods", own),
        ("delete pods/mine", "yes"),
        ("delete pods/theirs", theirs),
        ("update leases/n1 -n kube-node-lease", "yes"),
        ("get secrets/any", "no"),
        ("post /svcnet/v1/tokens", "no"),
    ] {
        assert_eq!(can_i(&server, question).await, answer, "{question}");
    }
    let listed = server.kubectl_full(&["auth", "can-i", "--list"], "").await;
    assert!(text(&listed.stdout).contains("[n1]"), "{}", text(&listed.stdout));
    assert!(
        text(&listed.stderr).contains("incomplete"),
        "{}",
        text(&listed.stderr)
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_ask_for_others() {
    let server = Running::start().await;
    for (question, answer) in [
        ("list pods --as alice", "no"),
        ("list pods --as alice --as-group svcnet:viewers", "yes"),
        ("list secrets --as alice --as-group svcnet:viewers", "no"),
        (
            "update nodes/n2 --as system:node:n2 --as-group system:nodes",
            "yes",
        ),
    ] {
        assert_eq!(can_i(&server, question).await, answer, "{question}");
    }
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = |user: &str, groups: Value, verb: &str| {
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": {"verb": verb, "resource": "pods"}},
        })
    };
    let viewers = json!(["svcnet:viewers"]);
    let (code, answer) = server.post(reviews, &ask("alice", viewers.clone(), "list")).await;
    assert_eq!((code, &answer["status"]), (201, &json!({"allowed": true})));
    let (_, answer) = server.post(reviews, &ask("alice", viewers, "create")).await;
    assert_eq!(answer["status"], json!({"allowed": false}));
    let (code, refused) = server.post(reviews, &ask("", json!([]), "list")).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or \
         group must be specified"
    );
    let (code, refused) = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &json!({"spec": {}}),
        )
        .await;
    assert_eq!(code, 422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("must be specified"),
        "{refused}"
    );
    assert_eq!(server.get(reviews).await.0, 405);
    let tokens = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, unknown) = server.post(tokens, &json!({"spec": {"token": "x.y"}})).await;
    assert_eq!(unknown["status"]["error"], "invalid bearer token");
    let (_, token) = Client::of(&server, "etc/kubeconfig.yaml")
        .token(json!({"role": "viewer", "user": "eve"}))
        .await;
    let (_, known) = server.post(tokens, &json!({"spec": {"token": token}})).await;
    assert_eq!(known["status"]["authenticated"], true);
    assert_eq!(known["status"]["user"]["username"], "eve");
    server.stop().await;
}
