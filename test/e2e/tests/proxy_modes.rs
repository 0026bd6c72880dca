//! Scenarios 24, 26 and 27: modes, what stands in for one that the kernel does not have, and going over while running.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use svcnet_e2e::{Lab, binary, until};

const NGINX: &str = "
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  type: NodePort
  selector: {app: nginx}
  ports: [{port: 80, targetPort: 80}]
";

fn tables(lab: &Lab, node: &str) -> String {
    let list = lab.exec(node, &["nft", "list", "tables"]);
    list.text().to_string()
}

/// Addresses that relays have made local.
fn local_routes(lab: &Lab, node: &str) -> String {
    let list = lab.exec(node, &["ip", "route", "show", "table", "local", "proto", "115"]);
    list.text().to_string()
}

fn is_nftables(lab: &Lab, node: &str) -> Option<()> {
    let tables = tables(lab, node);
    let has = tables.lines().any(|line| line == "table ip svcnet");
    (has && local_routes(lab, node).is_empty()).then_some(())
}

fn is_userspace(lab: &Lab, node: &str, ip: &str) -> Option<()> {
    let has_table = tables(lab, node)
        .lines()
        .any(|line| line == "table ip svcnet" || line == "table ip6 svcnet");
    (!has_table && local_routes(lab, node).contains(ip)).then_some(())
}

/// A client opens connections without pause while the ConfigMap goes from mode to mode: none fails, and one that is open
/// all the time goes on. Nothing of the former mode stays.
#[test]
fn the_config_map_switches_every_node_without_an_interruption() {
    let lab = Lab::up(&[]);
    lab.web();
    lab.pod("visitor", "n2", "app=visitor");
    lab.apply(NGINX);
    let ip = lab.cluster_ip("nginx");
    let url = format!("http://{ip}/");
    let port = lab.value("svc/nginx", "{.spec.ports[0].nodePort}").unwrap();
    let outside = format!("http://172.30.0.12:{port}/");
    lab.reaches("visitor", &url, &["web1", "web2"]);
    lab.reaches("client", &outside, &["web1", "web2"]);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(is_nftables(&lab, node), Some(()), "the default");
    }
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let without_pause = |from: &'static str, url: String| {
        while !stop.load(Ordering::Relaxed) {
            let answer = lab.curl(from, &url);
            let at = jiff::Timestamp::now();
            assert!(answer.out.starts_with("web"), "{at}: {from}: {answer:?}");
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|threads| {
        let clients = [
            threads.spawn(|| without_pause("visitor", url.clone())),
            threads.spawn(|| without_pause("client", outside.clone())),
        ];
        let switched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go_over(&lab, &ip, &url)));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no connection fails");
        }
        switched.expect("the modes take turns");
    });
    assert!(asked.load(Ordering::Relaxed) > 20);
}

fn go_over(lab: &Lab, ip: &str, url: &str) {
    let mut open = lab
        .exec_command("visitor", &["nc", ip, "80"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ask = open.stdin.take().unwrap();
    let mut answers = BufReader::new(open.stdout.take().unwrap());
    let mut hostname = || {
        ask.write_all(b"hostname\n").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim().to_string()
    };
    let first = hostname();
    assert!(first.starts_with("web"), "{first}");
    lab.set_proxy_mode("userspace");
    for node in ["n1", "n2", "n3"] {
        until(&format!("{node} relays"), || is_userspace(lab, node, ip));
    }
    assert_eq!(hostname(), first, "a translated connection goes on");
    lab.reaches("n1", url, &["web1", "web2"]);
    relays_are_seen(lab, ip);
    let mut relayed = lab
        .exec_command("visitor", &["nc", ip, "80"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = relayed.stdin.take().unwrap();
    let mut replies = BufReader::new(relayed.stdout.take().unwrap());
    let mut relayed_to = || {
        words.write_all(b"hostname\n").unwrap();
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        line.trim().to_string()
    };
    let second = relayed_to();
    assert!(second.starts_with("web"), "{second}");
    lab.set_proxy_mode("");
    until("n1 translates", || is_nftables(lab, "n1"));
    until("n2 translates", || {
        tables(lab, "n2").contains("table ip svcnet\n").then_some(())
    });
    assert_eq!(relayed_to(), second, "a relayed connection goes on");
    assert_eq!(hostname(), first);
    lab.reaches("n1", url, &["web1", "web2"]);
    relayed.kill().unwrap();
    relayed.wait().unwrap();
    until("n2 keeps nothing for connections that have ended", || {
        is_nftables(lab, "n2")
    });
    let arp = lab.exec("n2", &["sysctl", "-n", "net.ipv4.conf.all.arp_ignore"]);
    assert_eq!(arp.text(), "0");
    open.kill().unwrap();
    open.wait().unwrap();
}

/// From beside the agent.
fn relays_are_seen(lab: &Lab, ip: &str) {
    let binary = binary().to_string_lossy().into_owned();
    let svcnet = |arguments: &[&str]| lab.exec("n1", &[&[binary.as_str()], arguments].concat());
    until("nothing differs", || {
        let diff = svcnet(&["proxy", "diff"]);
        (diff.ok && diff.out.contains("the kernel holds all")).then_some(())
    });
    let ruleset = svcnet(&["proxy", "ruleset"]);
    assert!(
        ruleset.text().contains(&format!("listening: {ip}:80 tcp")),
        "{ruleset:?}"
    );
    let why = svcnet(&["why", "n1", "nginx:80"]);
    assert!(why.ok && why.out.contains("a socket listens there"), "{why:?}");
}

/// ipvs is asked for where there is none: everything works, and the log, the Node, its Events and `svcnet status` say so. What
/// makes no sense changes nothing, and is told at the ConfigMap.
#[test]
fn a_mode_that_the_kernel_has_not_is_stood_in_for() {
    let lab = Lab::up(&["--nodes", "1", "--server-arg=--proxy-mode=ipvs"]);
    lab.pod("web1", "n1", "app=nginx");
    lab.apply(NGINX);
    lab.reaches("n1", &format!("http://{}/", lab.cluster_ip("nginx")), &["web1"]);
    let message = until("the Node has the condition", || {
        lab.value(
            "node/n1",
            "{.status.conditions[?(@.type==\"ProxyMode\")].message}",
        )
    });
    assert!(
        message.starts_with("asked for ipvs, using nftables: no ipvs: "),
        "{message}"
    );
    assert_eq!(
        lab.value("node/n1", "{.status.conditions[?(@.type==\"ProxyMode\")].status}")
            .as_deref(),
        Some("False")
    );
    let describe = until("kubectl describe shows the Event", || {
        let text = lab.kubectl(&["describe", "node", "n1"]).out;
        text.contains("ProxyModeFallback").then_some(text)
    });
    assert!(describe.contains("using nftables"), "{describe}");
    let status = lab.exec("n1", &[&svcnet_e2e::binary().to_string_lossy(), "status"]);
    assert!(
        status
            .out
            .contains("n1: proxy mode: asked for ipvs, using nftables"),
        "{status:?}"
    );
    let log = lab.lab(&["logs"], &["n1"]).out;
    let said = log
        .matches("this host can not have the proxy mode that is asked for")
        .count();
    assert_eq!(said, 1, "{log}");
    lab.set_proxy_mode("ipsv");
    until("the ConfigMap has an Event", || {
        let events = lab
            .kubectl(&["-n", "kube-system", "get", "events", "-o", "wide"])
            .out;
        (events.contains("InvalidProxyConfiguration") && events.contains("ipsv")).then_some(())
    });
    assert_eq!(is_nftables(&lab, "n1"), Some(()), "the last good mode stays");
    lab.set_proxy_mode("nftables");
    until("it is as asked for", || {
        let status = lab.value("node/n1", "{.status.conditions[?(@.type==\"ProxyMode\")].status}");
        (status? == "True").then_some(())
    });
}

/// What load balancers ask: /healthz of the node, and the endpoints of a Service with policy Local.
#[test]
fn health_is_told_as_kube_proxy_tells_it() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.pod("web1", "n2", "app=nginx");
    lab.apply(
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: pool, namespace: metallb-system}\n\
         spec: {addresses: [172.30.0.200-172.30.0.210]}\n",
    );
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    let port = until("a port for health checks", || {
        lab.value("svc/nginx", "{.spec.healthCheckNodePort}")
    });
    let check = |node: &str| {
        let url = format!("http://{node}:{port}/");
        lab.exec(
            "client",
            &["curl", "-si", "--max-time", "5", "--noproxy", "*", &url],
        )
        .out
    };
    let here = until("the node with the pod takes traffic", || {
        let answer = check("172.30.0.12");
        answer.starts_with("HTTP/1.1 200 ").then_some(answer)
    });
    assert!(here.contains("x-load-balancing-endpoint-weight: 1"), "{here}");
    assert!(
        here.contains("\"localEndpoints\":1") && here.contains("\"serviceProxyHealthy\":true"),
        "{here}"
    );
    let elsewhere = until("the other answers too", || {
        Some(check("172.30.0.11")).filter(|text| !text.is_empty())
    });
    assert!(
        elsewhere.starts_with("HTTP/1.1 503 ") && elsewhere.contains("\"localEndpoints\":0"),
        "{elsewhere}"
    );
    until("the node may be chosen", || {
        let healthz = lab.curl("client", "http://172.30.0.12:10256/healthz");
        let body: serde_json::Value = serde_json::from_str(healthz.text()).unwrap();
        (body["nodeEligible"] == true).then_some(())
    });
    assert!(
        lab.kubectl(&[
            "taint",
            "node",
            "n2",
            "ToBeDeletedByClusterAutoscaler=1:NoSchedule"
        ])
        .ok
    );
    until("a node that goes away is left out", || {
        let healthz = lab.curl("client", "http://172.30.0.12:10256/healthz");
        healthz.out.contains("\"nodeEligible\": false").then_some(())
    });
    assert!(
        lab.curl("client", "http://172.30.0.12:10256/livez")
            .text()
            .contains("lastUpdated")
    );
    metrics_are_named_as_kube_proxys(&lab);
}

fn metrics_are_named_as_kube_proxys(lab: &Lab) {
    // What a change does to the numbers is told after it is in force.
    let lacking = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1";
    let metrics = until("the Service without endpoints here is counted", || {
        let metrics = lab.curl("n1", "http://127.0.0.1:10249/metrics");
        metrics.text().contains(lacking).then_some(metrics)
    });
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kubeproxy_network_programming_duration_seconds",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    ] {
        assert!(metrics.text().contains(name), "{name} in {}", metrics.out);
    }
}
