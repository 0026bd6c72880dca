//! The life of a pod: set up in order, kept, taken away in reverse.

use std::io;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use svcnet_netlink::netns::{self, NetNs};
use svcnet_runtime::{Change, Informers, Scope};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::object::{self, Readiness, Status};
use super::program::{Program, ProgramError};
use super::spec::PodSpec;
use super::teardown;
use super::traces::{Note, NotePath, Stage};
use crate::exec::resolv_conf_of;
use crate::pod::cni::{self, CniError};
use crate::process::{self, ProcessError, ProcessId};
use crate::segment;
use crate::state::StateError;

/// How long to wait for an agent that is not there yet.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);
const AGENT_RETRY: Duration = Duration::from_millis(20);
/// How often a program that does not listen yet is looked at, and one that does.
const GLANCE_UNREADY: Duration = Duration::from_millis(5);
const GLANCE_READY: Duration = Duration::from_millis(500);
/// Wait before a status that the server did not take is sent again.
const REPORT_RETRY: Duration = Duration::from_millis(500);
/// How long a supervisor may take to end.
const END_PATIENCE: Duration = Duration::from_secs(40);

/// A pod could not be run or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// It runs already.
    #[error("pod {pod} runs already (process {pid}); `svcnet pod rm` or `svcnet lab pod rm` ends it")]
    Running {
        /// The pod.
        pod: String,
        /// Its supervisor.
        pid: i32,
    },
    /// Its network namespace is somebody else's.
    #[error("the network namespace {0} exists and is not a pod's of ours; choose another with --netns")]
    NetNsTaken(String),
    /// The namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// Its loopback link.
    #[error("bring up the loopback link of {netns}")]
    Loopback {
        /// The namespace.
        netns: String,
        /// Why not.
        source: svcnet_netlink::rt::Error,
    },
    /// A file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The Pod object.
    #[error("create the Pod {namespace}/{name}")]
    Create {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the server said.
        source: Box<kube::Error>,
    },
    /// A Pod of that name is there, and no leftover of ours.
    #[error(
        "a Pod {namespace}/{name} exists already, on node {node}; delete it first: kubectl delete pod -n {namespace} {name}"
    )]
    PodTaken {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Where it is.
        node: String,
    },
    /// The network.
    #[error("connect the pod to the network of node {node} (is `svcnet agent` running there?)")]
    Connect {
        /// The node.
        node: String,
        /// What the plugin said.
        source: CniError,
    },
    /// Disconnecting.
    #[error("disconnect pod {pod}")]
    Disconnect {
        /// The pod.
        pod: String,
        /// What the plugin said.
        source: CniError,
    },
    /// Its resolver's configuration.
    #[error("write {path}")]
    ResolvConf {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A process does not end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing of that name.
    #[error("there is no pod {0} here")]
    Unknown(String),
}

/// Runs a pod until `shutdown`, or until its Pod object is deleted, and takes it away then.
///
/// # Errors
/// When it can not be set up (nothing of it is left then), or not be taken away.
pub async fn run(spec: PodSpec, client: kube::Client, shutdown: CancellationToken) -> Result<(), PodError> {
    let path = NotePath::of(&spec.run_dir, &spec.netns);
    if let Some(left) = path.read()? {
        if left.supervisor.is_alive() {
            return Err(PodError::Running {
                pod: left.pod,
                pid: left.supervisor.pid,
            });
        }
        tracing::info!(object.name = left.pod, "removing what a killed supervisor left");
        teardown::remove(&left, &spec.run_dir, Some(&client)).await?;
    }
    let netns = NetNs::create(&spec.netns).map_err(|error| match error {
        netns::Error::Exists(name) => PodError::NetNsTaken(name),
        other => other.into(),
    })?;
    let mut note = Note {
        supervisor: ProcessId::this().unwrap_or(ProcessId { pid: 0, started: 0 }),
        netns: spec.netns.clone(),
        pod: spec.name.clone(),
        namespace: spec.namespace.clone(),
        uid: None,
        container_id: format!("{:032x}", rand::random::<u128>()),
        address: None,
        stage: Stage::Starting,
    };
    let lived = tokio::select! {
        lived = live(&spec, &client, &netns, &path, &mut note, &shutdown) => lived,
        () = shutdown.cancelled() => Ok(()),
    };
    drop(netns);
    let removed = teardown::remove(&note, &spec.run_dir, Some(&client)).await;
    lived.and(removed)
}

/// Ends a pod: tells its supervisor to, or does its work when it was killed.
///
/// # Errors
/// When there is no such pod, or something of it can not be taken away.
pub async fn remove(
    pod: &str,
    netns: &str,
    run_dir: &Path,
    client: Option<&kube::Client>,
) -> Result<(), PodError> {
    let path = NotePath::of(run_dir, netns);
    let note = path.read()?.ok_or_else(|| PodError::Unknown(pod.to_string()))?;
    let supervisor = [note.supervisor];
    let ended =
        tokio::task::spawn_blocking(move || process::stop(&supervisor, Signal::SIGTERM, END_PATIENCE)).await;
    ended.unwrap_or(Ok(()))?;
    match path.read()? {
        None => Ok(()),
        Some(left) => teardown::remove(&left, run_dir, client).await,
    }
}

/// From the first step to the reason for the end.
async fn live(
    spec: &PodSpec,
    client: &kube::Client,
    netns: &NetNs,
    path: &NotePath,
    note: &mut Note,
    shutdown: &CancellationToken,
) -> Result<(), PodError> {
    path.write(note)?;
    segment::raise_loopback(netns).map_err(|source| PodError::Loopback {
        netns: spec.netns.clone(),
        source,
    })?;
    let pods = Api::<Pod>::namespaced(client.clone(), &spec.namespace);
    let uid = create(&pods, spec).await?;
    note.uid = Some(uid.clone());
    path.write(note)?;
    connect(spec, note).await?;
    path.write(note)?;
    let program = Program::start(spec)?;
    // Watches end with the pod, not with the process: a test may run more than one.
    let informers = Informers::new(client.clone(), None, shutdown.child_token());
    let own = |name: &str, namespace: Option<&str>| Scope {
        namespace: namespace.map(str::to_string),
        labels: None,
        fields: Some(format!("metadata.name={name}")),
    };
    let mut kept = Kept {
        spec,
        pods,
        uid,
        path,
        note,
        program,
        pod_changes: informers.subscribe::<Pod>(own(&spec.name, Some(&spec.namespace))),
        node_changes: informers.subscribe::<Node>(own(&spec.node, None)),
        node_is_lost: false,
        reported: None,
    };
    informers.start();
    kept.until_deleted().await
}

/// Creates the Pod object and gives its uid. One of the same name on this node that nothing here stands behind is a
/// leftover: a supervisor and its notes were lost, by a reboot for one.
async fn create(pods: &Api<Pod>, spec: &PodSpec) -> Result<String, PodError> {
    let failed = |source| PodError::Create {
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        source: Box::new(source),
    };
    let wanted: Pod =
        serde_json::from_value(object::pod(spec)).map_err(|error| failed(kube::Error::SerdeError(error)))?;
    for last in [false, true] {
        let conflict = match pods.create(&PostParams::default(), &wanted).await {
            Ok(made) => return Ok(made.metadata.uid.unwrap_or_default()),
            Err(kube::Error::Api(status)) if status.code == 409 && !last => kube::Error::Api(status),
            Err(error) => return Err(failed(error)),
        };
        let Some(there) = pods.get_opt(&spec.name).await.map_err(failed)? else {
            continue;
        };
        let node = there.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        if node != spec.node {
            return Err(PodError::PodTaken {
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                node,
            });
        }
        tracing::info!(object.name = spec.name, reason = %conflict, "replacing a Pod that nothing stands behind");
        pods.delete(&spec.name, &DeleteParams::default().grace_period(0))
            .await
            .map_err(failed)?;
    }
    unreachable!("the second try returns")
}

/// CNI ADD, patient with an agent that is still starting, and the resolver's configuration that it gives.
async fn connect(spec: &PodSpec, note: &mut Note) -> Result<(), PodError> {
    let begun = tokio::time::Instant::now();
    let added = loop {
        let (of, run_dir) = (note.clone(), spec.run_dir.clone());
        let tried = tokio::task::spawn_blocking(move || cni::add(&of, &run_dir)).await;
        match tried.unwrap_or_else(|panic| Err(CniError::Run(io::Error::other(panic)))) {
            Ok(added) => break added,
            Err(error) if error.is_passing() && begun.elapsed() < AGENT_PATIENCE => {
                tracing::debug!(%error, "the agent is not there yet");
                tokio::time::sleep(AGENT_RETRY).await;
            }
            Err(source) => {
                return Err(PodError::Connect {
                    node: spec.node.clone(),
                    source,
                });
            }
        }
    };
    note.address = added.address();
    if let Some(text) = added.resolv_conf() {
        let path = resolv_conf_of(&spec.netns);
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            std::fs::write(&path, &text)
        };
        write().map_err(|source| PodError::ResolvConf {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// A pod that is set up.
struct Kept<'a> {
    spec: &'a PodSpec,
    pods: Api<Pod>,
    uid: String,
    path: &'a NotePath,
    note: &'a mut Note,
    program: Program,
    pod_changes: mpsc::Receiver<Change<Pod>>,
    node_changes: mpsc::Receiver<Change<Node>>,
    /// The control plane has given the node up, and with it this pod: what we say would be said against it.
    node_is_lost: bool,
    /// What the server has taken.
    reported: Option<Status>,
}

impl Kept<'_> {
    async fn until_deleted(&mut self) -> Result<(), PodError> {
        loop {
            self.program.look();
            let pause = self.report().await?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.program.event() => {}
                Some(change) = self.pod_changes.recv() => {
                    if self.pod_is_deleted(&change) {
                        tracing::info!(object.name = self.spec.name, "the Pod was deleted: stopping");
                        return Ok(());
                    }
                }
                Some(change) = self.node_changes.recv() => self.note_node(&change),
            }
        }
    }

    /// Tells the server what it does not know, and says how long to wait for the next look.
    async fn report(&mut self) -> Result<Duration, PodError> {
        let status = self.program.status();
        let pause = match status.readiness {
            Readiness::Ready => GLANCE_READY,
            Readiness::NotListening(_) => GLANCE_UNREADY,
            Readiness::NotRunning => GLANCE_READY,
        };
        if self.node_is_lost || self.reported.as_ref() == Some(&status) {
            return Ok(pause);
        }
        let patch = Patch::Merge(object::status_patch(self.spec, &status));
        let params = PatchParams::default();
        match self.pods.patch_status(&self.spec.name, &params, &patch).await {
            Ok(_) => {
                let stage = match &status.readiness {
                    Readiness::Ready => Stage::Ready,
                    Readiness::NotRunning => Stage::Waiting,
                    Readiness::NotListening(_) => match self.note.stage {
                        Stage::Starting => Stage::Starting,
                        _ => Stage::NotReady,
                    },
                };
                if stage != self.note.stage {
                    self.note.stage = stage;
                    self.path.write(self.note)?;
                    tracing::info!(object.name = self.spec.name, stage = ?stage, "the pod changed");
                }
                self.reported = Some(status);
                Ok(pause)
            }
            Err(error) => {
                tracing::debug!(%error, "the status was not taken");
                Ok(REPORT_RETRY)
            }
        }
    }

    fn pod_is_deleted(&mut self, change: &Change<Pod>) -> bool {
        let seen = match change {
            Change::Reset(all) => all.first(),
            Change::Apply(pod) => Some(pod),
            Change::Delete(_) => None,
        };
        let Some(pod) = seen else { return true };
        let meta = &pod.metadata;
        if meta.uid.as_ref() != Some(&self.uid) || meta.deletion_timestamp.is_some() {
            return true;
        }
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready =
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        let said = self
            .reported
            .as_ref()
            .map(|status| status.readiness == Readiness::Ready);
        if said.is_some_and(|said| said != ready) {
            // Somebody else changed it, as the control plane does for a lost node: say it again.
            self.reported = None;
        }
        false
    }

    fn note_node(&mut self, change: &Change<Node>) {
        let seen = match change {
            Change::Reset(all) => all.first(),
            Change::Apply(node) => Some(node),
            Change::Delete(_) => None,
        };
        let conditions = seen
            .and_then(|node| node.status.as_ref())
            .and_then(|status| status.conditions.as_ref());
        let lost =
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "Unknown"));
        if self.node_is_lost && !lost {
            self.reported = None;
        }
        self.node_is_lost = lost;
    }
}
