//! The one thread that changes anything.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::disk::{Batch, Disk};
use crate::error::CommitError;
use crate::history::Event;
use crate::key::{Collection, CollectionSpec, Key};
use crate::state::Entry;
use crate::store::{Committed, Shared, Write};
use crate::value::Change;

/// How many writes share one flush at most, and how many bytes.
const ROUND_MAX: usize = 1024;
const ROUND_BYTES_MAX: usize = 16 << 20;
/// How many revisions are reserved at a time. At 100 heartbeats a second, a block lasts nearly three hours.
pub(crate) const REVISION_BLOCK: u64 = 1_000_000;

pub(crate) type Answer = oneshot::Sender<Result<Committed, CommitError>>;

#[derive(Debug)]
pub(crate) enum Request {
    Write(Box<Write>, Answer),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) disk: Disk,
    pub(crate) specs: Vec<CollectionSpec>,
    /// The last revision given out.
    pub(crate) revision: u64,
    /// The last revision that may be given out; it is on disk.
    pub(crate) limit: u64,
    /// Why the disk takes no more.
    pub(crate) failed: Option<Arc<str>>,
}

/// The writes of one round that have passed their checks.
struct Round {
    batch: Batch,
    /// What the round has made of an object so far.
    now: HashMap<Key, Option<Entry>>,
    accepted: Vec<(Collection, Event, Answer)>,
}

impl Writer {
    pub(crate) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = requests.blocking_recv() else {
                break;
            };
            let mut round = Round {
                batch: Batch::new(),
                now: HashMap::new(),
                accepted: Vec::new(),
            };
            let (mut next, mut bytes) = (Some(first), 0);
            while let Some(request) = next {
                match request {
                    Request::Write(write, answer) => {
                        bytes += write.len();
                        self.take(*write, answer, &mut round);
                    }
                    Request::Close(answer) => closing = Some(answer),
                }
                let full = round.accepted.len() >= ROUND_MAX || bytes >= ROUND_BYTES_MAX;
                next = if full || closing.is_some() {
                    None
                } else {
                    requests.try_recv().ok()
                };
            }
            self.finish(round);
        }
        // Files are closed and the lock is free before anyone is told so.
        drop(self);
        if let Some(answer) = closing {
            _ = answer.send(());
        }
    }

    fn take(&mut self, write: Write, answer: Answer, round: &mut Round) {
        match self.check(&write, round) {
            Err(error) => {
                _ = answer.send(Err(error));
            }
            Ok(previous) => self.accept(write, previous, answer, round),
        }
    }

    /// What is there now, if the writer was right about it.
    fn check(&self, write: &Write, round: &Round) -> Result<Option<Entry>, CommitError> {
        if let Some(why) = &self.failed
            && !self.spec(write.key.collection).volatile
        {
            return Err(CommitError::Disk(why.clone()));
        }
        let state = self.shared.read();
        let current = |key: &Key| match round.now.get(key) {
            Some(changed) => changed.clone(),
            None => state.get(key).cloned(),
        };
        for (key, revision) in &write.guards {
            if current(key).map(|e| e.revision) != Some(*revision) {
                let path = key.path().clone();
                return Err(CommitError::Guard { path });
            }
        }
        let entry = current(&write.key);
        let revision = entry.as_ref().map(|e| e.revision);
        if revision != write.expect {
            return Err(CommitError::Conflict { current: revision });
        }
        Ok(entry)
    }

    fn accept(&mut self, write: Write, previous: Option<Entry>, answer: Answer, round: &mut Round) {
        if self.revision == self.limit {
            self.limit += REVISION_BLOCK;
            round.batch.limit(self.limit);
        }
        let (revision, key) = (self.revision + 1, write.key);
        let spec = &self.specs[usize::from(key.collection.0)];
        let (value, deleted) = match write.change {
            Change::Put(template) => (template.fill(revision), false),
            Change::Delete(template) => (template.fill(revision), true),
        };
        let entry = Entry {
            revision,
            value: value.clone(),
        };
        if !spec.volatile && deleted {
            round.batch.delete(&spec.name, key.path(), revision);
        } else if !spec.volatile {
            match self.disk.payload(spec, key.path(), &entry) {
                Ok(bytes) => {
                    let is_new = previous.is_none();
                    round.batch.put(&spec.name, key.path(), revision, &bytes, is_new);
                }
                Err(why) => {
                    _ = answer.send(Err(CommitError::Disk(why.into())));
                    return;
                }
            }
        }
        self.revision = revision;
        let event = Event {
            revision,
            path: key.path().clone(),
            value,
            deleted,
            previous,
        };
        round.accepted.push((key.collection, event, answer));
        round.now.insert(key, (!deleted).then_some(entry));
    }

    fn finish(&mut self, round: Round) {
        if round.accepted.is_empty() {
            return;
        }
        if !round.batch.is_empty()
            && let Err(why) = self.write(round.batch, round.accepted.len())
        {
            tracing::error!(reason = %why, "the store cannot write and takes no more changes; reads go on");
            let why: Arc<str> = why.into();
            self.failed = Some(why.clone());
            self.shared.set_failed(&why);
            for (_, _, answer) in round.accepted {
                _ = answer.send(Err(CommitError::Disk(why.clone())));
            }
            return;
        }
        let mut touched = BTreeSet::new();
        let mut answers = Vec::with_capacity(round.accepted.len());
        {
            let mut state = self.shared.write();
            for (collection, event, answer) in round.accepted {
                let committed = Committed {
                    revision: event.revision,
                    value: event.value.clone(),
                };
                answers.push((answer, committed));
                state.apply(collection, event);
                touched.insert(collection);
            }
        }
        for collection in touched {
            self.shared.notify(collection, self.revision);
        }
        for (answer, committed) in answers {
            _ = answer.send(Ok(committed));
        }
    }

    fn write(&mut self, batch: Batch, writes: usize) -> Result<(), String> {
        let start = Instant::now();
        self.disk.write(batch)?;
        metrics::histogram!("svcnet_store_commit_duration_seconds").record(start.elapsed().as_secs_f64());
        metrics::counter!("svcnet_store_commits_total").increment(1);
        metrics::counter!("svcnet_store_writes_total").increment(writes as u64);
        Ok(())
    }

    fn spec(&self, collection: Collection) -> &CollectionSpec {
        &self.specs[usize::from(collection.0)]
    }
}
