//! Hosts in namespaces of this test's own. Two that were nodes of a cluster, with pods, services, policies, ports of the host
//! and an announced address, are after `svcnet cleanup` as they were before: links, addresses, routes, rules, neighbours,
//! tables, kernel parameters, files. And one gets another address while it is a node.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use svcnet_e2e::{Ran, binary, until};
use svcnet_netlink::link::{Change, VethEnd};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::{Rtnl, sysctl};

const SERVER: [&str; 2] = ["172.30.9.11", "fd00:172:30::911"];
const AGENT: [&str; 2] = ["172.30.9.12", "fd00:172:30::912"];

/// A host: a namespace, and directories of its own.
struct Host {
    name: &'static str,
    ns: OwnedNetNs,
    dir: PathBuf,
    processes: Vec<(&'static str, Child)>,
}

impl Host {
    fn new(name: &'static str, root: &Path) -> Self {
        let dir = root.join(name);
        for part in ["net.d", "bin", "home"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        // Not the machine's own settings.
        fs::write(dir.join("home/config.yaml"), "{}").unwrap();
        let ns = OwnedNetNs::unique(&format!("cln-{name}")).unwrap();
        Rtnl::open_in(&ns).unwrap().set_loopback_up().unwrap();
        Self {
            name,
            ns,
            dir,
            processes: Vec::new(),
        }
    }

    fn path(&self, part: &str) -> String {
        self.dir.join(part).to_string_lossy().into_owned()
    }

    /// What a command prints in the host's network.
    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env("HOME", self.path("home"));
        self.ns.run(|| command.output().unwrap()).unwrap().into()
    }

    fn ip(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split(' ').collect();
        self.run("ip", &words).text().to_string()
    }

    /// Its link gets another address in the place of the one that it had.
    fn moves(&self, from: &str, to: &str) {
        self.ip(&format!("address add {to}/24 dev eth0"));
        // With the first address of a network go the others, unless the kernel is told to keep them.
        self.ip(&format!("address del {from}/24 dev eth0"));
        let again = format!("{to}/24");
        self.run("ip", &["address", "add", &again, "dev", "eth0"]);
    }

    fn svcnet(&self, arguments: &[&str]) -> Ran {
        self.run(&binary().to_string_lossy(), arguments)
    }

    /// Arguments that every role takes.
    fn places(&self) -> Vec<String> {
        let [data, run] = [self.path("data"), self.path("run")];
        let mut places = vec!["--data-dir".to_string(), data, "--run-dir".to_string(), run];
        places.extend(["--config".to_string(), self.path("home/config.yaml")]);
        places
    }

    fn start(&mut self, what: &'static str, arguments: &[String]) {
        let log = fs::File::create(self.dir.join(format!("{what}.log"))).unwrap();
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env("HOME", self.path("home"));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = self.ns.run(|| command.spawn().unwrap()).unwrap();
        self.processes.push((what, child));
    }

    /// Without addresses it looks for its own.
    fn start_node(&mut self, role: &'static str, ips: &[&str], more: &[&str]) {
        let mut arguments = vec![role.to_string()];
        arguments.extend(self.places());
        let own = [self.path("net.d"), self.path("bin")];
        let ips = ips.join(",");
        let given: &[&str] = if ips.is_empty() { &[] } else { &["--node-ip", &ips] };
        let fixed = [
            "--node-name",
            self.name,
            "--cni-conf-dir",
            &own[0],
            "--cni-bin-dir",
            &own[1],
        ];
        arguments.extend(
            fixed
                .iter()
                .chain(given)
                .chain(more)
                .map(|word| (*word).to_string()),
        );
        self.start(role, &arguments);
    }

    /// A pod that answers on port 80.
    fn start_pod(&mut self, name: &'static str, ip: &str, kubeconfig: &str) {
        let run = self.path("run");
        let netns = format!("{}-{name}", self.ns.name());
        let words = [
            "pod",
            "run",
            name,
            "--label",
            "app=web",
            "--container-port",
            "80",
            "--node-name",
            self.name,
            "--node-ip",
            ip,
            "--netns",
            &netns,
            "--run-dir",
            &run,
            "--kubeconfig",
            kubeconfig,
        ];
        self.start(name, &words.map(str::to_string));
    }

    /// Ends one process, or all.
    fn stop(&mut self, what: &str, signal: Signal) {
        let (stopped, kept) = self.processes.drain(..).partition(|(name, _)| *name == what);
        self.processes = kept;
        for (_, mut child) in Vec::from_iter(stopped) {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            child.wait().unwrap();
        }
    }

    /// One call of the plugin, with the network that the agent has written for runtimes.
    fn plugin(&self, verb: &str, container: &OwnedNetNs) -> Ran {
        let list: Value =
            serde_json::from_slice(&fs::read(self.dir.join("net.d/10-svcnet.conflist")).unwrap()).unwrap();
        let mut config = list["plugins"][0].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        config["runtimeConfig"] =
            json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
        let mut command = Command::new(self.dir.join("bin/svcnet-cni"));
        command.env_clear().envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "cleanup"),
            ("CNI_NETNS", &container.path().to_string_lossy()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &self.path("bin")),
        ]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.ns.run(|| command.spawn().unwrap()).unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        child.wait_with_output().unwrap().into()
    }

    fn cleanup(&self) {
        let [data, run] = [self.path("data"), self.path("run")];
        let [conf, bin, kubeconfig] = [self.path("net.d"), self.path("bin"), self.path("kubeconfig.yaml")];
        let words = [
            "cleanup",
            "--data",
            "--data-dir",
            &data,
            "--run-dir",
            &run,
            "--cni-conf-dir",
            &conf,
            "--cni-bin-dir",
            &bin,
            "--kubeconfig-out",
            &kubeconfig,
            "--cluster-dns",
            "10.96.0.10,fd00:10:96::a",
        ];
        let cleaned = self.svcnet(&words);
        assert!(cleaned.ok, "{cleaned:?}");
        let again = self.svcnet(&words);
        assert!(again.text().contains("nothing of svcnet is left"), "{again:?}");
    }

    /// All that a host's network is, one line for each thing.
    fn snapshot(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        let mut put = |kind: &str, text: String| {
            lines.extend(text.lines().map(|line| format!("{kind}: {}", line.trim_end())));
        };
        put(
            "link",
            links(&serde_json::from_str(&self.ip("-j -d link")).unwrap()),
        );
        put(
            "address",
            addresses(&serde_json::from_str(&self.ip("-j address")).unwrap()),
        );
        for family in ["-4", "-6"] {
            // Neighbours that were met are forgotten by themselves.
            put(
                "neighbour",
                self.ip(&format!("{family} neighbour show nud permanent")),
            );
            put("rule", self.ip(&format!("{family} rule")));
            put(
                &format!("route {family}"),
                self.ip(&format!("{family} route show table all")),
            );
        }
        put(
            "forwarding entry",
            self.run("bridge", &["fdb"]).text().to_string(),
        );
        put("nft", self.run("nft", &["list", "ruleset"]).text().to_string());
        put("sysctl", self.ns.run(sysctls).unwrap());
        put("file", files(&self.dir));
        lines
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (what, child) in &mut self.processes {
            if std::thread::panicking() {
                let log = fs::read_to_string(self.dir.join(format!("{what}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!(
                    "--- {what} of {}:\n{}",
                    self.name,
                    lines[lines.len().saturating_sub(15)..].join("\n")
                );
            }
            // Supervisors of pods take their pods away.
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
            let _ = kill(pid, Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

/// What stays the same of a link: not its number, not its counters.
fn links(links: &Value) -> String {
    let mut text = String::new();
    for link in links.as_array().unwrap() {
        let kept = [
            "ifname",
            "flags",
            "mtu",
            "qdisc",
            "operstate",
            "link_type",
            "address",
            "master",
            "promiscuity",
        ];
        let of_link: BTreeMap<&str, &Value> = kept.iter().map(|key| (*key, &link[*key])).collect();
        text += &format!(
            "{} {}\n",
            serde_json::to_string(&of_link).unwrap(),
            link["linkinfo"]["info_kind"]
        );
    }
    text
}

fn addresses(links: &Value) -> String {
    let mut text = String::new();
    for link in links.as_array().unwrap() {
        for address in link["addr_info"].as_array().unwrap() {
            text += &format!(
                "{} {}/{} {}\n",
                link["ifname"], address["local"], address["prefixlen"], address["scope"]
            );
        }
    }
    text
}

/// All kernel parameters of the network that are settings rather than counters.
fn sysctls() -> String {
    fn below(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                below(&path, text);
            } else if !path.ends_with("nf_conntrack_count")
                && let Ok(value) = fs::read_to_string(&path)
            {
                *text += &format!("{} = {}\n", path.display(), value.trim().replace('\n', " "));
            }
        }
    }
    let mut text = String::new();
    below(Path::new("/proc/sys/net"), &mut text);
    text
}

/// Names of files and directories, but for what the test itself has put there.
fn files(dir: &Path) -> String {
    fn below(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let own = path.ends_with("home") || path.extension().is_some_and(|end| end == "log");
            if !own {
                *text += &format!("{}\n", path.display());
                if path.is_dir() {
                    below(&path, text);
                }
            }
        }
    }
    let mut text = String::new();
    below(dir, &mut text);
    text
}

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
