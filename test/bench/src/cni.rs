//! What it takes to attach a container, against the reference plugins.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svcnet_e2e::Lab;
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::{NetNs, OwnedNetNs};

use crate::stats::{Spread, ratios, row};

/// Where Debian's `containernetworking-plugins` puts them.
const REFERENCE: &str = "/usr/lib/cni";

/// ADD and DEL of one container after the other, by turns through svcnet's plugin and through the chain bridge,
/// host-local, portmap: each call is a process, as a runtime makes them.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    ensure!(
        Path::new(REFERENCE).join("bridge").exists(),
        "the reference plugins are not in {REFERENCE}: apt-get install containernetworking-plugins"
    );
    let lab = Lab::up(&["--nodes", "1"]);
    let node = NetNs::open(&lab.namespace("n1"))?;
    let members = lab.state()["members"].as_array().cloned().unwrap_or_default();
    let run_dir = members
        .iter()
        .find(|m| m["name"] == "n1")
        .and_then(|m| m["runDir"].as_str().map(String::from));
    let socket = format!("{}/cni.sock", run_dir.context("n1 has no runDir")?);
    let ours = Chain {
        node: &node,
        program_dir: None,
        plugins: vec![json!({ "type": "svcnet", "socket": socket })],
    };
    let elsewhere = OwnedNetNs::unique("bench-cni")?;
    Rtnl::open_in(&elsewhere)?.set_loopback_up()?;
    let data = tempfile::tempdir()?;
    let theirs = Chain {
        node: &elsewhere,
        program_dir: Some(Path::new(REFERENCE)),
        plugins: vec![
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": data.path(),
                    "ranges": [[{ "subnet": "10.99.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }),
            json!({ "type": "portmap", "runtimeConfig": { "portMappings": [
                { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            ] } }),
        ],
    };
    let mut taken = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..rounds {
        for (chain, times) in [&ours, &theirs].into_iter().zip(&mut taken) {
            let container = OwnedNetNs::unique("bench-cni")?;
            let begun = Instant::now();
            let result = chain.add(&container)?;
            times[0].push(begun.elapsed().as_secs_f64() * 1e3);
            let begun = Instant::now();
            chain.del(&container, &result)?;
            times[1].push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [[add, del], [their_add, their_del]] = &taken;
    for (what, ours, theirs) in [
        ("CNI ADD; bridge + host-local + portmap", add, their_add),
        ("CNI DEL; the same", del, their_del),
        (
            "CNI ADD and DEL together",
            &together(add, del),
            &together(their_add, their_del),
        ),
    ] {
        row(
            what,
            &Spread::new(ours, 1).unit(" ms").to_string(),
            &Spread::new(theirs, 1).unit(" ms").to_string(),
            &format!("{} times faster", Spread::new(&ratios(theirs, ours), 1)),
        );
    }
    Ok(())
}

fn together(adds: &[f64], dels: &[f64]) -> Vec<f64> {
    adds.iter().zip(dels).map(|(add, del)| add + del).collect()
}

/// Plugins that are called one after the other, in a node's namespace.
struct Chain<'a> {
    node: &'a NetNs,
    /// Where they are; none for svcnet's own.
    program_dir: Option<&'a Path>,
    plugins: Vec<Value>,
}

impl Chain<'_> {
    fn add(&self, container: &OwnedNetNs) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", container, plugin, &result)?;
        }
        Ok(result)
    }

    fn del(&self, container: &OwnedNetNs, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", container, plugin, result)?;
        }
        Ok(())
    }

    fn call(&self, command: &str, container: &OwnedNetNs, plugin: &Value, previous: &Value) -> Result<Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("bench");
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let program = match self.program_dir {
            Some(dir) => dir.join(plugin["type"].as_str().unwrap_or_default()),
            None => svcnet_e2e::binary(),
        };
        let mut call = Command::new(program);
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container.name())
            .env("CNI_NETNS", container.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A child is born into the namespace of the thread that makes it.
        let mut child = self.node.run(|| call.spawn())??;
        child
            .stdin
            .take()
            .context("the plugin reads nothing")?
            .write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{command} of {plugin}: {answer}");
        Ok(serde_json::from_str(&answer).unwrap_or(Value::Null))
    }
}
