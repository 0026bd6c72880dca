//! A node: the announcer in a process of its own, in a namespace of its own, so that it can be killed like one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use svcnet_announcer::{Announcer, Config};
use svcnet_netlink::netns::NetNs;
use svcnet_runtime::{Context, Health, Informers};
use tokio_util::sync::CancellationToken;

use crate::api;

/// The test that is a node's process when this variable is set.
const TEST: &str = "a_process_of_the_other_tests";
const VARIABLE: &str = "SVCNET_ANNOUNCER_TEST_NODE";

/// A running node. It is killed when this goes out of scope.
pub(crate) struct Node {
    child: Child,
}

impl Node {
    /// Starts the announcer of the node in the namespace. Its state is in the directory, named after the node.
    pub(crate) fn start(
        netns: &NetNs,
        name: &str,
        address: IpAddr,
        objects: &Path,
        directory: &Path,
    ) -> Self {
        let setup = json!({
            "name": name, "address": address, "objects": objects, "events": events(directory, name),
            "data": directory.join(name),
        });
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", TEST, "--nocapture"])
            .env(VARIABLE, setup.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = netns.run(|| command.spawn().unwrap()).unwrap();
        Self { child }
    }

    /// Ends it without a word.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Asks it to go, and waits until it has.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// The file that a node's Events are in.
pub(crate) fn events(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.events"))
}

/// What a node's process does; nothing in a process that is none.
pub(crate) fn main() {
    let Ok(setup) = std::env::var(VARIABLE) else {
        return;
    };
    let setup: Value = serde_json::from_str(&setup).unwrap();
    let text = |key: &str| setup[key].as_str().unwrap().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let client = api::client(text("objects").into(), text("events").into());
        let data_dir = PathBuf::from(text("data"));
        std::fs::create_dir_all(&data_dir).unwrap();
        let context = Context {
            node_name: text("name"),
            client: client.clone(),
            informers: Informers::new(client, Some(data_dir.clone()), shutdown.clone()),
            health: Health::default(),
            shutdown: shutdown.clone(),
            run_dir: data_dir.clone(),
            data_dir,
        };
        let config = Config {
            node_ips: vec![text("address").parse().unwrap()],
            ..Config::default()
        };
        let announcer = Announcer::new(config, &context).unwrap();
        context.informers.start();
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::spawn(async move {
            terminate.recv().await;
            shutdown.cancel();
        });
        announcer.run().await.unwrap();
    });
}
