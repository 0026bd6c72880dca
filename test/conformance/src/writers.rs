//! Writers of ConfigMaps that know what was acknowledged, whatever happens to the server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::model::{Acknowledged, Op};

/// The name of the object that is written last of all.
pub const END: &str = "end";

/// How often a write is tried while there is no server.
const AGAIN: Duration = Duration::from_millis(50);
/// How long an answer may take. The server ends each request itself in less; but a client's future has been seen that never
/// ended, through ten servers, with no connection left to wait for.
const ANSWER_MAX: Duration = Duration::from_secs(90);
/// How many names one writer has.
const NAMES: u64 = 4;

/// Writers at work.
pub struct Writers {
    tasks: JoinSet<Acknowledged>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    client: Client,
}

impl Writers {
    /// Starts so many, each with names of its own.
    pub fn start(client: &Client, count: u64) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let writer = Writer {
                api: Api::default_namespaced(client.clone()),
                number,
                random: StdRng::seed_from_u64(number),
                acknowledged: BTreeMap::new(),
                written: written.clone(),
            };
            tasks.spawn(writer.run(stop.clone()));
        }
        Self {
            tasks,
            stop,
            written,
            client: client.clone(),
        }
    }

    /// How many writes were acknowledged so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends them, writes [`END`], and tells what was acknowledged.
    ///
    /// # Panics
    /// When a writer met what should not be.
    pub async fn finish(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::new();
        while let Some(done) = self.tasks.join_next().await {
            all.extend(done.unwrap_or_else(|error| panic!("a writer has failed: {error}")));
        }
        let mut last = Writer {
            api: Api::default_namespaced(self.client.clone()),
            number: u64::MAX / 1_000_000,
            random: StdRng::seed_from_u64(0),
            acknowledged: BTreeMap::new(),
            written: self.written.clone(),
        };
        last.put(END, 0).await;
        all.extend(last.acknowledged);
        all
    }
}

struct Writer {
    api: Api<ConfigMap>,
    number: u64,
    random: StdRng,
    acknowledged: Acknowledged,
    written: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Acknowledged {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            let name = format!("w{}-{}", self.number, self.random.random_range(0..NAMES));
            let is_there = matches!(self.ops(&name).last(), Some(Op::Put { .. }));
            if is_there && self.random.random_range(0..4) == 0 {
                self.delete(&name).await;
            } else {
                self.put(&name, self.number * 1_000_000 + count).await;
            }
        }
        self.acknowledged
    }

    fn ops(&mut self, name: &str) -> &mut Vec<Op> {
        self.acknowledged.entry(name.to_string()).or_default()
    }

    fn done(&mut self, name: &str, op: Op) {
        self.ops(name).push(op);
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    async fn put(&mut self, name: &str, value: u64) {
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_string()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([("value".to_string(), value.to_string())])),
            ..ConfigMap::default()
        };
        let is_there = matches!(self.ops(name).last(), Some(Op::Put { .. }));
        let params = PostParams::default();
        loop {
            let answer = if is_there {
                answered(self.api.replace(name, &params, &object)).await
            } else {
                answered(self.api.create(&params, &object)).await
            };
            let made = match answer {
                Ok(made) => Some(made),
                Err(error) => {
                    refuse_refusals(&error);
                    // Was it written before the server died? Nobody else writes this name.
                    self.find(name)
                        .await
                        .filter(|found| value_of(found) == Some(value))
                }
            };
            if let Some(made) = made {
                let revision = revision_of(&made.metadata);
                return self.done(name, Op::Put { value, revision });
            }
        }
    }

    async fn delete(&mut self, name: &str) {
        loop {
            let gone = match answered(self.api.delete(name, &DeleteParams::default())).await {
                Ok(_) => true,
                Err(error) => {
                    refuse_refusals(&error);
                    self.find(name).await.is_none()
                }
            };
            if gone {
                return self.done(name, Op::Delete);
            }
        }
    }

    /// What is there, as soon as there is a server again.
    async fn find(&self, name: &str) -> Option<ConfigMap> {
        loop {
            match answered(self.api.get_opt(name)).await {
                Ok(found) => return found,
                Err(error) => refuse_refusals(&error),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// An answer, or that there was none, which is told: then the write is looked for, as if its server had died.
async fn answered<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let Ok(answer) = tokio::time::timeout(ANSWER_MAX, request).await else {
        eprintln!("a request had no answer in {ANSWER_MAX:?}, and was given up");
        return Err(kube::Error::Service("no answer".into()));
    };
    answer
}

/// A server that is away, or going, is no reason to stop; a refusal is a fault.
fn refuse_refusals(error: &kube::Error) {
    let going = |code: u16| code >= 500 || code == 429;
    assert!(
        !matches!(error, kube::Error::Api(status) if !going(status.code)),
        "refused: {error}"
    );
}

/// The value that a writer gave an object.
pub(crate) fn value_of(object: &ConfigMap) -> Option<u64> {
    object.data.as_ref()?.get("value")?.parse().ok()
}

fn revision_of(metadata: &ObjectMeta) -> u64 {
    let revision = metadata.resource_version.as_deref().unwrap_or_default();
    revision
        .parse()
        .unwrap_or_else(|_| panic!("{revision:?} is no revision of ours"))
}

/// Name, value and revision of an object, as an informer sees it.
///
/// # Panics
/// When it is none that a writer made.
pub fn seen(object: &ConfigMap) -> (String, u64, u64) {
    let name = object.metadata.name.clone().unwrap_or_default();
    let value = value_of(object).unwrap_or_else(|| panic!("{name} has no value"));
    (name, value, revision_of(&object.metadata))
}
