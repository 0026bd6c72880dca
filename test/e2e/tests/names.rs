//! Scenarios 19 to 23: names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, Upstream, until};

const NGINX: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  selector: {app: nginx}
  ports: [{name: http, port: 80}]
";

/// Scenario 23, and the records of an ordinary Service.
#[test]
fn a_service_has_its_names() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let ip = lab.cluster_ip("nginx");
    for member in ["n1", "n2", "web1"] {
        until(&format!("the name resolves on {member}"), || {
            (lab.dig(member, &["nginx.default.svc.cluster.local"]) == [ip.clone()]).then_some(())
        });
    }
    assert_eq!(
        lab.dig("web1", &["+tcp", "NGINX.Default.svc.cluster.local"])
            .concat(),
        ip
    );
    assert_eq!(lab.dig("n1", &["-x", &ip]), ["nginx.default.svc.cluster.local."]);
    let srv = lab.dig("n1", &["SRV", "_http._tcp.nginx.default.svc.cluster.local"]);
    assert_eq!(srv, ["0 100 80 nginx.default.svc.cluster.local."]);
    assert_eq!(
        lab.dig_status("n1", &["AAAA", "nginx.default.svc.cluster.local"]),
        "NOERROR"
    );
    assert_eq!(
        lab.dig_status("n1", &["missing.default.svc.cluster.local"]),
        "NXDOMAIN"
    );
    assert_eq!(lab.dig_status("n1", &["default.svc.cluster.local"]), "NOERROR");
    assert_eq!(
        lab.dig_status("n1", &["nginx.nowhere.svc.cluster.local"]),
        "NXDOMAIN"
    );
    assert_eq!(
        lab.dig("n1", &["kubernetes.default.svc.cluster.local"]),
        ["10.96.0.1"]
    );

    let resolv = lab.exec("web1", &["cat", "/etc/resolv.conf"]);
    for line in [
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "nameserver 10.96.0.10",
        "options ndots:5",
    ] {
        assert!(
            resolv.text().lines().any(|have| have == line),
            "{line:?} is not in {resolv:?}"
        );
    }
    lab.reaches("web1", "http://nginx/", &["web1", "web2"]);
}

/// Scenario 21.
#[test]
fn a_headless_service_is_its_ready_pods() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(&NGINX.replace("spec:", "spec:\n  clusterIP: None"));
    let name = "nginx.default.svc.cluster.local";
    let mut both = vec![lab.pod_ip("web1"), lab.pod_ip("web2")];
    both.sort();
    until("both pods stand behind the name", || {
        (lab.dig("n1", &[name]) == both).then_some(())
    });
    let srv = lab.dig("n1", &["SRV", &format!("_http._tcp.{name}")]);
    assert_eq!(srv.len(), 2, "{srv:?}");
    assert!(lab.lab(&["pod", "rm"], &["web1"]).ok);
    let left = [lab.pod_ip("web2")];
    until("the pod that went is gone from the name", || {
        (lab.dig("n1", &[name]) == left).then_some(())
    });
    let rules = lab.exec("n1", &["nft", "list", "ruleset"]);
    assert!(
        !rules.text().contains("default/nginx"),
        "nothing is programmed for a headless Service"
    );
    assert!(lab.lab(&["pod", "rm"], &["web2"]).ok);
    until("no pod, no name", || {
        (lab.dig_status("n1", &[name]) == "NXDOMAIN").then_some(())
    });
}

/// Further names of pods, which container runtimes give by CNI's capability `aliases`.
#[test]
fn a_pod_has_its_aliases_where_no_service_has_them() {
    let lab = Lab::up(&[]);
    lab.web();
    for (pod, aliases) in [
        ("web1", "svcnet.io/aliases=db,store"),
        ("web2", "svcnet.io/aliases=store"),
    ] {
        let annotated = lab.kubectl(&["annotate", "pod", pod, aliases]);
        assert!(annotated.ok, "{annotated:?}");
    }
    let (first, second) = (lab.pod_ip("web1"), lab.pod_ip("web2"));
    let mut both = vec![first.clone(), second];
    both.sort();
    let name = |alias: &str| format!("{alias}.default.svc.cluster.local");
    until("one pod has the one name, and both the other", || {
        let found = [lab.dig("n1", &[&name("db")]), lab.dig("web2", &[&name("store")])];
        (found == [vec![first.clone()], both.clone()]).then_some(())
    });
    lab.apply(&NGINX.replace("name: nginx", "name: db"));
    let service = lab.cluster_ip("db");
    until("a Service of that name goes before it", || {
        (lab.dig("n1", &[&name("db")]) == [service.clone()]).then_some(())
    });
    assert!(lab.kubectl(&["delete", "service", "db"]).ok);
    until("and without it the pod has its name again", || {
        (lab.dig("n1", &[&name("db")]) == [first.clone()]).then_some(())
    });
    assert!(lab.lab(&["pod", "rm"], &["web1"]).ok);
    until("a pod that is gone has none", || {
        (lab.dig_status("n1", &[&name("db")]) == "NXDOMAIN").then_some(())
    });
}

/// Scenarios 19 and 20. The upstream is a small name server on the host outside the cluster.
#[test]
fn an_external_name_is_chased() {
    let lab = Lab::up(&["--agent-arg=--upstream-dns=172.30.0.100"]);
    let _upstream = Upstream::start(&lab, "www.example.com.", [192, 0, 2, 80].into());
    lab.web();
    lab.apply(NGINX);
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: outside}\n\
         spec: {type: ExternalName, externalName: www.example.com}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: other}\n\
         spec: {type: ExternalName, externalName: nginx.default.svc.cluster.local}\n",
    );
    assert_eq!(lab.value("svc/outside", "{.spec.clusterIP}"), None);
    until("the outside name is chased", || {
        let lines = lab.dig("n2", &["outside.default.svc.cluster.local"]);
        (lines == ["192.0.2.80", "www.example.com."]).then_some(())
    });
    let ip = lab.cluster_ip("nginx");
    until("the inside name is chased", || {
        let lines = lab.dig("n2", &["alias.other.svc.cluster.local"]);
        (lines == [ip.clone(), "nginx.default.svc.cluster.local.".to_string()]).then_some(())
    });
    assert_eq!(lab.dig("web1", &["www.example.com"]), ["192.0.2.80"]);
    assert_eq!(lab.dig_status("web1", &["nothing.example.com"]), "NXDOMAIN");
}
