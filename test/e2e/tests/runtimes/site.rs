//! A lab of one node where a runtime finds the plugin and its configuration.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use svcnet_e2e::chain::dir;
use svcnet_e2e::{Lab, Ran, binary, until};
use svcnet_netlink::netns::NetNs;

pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) node: NetNs,
    scratch: tempfile::TempDir,
}

impl Site {
    pub(crate) fn up() -> Self {
        let lab = Lab::up(&["--nodes", "1"]);
        let scratch = tempfile::Builder::new().prefix("svcnet-site").tempdir().unwrap();
        let node = NetNs::open(&lab.namespace("n1")).unwrap();
        let site = Self { lab, node, scratch };
        let [run_dir, data_dir] = ["runDir", "dataDir"].map(|key| dir(&site.lab, "n1", key));
        let socket = run_dir.join("cni.sock");
        svcnet_cni::conflist::install_config(&site.conf_dir(), &socket, &data_dir).unwrap();
        fs::create_dir_all(site.bin_dir()).unwrap();
        // As the agent does where it is told the directory: the plugin, and the one that containerd never goes without.
        for name in ["svcnet-cni", "loopback"] {
            symlink(binary(), site.bin_dir().join(name)).unwrap();
        }
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn conf_dir(&self) -> PathBuf {
        self.path("net.d")
    }

    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.path("bin")
    }

    /// Runs a program in the node's network namespace, with the cgroups that `ip netns exec` would hide.
    pub(crate) fn run(&self, command: &mut Command) -> Ran {
        let output = self.node.run(|| command.output()).unwrap();
        output
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
            .into()
    }

    /// Sets a key of the agent's configuration, and starts it anew.
    pub(crate) fn configure(&self, key: &str, value: &Path) {
        let config = dir(&self.lab, "n1", "runDir")
            .parent()
            .unwrap()
            .join("etc/config.yaml");
        let mut file = fs::OpenOptions::new().append(true).open(&config).unwrap();
        writeln!(file, "{key}: {}", value.display()).unwrap();
        self.stop_agent();
        self.start_agent();
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
