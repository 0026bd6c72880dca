//! `svcnet why`, `svcnet proxy services|diff|ruleset` and the proxy's line in `svcnet status`, in a cluster that works
//! and then is broken bit by bit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use serde_json::Value;
use svcnet_e2e::{Lab, Ran, binary, until};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: nginx}, ports: [{name: http, port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: head}
spec: {clusterIP: None, selector: {app: nginx}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: nginx}, ports: [{port: 80, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: bal}
spec: {type: LoadBalancer, selector: {app: nginx}, ports: [{port: 80}]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: pool, namespace: metallb-system}
spec: {addresses: [172.30.0.200-172.30.0.210]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: all, namespace: metallb-system}
";

fn on(lab: &Lab, node: &str, arguments: &[&str]) -> Ran {
    let binary = binary().to_string_lossy().into_owned();
    lab.exec(node, &[&[binary.as_str()], arguments].concat())
}

fn why(lab: &Lab, node: &str, source: &str, target: &str) -> Ran {
    on(lab, node, &["why", source, target])
}

/// The last lines: how it ends.
fn end(ran: &Ran) -> &str {
    ran.out
        .split_once("\n\n")
        .and_then(|(_, rest)| rest.split_once("\n\n"))
        .map_or("", |(_, end)| end)
}

/// A lab with two web pods, on n2 and n3, and somebody on n3 who visits them.
fn cluster() -> Lab {
    let lab = Lab::up(&[]);
    lab.web();
    lab.pod("visitor", "n3", "app=visitor");
    lab.apply(SERVICES);
    until("all Services have endpoints", || {
        let services = ["web", "far", "bal", "head"];
        let ready = services.iter().all(|service| {
            let path = "{.subsets[0].addresses[1].ip}";
            lab.value(&format!("endpoints/{service}"), path).is_some()
        });
        ready.then_some(())
    });
    lab
}

/// Waits until the answer is well and ends so; what it was instead is printed each time that it changes.
#[track_caller]
fn reaches(lab: &Lab, node: &str, source: &str, target: &str, wanted: &str) -> String {
    let mut last = String::new();
    until(&format!("{source} reaches {target}: {wanted}"), || {
        let ran = why(lab, node, source, target);
        if ran.ok && end(&ran) == format!("{wanted}\n") {
            return Some(ran.out);
        }
        if ran.out != last {
            eprintln!("{}{}", ran.out, ran.err);
            last = ran.out;
        }
        None
    })
}

/// Waits until the answer is why not, and says this somewhere.
#[track_caller]
fn fails(lab: &Lab, node: &str, source: &str, target: &str, wanted: &str) -> String {
    until(&format!("{source} does not reach {target}: {wanted}"), || {
        let ran = why(lab, node, source, target);
        (!ran.ok && ran.out.contains(wanted)).then_some(ran.out)
    })
}

/// Every way in, from every vantage; what the pod sees is checked against what it says.
#[test]
fn a_healthy_way_is_explained_and_true() {
    let lab = cluster();
    let both = "reaches web1 on n2 or web2 on n3 (one of 2)";
    let text = reaches(&lab, "n3", "visitor", "web:80", both);
    assert!(
        text.contains("ok  kernel    n3 holds the frontend and 2 endpoints\n"),
        "{text}"
    );
    assert!(text.contains("the DNS server here says so\n"), "{text}");
    assert!(
        text.contains(" dev svcnet.1; in VXLAN to 172.30.0.12 dev "),
        "{text}"
    );
    for target in [
        "web:http",
        "default/web:80",
        "web.default.svc.cluster.local:80",
        &format!("{}:80", lab.cluster_ip("web")),
        "head:80",
    ] {
        reaches(&lab, "n3", "visitor", target, both);
    }
    reaches(&lab, "n3", "n3", "web:80", both);
    reaches(&lab, "n2", "outside", "n2:30080", both);
    reaches(&lab, "n3", "visitor", "web1:80", "reaches web1 on n2");
    reaches(&lab, "n1", "outside", "n2:30081", "reaches web1 on n2");

    let balanced = until("bal has an address", || {
        lab.value("svc/bal", "{.status.loadBalancer.ingress[0].ip}")
    });
    let announcer = until("somebody announces it", || {
        let ran = why(&lab, "n1", "172.30.0.100", &format!("{balanced}:80"));
        let announced = ran.out.split("announced by ").nth(1)?;
        Some(announced.split([';', '\n']).next()?.to_string())
    });
    let text = reaches(&lab, &announcer, "172.30.0.100", &format!("{balanced}:80"), both);
    assert!(
        text.contains(&format!("{announcer} holds the frontend")),
        "{text}"
    );

    // The address that the pod sees, as it says itself.
    let url = format!("http://{}/clientip", lab.cluster_ip("web"));
    for (client, source) in [("visitor", "visitor"), ("n3", "n3")] {
        let text = reaches(&lab, "n3", source, "web:80", both);
        let seen = lab.curl(client, &url);
        let address = seen.text().split(':').next().unwrap();
        assert!(
            text.contains(&format!("the endpoint sees {address}")),
            "{address}: {text}"
        );
    }
    let probed = on(&lab, "n3", &["why", "visitor", "web:80", "--probe"]);
    assert!(
        probed.ok && probed.out.contains("ok  probe     connected to web"),
        "{probed:?}"
    );

    let elsewhere = why(&lab, "n1", "visitor", "web:80");
    assert!(
        elsewhere
            .out
            .contains("--  kernel    n3 sends it on, and this is n1"),
        "{elsewhere:?}"
    );
    assert_eq!(end(&elsewhere), format!("{both}\n"));
}

#[test]
fn what_the_api_says_wrong_is_named() {
    let lab = cluster();
    fails(&lab, "n3", "visitor", "wbe:80", "hint: did you mean web?");
    fails(
        &lab,
        "n3",
        "visitor",
        "web:81",
        "has no port 81; it has 80/tcp (http)",
    );
    fails(
        &lab,
        "n3",
        "visitor",
        "web.default.cluster.local:80",
        "hint: did you mean web.default.svc.cluster.local?",
    );
    fails(
        &lab,
        "n1",
        "outside",
        "n1:30081",
        "externalTrafficPolicy of the Service default/far is Local",
    );
    fails(&lab, "n1", "outside", "web.default:443", "has no port 443");
    let wrong = why(&lab, "n3", "visitor", ":80");
    assert!(wrong.err.contains("NAME:PORT"), "{wrong:?}");

    for pod in ["web1", "web2"] {
        assert!(lab.kubectl(&["label", "pod", pod, "--overwrite", "app=ngnix"]).ok);
    }
    let text = fails(
        &lab,
        "n3",
        "visitor",
        "web:80",
        "no pod of its namespace has the labels app=nginx",
    );
    assert!(
        text.contains("hint: almost: web1 has app=ngnix, web2 has app=ngnix\n"),
        "{text}"
    );
    let json = on(&lab, "n3", &["why", "visitor", "web:80", "-o", "json"]);
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["reason"]["kind"], "NoPodMatches");
    assert_eq!(json["reached"], false);
    for pod in ["web1", "web2"] {
        assert!(lab.lab(&["pod", "rm"], &[pod]).ok);
    }
    fails(
        &lab,
        "n3",
        "visitor",
        "head:80",
        "no pod of its namespace has the labels app=nginx",
    );
}

#[test]
fn what_is_broken_in_a_kernel_is_named() {
    let lab = cluster();
    let both = "reaches web1 on n2 or web2 on n3 (one of 2)";
    reaches(&lab, "n3", "visitor", "web:80", both);
    // Without its agent nobody repairs what is broken; soon the node counts as dead.
    assert!(lab.lab(&["node", "stop"], &["n3", "--keep-pods"]).ok);
    let ip = |arguments: &str| {
        let arguments: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        let ran = lab.exec("n3", &arguments);
        assert!(ran.ok, "{arguments:?}: {ran:?}");
    };
    let pods = lab.value("node/n2", "{.spec.podCIDR}").unwrap();
    let (gateway, web1) = (pods.split('/').next().unwrap(), lab.pod_ip("web1"));
    let broken = |wanted: &str| fails(&lab, "n3", "visitor", "web:80", wanted);
    ip(&format!("route del {pods}"));
    broken(&format!(
        "this node has no route to {web1} (there should be one over svcnet.1)"
    ));
    ip(&format!("route add {pods} via 172.30.0.11"));
    broken(&format!("leads astray: {web1} via 172.30.0.11 dev"));
    ip(&format!("route del {pods}"));
    ip(&format!("route add {pods} via {gateway} dev svcnet.1 onlink"));
    let missing = format!("svcnet.1 has no neighbour entry for {gateway}");
    until(&missing, || {
        // Any packet on its way to n2 has the kernel begin another one, which is not ours.
        lab.exec("n3", &["ip", "neigh", "del", gateway, "dev", "svcnet.1"]);
        let ran = why(&lab, "n3", "visitor", "web:80");
        (!ran.ok && ran.out.contains(&missing)).then_some(())
    });
    ip("link set svcnet.1 down");
    fails(&lab, "n3", "visitor", "web:80", "the link svcnet.1 is down");

    assert!(lab.exec("n3", &["nft", "flush", "ruleset"]).ok);
    let text = fails(
        &lab,
        "n3",
        "visitor",
        "web:80",
        "the kernel of n3 lacks the nftables tables of svcnet",
    );
    assert!(
        text.ends_with("hint: start svcnet agent on this node\n"),
        "{text}"
    );
    let differs = on(&lab, "n3", &["proxy", "diff"]);
    assert!(
        !differs.ok && differs.out.contains("table ip: make anew"),
        "{differs:?}"
    );
    assert!(differs.out.contains("nobody carries them out"), "{differs:?}");
    let gone = on(&lab, "n3", &["proxy", "ruleset"]);
    assert!(
        !gone.ok && gone.err.contains("nothing of svcnet's proxy"),
        "{gone:?}"
    );

    assert!(lab.lab(&["node", "start"], &["n3"]).ok);
    reaches(&lab, "n3", "visitor", "web:80", both);
    assert!(lab.lab(&["node", "cut"], &["n2"]).ok);
    fails_or_goes_without(&lab);
}

/// After the cable of n2 is cut, its endpoint is first broken, and then not used.
fn fails_or_goes_without(lab: &Lab) {
    until("the node n2 is held for dead", || {
        let ran = why(lab, "n3", "visitor", "web:80");
        let without = ran.ok && ran.out.contains("not used: default/web1 (its node n2 is down");
        (without && end(&ran) == "reaches web2 on n3\n").then_some(())
    });
    fails(lab, "n3", "visitor", "web1:80", "not reached: ");
}

#[test]
fn the_proxy_of_a_node_is_shown() {
    let lab = cluster();
    let address = lab.cluster_ip("web");
    let shown = until("web is shown", || {
        let shown = on(&lab, "n3", &["proxy", "services", "web"]);
        shown.out.contains("web1 on n2").then_some(shown)
    });
    let lines: Vec<Vec<&str>> = shown
        .text()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["default/web:http"]);
    assert_eq!(lines[1], [&format!("{address}:80/tcp"), "cluster", "IP"]);
    assert_eq!(lines[2], ["*:30080/tcp", "node", "port"]);
    let web2 = lab.pod_ip("web2");
    assert_eq!(
        lines[4],
        [
            "->",
            &format!("{web2}:80"),
            "web2",
            "on",
            "n3",
            "(here)",
            "0",
            "connections"
        ]
    );
    let missing = on(&lab, "n3", &["proxy", "services", "head"]);
    assert!(missing.err.contains("it is headless"), "{missing:?}");

    // A connection that stays open counts.
    let mut held = lab.exec_command(
        "visitor",
        &[
            "bash",
            "-c",
            &format!("exec 3<>/dev/tcp/{address}/80; exec sleep 60"),
        ],
    );
    let mut held = held.spawn().unwrap();
    let counted = || {
        let json = on(&lab, "n3", &["proxy", "services", "web", "-o", "json"]);
        let json: Value = serde_json::from_str(&json.out).unwrap_or_default();
        let endpoints = json[0]["endpoints"].as_array().cloned().unwrap_or_default();
        let counts = endpoints
            .iter()
            .filter_map(|endpoint| endpoint["connections"].as_u64());
        (counts.sum::<u64>() == 1).then_some(())
    };
    until("the connection is counted", counted);
    held.kill().unwrap();
    held.wait().unwrap();

    let same = on(&lab, "n3", &["proxy", "diff"]);
    assert!(same.text().starts_with("the kernel holds all "), "{same:?}");
    let text = on(&lab, "n3", &["proxy", "ruleset"]);
    assert!(
        text.text()
            .contains(&format!("{address} . tcp . 80 comment \"default/web:http\"")),
        "{text:?}"
    );
    let json = on(&lab, "n3", &["proxy", "ruleset", "--json"]);
    let json: Value = serde_json::from_str(json.text()).unwrap();
    assert!(json["nftables"].as_array().unwrap().len() > 50);
    let status = on(&lab, "n3", &["status"]);
    assert!(status.text().contains("\nProxy: mode nftables, "), "{status:?}");
    assert!(status.text().contains("the kernel holds it all\n"), "{status:?}");
}
