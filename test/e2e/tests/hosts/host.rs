//! A host: what it runs, and what there is of it to compare.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use svcnet_e2e::{Ran, binary};
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::OwnedNetNs;

/// A host: a namespace, and directories of its own.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) ns: OwnedNetNs,
    pub(crate) dir: PathBuf,
    processes: Vec<(&'static str, Child)>,
}

impl Host {
    pub(crate) fn new(name: &'static str, root: &Path) -> Self {
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

    pub(crate) fn path(&self, part: &str) -> String {
        self.dir.join(part).to_string_lossy().into_owned()
    }

    /// What a command prints in the host's network.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env("HOME", self.path("home"));
        self.ns.run(|| command.output().unwrap()).unwrap().into()
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split(' ').collect();
        self.run("ip", &words).text().to_string()
    }

    /// Its link gets another address in the place of the one that it had.
    pub(crate) fn moves(&self, from: &str, to: &str) {
        self.ip(&format!("address add {to}/24 dev eth0"));
        // With the first address of a network go the others, unless the kernel is told to keep them.
        self.ip(&format!("address del {from}/24 dev eth0"));
        let again = format!("{to}/24");
        self.run("ip", &["address", "add", &again, "dev", "eth0"]);
    }

    pub(crate) fn svcnet(&self, arguments: &[&str]) -> Ran {
        self.run(&binary().to_string_lossy(), arguments)
    }

    /// Arguments that every role takes.
    pub(crate) fn places(&self) -> Vec<String> {
        let [data, run] = [self.path("data"), self.path("run")];
        let mut places = vec!["--data-dir".to_string(), data, "--run-dir".to_string(), run];
        places.extend(["--config".to_string(), self.path("home/config.yaml")]);
        places
    }

    pub(crate) fn start(&mut self, what: &'static str, arguments: &[String]) {
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
    pub(crate) fn start_node(&mut self, role: &'static str, ips: &[&str], more: &[&str]) {
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
    pub(crate) fn start_pod(&mut self, name: &'static str, ip: &str, kubeconfig: &str) {
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
    pub(crate) fn stop(&mut self, what: &str, signal: Signal) {
        let (stopped, kept) = self.processes.drain(..).partition(|(name, _)| *name == what);
        self.processes = kept;
        for (_, mut child) in Vec::from_iter(stopped) {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            child.wait().unwrap();
        }
    }

    /// One call of the plugin, with the network that the agent has written for runtimes.
    pub(crate) fn plugin(&self, verb: &str, container: &OwnedNetNs) -> Ran {
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

    pub(crate) fn cleanup(&self) {
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
    pub(crate) fn snapshot(&self) -> BTreeSet<String> {
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
