//! Scenarios 6 to 11: ClusterIP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use svcnet_e2e::{Lab, until};

const NGINX: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  selector: {app: nginx}
  ports: [{port: 80, targetPort: 80}]
";

/// Scenario 6, from a node with and without such a pod, from a pod elsewhere and from a pod itself (11).
#[test]
fn a_cluster_ip_reaches_every_pod_from_everywhere() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.pod("visitor", "n1", "app=visitor");
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    for member in ["n1", "n2", "n3", "visitor", "web1", "web2"] {
        lab.reaches(member, &url, &["web1", "web2"]);
    }
}

/// Scenario 7.
#[test]
fn a_chosen_cluster_ip_is_honoured_immutable_and_taken_once() {
    let lab = Lab::up(&["--nodes", "1"]);
    let chosen = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {ip}, selector: {{app: nginx}}, ports: [{{port: 80}}]}}\n"
        )
    };
    lab.apply(&chosen("nginx", "10.109.113.53"));
    assert_eq!(lab.cluster_ip("nginx"), "10.109.113.53");
    let changed = lab.try_apply(&chosen("nginx", "10.109.113.54"));
    assert!(
        !changed.ok && changed.err.contains("may not change once set"),
        "{changed:?}"
    );
    let taken = lab.try_apply(&chosen("other", "10.109.113.53"));
    let words = "spec.clusterIPs: Invalid value: []string{\"10.109.113.53\"}: failed to allocate IP 10.109.113.53: \
                 provided IP is already allocated";
    assert!(!taken.ok && taken.err.contains(words), "{taken:?}");
    let outside = lab.try_apply(&chosen("outside", "192.168.7.7"));
    let words = "provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/12";
    assert!(!outside.ok && outside.err.contains(words), "{outside:?}");
}

/// Scenario 8.
#[test]
fn a_service_follows_its_pods() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    lab.reaches("n1", &url, &["web1", "web2"]);
    let before = lab.pod_ip("web1");
    assert!(lab.lab(&["pod", "rm"], &["web1"]).ok);
    lab.reaches("n1", &url, &["web2"]);
    lab.pod("web1", "n2", "app=nginx");
    assert_ne!(lab.pod_ip("web1"), before, "an address is not reused at once");
    lab.reaches("n1", &url, &["web1", "web2"]);
    // Scenario 5: what is there, and where.
    let got = lab.kubectl(&["get", "endpoints", "nginx", "-o", "yaml"]);
    for part in [
        "nodeName: n2",
        "nodeName: n3",
        "kind: Pod",
        "name: web1",
        "port: 80",
    ] {
        assert!(got.text().contains(part), "{part} is not in {}", got.out);
    }
}

/// Scenario 9.
#[test]
fn session_affinity_keeps_a_client_on_one_pod() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(&NGINX.replace("spec:", "spec:\n  sessionAffinity: ClientIP"));
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    let first = until("the Service answers", || {
        let answer = lab.curl("n1", &url);
        answer.ok.then(|| answer.text().to_string())
    });
    for _ in 0..20 {
        assert_eq!(lab.curl("n1", &url).text(), first);
    }
}

/// Scenario 10.
#[test]
fn a_named_target_port_is_that_of_each_pod() {
    let lab = Lab::up(&[]);
    lab.pod_with("web1", "n2", "app=nginx", &["--container-port", "8080=http"]);
    lab.pod_with("web2", "n3", "app=nginx", &["--container-port", "8181=http"]);
    lab.apply(&NGINX.replace("targetPort: 80", "targetPort: http"));
    lab.reaches(
        "n1",
        &format!("http://{}/", lab.cluster_ip("nginx")),
        &["web1", "web2"],
    );
}

/// A Service that nobody stands behind refuses at once, and says nothing of the kind once somebody does.
#[test]
fn no_endpoints_means_refused_not_silence() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.pod("visitor", "n1", "app=visitor");
    lab.apply(NGINX);
    let url = format!("http://{}/", lab.cluster_ip("nginx"));
    for member in ["n1", "n2", "visitor"] {
        // curl says "Couldn't connect" of a refusal and "timed out" of silence.
        until("the connection is refused", || {
            let answer = lab.curl(member, &url);
            answer.err.contains("Couldn't connect to server").then_some(())
        });
    }
    lab.pod("web1", "n2", "app=nginx");
    lab.reaches("visitor", &url, &["web1"]);
}

/// Scenario 22.
#[test]
fn a_service_without_selector_leads_to_hand_made_endpoints() {
    let lab = Lab::up(&["--nodes", "2"]);
    // The client stands for the outside database: something that listens on its address.
    let svcnet = svcnet_e2e::binary();
    let respond = ["pod", "respond", "--name", "database", "--container-port", "3306"];
    let mut database = lab
        .exec_command("client", &[&[svcnet.to_str().unwrap()], &respond[..]].concat())
        .spawn()
        .unwrap();
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{port: 3306}]}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {name: db}\n\
         subsets: [{addresses: [{ip: 172.30.0.100}], ports: [{port: 3306}]}]\n",
    );
    lab.pod("visitor", "n2", "app=visitor");
    let url = format!("http://{}:3306/", lab.cluster_ip("db"));
    lab.reaches("visitor", &url, &["database"]);
    lab.reaches("n1", &url, &["database"]);
    database.kill().unwrap();
    database.wait().unwrap();
}

/// A ServiceCIDR extends the range while the cluster runs: its addresses are given and reached, also from nodes, whose
/// route to them goes through the bridge.
#[test]
fn a_range_that_is_added_works_at_once() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.apply(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\n\
         spec: {cidrs: [10.200.0.0/24]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: added}\n\
         spec: {clusterIP: 10.200.0.7, selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    until("the address has its object", || {
        let shown = lab.kubectl(&["get", "ipaddress", "10.200.0.7"]);
        shown.out.contains("services/default/added").then_some(())
    });
    for node in ["n1", "n2"] {
        until("the node has a route", || {
            let route = lab.exec(node, &["ip", "route", "show", "10.200.0.0/24"]);
            route.out.contains("svcnet0").then_some(())
        });
    }
    for member in ["web1", "n1", "n2"] {
        lab.reaches(member, "http://10.200.0.7/", &["web1", "web2"]);
    }
    assert!(lab.kubectl(&["delete", "servicecidr", "more", "--wait=false"]).ok);
    until("the range says why it stays", || {
        let path = "{.status.conditions[0].reason}";
        (lab.value("servicecidr/more", path)? == "Terminating").then_some(())
    });
    lab.reaches("web1", "http://10.200.0.7/", &["web1", "web2"]);
    assert!(lab.kubectl(&["delete", "svc", "added"]).ok);
    until(
        "the range goes with its last address, and its route with it",
        || {
            let gone = !lab.kubectl(&["get", "servicecidr", "more"]).ok;
            let route = lab.exec("n1", &["ip", "route", "show", "10.200.0.0/24"]);
            (gone && route.out.trim().is_empty()).then_some(())
        },
    );
}
