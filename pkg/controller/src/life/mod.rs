//! Node life: a node whose Lease stands still is marked as unknown, and its pods as not ready, so that Services leave
//! them; when the Lease moves again, what was taken is given back, and only that.

mod apply;
mod judge;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use svcnet_api::wellknown::NAMESPACE_NODE_LEASE;
use svcnet_runtime::{Change, Informers, Scope};
use tokio::time::Instant;

use crate::engine::{Applying, Controller, Mark, source};
use crate::recorder::Recorder;
use crate::view::{ObjectKey, Version, View};

use judge::{Judge, Renewal, Verdict};

/// Reason of the Ready condition of a pod whose node is dead: only what has it is given back.
const REASON_NODE_NOT_READY: &str = "NodeNotReady";
/// Reason of the Ready condition of a node whose Lease has expired.
const REASON_UNKNOWN: &str = "NodeStatusUnknown";
/// Reason of the Ready condition of a node that never had a Lease.
const REASON_NEVER_UPDATED: &str = "NodeStatusNeverUpdated";
const REASON_READY: &str = "KubeletReady";

/// A change of one of the watched kinds.
pub(crate) enum Event {
    Node(Change<Node>),
    Lease(Change<Lease>),
    Pod(Change<Pod>),
}

/// What plans are made for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Node(String),
    Pod(ObjectKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Pod(key) => write!(f, "pod {key}"),
        }
    }
}

/// The state of a Ready condition, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Yes,
    No,
    /// Not ready because we said so.
    Taken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PodState {
    node: String,
    ready: Ready,
}

/// One change of a Ready condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// After a look at the Lease itself: `seen` may be old news.
    NodeUnknown {
        node: String,
        uid: String,
        seen: Option<Renewal>,
        verdict: Verdict,
    },
    NodeReady {
        node: String,
        uid: String,
    },
    PodNotReady {
        pod: ObjectKey,
        version: Version,
    },
    PodReady {
        pod: ObjectKey,
        version: Version,
    },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeUnknown { node, verdict, .. } => write!(f, "mark node {node} unknown ({verdict:?})"),
            Self::NodeReady { node, .. } => write!(f, "mark node {node} ready"),
            Self::PodNotReady { pod, .. } => write!(f, "mark pod {pod} not ready"),
            Self::PodReady { pod, .. } => write!(f, "mark pod {pod} ready again"),
        }
    }
}

/// What a plan has brought.
pub(crate) enum Outcome {
    Nothing,
    Node(Box<Node>),
    Pod(Box<Pod>),
    /// The node lives: its Lease has moved while we were not looking.
    Renewed(String, Renewal),
}

pub(crate) struct NodeLifeController {
    client: kube::Client,
    recorder: Recorder,
    judge: Judge,
    nodes: View<String, Ready>,
    leases_listed: bool,
    pods: View<ObjectKey, PodState>,
    pods_on: HashMap<String, HashSet<ObjectKey>>,
    /// Pods that are not ready because we said so.
    taken: HashSet<ObjectKey>,
}

impl NodeLifeController {
    pub(crate) fn new(client: kube::Client, recorder: Recorder) -> Self {
        Self {
            client,
            recorder,
            judge: Judge::default(),
            nodes: View::default(),
            leases_listed: false,
            pods: View::default(),
            pods_on: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Event>> {
        let leases = Scope {
            namespace: Some(NAMESPACE_NODE_LEASE.to_string()),
            ..Scope::default()
        };
        vec![
            source(informers.subscribe(Scope::default()), Event::Node),
            source(informers.subscribe(leases), Event::Lease),
            source(informers.subscribe(Scope::default()), Event::Pod),
        ]
    }

    fn verdict(&self, node: &str, now: Instant) -> Option<(Verdict, Ready)> {
        let ready = *self.nodes.get(&node.to_string())?;
        Some((self.judge.verdict(node, ready == Ready::Taken, now), ready))
    }

    fn node_changed(&mut self, object: &Node, mark: Mark<'_, Key>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let ready = node_ready(object);
        let before = self
            .nodes
            .apply(name.clone(), Version::of(&object.metadata), ready);
        self.judge.node_seen(&name, Instant::now());
        match before {
            Ok(before) if before != Some(ready) => self.mark_node(&name, mark),
            _ => {}
        }
    }

    fn mark_node(&self, name: &str, mark: Mark<'_, Key>) {
        mark(Key::Node(name.to_string()));
        for pod in self.pods_on.get(name).into_iter().flatten() {
            mark(Key::Pod(pod.clone()));
        }
    }

    fn pod_changed(&mut self, object: &Pod, mark: Mark<'_, Key>) {
        let key = ObjectKey::of(&object.metadata);
        let Some(state) = PodState::of(object) else { return };
        let (node, taken) = (state.node.clone(), state.ready == Ready::Taken);
        let Ok(before) = self.pods.apply(key.clone(), Version::of(&object.metadata), state) else {
            return;
        };
        if let Some(before) = before.filter(|before| before.node != node) {
            self.forget(&before.node, &key);
        }
        self.pods_on.entry(node).or_default().insert(key.clone());
        if taken {
            self.taken.insert(key.clone());
        } else {
            self.taken.remove(&key);
        }
        mark(Key::Pod(key));
    }

    fn pod_gone(&mut self, key: &ObjectKey, version: &Version) {
        if let Some(pod) = self.pods.delete(key, version) {
            self.forget(&pod.node, key);
        }
    }

    fn forget(&mut self, node: &str, pod: &ObjectKey) {
        self.taken.remove(pod);
        if let Some(pods) = self.pods_on.get_mut(node) {
            pods.remove(pod);
            if pods.is_empty() {
                self.pods_on.remove(node);
            }
        }
    }

    fn lease_changed(&mut self, object: &Lease, fresh: bool) {
        let Some(name) = &object.metadata.name else { return };
        self.judge
            .lease_seen(name, renewal(object), fresh, Instant::now());
    }

    fn observe_nodes(&mut self, change: Change<Node>, mark: Mark<'_, Key>) {
        match change {
            Change::Apply(object) => self.node_changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                if self.nodes.delete(&name, &Version::of(&object.metadata)).is_some() {
                    self.judge.node_gone(&name);
                }
            }
            Change::Reset(all) => {
                let names = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                for (name, _) in self.nodes.retain(&names) {
                    self.judge.node_gone(&name);
                }
                all.iter().for_each(|object| self.node_changed(object, mark));
            }
        }
    }

    fn observe_pods(&mut self, change: Change<Pod>, mark: Mark<'_, Key>) {
        match change {
            Change::Apply(object) => self.pod_changed(&object, mark),
            Change::Delete(object) => {
                self.pod_gone(&ObjectKey::of(&object.metadata), &Version::of(&object.metadata));
            }
            Change::Reset(all) => {
                let keys = all.iter().map(|object| ObjectKey::of(&object.metadata)).collect();
                for (key, pod) in self.pods.retain(&keys) {
                    self.forget(&pod.node, &key);
                }
                all.iter().for_each(|object| self.pod_changed(object, mark));
            }
        }
    }
}

impl Controller for NodeLifeController {
    type Key = Key;
    type Event = Event;
    type Plan = Plan;
    type Outcome = Outcome;

    const NAME: &'static str = "node-life";
    const PERIOD: Duration = Duration::from_millis(500);

    fn observe(&mut self, event: Event, mark: Mark<'_, Key>) {
        match event {
            Event::Node(change) => self.observe_nodes(change, mark),
            Event::Pod(change) => self.observe_pods(change, mark),
            Event::Lease(Change::Apply(object)) => self.lease_changed(&object, true),
            // A Lease that is gone does not move: its node dies in time, unless it makes another one.
            Event::Lease(Change::Delete(_)) => {}
            Event::Lease(Change::Reset(all)) => {
                self.leases_listed = true;
                all.iter().for_each(|object| self.lease_changed(object, false));
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.nodes.is_listed() && self.leases_listed && self.pods.is_listed()
    }

    fn plan(&mut self, key: &Key) -> Option<Plan> {
        let now = Instant::now();
        match key {
            Key::Node(name) => {
                let (verdict, ready) = self.verdict(name, now)?;
                let (node, uid) = (name.clone(), self.nodes.version(name)?.uid.clone());
                match verdict {
                    Verdict::LeaseExpired | Verdict::NeverRenewed if ready != Ready::Taken => {
                        Some(Plan::NodeUnknown {
                            seen: self.judge.renewal(name),
                            node,
                            uid,
                            verdict,
                        })
                    }
                    Verdict::Alive if ready == Ready::Taken => Some(Plan::NodeReady { node, uid }),
                    _ => None,
                }
            }
            Key::Pod(pod) => {
                let state = self.pods.get(pod)?;
                let version = self.pods.version(pod)?.clone();
                let (verdict, node) = self.verdict(&state.node, now)?;
                match (node, state.ready) {
                    // A node that lives is about to be ready again itself: its pods are left to their runtime.
                    (Ready::Taken, Ready::Yes) if verdict != Verdict::Alive => Some(Plan::PodNotReady {
                        pod: pod.clone(),
                        version,
                    }),
                    (Ready::Yes | Ready::No, Ready::Taken) if verdict == Verdict::Alive => {
                        Some(Plan::PodReady {
                            pod: pod.clone(),
                            version,
                        })
                    }
                    _ => None,
                }
            }
        }
    }

    fn apply(&self, plan: Plan) -> Applying<Outcome> {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        Box::pin(async move {
            match apply::apply(client, &recorder, plan).await {
                Ok(outcome) => (outcome, Ok(())),
                Err(error) => (Outcome::Nothing, Err(error)),
            }
        })
    }

    fn applied(&mut self, _: &Key, outcome: Outcome, mark: Mark<'_, Key>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Node(object) => self.node_changed(&object, mark),
            Outcome::Pod(object) => self.pod_changed(&object, mark),
            Outcome::Renewed(node, renewal) => self.judge.lease_seen(&node, renewal, true, Instant::now()),
        }
    }

    fn tick(&mut self, now: Instant, mark: Mark<'_, Key>) {
        self.judge.tick(now, Self::PERIOD);
        for (name, ready) in self.nodes.iter() {
            let verdict = self.judge.verdict(name, *ready == Ready::Taken, now);
            match (verdict, ready) {
                (Verdict::LeaseExpired | Verdict::NeverRenewed, Ready::Yes | Ready::No) => {
                    mark(Key::Node(name.clone()));
                }
                (Verdict::Alive, Ready::Taken) => mark(Key::Node(name.clone())),
                _ => {}
            }
        }
        // These may be held back only because their node was still undecided when they were looked at.
        self.taken.iter().cloned().map(Key::Pod).for_each(mark);
    }
}

fn renewal(object: &Lease) -> Renewal {
    let spec = object.spec.as_ref();
    let seconds = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok());
    Renewal {
        time: spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0),
        duration: seconds.map(Duration::from_secs),
    }
}

fn node_ready(object: &Node) -> Ready {
    let conditions = object
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    match conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
    {
        Some(condition) if condition.status == "True" => Ready::Yes,
        Some(condition) if condition.status == "Unknown" => match condition.reason.as_deref() {
            Some(REASON_UNKNOWN | REASON_NEVER_UPDATED) => Ready::Taken,
            _ => Ready::No,
        },
        _ => Ready::No,
    }
}

impl PodState {
    /// Nothing for a pod that is on no node.
    fn of(object: &Pod) -> Option<Self> {
        let node = object
            .spec
            .as_ref()?
            .node_name
            .clone()
            .filter(|node| !node.is_empty())?;
        let conditions = object
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let ready = match conditions
            .into_iter()
            .find(|condition| condition.type_ == "Ready")
        {
            Some(condition) if condition.status == "True" => Ready::Yes,
            Some(condition) if condition.reason.as_deref() == Some(REASON_NODE_NOT_READY) => Ready::Taken,
            _ => Ready::No,
        };
        Some(Self { node, ready })
    }
}

#[cfg(test)]
mod tests;
