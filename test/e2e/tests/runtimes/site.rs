//! A lab of one node where a runtime finds the plugin and its configuration.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use svcnet_e2e::chain::dir;
use svcnet_e2e::{Lab, Ran, until};
use svcnet_netlink::netns::NetNs;

pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) node: NetNs,
    scratch: tempfile::TempDir,
    run_dir: PathBuf,
}

impl Site {
    pub(crate) fn up() -> Self {
        Self::up_with(&[])
    }

    pub(crate) fn up_with(args: &[&str]) -> Self {
        let lab = Lab::up(&[&["--nodes", "1"], args].concat());
        let scratch = tempfile::Builder::new().prefix("svcnet-site").tempdir().unwrap();
        let node = NetNs::open(&lab.namespace("n1")).unwrap();
        let run_dir = dir(&lab, "n1", "runDir");
        let etc = run_dir.with_file_name("etc").join("cni");
        until("the agent has put plugin and configuration there", || {
            let all = ["net.d/10-svcnet.conflist", "bin/svcnet-cni", "bin/loopback"];
            all.iter().all(|file| etc.join(file).exists()).then_some(())
        });
        Self {
            lab,
            node,
            scratch,
            run_dir,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn conf_dir(&self) -> PathBuf {
        self.run_dir.with_file_name("etc").join("cni/net.d")
    }

    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.run_dir.with_file_name("etc").join("cni/bin")
    }

    /// Runs a program in the node's network namespace, with the cgroups that `ip netns exec` would hide.
    pub(crate) fn run(&self, command: &mut Command) -> Ran {
        let output = self.node.run(|| command.output()).unwrap();
        output
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
            .into()
    }

    /// Where the agent looks for a runtime.
    pub(crate) fn runtime_socket(&self) -> PathBuf {
        self.run_dir.join("containerd.sock")
    }

    pub(crate) fn stop_agent(&self) {
        let stop = self.lab.lab(&["node", "stop"], &["n1", "--keep-pods"]);
        assert!(stop.ok, "{stop:?}");
    }

    pub(crate) fn start_agent(&self) {
        let start = self.lab.lab(&["node", "start"], &["n1"]);
        assert!(start.ok, "{start:?}");
    }

    /// The leases of the node.
    pub(crate) fn leases(&self) -> Vec<Value> {
        let leases = dir(&self.lab, "n1", "dataDir").join("cni/leases");
        let mut found = Vec::new();
        for entry in fs::read_dir(leases).unwrap() {
            let path = entry.unwrap().path();
            // They come and go meanwhile.
            let lease = fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
            if !path.ends_with("last") {
                found.extend(lease);
            }
        }
        found
    }

    pub(crate) fn is_empty_soon(&self) {
        until("nothing is left on the node", || {
            let links = self.run(Command::new("ip").args(["-br", "link"])).out;
            let tables = self.run(Command::new("nft").args(["list", "tables"])).out;
            let clean = !links.contains("veth") && !links.contains("ifb") && !tables.contains("hostport");
            (clean && self.leases().is_empty()).then_some(())
        });
    }
}
