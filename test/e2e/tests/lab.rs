//! The lab's own contract: several at once, nothing left behind; and the pod network as a container runtime sees it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::path::Path;

use svcnet_e2e::{Lab, binary, svcnet, until};

/// Names under /run/netns and /etc/netns, and processes, that belong to a lab.
fn traces(lab: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for dir in ["/run/netns", "/etc/netns", "/run/svcnet/labs"] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        traces.extend(entries.map(|entry| entry.path()).filter_map(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            (name == lab || name.starts_with(&format!("{lab}-"))).then(|| path.display().to_string())
        }));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&format!("/labs/{lab}/")) || command.contains(&format!("{lab}-")) {
            traces.push(format!("{}: {command}", process.path().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    traces.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&format!("/{lab}-")))
            .map(str::to_string),
    );
    traces
}

#[test]
fn labs_live_side_by_side_and_leave_nothing() {
    let (name, other_name);
    {
        let lab = Lab::up(&["--nodes", "2"]);
        let other = Lab::up(&["--nodes", "1"]);
        (name, other_name) = (lab.name().to_string(), other.name().to_string());
        lab.pod("web1", "n2", "app=nginx");
        other.pod("web1", "n1", "app=nginx");
        assert_eq!(
            lab.state()["members"].as_array().unwrap().len(),
            4,
            "n1, n2, client, web1: {}",
            lab.state()
        );
        assert_eq!(other.kubectl(&["get", "nodes", "-o", "name"]).text(), "node/n1");
        assert_eq!(
            lab.kubectl(&["get", "nodes", "-o", "name"]).text(),
            "node/n1\nnode/n2"
        );
        let again = svcnet(&["lab", "up", "--name", &name]);
        assert!(again.ok && again.out.contains("already"), "{again:?}");
        // What the host has of that name may be of another version.
        let which = lab.exec("n2", &["sh", "-c", "readlink -f $(command -v svcnet)"]);
        assert_eq!(Path::new(which.text()), binary().canonicalize().unwrap());
        assert!(lab.exec("web1", &["svcnet", "--version"]).ok);
        assert!(Path::new("/run/netns").join(format!("{name}-n2")).exists());
        assert!(!traces(&name).is_empty());
    }
    assert_eq!(traces(&name), [""; 0]);
    assert_eq!(traces(&other_name), [""; 0]);
    let down_again = svcnet(&["lab", "down", "--name", &name]);
    assert!(
        down_again.ok,
        "taking down what is not there is no error: {down_again:?}"
    );
}

/// A lab that was killed half way through is taken down like any other.
#[test]
fn a_lab_whose_processes_were_all_killed_goes_down() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.pod("web1", "n2", "app=nginx");
    for member in lab.state()["members"].as_array().unwrap() {
        for pid in member["pids"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_i64)
        {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
    let name = lab.name().to_string();
    drop(lab);
    assert_eq!(traces(&name), [""; 0]);
}

/// Scenario 28: pods on different nodes reach each other by address, with their own addresses as source; large
/// packets fit.
#[test]
fn pods_reach_each_other_across_nodes() {
    let lab = Lab::up(&[]);
    lab.web();
    let (web1, web2) = (lab.pod_ip("web1"), lab.pod_ip("web2"));
    let seen = lab.curl("web1", &format!("http://{web2}/clientip"));
    assert!(seen.text().starts_with(&web1), "{seen:?} is not {web1}");
    assert_eq!(
        lab.curl("web2", &format!("http://{web1}/hostname")).text(),
        "web1"
    );
    let ping = lab.exec(
        "web1",
        &["ping", "-c", "3", "-W", "2", "-M", "do", "-s", "1422", &web2],
    );
    assert!(ping.text().contains(" 0% packet loss"), "{ping:?}");
    let ping = lab.exec("n1", &["ping", "-c", "1", "-W", "2", &web2]);
    assert!(ping.ok, "{ping:?}");
    // The outside sees the node, since it knows no way back to a pod.
    let bin = svcnet_e2e::binary();
    let respond = [
        bin.to_str().unwrap(),
        "pod",
        "respond",
        "--name",
        "outside",
        "--container-port",
        "8080",
    ];
    let mut outside = lab.exec_command("client", &respond).spawn().unwrap();
    until("the outside answers, and sees the node", || {
        lab.curl("web1", "http://172.30.0.100:8080/clientip")
            .out
            .starts_with("172.30.0.12:")
            .then_some(())
    });
    outside.kill().unwrap();
    outside.wait().unwrap();
}

/// IPv6 beside IPv4: between pods of one node and of two, for names, and towards the outside.
#[test]
fn a_dual_stack_lab_has_both_families_everywhere() {
    let single = Lab::up(&["--nodes", "1"]);
    let refused = svcnet(&["lab", "up", "--name", single.name(), "--dual-stack"]);
    assert!(!refused.ok && refused.err.contains("without IPv6"), "{refused:?}");
    drop(single);
    let lab = Lab::up(&["--dual-stack"]);
    lab.web();
    lab.pod("neighbour", "n2", "app=other");
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {ipFamilyPolicy: RequireDualStack, selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    let v6 = |pod: &str| {
        lab.value(&format!("pod/{pod}"), "{.status.podIPs[1].ip}")
            .unwrap()
    };
    for (from, to) in [("web1", "web2"), ("web1", "neighbour"), ("n1", "web2")] {
        // More than once: a first packet may go another way than those that follow.
        for _ in 0..5 {
            let answer = lab.curl(from, &format!("http://[{}]/hostname", v6(to)));
            assert_eq!(answer.text(), to, "from {from}");
        }
    }
    let seen = lab.curl("web1", &format!("http://[{}]/clientip", v6("web2")));
    assert!(seen.text().starts_with(&format!("[{}]:", v6("web1"))), "{seen:?}");
    let service = lab.value("svc/nginx", "{.spec.clusterIPs[1]}").unwrap();
    let name = "nginx.default.svc.cluster.local";
    assert_eq!(lab.dig("web2", &["AAAA", name]).concat(), service);
    let over_v6 = lab.exec("web2", &["dig", "@fd00:10:96::a", "+short", "AAAA", name]);
    assert_eq!(over_v6.text(), service);
    lab.reaches("neighbour", &format!("http://[{service}]/"), &["web1", "web2"]);
    let ping = lab.exec("web1", &["ping", "-c", "1", "-W", "5", "fd00:172:30::100"]);
    assert!(
        ping.ok,
        "the outside knows no way back but through the node: {ping:?}"
    );
}

/// Scenario 28, the plugin called as a container runtime calls it.
#[test]
fn a_cni_call_makes_a_pod() {
    let lab = Lab::up(&["--nodes", "2"]);
    let bin = svcnet_e2e::binary();
    let bin = bin.to_str().unwrap();
    let members = lab.state()["members"].as_array().unwrap().clone();
    let node = members.iter().find(|member| member["name"] == "n2").unwrap();
    let socket = format!("{}/cni.sock", node["runDir"].as_str().unwrap());
    let config =
        serde_json::json!({"cniVersion": "1.1.0", "name": "svcnet", "type": "svcnet", "socket": socket});
    let sandbox = svcnet_netlink::netns::OwnedNetNs::unique("cni").unwrap();
    let path = svcnet_netlink::netns::path_of(sandbox.name()).unwrap();
    let call_with = |command: &str, config: &serde_json::Value| {
        let script = format!(
            "CNI_COMMAND={command} CNI_CONTAINERID=abc123 CNI_NETNS={} CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
             CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=made' {bin} cni <<<'{config}'",
            path.display()
        );
        lab.exec("n2", &["bash", "-c", &script])
    };
    let call = |command: &str| call_with(command, &config);
    let added = call("ADD");
    let result: serde_json::Value = serde_json::from_str(added.text()).unwrap();
    let address = result["ips"][0]["address"]
        .as_str()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_string();
    assert!(address.starts_with("10.244."), "{result}");
    assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
    until("the pod has its address", || {
        (lab.value("pod/made", "{.status.podIP}")? == address).then_some(())
    });
    assert_eq!(lab.value("pod/made", "{.spec.nodeName}").as_deref(), Some("n2"));
    assert!(
        lab.exec("n1", &["ping", "-c", "1", "-W", "5", &address]).ok,
        "the pod answers from another node"
    );
    let mut checked = config.clone();
    checked["prevResult"] = result;
    let check = call_with("CHECK", &checked);
    assert!(check.ok, "{check:?}");
    let twice = call("ADD");
    assert!(!twice.ok && twice.out.contains("\"code\""), "{twice:?}");
    for _ in 0..2 {
        let deleted = call("DEL");
        assert!(deleted.ok, "{deleted:?}");
    }
    assert!(!lab.exec("n1", &["ping", "-c", "1", "-W", "1", &address]).ok);
    let version = call("VERSION");
    assert!(version.text().contains("1.1.0"), "{version:?}");
}
