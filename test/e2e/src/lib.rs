//! The lab as a test fixture: a cluster of network namespaces that belongs to one test and goes with it.

pub mod chain;
mod upstream;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use upstream::Upstream;

/// How long a condition may take to come true. Generous: machines are shared, and a test that waits is not wrong.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running lab, taken down when dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    scratch: tempfile::TempDir,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Whether it ended with status 0.
    pub ok: bool,
}

impl Ran {
    /// Standard output without the white space around it; panics when the command failed.
    #[track_caller]
    pub fn text(&self) -> &str {
        assert!(self.ok, "failed: {self:?}");
        self.out.trim()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            ok: output.status.success(),
        }
    }
}

/// The svcnet under test: `SVCNET_BIN`, or the one that lies beside the test's own binary.
///
/// # Panics
/// When there is none: a test that skips is a test that fails.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SVCNET_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let path = own
        .parent()
        .and_then(|deps| deps.parent())
        .map(|dir| dir.join("svcnet"))
        .unwrap_or_default();
    assert!(
        path.is_file(),
        "no svcnet at {}: build it (cargo build) or set SVCNET_BIN",
        path.display()
    );
    path
}

/// Runs svcnet with these arguments.
pub fn svcnet(args: &[&str]) -> Ran {
    run(Command::new(binary()).args(args))
}

fn run(command: &mut Command) -> Ran {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => output.into(),
        Err(error) => Ran {
            out: String::new(),
            err: format!("{command:?}: {error}"),
            ok: false,
        },
    }
}

/// Waits until `probe` gives something, and says what was waited for when it never does.
///
/// # Panics
/// When it has waited for too long.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The proxy mode that labs of this run are to have, where a test does not say it: `SVCNET_E2E_PROXY_MODE`.
pub fn proxy_mode() -> Option<String> {
    std::env::var("SVCNET_E2E_PROXY_MODE")
        .ok()
        .filter(|mode| !mode.is_empty())
}

impl Lab {
    /// Brings up a lab of its own name; `args` are further arguments of `svcnet lab up`.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn up(args: &[&str]) -> Self {
        match proxy_mode() {
            Some(mode) => Self::up_in(&mode, args),
            None => Self::up_as(args),
        }
    }

    /// The same with a proxy mode on all nodes.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn up_in(mode: &str, args: &[&str]) -> Self {
        let mode = ["server", "agent"].map(|kind| format!("--{kind}-arg=--proxy-mode={mode}"));
        Self::up_as(&[args, &mode.each_ref().map(String::as_str)].concat())
    }

    #[track_caller]
    fn up_as(args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "t{}x{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let scratch =
            tempfile::tempdir().unwrap_or_else(|error| panic!("no directory for the test: {error}"));
        let lab = Self { name, scratch };
        let up = svcnet(&[&["lab", "up", "--name", &lab.name], args].concat());
        assert!(up.ok, "lab up failed: {}\n{}", up.out, up.err);
        lab
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace of a member.
    pub fn namespace(&self, member: &str) -> String {
        format!("{}-{member}", self.name)
    }

    /// `svcnet lab VERB… --name LAB ARGS…`
    pub fn lab(&self, verb: &[&str], args: &[&str]) -> Ran {
        svcnet(&[&["lab"], verb, &["--name", &self.name], args].concat())
    }

    /// Runs a command in a member's namespace, as a user would.
    pub fn exec(&self, member: &str, command: &[&str]) -> Ran {
        run(&mut self.exec_command(member, command))
    }

    /// The same, not started yet.
    pub fn exec_command(&self, member: &str, command: &[&str]) -> Command {
        let mut exec = Command::new(binary());
        exec.args(["lab", "exec", "--name", &self.name, member, "--"])
            .args(command);
        exec
    }

    /// kubectl on the server's node, with a cache of this test's own.
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        let cache = self.scratch.path().join("kubectl-cache");
        let cache = cache.to_string_lossy().into_owned();
        self.exec("n1", &[&["kubectl", "--cache-dir", &cache], args].concat())
    }

    /// The value at a JSONPath of an object, or nothing.
    pub fn value(&self, object: &str, path: &str) -> Option<String> {
        let got = self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]);
        (got.ok && !got.out.trim().is_empty()).then(|| got.out.trim().to_string())
    }

    /// `kubectl apply -f -` of a manifest, whatever comes of it.
    pub fn try_apply(&self, manifest: &str) -> Ran {
        let path = self.scratch.path().join("manifest.yaml");
        std::fs::write(&path, manifest).unwrap_or_else(|error| panic!("cannot write the manifest: {error}"));
        self.kubectl(&["apply", "-f", &path.to_string_lossy()])
    }

    /// `kubectl apply -f -` of a manifest that must be accepted.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let applied = self.try_apply(manifest);
        assert!(applied.ok, "apply failed: {}{}", applied.out, applied.err);
    }

    /// `lab pod run` of a pod that answers on port 80 with its name.
    #[track_caller]
    pub fn pod(&self, name: &str, node: &str, label: &str) {
        self.pod_with(name, node, label, &["--container-port", "80"]);
    }

    /// `lab pod run` with further arguments.
    #[track_caller]
    pub fn pod_with(&self, name: &str, node: &str, label: &str, args: &[&str]) {
        let ran = self.lab(
            &["pod", "run"],
            &[&[name, "--node", node, "--label", label], args].concat(),
        );
        assert!(ran.ok, "pod run {name} failed: {}{}", ran.out, ran.err);
    }

    /// Two pods `web1` and `web2` labelled `app=nginx`, on the second and third node.
    #[track_caller]
    pub fn web(&self) {
        self.pod("web1", "n2", "app=nginx");
        self.pod("web2", "n3", "app=nginx");
    }

    /// A pod's address.
    #[track_caller]
    pub fn pod_ip(&self, pod: &str) -> String {
        until(&format!("{pod} has an address"), || {
            self.value(&format!("pod/{pod}"), "{.status.podIP}")
        })
    }

    /// A Service's first cluster address.
    #[track_caller]
    pub fn cluster_ip(&self, service: &str) -> String {
        until(&format!("{service} has an address"), || {
            self.value(&format!("svc/{service}"), "{.spec.clusterIP}")
        })
    }

    /// What a URL answers, from a member; each call is a connection of its own.
    pub fn curl(&self, member: &str, url: &str) -> Ran {
        self.exec(member, &["curl", "-sS", "--max-time", "5", "--noproxy", "*", url])
    }

    /// Waits until requests from `member` have been answered by each of `names`, and by nobody else after the last
    /// one appeared.
    #[track_caller]
    pub fn reaches(&self, member: &str, url: &str, names: &[&str]) {
        let mut missing: Vec<&str> = names.to_vec();
        until(
            &format!("{url} is answered from {member} by all of {names:?} (still missing: some)"),
            || {
                let answer = self.curl(member, url);
                missing.retain(|name| answer.out.trim() != *name);
                missing.is_empty().then_some(())
            },
        );
        for _ in 0..10 {
            let answer = self.curl(member, url);
            assert!(
                names.contains(&answer.text()),
                "{url} from {member}: {answer:?} is none of {names:?}"
            );
        }
    }

    /// Edits the ConfigMap `kube-proxy` as `kubectl edit` does: every node goes over to a mode.
    #[track_caller]
    pub fn set_proxy_mode(&self, mode: &str) {
        let config = format!("kind: KubeProxyConfiguration\nmode: \"{mode}\"\n");
        let patch = serde_json::json!({ "data": { "config.conf": config } }).to_string();
        let map = ["-n", "kube-system", "patch", "configmap", "kube-proxy"];
        let patched = self.kubectl(&[&map[..], &["--type=merge", "-p", &patch]].concat());
        assert!(patched.ok, "{patched:?}");
    }

    /// `dig +short` at the cluster's DNS from a member: the lines of the answer, sorted.
    pub fn dig(&self, member: &str, args: &[&str]) -> Vec<String> {
        let base = ["dig", "@10.96.0.10", "+short", "+time=2", "+tries=2"];
        let got = self.exec(member, &[&base[..], args].concat());
        let mut lines: Vec<String> = got.out.lines().map(str::trim).map(str::to_string).collect();
        lines.sort();
        lines
    }

    /// The address that a Service of the namespace `default` has by its name.
    pub fn cluster_ip_of_dns(&self, member: &str, service: &str) -> String {
        self.dig(member, &[&format!("{service}.default.svc.cluster.local")])
            .concat()
    }

    /// The status word of a DNS answer, as in `NOERROR`.
    pub fn dig_status(&self, member: &str, args: &[&str]) -> String {
        let got = self.exec(
            member,
            &[&["dig", "@10.96.0.10", "+time=2", "+tries=2"], args].concat(),
        );
        let status = got
            .out
            .lines()
            .find_map(|line| line.split_once("status: ")?.1.split_once(','));
        status.map(|(word, _)| word.to_string()).unwrap_or_default()
    }

    /// `svcnet lab list -o json`, the part about this lab.
    #[track_caller]
    pub fn state(&self) -> serde_json::Value {
        let list = svcnet(&["lab", "list", "-o", "json"]);
        let labs: serde_json::Value = serde_json::from_str(list.text()).unwrap_or_default();
        let labs = labs.as_array().cloned().unwrap_or_default();
        labs.into_iter()
            .find(|lab| lab["name"] == *self.name)
            .unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in ["n1", "n2", "n3"] {
                let logs = self.lab(&["logs"], &[node]);
                eprintln!("--- {node} of {}:\n{}", self.name, tail(&logs.out, 15));
            }
        }
        let down = self.lab(&["down"], &[]);
        if !down.ok && !std::thread::panicking() {
            panic!("lab down failed: {}{}", down.out, down.err);
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
