//! Hosts in namespaces of this test's own. Two that were nodes of a cluster, with pods, services, policies, ports of the host
//! and an announced address, are after `svcnet cleanup` as they were before: links, addresses, routes, rules, neighbours,
//! tables, kernel parameters, files. And one gets another address while it is a node.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod host;

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;
use svcnet_e2e::until;
use svcnet_netlink::link::{Change, VethEnd};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::{Rtnl, sysctl};

use self::host::Host;

const SERVER: [&str; 2] = ["172.30.9.11", "fd00:172:30::911"];
const AGENT: [&str; 2] = ["172.30.9.12", "fd00:172:30::912"];

fn connect(a: &Host, b: &Host) {
    let end = |netns| VethEnd {
        name: "eth0",
        mac: None,
        master: None,
        netns,
    };
    Rtnl::open_in(&a.ns)
        .unwrap()
        .add_veth(end(None), end(Some(&b.ns)), None)
        .unwrap();
    for (host, ips) in [(a, SERVER), (b, AGENT)] {
        let set = || {
            sysctl::set("net/ipv6/conf/eth0/accept_dad", "0").unwrap();
            // As a careful operator has them: what follows forwarding must come back, too.
            sysctl::set("net/ipv4/ip_forward", "0").unwrap();
            sysctl::set("net/ipv4/conf/all/accept_redirects", "0").unwrap();
            sysctl::set("net/ipv4/conf/all/send_redirects", "1").unwrap();
            sysctl::set("net/ipv4/conf/all/arp_ignore", "0").unwrap();
        };
        host.ns.run(set).unwrap();
        let mut rt = Rtnl::open_in(&host.ns).unwrap();
        let link = rt.link("eth0").unwrap().unwrap().index;
        rt.change_link(link, &Change::up()).unwrap();
        for (ip, prefix) in ips.into_iter().zip(["24", "64"]) {
            host.ip(&format!("address add {ip}/{prefix} dev eth0"));
        }
        // Something of somebody else's.
        host.ip("link add br7 type bridge");
        host.ip("route add 198.51.100.0/24 via 172.30.9.254 dev eth0 onlink");
        assert!(host.run("nft", &["add", "table", "ip", "other"]).ok);
    }
}

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first, namespace: metallb-system}
spec: {addresses: [172.30.9.240-172.30.9.250]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: first, namespace: metallb-system}
"#;

/// A snapshot of a host where nothing moves any more: addresses of IPv6 and carriers take a moment to be there.
fn rested(host: &Host) -> BTreeSet<String> {
    let mut former = BTreeSet::new();
    until("a host is at rest", || {
        let now = host.snapshot();
        let same = now == former;
        std::thread::sleep(std::time::Duration::from_millis(300));
        former = now;
        same.then_some(())
    });
    former
}

/// Makes the hosts nodes of a cluster with objects in it, and gives the administrator's kubeconfig.
fn found_cluster(first: &mut Host, second: &mut Host) -> String {
    let kubeconfig = first.path("kubeconfig.yaml");
    let networks = ["10.96.0.0/12,fd00:10:96::/112", "10.244.0.0/16,fd00:10:244::/56"];
    let of_server = [
        "--kubeconfig-out",
        &kubeconfig,
        "--service-cluster-ip-range",
        networks[0],
        "--cluster-cidr",
        networks[1],
    ];
    first.start_node("server", &SERVER, &of_server);
    let token = first.path("data/token");
    until("there is a token", || fs::metadata(&token).ok());
    let of_agent = ["--server", "https://172.30.9.11:6443", "--token-file", &token];
    second.start_node("agent", &AGENT, &of_agent);
    let kubectl = |arguments: &[&str]| {
        first.run(
            "kubectl",
            &[&["--kubeconfig", &kubeconfig][..], arguments].concat(),
        )
    };
    until("both nodes are ready", || {
        let nodes = kubectl(&["get", "nodes", "--no-headers"]);
        (nodes.out.matches(" Ready").count() == 2).then_some(())
    });
    let manifest = first.dir.join("home/objects.yaml");
    fs::write(&manifest, OBJECTS).unwrap();
    let applied = kubectl(&["apply", "-f", &manifest.to_string_lossy()]);
    assert!(applied.ok, "{applied:?}");
    until("agents take pods", || {
        let there = |host: &Host| host.dir.join("run/cni.sock").exists();
        (there(first) && there(second)).then_some(())
    });
    kubeconfig
}

#[test]
fn hosts_are_as_they_were_before_they_were_nodes() {
    let root = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Host::new("c1", root.path()), Host::new("c2", root.path()));
    connect(&first, &second);
    let before = [rested(&first), rested(&second)];

    let kubeconfig = found_cluster(&mut first, &mut second);
    first.start_pod("web1", SERVER[0], &kubeconfig);
    second.start_pod("web2", AGENT[0], &kubeconfig);
    let container = OwnedNetNs::unique("cln-cont").unwrap();
    until("a container with a port of the host is attached", || {
        second.plugin("ADD", &container).ok.then_some(())
    });
    in_use(&first, &second, &kubeconfig);
    for (host, before) in [&first, &second].into_iter().zip(&before) {
        let now = host.snapshot();
        for kind in ["link", "address", "route -4", "route -6", "nft", "sysctl", "file"] {
            let of_kind = |lines: &BTreeSet<String>| -> Vec<String> {
                lines
                    .iter()
                    .filter(|line| line.starts_with(kind))
                    .cloned()
                    .collect()
            };
            assert_ne!(
                of_kind(&now),
                of_kind(before),
                "{kind} of {}: the test sees what svcnet does",
                host.name
            );
        }
    }

    first.stop("web1", Signal::SIGTERM);
    second.stop("web2", Signal::SIGTERM);
    // One dies, with a container still attached to it; the other ends in order.
    second.stop("agent", Signal::SIGKILL);
    first.stop("server", Signal::SIGTERM);
    for (host, before) in [&first, &second].into_iter().zip(&before) {
        host.cleanup();
        let after = rested(host);
        let new: Vec<_> = after.difference(before).collect();
        let gone: Vec<_> = before.difference(&after).collect();
        assert!(
            new.is_empty() && gone.is_empty(),
            "{}: new {new:#?}\ngone {gone:#?}",
            host.name
        );
    }
}

#[test]
fn a_nodes_new_address_is_said_by_its_node_and_followed_by_the_others() {
    let root = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (Host::new("m1", root.path()), Host::new("m2", root.path()));
    connect(&first, &second);
    let kubeconfig = first.path("kubeconfig.yaml");
    first.start_node("server", &[], &["--kubeconfig-out", &kubeconfig]);
    let token = first.path("data/token");
    until("there is a token", || fs::metadata(&token).ok());
    // The second one is where the server will be.
    let of_agent = [
        "--server",
        "https://172.30.9.11:6443,https://172.30.9.21:6443",
        "--token-file",
        &token,
        "--iface-regex",
        "^eth",
    ];
    second.start_node("agent", &[], &of_agent);
    let leads_to = |host: &Host, address: &str| {
        let fdb = host.run("bridge", &["fdb", "show", "dev", "svcnet.1"]).out;
        (fdb.lines().count() == 1 && fdb.contains(&format!("dst {address} "))).then_some(())
    };
    until("packets go to the address", || leads_to(&first, "172.30.9.12"));
    second.moves("172.30.9.12", "172.30.9.22");
    until("packets go to the other address", || {
        leads_to(&first, "172.30.9.22")
    });
    let get = |what: &[&str]| {
        let words = [&["--kubeconfig", &kubeconfig, "get", "-o"], what].concat();
        first.run("kubectl", &words).out.trim().to_string()
    };
    let node = ["jsonpath={.status.addresses[0].address}", "node", "m2"];
    assert_eq!(get(&node), "172.30.9.22");

    // The server's own: its Node, what the Service `kubernetes` leads to, and the administrator's kubeconfig, which is read here.
    first.moves("172.30.9.11", "172.30.9.21");
    let endpoints = [
        "jsonpath={.endpoints[*].addresses[*]}",
        "endpointslice",
        "kubernetes",
    ];
    until("the Service leads to the other address", || {
        (get(&endpoints) == "172.30.9.21").then_some(())
    });
    let written = fs::read_to_string(&kubeconfig).unwrap();
    assert!(written.contains("https://172.30.9.21:6443"), "{written}");
    until("the other node's packets go to the other address", || {
        leads_to(&second, "172.30.9.21")
    });
    let url = format!(
        "https://{}/version",
        get(&["jsonpath={.spec.clusterIP}", "svc", "kubernetes"])
    );
    for host in [&first, &second] {
        until(&format!("{url} is answered on {}", host.name), || {
            let arguments = ["-sk", "--noproxy", "*", "--max-time", "2", &url];
            host.run("curl", &arguments)
                .out
                .contains("gitVersion")
                .then_some(())
        });
    }
}

/// All of it works, so that all of it has been made.
fn in_use(first: &Host, second: &Host, kubeconfig: &str) {
    let get = |what: &[&str]| {
        let words = [&["--kubeconfig", kubeconfig, "get"][..], what].concat();
        first.run("kubectl", &words).out.trim().to_string()
    };
    let address = until("the service has an announced address", || {
        let got = get(&[
            "svc",
            "web",
            "-o",
            "jsonpath={.status.loadBalancer.ingress[0].ip}",
        ]);
        (!got.is_empty()).then_some(got)
    });
    let answers = |host: &Host, url: &str| {
        let curl = host.run("curl", &["-s", "--noproxy", "*", "--max-time", "2", url]);
        ["web1", "web2"].contains(&curl.out.trim())
    };
    let cluster_ip = get(&["svc", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    for (host, url) in [
        (first, format!("http://{cluster_ip}/")),
        (second, format!("http://{cluster_ip}/")),
        (second, "http://172.30.9.11:30080/".to_string()),
        (second, format!("http://{address}/")),
    ] {
        until(&format!("{url} is answered on {}", host.name), || {
            answers(host, &url).then_some(())
        });
    }
    until("one of them answers for the address", || {
        let asked = [first, second].map(|host| {
            host.run("arping", &["-c", "1", "-w", "1", "-I", "eth0", &address])
                .ok
        });
        asked.contains(&true).then_some(())
    });
    until("the port of the host is in the kernel", || {
        let tables = second.run("nft", &["list", "ruleset"]).out;
        (tables.contains("table ip svcnet-hostport") && tables.contains("table bridge svcnet-policy"))
            .then_some(())
    });
}
