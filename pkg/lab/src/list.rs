//! `lab list`: the labs there are, and how they are.

use std::path::PathBuf;

use serde::Serialize;
use svcnet_netlink::netns::{self, NetNs};

use crate::names::{LabName, Member, NodeId};
use crate::plan::server_url;
use crate::pod::traces::{NotePath, Stage};
use crate::process::{self, ProcessId};
use crate::segment;
use crate::state::{self, LabDir, PodRecord};

/// A lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabView {
    /// Its name.
    pub name: LabName,
    /// Whether `lab up` came to its end.
    pub complete: bool,
    /// Where its API is, seen from its members.
    pub server: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: String,
    /// Nodes, client and pods.
    pub members: Vec<MemberView>,
}

/// A member of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its name.
    pub name: Member,
    /// Its kind.
    pub kind: Kind,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Name of its network namespace.
    pub netns: String,
    /// How it is.
    pub state: State,
    /// Its process: the agent (and server) of a node, the supervisor of a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// All processes in its namespace, that one among them where it is.
    pub pids: Vec<i32>,
    /// Of a pod: the node that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Of a pod: its namespace in the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of a node: `--data-dir` of its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Of a node: `--run-dir` of its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// The log of its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The node with the server.
    Server,
    /// Another node.
    Agent,
    /// The host outside the cluster.
    Client,
    /// A pod.
    Pod,
}

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its process runs (of the client: it is there).
    Running,
    /// Its process runs, its cable is cut.
    Cut,
    /// Its process was stopped, or ended.
    Stopped,
    /// A pod that does not answer yet.
    Starting,
    /// A pod that is ready.
    Ready,
    /// A pod that is not ready any more.
    NotReady,
}

impl State {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cut => "cut",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::NotReady => "not ready",
        }
    }
}

/// All labs.
pub fn list() -> Vec<LabView> {
    state::labs().iter().map(view).collect()
}

/// One lab.
pub fn view(name: &LabName) -> LabView {
    let dir = LabDir::of(name);
    let count = dir.record().map_or(0, |record| record.nodes);
    let cut = segment::cut_cables(name);
    let nodes = NodeId::first(count).unwrap_or_default();
    let mut members: Vec<MemberView> = nodes.into_iter().map(|id| node(&dir, id, &cut)).collect();
    members.push(MemberView {
        pid: None,
        state: if cut.iter().any(|port| port == "client") {
            State::Cut
        } else {
            State::Running
        },
        ..member(&dir, Member::Client, Kind::Client)
    });
    members.extend(dir.pods().into_iter().filter_map(|name| {
        let record = dir.pod(&name).record().ok()??;
        pod(&dir, Member::Pod(name), &record)
    }));
    LabView {
        name: name.clone(),
        complete: dir.is_complete(),
        server: server_url(),
        kubeconfig: dir.kubeconfig().display().to_string(),
        members,
    }
}

fn member(dir: &LabDir, member: Member, kind: Kind) -> MemberView {
    let netns = dir.name().netns(&member);
    let id = NetNs::open(&netns).and_then(|netns| netns.id());
    let inside = id.map(|id| process::inside(&[id])).unwrap_or_default();
    MemberView {
        kind,
        address: member.segment_address().map(|address| address.to_string()),
        netns,
        state: State::Stopped,
        pid: None,
        pids: inside.into_iter().map(|process| process.pid).collect(),
        node: None,
        namespace: None,
        data_dir: None,
        run_dir: None,
        log: dir.log(&member).map(|path| path.display().to_string()),
        name: member,
    }
}

fn node(dir: &LabDir, id: NodeId, cut: &[String]) -> MemberView {
    let kind = if id == NodeId::SERVER {
        Kind::Server
    } else {
        Kind::Agent
    };
    let process = dir
        .node(id)
        .record()
        .ok()
        .flatten()
        .and_then(|record| record.process);
    let alive = process.filter(|process| process.is_alive());
    MemberView {
        pid: alive.map(|process| process.pid),
        state: match alive {
            None => State::Stopped,
            Some(_) if cut.contains(&id.to_string()) => State::Cut,
            Some(_) => State::Running,
        },
        data_dir: Some(dir.node(id).data()),
        run_dir: Some(dir.node(id).run()),
        ..member(dir, Member::Node(id), kind)
    }
}

/// None: the pod ended by itself and left nothing, as when its Pod object was deleted.
fn pod(dir: &LabDir, name: Member, record: &PodRecord) -> Option<MemberView> {
    let alive = record.process.filter(|process: &ProcessId| process.is_alive());
    let netns = dir.name().netns(&name);
    let left = netns::path_of(&netns).is_ok_and(|path| path.exists());
    if alive.is_none() && !left && !record.resume {
        return None;
    }
    let note = NotePath::of(&dir.node(record.node).run(), &netns)
        .read()
        .ok()
        .flatten();
    Some(MemberView {
        pid: alive.map(|process| process.pid),
        address: note
            .as_ref()
            .and_then(|note| note.address)
            .map(|address| address.to_string()),
        state: match (alive, note.map(|note| note.stage)) {
            (None, _) => State::Stopped,
            (Some(_), Some(Stage::Ready)) => State::Ready,
            (Some(_), Some(Stage::NotReady | Stage::Waiting)) => State::NotReady,
            (Some(_), _) => State::Starting,
        },
        node: Some(record.node),
        namespace: Some(record.namespace.clone()),
        ..member(dir, name, Kind::Pod)
    })
}
