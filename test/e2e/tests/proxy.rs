//! Scenario 25 and what an operator looks at on a node.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, until};

#[test]
fn the_rules_are_readable_and_health_is_told() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {type: NodePort, selector: {app: nginx}, ports: [{name: http, port: 80}]}\n",
    );
    let ip = lab.cluster_ip("nginx");
    let web1 = lab.pod_ip("web1");
    for node in ["n1", "n2", "n3"] {
        until(&format!("the rules of {node} name the Service"), || {
            let rules = lab.exec(node, &["nft", "list", "ruleset"]);
            let shown = [ip.as_str(), &web1, "default/nginx:http"]
                .iter()
                .all(|part| rules.text().contains(part));
            shown.then_some(())
        });
        let json = lab.exec(node, &["nft", "-j", "list", "ruleset"]);
        assert!(serde_json::from_str::<serde_json::Value>(json.text()).unwrap()["nftables"].is_array());
        let ready = lab.curl(node, "http://127.0.0.1:10249/readyz");
        assert!(ready.text().contains("[+]proxy ok"), "{ready:?}");
        let metrics = lab.curl(node, "http://127.0.0.1:10249/metrics");
        assert!(
            metrics.text().contains("sync_proxy_rules_duration_seconds"),
            "{metrics:?}"
        );
    }
    assert!(lab.kubectl(&["delete", "svc", "nginx"]).ok);
    until("no trace of the Service is left", || {
        let rules = lab.exec("n2", &["nft", "list", "ruleset"]);
        (!rules.text().contains("default/nginx")).then_some(())
    });
}

/// A pod reaches itself through its Service (11), a client's address is kept where no one must change it.
#[test]
fn source_addresses_are_kept_where_they_can_be() {
    let lab = Lab::up(&[]);
    lab.pod("web1", "n2", "app=nginx");
    lab.pod("visitor", "n3", "app=visitor");
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    let url = format!("http://{}/clientip", lab.cluster_ip("nginx"));
    lab.reaches("visitor", &url.replace("/clientip", "/"), &["web1"]);
    let seen = lab.curl("visitor", &url);
    assert!(
        seen.text().starts_with(&format!("{}:", lab.pod_ip("visitor"))),
        "{seen:?}"
    );
    lab.reaches("web1", &url.replace("/clientip", "/"), &["web1"]);
    let port = lab.value("svc/nginx", "{.spec.ports[0].nodePort}").unwrap();
    let seen = until("the node with the pod answers", || {
        let seen = lab.curl("client", &format!("http://172.30.0.12:{port}/clientip"));
        seen.ok.then_some(seen)
    });
    assert!(
        seen.text().starts_with("172.30.0.100:"),
        "policy Local keeps the client's address: {seen:?}"
    );
    let elsewhere = lab.curl("client", &format!("http://172.30.0.13:{port}/"));
    assert!(
        !elsewhere.ok,
        "policy Local answers only where the pods are: {elsewhere:?}"
    );
}
