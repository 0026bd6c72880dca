//! A container runtime of a few lines: calls a chain of CNI plugins as libcni does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use svcnet_netlink::netns::NetNs;

use crate::{Lab, binary};

/// Where Debian's `containernetworking-plugins` puts the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// A network: plugins that are called one after the other, in a node's namespace.
#[derive(Debug)]
pub struct Chain {
    /// The node.
    pub node: NetNs,
    /// The network's name.
    pub name: String,
    /// The version that is spoken.
    pub version: String,
    /// The plugins' configurations. The type `svcnet-cni` is the binary under test, others are the reference ones.
    pub plugins: Vec<Value>,
}

/// A container: what a runtime says of it.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// `CNI_CONTAINERID`
    pub id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `runtimeConfig`, by capability. Each plugin is told those that it declares.
    pub runtime: Value,
}

impl Attached {
    /// A container of a pod in the namespace `default`.
    pub fn pod(name: &str, netns: &Path) -> Self {
        Self {
            id: name.to_string(),
            netns: netns.display().to_string(),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"),
            runtime: Value::Null,
        }
    }
}

impl Chain {
    /// svcnet alone, on a node of a lab.
    ///
    /// # Panics
    /// When the lab has no such node.
    #[track_caller]
    pub fn of(lab: &Lab, node: &str, version: &str) -> Self {
        let [run_dir, data_dir] = ["runDir", "dataDir"].map(|key| dir(lab, node, key));
        let ours: Value =
            serde_json::from_str(&svcnet_cni::conflist::text(&run_dir.join("cni.sock"), &data_dir))
                .unwrap_or_default();
        Self {
            node: NetNs::open(&lab.namespace(node)).unwrap_or_else(|error| panic!("{node}: {error}")),
            name: "svcnet".to_string(),
            version: version.to_string(),
            plugins: ours["plugins"].as_array().cloned().unwrap_or_default(),
        }
    }

    /// ADD, by each plugin in order, each with the result of the one before.
    ///
    /// # Errors
    /// What the first plugin that fails prints.
    pub fn add(&self, container: &Attached) -> Result<Value, Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", container, plugin, &result)?;
        }
        Ok(result)
    }

    /// DEL, by each in reverse.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn del(&self, container: &Attached, result: &Value) -> Result<(), Value> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", container, plugin, result)?;
        }
        Ok(())
    }

    /// CHECK, by each in order.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn check(&self, container: &Attached, result: &Value) -> Result<(), Value> {
        for plugin in &self.plugins {
            self.call("CHECK", container, plugin, result)?;
        }
        Ok(())
    }

    /// One call of one plugin: what it prints.
    ///
    /// # Errors
    /// What it prints when it fails.
    ///
    /// # Panics
    /// When it can not be run.
    #[track_caller]
    pub fn call(
        &self,
        command: &str,
        container: &Attached,
        plugin: &Value,
        previous: &Value,
    ) -> Result<Value, Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(self.version);
        config["name"] = json!(self.name);
        if let Some(capabilities) = plugin["capabilities"].as_object() {
            let asked = container.runtime.as_object().into_iter().flatten();
            let told = asked.filter(|(key, _)| capabilities.get(*key) == Some(&Value::Bool(true)));
            let told: serde_json::Map<_, _> = told.map(|(k, v)| (k.clone(), v.clone())).collect();
            config["runtimeConfig"] = told.into();
            config.as_object_mut().map(|c| c.remove("capabilities"));
        }
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        self.run(command, container, &config)
    }

    /// One call with this very configuration.
    ///
    /// # Errors
    /// What the plugin prints when it fails.
    ///
    /// # Panics
    /// When it can not be run.
    #[track_caller]
    pub fn run(&self, command: &str, container: &Attached, config: &Value) -> Result<Value, Value> {
        let program = match config["type"].as_str().unwrap_or_default() {
            "svcnet-cni" => binary(),
            other => PathBuf::from(REFERENCE).join(other),
        };
        let mut call = Command::new(&program);
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", &container.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &container.args)
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A child is born into the namespace of the thread that makes it.
        let spawned = self.node.run(|| call.spawn());
        let spawned = spawned
            .map_err(|e| e.to_string())
            .and_then(|s| s.map_err(|e| e.to_string()));
        let mut child = spawned.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without reading: then its answer says why.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        let output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            Ok(answer)
        } else {
            Err(answer)
        }
    }
}

/// A directory of a node.
#[track_caller]
pub fn dir(lab: &Lab, node: &str, key: &str) -> PathBuf {
    let state = lab.state();
    let mut members = state["members"].as_array().into_iter().flatten();
    let member = members.find(|m| m["name"] == node);
    let dir = member.and_then(|m| m[key].as_str()).map(PathBuf::from);
    dir.unwrap_or_else(|| panic!("{node} has no {key}"))
}
