//! `lab pod`: pods of a lab, each with its supervisor (`svcnet pod run`) on one of the nodes.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use svcnet_netlink::netns::{self, NetNs};

use crate::names::{LabName, Member, NodeId, PodName};
use crate::pod::traces::{NotePath, Stage};
use crate::process::{self, Launch, ProcessError, ProcessId, last_lines};
use crate::state::{LabDir, LabRecord, PodRecord, StateError};

const GLANCE: Duration = Duration::from_millis(3);
/// How long a pod may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a pod may take to go.
const END_PATIENCE: Duration = Duration::from_secs(40);
const LOG_LINES: usize = 10;

/// A pod of a lab could not be run or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The namespace of its node.
    #[error("lab {lab} has no node {node}")]
    NoNode {
        /// The lab.
        lab: LabName,
        /// The node.
        node: NodeId,
        /// What was missing.
        source: netns::Error,
    },
    /// The node is stopped.
    #[error("{0} is stopped: `svcnet lab node start {0}` starts it")]
    NodeStopped(NodeId),
    /// The name is taken.
    #[error("lab {lab} has a pod {pod} already, on {node}: `svcnet lab pod rm {pod}` removes it")]
    Taken {
        /// The lab.
        lab: LabName,
        /// The pod.
        pod: PodName,
        /// Where it is.
        node: NodeId,
    },
    /// No such pod.
    #[error("lab {lab} has no pod {pod}")]
    Unknown {
        /// The lab.
        lab: LabName,
        /// The pod.
        pod: PodName,
    },
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its supervisor ended.
    #[error("pod {pod} did not start:\n{log}")]
    Ended {
        /// The pod.
        pod: PodName,
        /// The end of its log.
        log: String,
    },
    /// It does not become ready.
    #[error("pod {pod} {why}; it stays (`svcnet lab pod rm {pod}` removes it); the end of its log:\n{log}")]
    NotReady {
        /// The pod.
        pod: PodName,
        /// What is wrong with it.
        why: &'static str,
        /// The end of its log.
        log: String,
    },
    /// It can not be removed.
    #[error("pod {pod} could not be removed:\n{log}")]
    Stuck {
        /// The pod.
        pod: PodName,
        /// The end of its log.
        log: String,
    },
}

/// A pod to run in a lab.
#[derive(Debug, Clone)]
pub struct PodOptions {
    /// Its name.
    pub name: PodName,
    /// The node to run it on.
    pub node: NodeId,
    /// Its namespace in the API.
    pub namespace: String,
    /// Its labels, KEY=VALUE.
    pub labels: Vec<String>,
    /// Its ports, as `svcnet pod run --container-port` takes them.
    pub ports: Vec<String>,
    /// Its command; none for the built-in responder.
    pub command: Vec<String>,
    /// Whether to wait until it is ready, and not only until it has an address.
    pub wait: bool,
}

/// Runs a pod, and returns its address when it is ready.
///
/// # Errors
/// When it can not be run, or does not become ready.
pub fn run(lab: &LabName, options: &PodOptions) -> Result<Option<IpAddr>, PodsError> {
    let dir = LabDir::of(lab);
    let made = dir.record()?;
    if let Some(there) = dir.pod(&options.name).record()? {
        if there.process.is_some_and(ProcessId::is_alive) {
            return Err(PodsError::Taken {
                lab: lab.clone(),
                pod: options.name.clone(),
                node: there.node,
            });
        }
        // It ended by itself or was killed; then it left things, maybe on another node.
        remove(lab, &options.name)?;
    }
    let record = PodRecord {
        node: options.node,
        namespace: options.namespace.clone(),
        process: None,
        args: supervisor_args(&dir, &made, options),
        resume: false,
    };
    start(&dir, &options.name, record)?;
    wait(&dir, &options.name, options.wait)
}

fn supervisor_args(dir: &LabDir, made: &LabRecord, options: &PodOptions) -> Vec<String> {
    let node = options.node;
    let netns = dir.name().netns(&Member::Pod(options.name.clone()));
    let run_dir = dir.node(node).run().display().to_string();
    let mut args: Vec<String> = ["pod", "run", options.name.as_str()].map(str::to_string).to_vec();
    let mut flag = |name: &str, value: &str| args.extend([format!("--{name}"), value.to_string()]);
    flag("namespace", &options.namespace);
    flag("netns", &netns);
    flag("node-name", &node.to_string());
    flag("node-ip", &made.stack.node_ips(node));
    flag("run-dir", &run_dir);
    flag("kubeconfig", &dir.kubeconfig().display().to_string());
    for label in &options.labels {
        flag("label", label);
    }
    for port in &options.ports {
        flag("container-port", port);
    }
    if !options.command.is_empty() {
        args.push("--".to_string());
        args.extend(options.command.iter().cloned());
    }
    args
}

/// Starts a pod's supervisor on its node.
fn start(dir: &LabDir, name: &PodName, mut record: PodRecord) -> Result<(), PodsError> {
    let made = dir.record()?;
    let node = dir.node(record.node).record()?.and_then(|node| node.process);
    let netns =
        NetNs::open(&dir.name().netns(&Member::Node(record.node))).map_err(|source| PodsError::NoNode {
            lab: dir.name().clone(),
            node: record.node,
            source,
        })?;
    if !node.is_some_and(ProcessId::is_alive) {
        return Err(PodsError::NodeStopped(record.node));
    }
    let pod = dir.pod(name);
    pod.create()?;
    let launch = Launch {
        program: made.binary,
        args: record.args.iter().map(Into::into).collect(),
        log: pod.log(),
        netns: &netns,
    };
    let child = launch.start()?;
    record.process = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    record.resume = false;
    Ok(pod.write_record(&record)?)
}

/// Waits until a pod is ready, or has at least an address, and gives the address.
fn wait(dir: &LabDir, name: &PodName, until_ready: bool) -> Result<Option<IpAddr>, PodsError> {
    let pod = dir.pod(name);
    let log = || last_lines(&pod.log(), LOG_LINES);
    let failed = |why| PodsError::NotReady {
        pod: name.clone(),
        why,
        log: log(),
    };
    let Some(record) = pod.record()? else {
        return Ok(None);
    };
    let path = NotePath::of(
        &dir.node(record.node).run(),
        &dir.name().netns(&Member::Pod(name.clone())),
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let note = path
            .read()?
            .filter(|note| Some(note.supervisor) == record.process);
        if let Some(note) = note {
            match note.stage {
                Stage::Ready => return Ok(note.address),
                _ if !until_ready && note.address.is_some() => return Ok(note.address),
                Stage::Waiting => return Err(failed("ended and is started again after a while")),
                Stage::Starting | Stage::NotReady => {}
            }
        }
        if !record.process.is_some_and(ProcessId::is_alive) {
            let log = log();
            pod.remove()?;
            return Err(PodsError::Ended {
                pod: name.clone(),
                log,
            });
        }
        if Instant::now() > deadline {
            return Err(failed("does not listen on all its ports after a minute"));
        }
        thread::sleep(GLANCE);
    }
}

/// Removes a pod: its Pod object, its process, its namespace.
///
/// # Errors
/// When there is none, or something of it does not go.
pub fn remove(lab: &LabName, name: &PodName) -> Result<(), PodsError> {
    let dir = LabDir::of(lab);
    dir.record()?;
    let pod = dir.pod(name);
    let Some(record) = pod.record()? else {
        return Err(PodsError::Unknown {
            lab: lab.clone(),
            pod: name.clone(),
        });
    };
    let supervisor: Vec<ProcessId> = record.process.into_iter().collect();
    process::stop(&supervisor, Signal::SIGTERM, END_PATIENCE)?;
    let netns = lab.netns(&Member::Pod(name.clone()));
    if NotePath::of(&dir.node(record.node).run(), &netns)
        .read()?
        .is_some()
    {
        remove_leftovers(&dir, name, &record, &netns)?;
    }
    Ok(pod.remove()?)
}

/// `svcnet pod rm` on the node: for a supervisor that was killed.
fn remove_leftovers(dir: &LabDir, name: &PodName, record: &PodRecord, netns: &str) -> Result<(), PodsError> {
    let node =
        NetNs::open(&dir.name().netns(&Member::Node(record.node))).map_err(|source| PodsError::NoNode {
            lab: dir.name().clone(),
            node: record.node,
            source,
        })?;
    let run_dir = dir.node(record.node).run();
    let args = [
        "pod".into(),
        "rm".into(),
        name.as_str().into(),
        "--netns".into(),
        netns.into(),
        "--run-dir".into(),
        run_dir.into_os_string(),
        "--kubeconfig".into(),
        dir.kubeconfig().into_os_string(),
    ];
    let log = dir.pod(name).log();
    let launch = Launch {
        program: dir.record()?.binary,
        args: args.to_vec(),
        log: log.clone(),
        netns: &node,
    };
    let ended = launch.start()?.wait();
    if ended.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(PodsError::Stuck {
            pod: name.clone(),
            log: last_lines(&log, LOG_LINES),
        })
    }
}

/// The pods that were started on a node.
pub fn on_node(dir: &LabDir, node: NodeId) -> Vec<(PodName, PodRecord)> {
    let records = dir.pods().into_iter().filter_map(|name| {
        let record = dir.pod(&name).record().ok()??;
        Some((name, record))
    });
    records.filter(|(_, record)| record.node == node).collect()
}

/// Brings back the pods that were stopped with their node, and waits until they are ready, if asked to.
///
/// # Errors
/// When one does not come back.
pub fn resume(dir: &LabDir, node: NodeId, until_ready: bool) -> Result<(), PodsError> {
    let pods: Vec<_> = on_node(dir, node)
        .into_iter()
        .filter(|(_, record)| record.resume && !record.process.is_some_and(ProcessId::is_alive))
        .collect();
    for (name, record) in &pods {
        start(dir, name, record.clone())?;
    }
    for (name, _) in pods.iter().filter(|_| until_ready) {
        wait(dir, name, true)?;
    }
    Ok(())
}
